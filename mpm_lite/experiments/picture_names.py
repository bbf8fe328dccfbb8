"""MPM chat on real pictures: held-out emoji and stamps named in fourteen languages after English names only.

    mpm-lite run mpm_names --seeds 3      language models, connectors, scores; a quarter of an hour a seed on two cores

The language model is small and ours, with an encoder before it that read a hundred languages: from the encoder's vector
of a name in one language it learned to write the name in another, as text, those of held-out pictures too. So it may
recite. Beside every look at a picture stand the same model blind, and the name of the nearest training picture, which
needs no language model. A held-out picture's concept is in no training picture at all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key, digest
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import keep_features, keep_weights
from mpm_lite.data import CaptionSet, is_available, load_captions, names
from mpm_lite.evaluation.chat import seed_of, soft_tokens
from mpm_lite.evaluation.stats import Sample
from mpm_lite.experiments.system import System, deciding_dials, image_tower, text_tower
from mpm_lite.recipes.base import Stage
from mpm_lite.recipes.mpm_chat import Exchanges, MpmChat, MpmChatOptions
from mpm_lite.recipes.pretraining.language_model import LanguageModel, LanguageModelOptions
from mpm_lite.towers.feature_cache import patch_features
from mpm_lite.towers.lm import LM
from mpm_lite.towers.text import BREAK, train_tokenizer
from mpm_lite.training import loop

TESTED = ("emoji", "stamps")
LOOKS = ("real", "shuffled", "blind")
NEAREST = "nearest"  # not a look of the model: the name of the training picture that looks most alike
METRICS = ("exact", "chrf", "choice")
GRID = 4  # patches along a side
SIZES = VOCABULARY, DOCUMENTS = 8_000, 100_000
CANDIDATES = 10
FEWEST = 100  # held-out names in a language, or it is left out


@dataclass(frozen=True)
class Naming(System):
    """One arm: which encoder the language model reads with, what it read, and the dials of both trainings.

    UserError for a dial nobody knows.
    """

    name = "mpm_names"
    Options = MpmChatOptions
    world = "emoji+stamps"
    looks = ("real", "shuffled", "blind")
    asks = ("split", "tested", "languages", "looks", "fewest")

    text: str = "e5-small"
    image: str = "efficientnet-lite1"
    sets: tuple[str, ...] = names.SETS
    parallel: float = 0.5  # share of documents that name a thing in two languages
    reading: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def reading_options(self) -> MpmChatOptions:
        """Of learning to read: the language model learns too."""
        own = {"queries": 4, "layers": 1, "steps": 4_000, "batch": 64, "thawed": "all", "tune_lr": 2e-3}
        return self.options_of(MpmChatOptions, own | self.reading)

    @property
    def recipe_options(self) -> MpmChatOptions:
        """Of MPM chat."""
        return self.options_of(MpmChatOptions, {"steps": 600} | self.options)

    def bench(self, progress: bool = True) -> NameBench:
        """Pictures of the sets through its image tower."""
        return NameBench(self.image, progress)

    def towers_key(self) -> dict[str, str]:
        """Its towers' weights."""
        image, text = image_tower(self.image), text_tower(self.text)
        return {"image weights": image.fingerprint, "text weights": text.fingerprint}

    def data_key(self, split: str) -> dict[str, str]:
        """Pictures and names of all sets that are here."""
        every = dict.fromkeys((*TESTED, *names.SETS))
        asked = {f"pictures of {one}": load_captions(one, split, "all").digest for one in every if is_available(one)}
        return {"training pictures": load_captions(present_sets(self.sets), "train", "all").digest} | asked


class SeeNames(MpmChat):
    """MPM chat before a language model that reads vectors of a text encoder: what learns brings a picture to where that
    encoder would put its name. Features of pictures (N, P, D_in)."""

    name = "mpm_names"

    def __init__(self, reads: MpmChat, d_in: int, options: MpmChatOptions) -> None:
        super().__init__(reads.lm, d_in, 1, options)
        self.visual = nn.ModuleDict({"see": Vector(d_in, reads.d_in), "read": copy.deepcopy(reads.visual)})

    def stages(self) -> list[Stage]:
        still = ("image tower", "text encoder", "what reads its vectors", "language model")
        return [replace(stage, learns=("visual.see",), frozen=still) for stage in super().stages()]

    def see(self, seen: Tensor) -> Tensor:
        """Patches (N, P, D_in) -> soft tokens (N, Q, D)."""
        return self.visual["read"](self.visual["see"](seen))


class Vector(nn.Module):
    """Patches (N, P, D_in) -> one vector of a text encoder's width (N, 1, D)."""

    def __init__(self, d_in: int, d_text: int) -> None:
        super().__init__()
        self.norm, self.turn = nn.LayerNorm(d_in), nn.Linear(d_in, d_text)

    def forward(self, patches: Tensor) -> Tensor:
        """The mean patch, turned."""
        return self.turn(self.norm(patches.mean(dim=1, keepdim=True)))


