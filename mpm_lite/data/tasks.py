"""The instruction mix of mBLIP (2307.06930, section 3.2) on the toy world: eight types of task, told in many languages.

Prompts are English and say in which language to reply, as mBLIP's do; what is in another language was "machine-translated",
with mistakes where `noise` says so. How many examples a language gets is the sampling rule's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpm_lite.data import grammar
from mpm_lite.data.grammar import Question, answer
from mpm_lite.data.instructions import Exchange
from mpm_lite.data.noise import Noise, noisy_caption
from mpm_lite.data.scenes import Scene, neighbours
from mpm_lite.runtime import UserError, unknown

NAMES = {
    "en": "English", "de": "German", "es": "Spanish", "fr": "French", "zh": "Chinese", "ja": "Japanese", "ar": "Arabic",
    "hi": "Hindi", "sw": "Swahili", "tr": "Turkish",
}  # fmt: skip
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
    return f"Caption in {NAMES[language]}:"


def answer_prompt(question: str, language: str) -> str:
    """What asks for an answer, in a language, to a question in any."""
    return f"Question: {question} Short answer in {NAMES[language]}:"


def match_prompt(caption: str) -> str:
    """What asks whether a caption fits."""
    return f'Does "{caption}" fit? Answer in English:'


def example(task: str, scene: Scene, language: str, noise: Noise | None, rng: np.random.Generator) -> Exchange:
    """One example of a task; of scenes that offer none, a caption."""
    told = lambda of=scene, code=language: _told(of, code, noise, rng)  # noqa: E731
    name = NAMES[language]
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
