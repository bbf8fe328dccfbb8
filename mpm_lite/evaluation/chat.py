"""What MPM chat is asked about pictures, in which ways it may look, and the scores of its replies, picture by picture.

Pictures are looked at in three ways: *real*; *shuffled*, each with another's picture; *blind*, one mean picture for all.
Three looks are none, for a caption stands where the picture was: in *english* the gold caption in English, which is what
a perfect eye for the pivot language would bring; in *text* the gold caption in the asked language; in *translated* the
model's own English caption of the picture (translate-test by the same model). *Begun* is a real look whose reply must
begin as captions of the language asked do, with one token: "answer in this language", as a condition of its own. Chance
is what a model scores blind, in the same language.

*A logit lens* shows which words the frozen language model takes its soft tokens for, layer by layer: the state at a soft
token is put through the model's last norm and its head. Whether sight passes through English on its way to a German reply
is then a matter of counting how much of what the lens reads belongs to words of which language.

Shapes: N pictures, Q soft tokens, L layers of the model, V its vocabulary, K languages.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite.core.runtime import UserError, device_of, unknown
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar, text_mix
from mpm_lite.data.toyworld.exchanges import ask_questions
from mpm_lite.data.toyworld.scenes import Scene
from mpm_lite.evaluation import reply_scores
from mpm_lite.recipes.mpm_chat import MpmChat
from mpm_lite.towers import catalogue
from mpm_lite.towers.lm import LM

# The logit lens.

_NORMS = ("norm", "final_layer_norm", "ln_f")  # what families of models call the norm before the head


@torch.no_grad()
def read_probabilities(lm: LM, soft: Tensor, question: str = "") -> Tensor:
    """What the lens reads at each soft token (N, Q, D) in front of `question`: float32 (L + 1, N, Q, V), the soft tokens
    themselves first. UserError for a model that has no norm before its head, and for one of two halves."""
    norm = next((getattr(lm.model.base_model, n) for n in _NORMS if hasattr(lm.model.base_model, n)), None)
    if norm is None or lm.kind != "causal":
        raise UserError(
            f"{lm.name} has no norm between its layers and a head: a logit lens needs a causal model with one."
        )
    context = lm.read([f"\n{question}\n"] * len(soft), soft)
    layers = lm.all_layers(context)
    first = int(lm.rows([f"\n{question}\n"])[0])  # the soft tokens stand first, or behind a beginning-of-text token
    found = []
    for number, states in enumerate(layers):
        at = states[:, first : first + soft.shape[1]]
        last = number == len(layers) - 1  # transformers gives the last states behind the norm
        found.append(lm.head(at if last else norm(at)).float().softmax(dim=-1))
    return torch.stack(found)


def read_words(lm: LM, soft: Tensor, question: str = "", top: int = 3) -> pd.DataFrame:
    """The likeliest tokens at each soft token: picture, layer, query, rank, token, probability."""
    read = read_probabilities(lm, soft, question)
    best, which = read.topk(top, dim=-1)  # (L + 1, N, Q, top)
    tokens = lm.tokenizer.convert_ids_to_tokens(which.transpose(0, 1).flatten().tolist())
    places = itertools.product(*map(range, (read.shape[1], read.shape[0], read.shape[2], top)))
    table = pd.DataFrame(places, columns=["picture", "layer", "query", "rank"])
    return table.assign(token=tokens, probability=best.transpose(0, 1).flatten().tolist())


def token_languages(lm: LM, scenes: Sequence[Scene], languages: Sequence[str] = grammar.LANGUAGES) -> np.ndarray:
    """Whose a token is: the share of its occurrences in captions of these scenes by language, float64 (V, K).

    Tokens of no caption, and those that every language uses, such as a full stop, have zeros: they are nobody's.
    """
    counts = np.zeros((lm.vocabulary, len(languages)))
    for k, language in enumerate(languages):
        ids = [i for row in lm.encode([grammar.in_order(s, language)[0] for s in scenes], special=False) for i in row]
        counts[:, k] = np.bincount(ids, minlength=lm.vocabulary)
    rates = counts / counts.sum(axis=0).clip(min=1)
    total = rates.sum(axis=1, keepdims=True)
    shares = np.divide(rates, total, out=np.zeros_like(rates), where=total > 0)
    shares[(counts > 0).sum(axis=1) > len(languages) / 2] = 0
    return shares


def languages_read(
    lm: LM, soft: Tensor, question: str, shares: np.ndarray, languages: Sequence[str] = grammar.LANGUAGES
) -> Any:
    """How much of what the lens reads belongs to each language, pandas: layer, language, share (of what is anybody's).

    `shares` is what `token_languages` gives. Even use of all languages is 1 / K each.
    """
    read = read_probabilities(lm, soft, question).mean(dim=(1, 2)).double().cpu().numpy()  # (L + 1, V)
    of = read @ shares  # (L + 1, K)
    of = of / of.sum(axis=1, keepdims=True)
    rows = [(layer, code, of[layer, k]) for layer in range(len(of)) for k, code in enumerate(languages)]
    return pd.DataFrame(rows, columns=["layer", "language", "share"])


# How pictures are looked at, and replies are scored.

LOOKS = ("real", "shuffled", "blind", "english", "text", "translated", "begun")
WITHOUT_PICTURE = ("english", "text", "translated")
OF_CAPTIONS = tuple("exact slots content agreement reply_language withheld paired cider_d chrf bleu".split())
METRICS = (*OF_CAPTIONS, "answers", "nats", "choice")
ITEMS = ("seed", "lm", "lm_seed", "look", "language", "item", "concept", *METRICS)


def seed_of(lm: LM) -> int:
    """The seed of a toy language model, which says what words its translation pairs lack; 0 for any other."""
    seed = lm.name.partition(":")[2]
    return int(seed) if seed.isdigit() else 0


@lru_cache(maxsize=16)
def openings(language: str) -> tuple[str, ...]:
    """Captions of 500 training pictures: whatever captions of that language begin with is among them."""
    many = toyworld.split_scenes("train")[:500]
    return tuple(one for scene in many for one in grammar.in_order(scene, language))


@torch.no_grad()
def soft_tokens(recipe: MpmChat, seen: Tensor, look: str = "real") -> Tensor:
    """Soft tokens (N, Q, D) of pictures as the recipe takes them: each its own, another's (shuffled), or one mean picture's
    for all, unexpanded in memory (blind)."""
    count = len(seen)
    if look == "shuffled":
        seen = seen.roll(1, dims=0)
    if look == "blind":
        # In float32 and back: the sum of thousands of float16 numbers is infinite.
        seen = seen.float().mean(dim=0, keepdim=True).to(seen.dtype)
    recipe.eval()
    on = device_of(recipe)
    soft = torch.cat([recipe.predict({"seen": part.to(on)})["soft"] for part in seen.split(256)])
    return soft.expand(count, -1, -1) if look == "blind" else soft


class Asking(ABC):
    """What a bench does with a trained recipe. `seen(split, count, pixels)` gives it the pictures."""

    @abstractmethod
    def seen(self, split: str, count: int | None = None, pixels: bool = False, first: int = 0) -> Tensor:
        """Pictures of a split as a recipe takes them; see `mpm_chat.ChatBench`."""

    def open_prompt(self, language: str) -> str:
        """How a recipe is asked for a caption: by the question, in that language, which it learned from."""
        return grammar.describe(language)

    def closed_prompt(self, question: str, language: str) -> str:
        """How it is asked a question that is in that language."""
        return question

    def soft(self, recipe: MpmChat, split: str, count: int, look: str = "real", first: int = 0) -> Tensor | None:
        """Soft tokens (N, Q, D) of pictures of a split from the number `first` on, looked at in one of LOOKS; None where no
        picture is."""
        if look not in LOOKS:
            raise unknown("way to look", look, LOOKS)
        if look in WITHOUT_PICTURE:
            return None
        return soft_tokens(recipe, self.seen(split, count, recipe.options.connector == "queries", first), look)

    def test(
        self, recipe: MpmChat, seed: int, split: str = "test", languages: Sequence[str] = grammar.LANGUAGES,
        looks: Sequence[str] = ("real", "blind"), count: int | None = None, captions: bool = True, closed: int = 2,
        nats: bool = False, choice: bool = False, first: int = 0,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a look, language and picture: the caption's scores (`scored`), the share of `closed` questions right, with
        `choice` whether the picture's own caption is the likeliest of ten, and with `nats` what a token of a caption costs
        the language model as text (look "text" only; no picture is there).

        A closed question is decided among its answers by likelihood; the questions are the same in each language.
        """
        count = count or toyworld.COUNTS[split] - first
        many, frames = toyworld.split_scenes(split)[first : first + count], []
        ten = exchanges.draw_candidates(many, seed=0) if choice else []
        apart = text_mix.draw_withheld(seed_of(recipe.lm), catalogue.withheld(recipe.lm.name.partition(":")[0]))
        for look in looks:
            soft = self.soft(recipe, split, count, look, first)
            told = None
            if look == "translated":
                told = self.say(recipe, self.soft(recipe, split, count, first=first), many, "en")
            elif look == "english":
                told = exchanges.write_english(many)
            for language in languages:
                frame = pd.DataFrame(index=range(count), columns=list(METRICS), dtype=float)
                if look == "text":
                    told = [grammar.in_order(scene, language)[0] for scene in many]
                if captions:
                    said = self.say(recipe, soft, many, language, told, look == "begun")
                    frame.update(self.scored(said, many, language, apart))
                if closed:
                    frame["answers"] = self.answered(recipe, soft, many, language, closed, told)
                if choice:
                    asked = exchanges.write_candidates(ten, language)
                    frame["choice"] = exchanges.score_choices(self.likelihoods(recipe, soft, asked, language, told))
                if nats and look == "text":
                    frame["nats"] = self.nats(recipe, many, language)
                known = {"seed": seed, "lm": recipe.lm.name.split(":")[0], "lm_seed": seed_of(recipe.lm)}
                known |= {"look": look, "language": language}
                frames.append(frame.assign(**known, **toyworld.name_items(many)))
        return pd.concat(frames, ignore_index=True)[list(ITEMS)]

    def scored(
        self, said: Sequence[str], many: Sequence[Scene], language: str, apart: frozenset[str] = frozenset()
    ) -> pd.DataFrame:
        """The scores OF_CAPTIONS of replies, one row a picture, all from 0 to 1.

        n-grams are held against all that the grammar says of the picture. CIDEr-D is a tenth of what is usually printed,
        chrF and BLEU a hundredth; these two are of all replies together and the same in each row.
        """
        pairs = zip(said, many, strict=True)
        frame = pd.DataFrame([reply_scores.score_caption(one, scene, language, apart) for one, scene in pairs])
        gold = [grammar.in_order(scene, language) for scene in many]
        corpus = reply_scores.score_corpus(said, gold, language)
        by_picture = reply_scores.cider_d(said, gold, language) / 10
        return frame.assign(cider_d=by_picture, chrf=corpus["chrf"] / 100, bleu=corpus["bleu"] / 100)

    def say(
        self, recipe: MpmChat, soft: Tensor | None, many: Sequence[Scene], language: str,
        told: Sequence[str] | None = None, begun: bool = False,
    ) -> list[str]:  # fmt: skip
        """What the model replies when it is asked, in that language, what the picture shows; `told` stands in front.

        `begun`: the reply's first token is one with which training captions of that language begin; which, it chooses.
        """
        prompts = [f"{one}\n{self.open_prompt(language)}\n" for one in told or [""] * len(many)]
        # Blind, all soft tokens are the same, and so is the reply.
        if soft is not None and soft.stride(0) == 0 and len(set(prompts)) == 1:
            return recipe.lm.generate(prompts[:1], soft[:1], stop="\n", new_tokens=64) * len(many)
        begin = openings(language) if begun else ()
        return recipe.lm.generate(prompts, soft, stop="\n", new_tokens=64, begin=begin)

    def likelihoods(
        self, recipe: MpmChat, soft: Tensor | None, captions: Sequence[Sequence[str]], language: str,
        told: Sequence[str] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Log-likelihood of K captions a picture as replies to the question that asks for one, float64 (N, K)."""
        each = len(captions[0])
        prompts = [f"{one}\n{self.open_prompt(language)}\n" for one in told or [""] * len(captions)]
        soft = None if soft is None else soft.repeat_interleave(each, dim=0)
        flat = [caption for few in captions for caption in few]
        found = recipe.lm.log_likelihood([p for p in prompts for _ in range(each)], flat, soft)
        return found.reshape(len(captions), each)

    def agreements(self, recipe: MpmChat, soft: Tensor, asked: Sequence[Sequence[Scene]], language: str) -> np.ndarray:
        """How well the recipe's own caption of each picture agrees with each of K scenes, float64 (N, K): the F1 of the
        attributes that it names in the language asked and of those that the scene shows."""
        said = self.say(recipe, soft, [few[0] for few in asked], language)
        return np.array(
            [[reply_scores.agree(one, scene, language) for scene in few] for one, few in zip(said, asked, strict=True)]
        )

    def answered(
        self, recipe: MpmChat, soft: Tensor | None, many: Sequence[Scene], language: str, each: int = 2,
        told: Sequence[str] | None = None, reply: str = "",
    ) -> np.ndarray:  # fmt: skip
        """The share of the closed questions on each picture whose right answer is the likeliest, float64 (N,). Answers are in
        the language `reply` or, where that is "", in the language of the question."""
        asked, given = (ask_questions(many, [code], seed=5, each=each) for code in (language, reply or language))
        of, own = np.array([e.picture for e in asked]), told or [""] * len(many)
        prompts = [f"{own[e.picture]}\n{self.closed_prompt(e.question, reply or language)}\n" for e in asked]
        seen = None if soft is None else soft[torch.from_numpy(of)]
        picks = recipe.lm.choose(prompts, [e.options for e in given], seen)
        right = [e.options[pick] == e.reply for e, pick in zip(given, picks, strict=True)]
        return np.bincount(of, right, len(many)) / np.maximum(np.bincount(of, minlength=len(many)), 1)

    def free_answers(
        self, recipe: MpmChat, soft: Tensor | None, many: Sequence[Scene], language: str, each: int = 4,
        kinds: Sequence[str] = grammar.KINDS, told: Sequence[str] | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Several different questions about each picture, answered in the model's own words: one row a question.

        Columns: language, item, kind, question, reply, answer, and two scores of 0 or 1. `understood`: the reply is the right
        answer to this very question, in whichever of the ten languages. `in_language`: it is the right answer in the language
        asked. `soft` is (N, Q, D), one row for each scene; or None, and `told` has a caption to stand in each picture's place.
        """
        ways = {code: ask_questions(many, [code], seed=5, each=each, kinds=kinds) for code in grammar.LANGUAGES}
        asked = ways[language]
        seen = None if soft is None else soft[torch.tensor([e.picture for e in asked])]
        own = told or [""] * len(many)
        prompts = [f"{own[e.picture]}\n{self.closed_prompt(e.question, language)}\n" for e in asked]
        replies = recipe.lm.generate(prompts, seen, stop="\n", new_tokens=64)
        rows = []
        for k, (one, reply) in enumerate(zip(asked, replies, strict=True)):
            right = {code: ways[code][k].reply for code in ways}
            scores = {"understood": float(reply in right.values()), "in_language": float(reply == right[language])}
            known = {"language": language, "item": many[one.picture].id, "kind": one.kind, "question": one.question}
            rows.append(known | {"reply": reply, "answer": one.reply} | scores)
        return pd.DataFrame(rows)

    def nats(self, recipe: MpmChat, many: Sequence[Scene], language: str) -> np.ndarray:
        """Cross-entropy per token, in nats, of a caption of each scene as text of that language, float64 (N,)."""
        said = [grammar.in_order(scene, language)[0] for scene in many]
        lengths = [len(row) + 1 for row in recipe.lm.encode(said, special=False)]
        return -recipe.lm.log_likelihood([""] * len(said), said) / np.array(lengths)
