"""One scene of the toy world as everyone sees it: the picture, ten captions, and what each language model makes of them.

mpm-lite world            a scene of test, its captions, and each model's answers
mpm-lite world --seed 3   another
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from mpm_lite.data import grammar, text
from mpm_lite.data.scenes import Scene, scenes
from mpm_lite.runtime import UserError
from mpm_lite.towers.lm import load_lm
from mpm_lite.towers.toys import TOY_LMS

_LETTERS = {"circle": "o", "square": "#", "triangle": "^", "star": "*", "heart": "v", "flower": "@", "book": "="}


def pair_of_test(number: int) -> Scene:
    """The test scene of two things with that number."""
    return next(islice((scene for scene in scenes("test") if scene.kind == "pair"), number, None))


def sketch(scene: Scene) -> str:
    """The three by three grid in letters: shape signs, twice for large things, with the first letters of the colour."""
    cells = {(t.row, t.column): _LETTERS[t.shape] * (1 + (t.size == "large")) + t.colour[:3] for t in scene.things}
    return "\n".join(" ".join(f"{cells.get((row, column), '.'):^6}" for column in range(3)) for row in range(3))


def lines(
    seed: int = 0, models: Sequence[str] = (*TOY_LMS, "toy-mixed"), languages: Sequence[str] = grammar.LANGUAGES
) -> Iterator[str]:
    """The page, line by line: the scene, its captions, and what each model says when it has read one.

    A model reads the caption in a language and is asked, in the same language, what the picture shows; and it reads the
    English caption and is asked in the other language. (right) marks an answer that states exactly what was read. Of a
    model that is not among the assets, the line says how to make it.
    """
    scene = pair_of_test(seed)
    yield f"Scene {scene.id}, of test\n{sketch(scene)}\n"
    rng = np.random.default_rng(seed)
    pairs = {code: text.translations(scene, text.PIVOT, code, rng) for code in languages}
    for code in languages:
        yield f"{code}  {pairs[code][2]}"
    for name in models:
        try:
            lm = load_lm(name)
        except UserError as missing:
            yield f"\n{missing}"
            continue
        yield f"\n{name}, read {', '.join(code for code in languages if code in lm.languages)}"
        own = [f"{pairs[code][2]}\n{grammar.describe(code)}\n" for code in languages]
        english = [f"{pairs[code][1]}\n{grammar.describe(code)}\n" for code in languages]
        said = lm.generate([*own, *english], stop="\n")
        for i, code in enumerate(languages):
            for what, reply in {code: said[i], text.PIVOT: said[len(languages) + i]}.items():
                right = grammar.parse(reply, code) == pairs[code][0]
                yield f"  {what} > {code}  {reply}{'  (right)' if right else ''}"
