"""Noise for captions and for machine translation, as dials: wrong words, missing words, wrong forms, words left in English.

    noisy_caption(scene, "de", Noise(swap=0.2), rng)         a German caption in which a fifth of the attributes are wrong
    translate(scene, facts, "de", Noise(english=0.1), rng)   a translation of what `facts` states, with such mistakes

`levels` measures the effect of a dial: chrF (sacrebleu) against the same captions without noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from mpm_lite.core.runtime import UserError
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.grammar import Facts, Mention
from mpm_lite.data.toyworld.scenes import ATTRIBUTES, Scene, one_of


@dataclass(frozen=True)
class Noise:
    """The chance of each mistake: `swap` and `omit` per attribute of a thing, `agreement` and `english` per word.

    swap: another shape, colour or size, in its right form. omit: a colour or size is left out (a shape cannot be).
    agreement: a word is in another of its forms, if the language has several. english: a content word stays in English.
    """

    swap: float = 0.0
    omit: float = 0.0
    agreement: float = 0.0
    english: float = 0.0

    @classmethod
    def alike(cls, chance: float) -> Noise:
        """The mistakes of a translator: words swapped, left out and in wrong forms, all with the same chance."""
        return cls(chance, chance, chance)

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise UserError(f"{field.name} is a chance between 0 and 1, not {getattr(self, field.name)}.")


def noisy_caption(scene: Scene, language: str, noise: Noise, rng: np.random.Generator, in_order: bool = False) -> str:
    """One caption of the scene with mistakes; without noise, a correct caption.

    `in_order`: one of the captions that describe the picture in full (`grammar.in_order`).
    """
    every = grammar.in_order_plans if in_order else grammar.plans
    return _spoilt(every(scene, language), language, noise, rng)


def translate(scene: Scene, facts: Facts, language: str, noise: Noise, rng: np.random.Generator) -> str:
    """A machine translation, with such noise, of a caption that states `facts`. Raises UserError if no caption states them."""
    every = [plan for plan in grammar.plans(scene, language) if grammar.say(plan, language)[1] == facts]
    if not every:
        raise UserError(f"No caption of scene {scene.id} in {language!r} states just that: take its own facts.")
    return _spoilt(every, language, noise, rng)


def _spoilt(plans: Sequence[Any], language: str, noise: Noise, rng: np.random.Generator) -> str:
    # The choice of the caption and each kind of mistake have random streams of their own: with one seed, more noise adds
    # mistakes to the same caption and changes nothing else.
    pick, attributes, forms, english = (np.random.default_rng(s) for s in rng.integers(2**62, size=4))
    plan = one_of(plans, pick)
    text, facts = grammar.say(plan, language)
    held = grammar.held_out(facts)
    for _ in range(20):
        changed: dict[Mention, Mention] = {}
        for _, named in plan:
            for mention in named.values():
                if mention not in changed:
                    changed[mention] = _mistaken(mention, noise, attributes)
        spoilt = [(pattern, {name: changed[m] for name, m in named.items()}) for pattern, named in plan]
        wrong, says = grammar.say(spoilt, language)
        # A mistake that shows what a split holds out is drawn again.
        if grammar.held_out(says) <= held:
            text = wrong
            break
    text = _reworded(text, language, noise.agreement, forms, _other_form)
    return _reworded(text, language, noise.english, english, _in_english) if language != "en" else text


def _mistaken(mention: Mention, noise: Noise, rng: np.random.Generator) -> Mention:
    for slot, values in ATTRIBUTES.items():
        now = getattr(mention, slot)
        swap, omit, which = rng.random(), rng.random(), rng.integers(len(values) - 1)
        if now is None:
            continue
        if slot != "shape" and omit < noise.omit:
            mention = replace(mention, **{slot: None})
        elif swap < noise.swap:
            mention = replace(mention, **{slot: [v for v in values if v != now][which]})
    return mention


def _reworded(text: str, language: str, share: float, rng: np.random.Generator, other: Any) -> str:
    """The text with a share of its words replaced by `other(word, language, draw)`, where that is not None."""
    one = grammar.grammar(language)
    found, at = [], 0
    low = one.lower(text)
    for token in one.tokens(text):
        chance, draw = rng.random(), rng.random()
        place = low.find(token, at)
        if place < 0:
            continue
        instead = other(token, language, draw) if chance < share else None
        now = text[place : place + len(token)]
        if instead is not None and now[:1].isupper():
            instead = instead[:1].upper() + instead[1:]
        found += [text[at:place], now if instead is None else instead]
        at = place + len(token)
    return "".join([*found, text[at:]])


def _other_form(word: str, language: str, draw: float) -> str | None:
    forms = grammar.other_forms(word, language)
    return forms[int(draw * len(forms))] if forms else None


def _in_english(word: str, language: str, draw: float) -> str | None:
    slot, value = grammar.grammar(language).spotted.get(word, ("", ""))
    if slot not in ATTRIBUTES:
        return None
    # Even in a script without spaces, a foreign word stands apart.
    return value if grammar.grammar(language).spaced else f" {value} "


def levels(
    scenes: Sequence[Scene], languages: Sequence[str], strengths: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.4)
) -> pd.DataFrame:
    """A table of chrF against the captions without noise: dial, strength, language, chrf, changed, n.

    `changed` is the share of captions that differ; for agreement it is 0 in a language whose words have only one form.
    """
    from sacrebleu.metrics import CHRF

    rows = []
    for language in languages:
        gold = [noisy_caption(s, language, Noise(), np.random.default_rng(i)) for i, s in enumerate(scenes)]
        for dial in asdict(Noise()):
            for strength in strengths:
                noise = Noise(**{dial: strength})
                said = [noisy_caption(s, language, noise, np.random.default_rng(i)) for i, s in enumerate(scenes)]
                changed = float(np.mean([a != b for a, b in zip(said, gold, strict=True)]))
                chrf = CHRF().corpus_score(said, [gold]).score
                rows.append((dial, strength, language, round(chrf, 2), round(changed, 4), len(scenes)))
    return pd.DataFrame(rows, columns=["dial", "strength", "language", "chrf", "changed", "n"])
