"""Exchanges about a picture: a question in some language and its reply, for alignment and for instruction tuning.

No exchange names its language: the model has to see from a German question that the reply should be German.

The exception is *mBLIP's instruction mix* (2307.06930, section 3.2): eight types of tasks in many languages. As in mBLIP, the
prompts are English and name the language of the reply. Everything in another language was "machine-translated", with mistakes
if there is `noise`. A sampling rule decides how many examples each language gets.

*Choices* are the task that every system can do: which of ten captions belongs to the picture? Beside its own caption there are
five that are wrong in one attribute of one thing, and four of other pictures. The same ten scenes are described in every
language, so that only the language can make a system's scores differ. How much the captions alone give away is measured by
asking without the picture.
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
from mpm_lite.data.toyworld.scenes import Scene, draw_neighbours, one_of

CAPTION = "caption"


@dataclass(frozen=True)
class Exchange:
    """One question about one picture and the reply to it.

    `picture` is the picture's number; `kind` is "caption" or a kind of closed question. In an exchange without a picture,
    `told` is the caption that the model reads instead.
    """

    picture: int
    language: str
    question: str
    reply: str
    kind: str = CAPTION
    told: str = ""
    options: tuple[str, ...] = ()  # of a closed question: the possible answers

    @property
    def prompt(self) -> str:
        """The text between the soft tokens and the reply, in the form that documents of discourse have."""
        return f"{self.told}\n{self.question}\n"


def ask_captions(
    scenes: Sequence[Scene], languages: Sequence[str], seed: int = 0, noise: Noise | None = None,
    text_only: bool = False,
) -> list[Exchange]:  # fmt: skip
    """One exchange for each scene, in a language drawn from `languages`: a request for a caption, and the caption.

    `noise` puts mistakes into the captions. With `text_only`, another caption of the scene than the reply stands in the
    picture's place.
    """
    rng, found = np.random.default_rng([seed, 11]), []
    for i, scene in enumerate(scenes):
        language = one_of(languages, rng)
        plans = grammar.in_order_plans(scene, language)
        other, chosen = (plans[k] for k in rng.permutation(len(plans))[:2])
        told = grammar.say(other, language)[0] if text_only else ""
        reply = grammar.say(chosen, language)[0]
        if noise is not None:
            reply = noisy_caption(scene, language, noise, rng, in_order=True)
        found.append(Exchange(i, language, grammar.describe(language), reply, told=told))
    return found


def ask_questions(
    scenes: Sequence[Scene], languages: Sequence[str], seed: int = 0, each: int = 1,
    kinds: Sequence[str] = grammar.KINDS, text_only: bool = False,
) -> list[Exchange]:  # fmt: skip
    """At most `each` closed questions of `kinds` about each scene with their answers, in a language drawn from `languages`.

    The seed alone decides which questions are drawn, so that two languages can be compared on the same questions.
    """
    rng, found = np.random.default_rng([seed, 12]), []
    for i, scene in enumerate(scenes):
        language = one_of(languages, rng)
        every = list(zip(grammar.asked(scene), grammar.questions(scene, language), strict=True))
        order, which = rng.permutation(len(every)), rng.integers(2**31)
        captions = grammar.in_order(scene, language) if text_only else [""]
        told = captions[which % len(captions)]
        for k in [k for k in order if every[k][0].kind in kinds][:each]:
            question, (asked, answer) = every[k]
            options = tuple(grammar.answers(question, language))
            found.append(Exchange(i, language, asked, answer, question.kind, told, options))
    return found


# mBLIP's instruction mix.

TASKS = ("caption", "detail", "answer", "ask", "match", "name", "named", "explain")
ENGLISH_ONLY = ("explain",)
# Each language's percentage of mBLIP's translated data, which its released code takes from mC4: our ten of 95 languages.
MC4 = {
    "en": 43.843, "de": 6.089, "es": 6.594, "fr": 5.066, "zh": 2.396, "ja": 0.950, "ar": 1.031, "hi": 0.298, "sw": 0.0143,
    "tr": 1.479,
}  # fmt: skip
RULES = ("uniform", "tempered", "proportional")


def share_languages(languages: Sequence[str], rule: str) -> np.ndarray:
    """Each language's share of the examples, float64, summing to 1. The rule makes shares equal ("uniform"), proportional to
    those in mC4, or proportional to their square roots ("tempered"). Raises UserError for an unknown rule or language."""
    if rule not in RULES:
        raise unknown("sampling rule", rule, RULES)
    for code in languages:
        grammar.grammar(code)
    power = {"uniform": 0.0, "tempered": 0.5, "proportional": 1.0}[rule]
    weight = np.array([MC4[code] ** power for code in languages])
    return weight / weight.sum()


def mix_tasks(
    scenes: Sequence[Scene], languages: Sequence[str], rule: str = "proportional", noise: Noise | None = None,
    tasks: Sequence[str] = TASKS, seed: int = 0,
) -> list[Exchange]:  # fmt: skip
    """One example for each scene: its task is drawn evenly, its language by the rule. If a scene has no example of the task
    (such as a question about a count), it becomes a caption. Raises UserError for an unknown task."""
    for task in tasks:
        if task not in TASKS:
            raise unknown("task", task, TASKS)
    if not tasks:
        raise UserError("A mix of no tasks: name some.")
    rng, chance = np.random.default_rng([seed, 20]), share_languages(languages, rule)
    found = []
    for i, scene in enumerate(scenes):
        task, drawn = str(rng.choice(tasks)), str(rng.choice(languages, p=chance))
        language = "en" if task in ENGLISH_ONLY else drawn
        own = np.random.default_rng([seed, 21, i])  # so that another rule does not change the rest of an example
        found.append(replace(example(task, scene, language, noise, own), picture=i))
    return found


def caption_prompt(language: str) -> str:
    """The prompt for a caption."""
    return f"Caption in {display_name(language)}:"


def answer_prompt(question: str, language: str) -> str:
    """The prompt for an answer in a language; the question may be in any."""
    return f"Question: {question} Short answer in {display_name(language)}:"


def match_prompt(caption: str) -> str:
    """The prompt that asks whether a caption fits the picture."""
    return f'Does "{caption}" fit? Answer in English:'


def example(task: str, scene: Scene, language: str, noise: Noise | None, rng: np.random.Generator) -> Exchange:
    """One example of a task; a caption, if the scene has no example of it."""
    told = lambda of=scene, code=language: _told(of, code, noise, rng)  # noqa: E731
    name = display_name(language)
    closed = [q for q in grammar.asked(scene) if (q.kind == "exists") == (task == "named")]
    if task == "detail":
        return _of(task, language, f"Describe in {name}:", f"{told()} {told()}")
    if task == "match":
        right = rng.random() < 0.5
        shown = scene if right else draw_neighbours(scene, rng, 1)[0]
        return _of(task, language, match_prompt(told(shown)), "yes" if right else "no")
    if task == "name":
        noun = grammar.grammar(language).phrase(grammar.mention(one_of(scene.things, rng), False), _bare(language))
        return _of(task, language, f"Name a thing in {name}:", noun)
    if task in ("answer", "ask", "named", "explain") and closed:
        q = one_of(closed, rng)
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
    """A full caption; in other languages than English with the translator's mistakes."""
    if language == "en" or noise is None:
        return one_of(grammar.in_order(scene, language), rng)
    return noisy_caption(scene, language, noise, rng, in_order=True)


