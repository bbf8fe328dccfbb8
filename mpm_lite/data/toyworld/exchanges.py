"""Exchanges about a picture: what is asked, in which language, and the reply. Alignment and instruction data alike.

No exchange names its language: that a German question wants a German reply, the model has to see from the question.

The exception is *mBLIP's instruction mix* (2307.06930, section 3.2): eight types of task in many languages. Prompts are
English and say in which language to reply, as mBLIP's do; what is in another language was "machine-translated", with
mistakes where `noise` says so. How many examples a language gets is the sampling rule's to say.

*Choices* are the task that every system can do: which of ten captions belongs to the picture? Beside its own caption stand
five that are wrong in one attribute of one thing, and four of other pictures. The same ten scenes are told in every
language, so that a system's score in two languages differs by the language alone. What a caption alone betrays is measured,
by asking without the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data.languages import display_name
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.grammar import Question, answer
from mpm_lite.data.toyworld.noise import Noise, noisy_caption
from mpm_lite.data.toyworld.scenes import Scene, neighbours

CAPTION = "caption"


@dataclass(frozen=True)
class Exchange:
    """One question about one picture and the reply to it.

    `picture` is its number; `kind` is "caption" or a kind of closed question. `told` stands in the picture's place where
    the exchange is of text alone: the caption that the model reads instead.
    """

    picture: int
    language: str
    question: str
    reply: str
    kind: str = CAPTION
    told: str = ""
    options: tuple[str, ...] = ()  # of a closed question: the answers among which it is decided

    @property
    def prompt(self) -> str:
        """What stands before the reply, behind the soft tokens: the form in which text of discourse is written."""
        return f"{self.told}\n{self.question}\n"


def captions_asked(
    scenes: Sequence[Scene],
    languages: Sequence[str],
    seed: int = 0,
    noise: Noise | None = None,
    text_only: bool = False,
) -> list[Exchange]:
    """One for each scene: what the picture shows, asked and told in a language drawn from `languages`.

    `noise` spoils the replies. `text_only` puts a caption of the scene in the picture's place: another than the reply,
    where the scene has another.
    """
    rng = np.random.default_rng([seed, 11])
    found = []
    for i, scene in enumerate(scenes):
        language = languages[rng.integers(len(languages))]
        every = grammar.in_order_plans(scene, language)
        other, chosen = (every[k] for k in rng.permutation(len(every))[:2])
        told = grammar.say(other, language)[0] if text_only else ""
        if noise is None:
            reply = grammar.say(chosen, language)[0]
        else:
            reply = noisy_caption(scene, language, noise, rng, in_order=True)
        question = grammar.describe(language)
        found.append(Exchange(i, language, question, reply, told=told))
    return found


def questions_asked(
    scenes: Sequence[Scene],
    languages: Sequence[str],
    seed: int = 0,
    each: int = 1,
    kinds: Sequence[str] = grammar.KINDS,
    text_only: bool = False,
) -> list[Exchange]:
    """At most `each` closed questions of `kinds` on each scene with their answers, in a language drawn from `languages`.

    Which questions are drawn depends on the seed alone and not on the language, so two languages can be compared on the
    same ones.
    """
    rng, found = np.random.default_rng([seed, 12]), []
    for i, scene in enumerate(scenes):
        language = languages[rng.integers(len(languages))]
        every = list(zip(grammar.asked(scene), grammar.questions(scene, language), strict=True))
        order, which = rng.permutation(len(every)), rng.integers(2**31)
        told = ""
        if text_only:
            captions = grammar.in_order(scene, language)
            told = captions[which % len(captions)]
        for k in [k for k in order if every[k][0].kind in kinds][:each]:
            question, (asked, answer) = every[k]
            options = tuple(grammar.answers(question, language))
            found.append(Exchange(i, language, asked, answer, question.kind, told, options))
    return found


# mBLIP's instruction mix.

TASKS = ("caption", "detail", "answer", "ask", "match", "name", "named", "explain")
ENGLISH_ONLY = ("explain",)
# Percent of mBLIP's translated data, as its released code sets them after mC4; of 95 languages, these are ours.
MC4 = {
    "en": 43.843, "de": 6.089, "es": 6.594, "fr": 5.066, "zh": 2.396, "ja": 0.950, "ar": 1.031, "hi": 0.298, "sw": 0.0143,
    "tr": 1.479,
}  # fmt: skip
RULES = ("uniform", "tempered", "proportional")


def shares(languages: Sequence[str], rule: str) -> np.ndarray:
    """Each language's share of the examples under a rule, float64, summing to 1: all alike, by the root of
    their shares in mC4, or by those shares. UserError for a rule or a language that nobody knows."""
    if rule not in RULES:
        raise unknown("sampling rule", rule, RULES)
    for code in languages:
        grammar.grammar(code)
    power = {"uniform": 0.0, "tempered": 0.5, "proportional": 1.0}[rule]
    weight = np.array([MC4[code] ** power for code in languages])
    return weight / weight.sum()


def mix(
    scenes: Sequence[Scene], languages: Sequence[str], rule: str = "proportional", noise: Noise | None = None,
    tasks: Sequence[str] = TASKS, seed: int = 0,
) -> list[Exchange]:  # fmt: skip
    """One example for each scene: its task drawn evenly, its language by the rule. What a scene has no example of (a count,
    say) becomes a caption. Raises UserError for an unknown task."""
    for task in tasks:
        if task not in TASKS:
            raise unknown("task", task, TASKS)
    if not tasks:
        raise UserError("A mix of no tasks: name some.")
    rng, chance = np.random.default_rng([seed, 20]), shares(languages, rule)
    found = []
    for i, scene in enumerate(scenes):
        task, drawn = str(rng.choice(tasks)), str(rng.choice(languages, p=chance))
        language = "en" if task in ENGLISH_ONLY else drawn
        own = np.random.default_rng([seed, 21, i])  # so that another rule leaves the other examples as they are
        found.append(replace(example(task, scene, language, noise, own), picture=i))
    return found


def caption_prompt(language: str) -> str:
    """What asks for a caption."""
    return f"Caption in {display_name(language)}:"


def answer_prompt(question: str, language: str) -> str:
    """What asks for an answer, in a language, to a question in any."""
    return f"Question: {question} Short answer in {display_name(language)}:"


def match_prompt(caption: str) -> str:
    """What asks whether a caption fits."""
    return f'Does "{caption}" fit? Answer in English:'


def example(task: str, scene: Scene, language: str, noise: Noise | None, rng: np.random.Generator) -> Exchange:
    """One example of a task; of scenes that offer none, a caption."""
    told = lambda of=scene, code=language: _told(of, code, noise, rng)  # noqa: E731
    name = display_name(language)
    closed = [q for q in grammar.asked(scene) if (q.kind == "exists") == (task == "named")]
    if task == "detail":
        return _of(task, language, f"Describe in {name}:", f"{told()} {told()}")
    if task == "match":
        right = rng.random() < 0.5
        shown = scene if right else neighbours(scene, rng, 1)[0]
        return _of(task, language, match_prompt(told(shown)), "yes" if right else "no")
    if task == "name":
        thing = scene.things[rng.integers(len(scene.things))]
        noun = grammar.grammar(language).phrase(grammar.mention(thing, False), _bare(language))
        return _of(task, language, f"Name a thing in {name}:", noun)
    if task in ("answer", "ask", "named", "explain") and closed:
        q = closed[rng.integers(len(closed))]
        question, said = _asked(scene, q), answer(q, language)
        if task == "ask":
            return _of(task, language, f"Answer: {said} Question in English:", question)
        if task == "explain":
            return _of(task, language, f"Question: {question} Answer in English and say why:", f"{said} {told()}")
        return _of(task, language, answer_prompt(question, language), said)
    return _of("caption", language, caption_prompt(language), told())


def _of(task: str, language: str, prompt: str, reply: str) -> Exchange:
    return Exchange(0, language, prompt, reply, task)


def _told(scene: Scene, language: str, noise: Noise | None, rng: np.random.Generator) -> str:
    """A caption in full; of other languages than English, as the translator has it."""
    if language == "en" or noise is None:
        every = grammar.in_order(scene, language)
        return every[rng.integers(len(every))]
    return noisy_caption(scene, language, noise, rng, in_order=True)


def _asked(scene: Scene, question: Question) -> str:
    """A question in English."""
    every = zip(grammar.asked(scene), grammar.questions(scene, "en"), strict=True)
    return next(words for one, (words, _) in every if one == question)


def _bare(language: str) -> str:
    """The form of a noun phrase that stands alone: that of the shortest caption."""
    one = grammar.grammar(language)
    return one.all_patterns["exists", ""][0].slots[0][1]


# Choices.

CANDIDATES, HARD = 10, 5


def choices(many: Sequence[Scene], seed: int = 0, candidates: int = CANDIDATES, hard: int = HARD) -> list[list[Scene]]:
    """For each scene its candidates: itself, `hard` that are one attribute off, then others of `many`.

    Raises UserError where there are too few other scenes.
    """
    found, facts = [], [grammar.shown(scene) for scene in many]
    for i, scene in enumerate(many):
        rng = np.random.default_rng([seed, 15, int(scene.id, 16)])
        few = neighbours(scene, rng, hard, held_out=True)
        apart = [k for k in rng.permutation(len(many)) if facts[k] != facts[i] and many[k] not in few]
        rest = list({facts[k]: many[k] for k in apart[: 4 * candidates]}.values())[: candidates - 1 - len(few)]
        if 1 + len(few) + len(rest) < candidates:
            raise UserError(f"{len(many)} scenes are too few to choose among {candidates}: take more.")
        found.append([scene, *few, *rest])
    return found


@lru_cache(maxsize=100_000)
def caption(scene: Scene, language: str) -> str:
    """The first of the captions that tell a picture in full: of one form for all candidates of a kind."""
    return grammar.first_in_order(scene, language)


def english(many: Sequence[Scene]) -> list[str]:
    """An English caption of each scene in full: another one, where there is another, than the one among the candidates."""
    return [grammar.in_order(scene, "en")[-1] for scene in many]


def told(asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
    """The candidates' captions in a language, the picture's own first."""
    return [[caption(scene, language) for scene in few] for few in asked]


def right(scores: np.ndarray) -> np.ndarray:
    """Of scores (N, K), the picture's own caption first: 1.0 where it is above all others, a tie by equal shares, (N,)."""
    best = scores == scores.max(axis=1, keepdims=True)  # (N, K)
    return best[:, 0] / best.sum(axis=1)