def train_reader(arm: Naming, seed: int = 0, progress: bool = True) -> MpmChat:
    """A language model that reads vectors of the arm's text encoder and writes names: trained now on text alone, or read
    back from MPM_LITE_HOME/names."""
    tower = text_tower(arm.text)
    things = names.read_names(arm.sets)
    every = sorted({name for thing in things for name in thing.names.values()})
    tokenizer = train_tokenizer(
        [*every, *(names.ask_name(code) for code in names.LANGUAGES for _ in range(2_000))], VOCABULARY
    )
    torch.manual_seed(seed)
    # Wider than the language models of the toy world, for there are more words.
    own = LanguageModelOptions(width=192, hidden=384, context=64, compiled=False, bf16=False)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    decoder = LanguageModel(len(tokenizer), own, **special).decoder
    many = list(islice(names.write_documents(arm.parallel, seed, arm.sets), DOCUMENTS))
    said = [
        "standardised",
        tower.fingerprint,
        str(sorted(deciding_dials(arm.reading_options).items())),
        str(SIZES),
        str(seed),
    ]
    key = Key("a language model that reads names", {"settings": said, "documents": [d.text for d in many[:500]]})
    lm = LM(f"names:{seed}", decoder, tokenizer, key.digest, torch.device("cpu"), frozenset(names.LANGUAGES))
    recipe = MpmChat(lm, tower.width, 1, arm.reading_options)
    path = runtime.home() / "names" / f"{key.digest[:24]}.safetensors"

    def learn(work: Path) -> dict[str, Tensor]:
        data = _name_documents(lm, tower, every, many, progress)
        loop.fit(recipe, data, loop.Plan(seed, work, 500, progress=progress, label=f"reading names, seed {seed}"))
        return recipe.state_dict()

    recipe.load_state_dict(keep_weights(path, learn, key))
    return recipe.eval()


def _name_documents(
    lm: LM, tower: Any, every: list[str], many: Sequence[names.NameDocument], progress: bool
) -> Exchanges:
    """Documents as training data: the vector of the first name stands where a picture will, the reply is the second."""
    of_names = Key("vectors of names", {"kind": "names", "weights": tower.fingerprint, "names": digest(every)})
    vectors = keep_features(of_names, lambda: tower.encode(every, progress=progress))
    place = {name: i for i, name in enumerate(every)}
    # All names lie close together in an encoder's space: what tells them apart is what is left without their mean.
    spread = vectors.std(0)
    # Some encoders have a number that hardly moves: it says nothing, and is not to be made loud.
    vectors = (vectors - vectors.mean(0)) / np.maximum(spread, 1e-2 * spread.mean())
    seen = torch.from_numpy(vectors.astype(np.float16))[:, None]  # (M, 1, D)
    of = [(place[d.segments[0]], f"\n{d.segments[1]}\n", d.segments[2]) for d in many]
    return Exchanges(lm, seen, *zip(*of, strict=True))