def _asked(scene: Scene, question: Question) -> str:
    """The English words of a question."""
    every = zip(grammar.asked(scene), grammar.questions(scene, "en"), strict=True)
    return next(words for one, (words, _) in every if one == question)


def _bare(language: str) -> str:
    """The form of a noun phrase on its own: the one that it has in the shortest caption."""
    one = grammar.grammar(language)
    return one.all_patterns["exists", ""][0].slots[0][1]


# Choices.

CANDIDATES, HARD = 10, 5


def draw_candidates(
    many: Sequence[Scene], seed: int = 0, candidates: int = CANDIDATES, hard: int = HARD
) -> list[list[Scene]]:
    """The candidates for each scene: itself, `hard` scenes with one wrong attribute, then other scenes of `many`.

    Raises UserError if there are too few other scenes.
    """
    found, facts = [], [grammar.shown(scene) for scene in many]
    for i, scene in enumerate(many):
        rng = np.random.default_rng([seed, 15, int(scene.id, 16)])
        few = draw_neighbours(scene, rng, hard, held_out=True)
        apart = [k for k in rng.permutation(len(many)) if facts[k] != facts[i] and many[k] not in few]
        rest = list({facts[k]: many[k] for k in apart[: 4 * candidates]}.values())[: candidates - 1 - len(few)]
        if 1 + len(few) + len(rest) < candidates:
            raise UserError(f"{len(many)} scenes are too few to choose among {candidates}: take more.")
        found.append([scene, *few, *rest])
    return found


@lru_cache(maxsize=100_000)
def caption(scene: Scene, language: str) -> str:
    """The first of the full captions of a scene: candidates of one kind all have the same form."""
    return grammar.first_in_order(scene, language)


def write_english(many: Sequence[Scene]) -> list[str]:
    """A full English caption of each scene, and if there are several, another one than among the candidates."""
    return [grammar.in_order(scene, "en")[-1] for scene in many]


def write_candidates(asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
    """The captions of all candidates in a language, the picture's own first."""
    return [[caption(scene, language) for scene in few] for few in asked]


def score_choices(scores: np.ndarray) -> np.ndarray:
    """Whether the picture's own caption, the first of scores (N, K), scores best: 1.0 or 0.0, a tie in equal shares; (N,)."""
    best = scores == scores.max(axis=1, keepdims=True)  # (N, K)
    return best[:, 0] / best.sum(axis=1)
