"""Real pictures as a world: emoji, stamps and clip art, with encoders that pip brings.

Training pictures are those of `load_captions`, which share no concept with held-out stamps; patches are `efficientnet-lite0`'s,
averaged to a grid of nine. The English text encoder is `minilm-en`, the multilingual one `e5-small`. Captions are people's: a
"translation" is the caption of the same picture in that language. For M3P a region is a cell of the grid; its class, as a
detector's would be, is the ImageNet class that the tower's own head gives it, and text is captions of the training pictures in
all languages.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import emoji, load_captions, toyworld
from mpm_lite.data.picture import RENDER
from mpm_lite.data.toyworld import exchanges
from mpm_lite.evaluation import retrieval
from mpm_lite.experiments.system import (
    ENGLISH,
    GRID,
    MULTILINGUAL,
    Encode,
    Parallel,
    Sentences,
    World,
    image_tower,
    text_tower,
)
from mpm_lite.recipes.dual import Captioned
from mpm_lite.towers.feature_cache import patch_features
from mpm_lite.towers.folders import loaded_once

SETS = {"train": "emoji+stamps+clipart", "val": "stamps", "test": "stamps"}
LANGUAGES = tuple(code for code in emoji.LANGUAGES if code != "en")
ENOUGH = 100  # held-out captions that a language must have to be asked in
CANDIDATES = 10
MOST = 10_000  # more than there are: all
# What arms on real pictures share.
DUAL = {"text": "frozen", "width": 256, "steps": 600, "batch": 128}
REAL = {
    "world": "real", "languages": LANGUAGES, "english": MOST, "parallel": MOST, "pairs": MOST, "english_options": DUAL,
    "options": {"bottleneck": 96, "transfer_steps": 1000, "exposure_steps": 200},
}  # fmt: skip


class Compact(nn.Module):
    """A tokenizer whose ids run without gaps over the pieces that some texts use: 1 for each, 0 for padding."""

    def __init__(self, tokenizer: Any, prefix: str, texts: Sequence[str]) -> None:
        super().__init__()
        self.tokenizer, self.prefix = tokenizer, prefix
        self.used = sorted({i for row in self._whole(texts) for i in row})
        self.place = {i: k for k, i in enumerate(self.used, start=1)}
        self.unknown = self.place.get(tokenizer.unk_token_id, 0)

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer([self.prefix + text for text in texts])["input_ids"]

    def __call__(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """As a transformers tokenizer: {"input_ids": rows}."""
        return {"input_ids": [[self.place.get(i, self.unknown) for i in row] for row in self._whole(texts)]}


@loaded_once(2)
def real_encoder(name: str) -> Any:
    """A packaged encoder with `model` and `tokenizer`, whose ids are those of the pieces that any of the captions uses."""
    tower = text_tower("minilm-en" if name == ENGLISH else "e5-small", "cpu")
    texts = [text for split in SETS for many in real_captions(split).captions.values() for text in many if text]
    tokenizer = Compact(tower.tokenizer, tower.prefix, texts)
    model = copy.deepcopy(tower.model)
    old = model.get_input_embeddings()
    with torch.no_grad():
        rows = old(torch.tensor(tokenizer.used))  # (V, D)
    table = nn.Embedding(len(rows) + 1, rows.shape[1], padding_idx=0)
    table.weight.data = torch.cat([torch.zeros(1, rows.shape[1]), rows])
    model.set_input_embeddings(table)
    return SimpleNamespace(model=model, tokenizer=tokenizer, fingerprint=tower.fingerprint)


@lru_cache(maxsize=3)
def real_captions(split: str) -> Any:
    """The pictures of a split, with captions in all of LANGUAGES."""
    if split not in SETS:
        raise unknown("split", split, SETS)
    return load_captions(SETS[split], split, ("en", *LANGUAGES))


@lru_cache(maxsize=1)
def world_mark() -> str:
    """A digest of what there is to learn from, and of who reads it."""
    many = real_captions("train")
    texts = [text for code in many.captions for text in many.captions[code]]
    return digest([*many.ids, *texts, real_encoder(ENGLISH).fingerprint, real_encoder(MULTILINGUAL).fingerprint])


@lru_cache(maxsize=1)
def imagenet_classes() -> Tensor:
    """The ImageNet class of each region of the training pictures, from 1 on, int64 (M, R)."""
    world = RealWorld(progress=False)
    head = world.tower.model.get_classifier()
    with torch.no_grad():
        return torch.cat([1 + head(part.float()).argmax(dim=-1) for part in world.seen("train").split(512)])


def data_key(split: str) -> dict[str, str]:
    """What decides the rows of a system on real pictures beside the system: which pictures, how they are drawn, their captions,
    and the towers that read them."""
    asked = real_captions(split)
    said = [text for code in asked.languages for text in asked.captions[code]]
    data = {"training captions and text towers": world_mark(), f"captions of {split}": digest([*asked.ids, *said])}
    return data | {"pictures": RENDER, "image tower": image_tower("efficientnet-lite0", "cpu").fingerprint}


class RealWorld(World):
    """Emoji, stamps and clip art, captions that people wrote."""

    name = "real"
    classes = 1 + 1000
    reads_once = True

    def __init__(self, progress: bool = True, image: str = "efficientnet-lite0", device: str | None = "cpu") -> None:
        super().__init__(image, progress, device)

    def seen(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        if (split, None) not in self._seen:
            self._seen[split, None] = torch.from_numpy(
                patch_features(real_captions(split), self.tower, self.progress, GRID)
            )
        return self._seen[split, None][first:][:count]

    def regions(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        return self.seen(split, count, first)

    def region_classes(self, count: int) -> Tensor:
        return imagenet_classes()[:count]

    def text(self, name: str = MULTILINGUAL, seed: int = 0) -> Any:
        """`minilm-en` for English, `e5-small` for all languages."""
        return real_encoder(name)

    def mark(self, told: Any, seed: int = 0) -> list[Any]:
        return [self.tower.fingerprint, toyworld.RENDER, [told, world_mark()]]

    def asked(self, split: str, language: str) -> list[str]:
        """The captions of a split in a language, '' where a picture has none."""
        return real_captions(split).captions[language]

    def captioned(self, count: int, seed: int, encode: Encode) -> Captioned:
        """Each caption stands beside the batch's others alone."""
        said = real_captions("train").captions["en"][:count]
        return Captioned(self.seen("train", count), encode(said), [[]] * len(said))

    def paired(self, codes: Sequence[str], count: int, noise: float, seed: int, encode: Encode) -> Captioned:
        """Where a picture has no caption in the language drawn, in another; those without any are left out."""
        many, rng = real_captions("train"), np.random.default_rng([seed, 22])
        which, said = [], []
        for i in range(min(count, len(many))):
            there = [many.captions[code][i] for code in codes if many.captions[code][i]]
            if there:
                which.append(i)
                said.append(there[rng.integers(len(there))])
        return Captioned(self.seen("train")[which], encode(said), [[]] * len(said))

    def captions(self, languages: Sequence[str], count: int, noise: float, seed: int) -> Sentences:
        """Where there are any. UserError for noise: people wrote them."""
        if noise:
            raise UserError("Captions of real pictures are people's: set noise=0.")
        many = real_captions("train").captions
        each = [(text, code, i) for code in languages for i, text in enumerate(many[code][:count]) if text]
        return Sentences(*(list(column) for column in zip(*each, strict=True)))

    def translations(self, languages: Sequence[str], count: int, noise: float, seed: int) -> Parallel:
        """Captions of the same pictures in other languages."""
        return list(real_captions("train").captions["en"][:count]), self.captions(languages, count, noise, seed)

    def sentences(self, count: int, alpha: float, seed: int) -> list[str]:
        """Captions of training pictures: in a language with n captions with chance ~ n^alpha."""
        rng, many = np.random.default_rng([seed, 18]), real_captions("train").captions
        there = {code: [text for text in of if text] for code, of in many.items()}
        weight = np.array([len(of) ** alpha for of in there.values()])
        codes = rng.choice(list(there), count, p=weight / weight.sum())
        return [there[code][rng.integers(len(there[code]))] for code in codes.tolist()]

    def tellers(self, languages: Sequence[str], count: int, wrong: int) -> tuple[list[str], Any]:
        """English names. Wrong ones are of the picture's own collection: the style of a name gives emoji, stamps and clip art
        away, and little else was learned."""
        many = real_captions("train")
        english = many.captions["en"][:count]
        of = [part.name for part, indices in many.parts for _ in indices][: len(english)]
        near = {name: [text for text, part in zip(english, of, strict=True) if part == name] for name in set(of)}
        near = {name: texts if len(set(texts)) > 1 else english for name, texts in near.items()}

        def told(i: int, rng: np.random.Generator) -> list[str]:
            others, names = [], near[of[i]]
            while len(others) < wrong:
                other = names[rng.integers(len(names))]
                others += [other] if other != english[i] else []
            return [english[i], *others]

        return list(english), told

    def choose(self, bench: Any, recipe: Any, seed: int, split: str, languages: Sequence[str], looks: Sequence[str],
               count: int | None, first: int = 0) -> pd.DataFrame:  # fmt: skip
        """choice: its own caption comes first of ten, the others of other pictures; recall: among all pictures it is one of the
        ten nearest to its caption. NaN where it has no caption."""
        many, frames = real_captions(split), []
        for look in looks:
            seen = bench.looked(split, len(self.seen(split, count)), look)
            for language in languages or self.languages(recipe):
                said = bench.asked(recipe, split, language)[: len(seen)]
                there = np.flatnonzero([bool(text) for text in said])
                few = [[said[k] for k in each] for each in draw_candidates(said, there)]
                right = np.full(len(said), np.nan)
                right[there] = exchanges.score_choices(bench.fits(recipe, seen[torch.from_numpy(there)], few, language))
                scores = {"choice": right, "recall": bench.recalled(recipe, seen, said, there, language)}
                items = {"item": many.ids[: len(seen)], "concept": many.concepts[: len(seen)]}
                known = {"look": look, "language": language, "seed": seed, **bench.known(recipe, seed)}
                frames.append(pd.DataFrame(scores).assign(**known, **items))
        return pd.concat(frames, ignore_index=True)

    def languages(self, recipe: Any) -> list[str]:
        """English, and what else the recipe reads of which there are ENOUGH held-out captions."""
        many, known = real_captions("test").captions, getattr(recipe, "names", LANGUAGES)
        return ["en", *(code for code in LANGUAGES if code in known and sum(map(bool, many[code])) >= ENOUGH)]


def draw_candidates(said: Sequence[str], there: np.ndarray) -> list[list[int]]:
    """For each of the pictures that are `there`: its number, and those of others whose captions differ from its own."""
    rng, groups = np.random.default_rng(31), retrieval.group_captions(list(said))
    return [[i, *rng.permutation(there[groups[there] != groups[i]])[: CANDIDATES - 1]] for i in there.tolist()]