class NameBench:
    """Pictures of the sets through one image tower, cached; trains arms on their English names and asks for others."""

    def __init__(self, image: str = "efficientnet-lite1", progress: bool = True) -> None:
        self.tower, self.progress = image_tower(image), progress
        self._seen: dict[tuple[str, str], tuple[CaptionSet, Tensor]] = {}

    def seen(self, sets: str, split: str) -> tuple[CaptionSet, Tensor]:
        """The captions of a split of some sets ("emoji+stamps") in all languages, and float16 patches (N, P, D_in)."""
        if (sets, split) not in self._seen:
            captions = load_captions(sets, split, "all")
            patches = patch_features(captions, self.tower, self.progress, GRID)
            self._seen[sets, split] = captions, torch.from_numpy(patches)
        return self._seen[sets, split]

    def train(self, arm: Naming, seed: int) -> SeeNames:
        """MPM chat of an arm: stage 1 on the English names of all training pictures."""
        reads = train_reader(arm, seed, self.progress)
        captions, seen = self.seen(present_sets(arm.sets), "train")
        torch.manual_seed(seed)
        recipe = SeeNames(reads, seen.shape[2], arm.recipe_options)
        said = captions.captions["en"]
        data = Exchanges(recipe.lm, seen, range(len(said)), [ask_name("en")] * len(said), said)
        loop.fit(recipe, data, loop.Plan(seed, progress=self.progress, label=f"English names, seed {seed}"))
        return recipe.eval()

    def test(
        self, recipe: MpmChat, seed: int, split: str = "test", tested: Sequence[str] = TESTED,
        languages: Sequence[str] = names.LANGUAGES, looks: Sequence[str] = LOOKS, fewest: int = FEWEST,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a set, look, language and picture with a name in that language: exact, chrf (0 to 1), choice (of ten
        names in that language, is the right one the likeliest?), and what was said. UserError for an unknown look."""
        frames = []
        for look in looks:
            if look not in LOOKS:
                raise unknown("way to look", look, LOOKS)
        for one in [one for one in tested if is_available(one)]:
            captions, seen = self.seen(one, split)
            soft = {look: soft_tokens(recipe, seen, look) for look in looks}
            for language in [code for code in languages if code in captions.languages]:
                chosen = captions.with_caption(language)
                if len(chosen) < fewest:
                    continue
                gold = [captions.captions[language][i] for i in chosen]
                few = [[gold[k] for k in each] for each in draw_candidates(gold, seed)]
                found = {look: self._reply(recipe, soft[look][chosen], language, few) for look in looks}
                found[NEAREST] = self._nearest(seen[chosen], language, few)
                for look, (said, picked) in found.items():
                    scores = pd.DataFrame({"gold": gold, "said": said, "picked": picked})
                    scores["exact"] = [
                        float(normalise_name(s) == normalise_name(g)) for s, g in zip(said, gold, strict=True)
                    ]
                    scores["chrf"] = [chrf(s, g) for s, g in zip(said, gold, strict=True)]
                    scores["choice"] = [
                        float(normalise_name(s) == normalise_name(g)) for s, g in zip(picked, gold, strict=True)
                    ]
                    items, concepts = ([of[i] for i in chosen] for of in (captions.ids, captions.concepts))
                    known = {"set": one, "language": language, "look": look, "item": items, "concept": concepts}
                    frames.append(scores.assign(**known))
        if not frames:
            raise UserError(f"None of {', '.join(tested)} has {fewest} names to ask for in {', '.join(languages)}.")
        return pd.concat(frames, ignore_index=True).assign(seed=seed, lm_seed=seed_of(recipe.lm))

    def _reply(self, recipe: MpmChat, soft: Tensor, language: str, few: list[list[str]]) -> tuple[list[str], list[str]]:
        """What the model says of each picture, and which of its candidates it finds likeliest."""
        prompts = [ask_name(language)] * len(soft)
        said = recipe.lm.generate(prompts, soft, stop=BREAK, new_tokens=32)
        return said, [each[i] for each, i in zip(few, recipe.lm.choose(prompts, few, soft), strict=True)]

    def _nearest(self, shown: Tensor, language: str, few: list[list[str]]) -> tuple[list[str], list[str]]:
        """The name in that language of the training picture that looks most alike, and the candidate closest to it."""
        captions, seen = self.seen(present_sets(TESTED), "train")
        there = captions.with_caption(language)
        own, other = (torch.nn.functional.normalize(x.float().mean(1), dim=-1) for x in (shown, seen[there]))
        said = [captions.captions[language][there[i]] for i in (own @ other.T).argmax(dim=1).tolist()]
        return said, [max(each, key=lambda name, one=one: chrf(one, name)) for one, each in zip(said, few, strict=True)]


def present_sets(sets: Sequence[str]) -> str:
    """Those of some sets that are on this machine, as one name ("emoji+stamps")."""
    return "+".join(one for one in sets if is_available(one))


def ask_name(language: str) -> str:
    """The prompt: soft tokens stand where a name would, then the question."""
    return f"\n{names.ask_name(language)}\n"


def draw_candidates(gold: Sequence[str], seed: int, count: int = CANDIDATES) -> list[list[int]]:
    """For each name its own number and those of others that read differently, in a drawn order; the same for a seed."""
    rng, found = np.random.default_rng([seed, 31]), []
    for i, own in enumerate(gold):
        others = [int(k) for k in rng.permutation(len(gold)) if normalise_name(gold[k]) != normalise_name(own)]
        found.append([int(k) for k in rng.permutation([i, *others[: count - 1]])])
    return found


def normalise_name(name: str) -> str:
    """A name without case and marks: what counts as equal."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def chrf(said: str, gold: str) -> float:
    """chrF of one name against another (sacrebleu), 0 to 1."""
    from sacrebleu.metrics import CHRF

    return CHRF().sentence_score(said, [gold]).score / 100


def name_table(items: pd.DataFrame, draws: int = 1000) -> pd.DataFrame:
    """One row a set, language and metric: the score of every look, the retention rho with its interval, and n.

    Chance is the blind score in that language; English is scored on exactly the pictures that have a name in it.
    """
    found = []
    for (one, language), of in items[items["look"] == "real"].groupby(["set", "language"], sort=False):
        there = items[(items["set"] == one) & items["language"].isin(["en", language]) & items["item"].isin(of["item"])]
        sample = Sample(there.assign(arm="mpm"), draws)
        for metric in METRICS:
            looks = {look: sample.score("mpm", language, metric, look).interval for look in there["look"].unique()}
            row = {look: figure.value for look, figure in looks.items()}
            row |= {"real_low": looks["real"].low, "real_high": looks["real"].high}
            rho = sample.rho("mpm", language, metric).interval
            row |= {"rho": rho.value, "rho_low": rho.low, "rho_high": rho.high, "n": sample.n}
            found.append({"set": one, "language": language, "metric": metric, **row})
    return pd.DataFrame(found)
