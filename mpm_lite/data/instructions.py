"""Exchanges about a picture: what is asked, in which language, and the reply. Alignment and instruction data alike.

No exchange names its language: that a German question wants a German reply, the model has to see from the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpm_lite.data import grammar
from mpm_lite.data.noise import Noise, noisy_caption
from mpm_lite.data.scenes import Scene

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
