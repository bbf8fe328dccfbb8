"""The toy world's towers: an image tower that never met a word, an English and a multilingual text tower.

    mpm-lite pretrain toy-image toy-text toy-text-en --out assets

Each is a transformers checkpoint with a card. The cards hold what a linear probe or a search finds on val.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mpm_lite.core import provenance, runtime, store
from mpm_lite.core.keys import digest
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar, text_mix
from mpm_lite.data.toyworld.scenes import (
    ATTRIBUTES,
    Scene,
    Thing,
    draw_neighbours,
    pair_name,
    scenes,
    split_of_combination,
)
from mpm_lite.evaluation import retrieval
from mpm_lite.experiments.pretrain import language_models
from mpm_lite.recipes.pretraining.scene_reader import CLASSES, classes
from mpm_lite.recipes.pretraining.two_views import CaptionViews, PictureViews, TwoViews, TwoViewsOptions
from mpm_lite.towers.load import load_image_tower, load_text_tower
from mpm_lite.towers.text import save_tokenizer
from mpm_lite.training import loop

SIZE, PATCH = 48, 8  # pixels: each of the nine cells is two by two patches
GROUPS, TOGETHER = 2_000, 4  # scenes, each with three neighbours
CROWD = (4, 6)  # things
VIEWS = 4  # drawings or captions of a scene
SEED = 0
# Name of each tower, which is its folder under assets/towers, and the languages it reads.
TOWERS = {"toy-image": (), "toy-text": grammar.LANGUAGES, "toy-text-en": ("en",)}
# How much of a text tower's pairs are translations.
TRANSLATED = {"toy-text": 0.5, "toy-text-en": 0.0}
OPTIONS = {"toy-image": TwoViewsOptions(steps=1500, bf16=True), "toy-text": TwoViewsOptions(steps=1200),
           "toy-text-en": TwoViewsOptions(steps=400)}  # fmt: skip


def groups(count: int, seed: int) -> list[list[Scene]]:
    """Scenes of train, each with neighbours that are hard to tell from it: they differ in one attribute of one thing."""
    rng = np.random.default_rng([seed, 9])
    found = ([scene, *draw_neighbours(scene, rng, TOGETHER - 1)] for scene in scenes("train", seed + 100))
    return list(islice((group for group in found if len(group) == TOGETHER), count))


def crowds(count: int, seed: int) -> list[list[Scene]]:
    """Pictures of more things than any caption tells of, in all combinations of attributes; each with neighbours likewise.

    As towers do that learned from pictures of anything, this one thereby knows things in colours of which no *captioned*
    training picture shows them, and it has seen no picture of val or test: those hold three things in a line, or equal ones.
    """
    rng, found = np.random.default_rng([seed, 10]), []
    for _ in range(count):
        cells = rng.permutation(9)[: rng.integers(CROWD[0], CROWD[1] + 1)]
        drawn = [[names[rng.integers(len(names))] for names in ATTRIBUTES.values()] for _ in cells]
        things = [Thing(*of, int(cell % 3), int(cell // 3)) for of, cell in zip(drawn, cells, strict=True)]
        group = [Scene(tuple(things))]
        while len(group) < TOGETHER:
            slot, k = list(ATTRIBUTES)[rng.integers(len(ATTRIBUTES))], int(rng.integers(len(things)))
            value = ATTRIBUTES[slot][rng.integers(len(ATTRIBUTES[slot]))]
            other = Scene((*things[:k], replace(things[k], **{slot: value}), *things[k + 1 :]))
            group += [other] if other not in group else []
        found.append(group)
    return found


class ScenePictures:
    """Drawings of groups of scenes: an example is a group, its two views differ in jitter; and each patch's classes."""

    def __init__(self, many: Sequence[Sequence[Scene]]) -> None:
        self.digest = digest([toyworld.RENDER, *(s.id for group in many for s in group)])
        drawn = [[[toyworld.render(s, SIZE, seed=k) for k in range(VIEWS)] for s in group] for group in many]
        self.drawn = torch.from_numpy(np.array(drawn))  # (N, G, VIEWS, S, S, 3)
        self.classes = torch.from_numpy(np.array([[_classes(s) for s in group] for group in many]))  # (N, G, slots, P)

    def __len__(self) -> int:
        return len(self.drawn)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Two different views of each group, and by slot the class of every patch."""
        rng = np.random.default_rng(indices.numpy())  # of the batch, so that a resumed run sees the same
        batch = {slot: self.classes[indices][:, :, k] for k, slot in enumerate(CLASSES)}
        for name, k in zip(("first", "second"), rng.permutation(VIEWS), strict=False):
            batch[name] = self.drawn[indices][:, :, k]
        return batch


def _classes(scene: Scene) -> np.ndarray:
    """What stands in the cell of each patch, int64 (slots, P): nothing or something, and which value of each attribute."""
    return np.stack([of.repeat(2, 0).repeat(2, 1).reshape(-1) for of in classes(scene).values()])


class Captions:
    """Captions of groups of scenes in pairs of languages: an example is a group told twice."""

    def __init__(self, many: Sequence[Sequence[Scene]], languages: Sequence[str], translated: float) -> None:
        tokenizer, rng = language_models.shared_tokenizer(), np.random.default_rng([SEED, len(languages)])
        told = []
        for group in many:
            first = languages[rng.integers(len(languages))]
            others = [language for language in languages if language != first]
            other = others[rng.integers(len(others))] if others and rng.random() < translated else first
            # All members of a group in the same two languages: what tells them apart is what they say.
            told += [self._tell(scene, first, other, rng) for scene in group]
        self.digest = digest(t for pair in told for t in pair)
        flat = [row for pair in told for row in tokenizer(list(pair))["input_ids"]]
        ids = pad_sequence([torch.tensor(row) for row in flat], batch_first=True)
        self.ids = ids.view(len(many), TOGETHER, 2, -1)  # (N, G, 2, T)

    @staticmethod
    def _tell(scene: Scene, first: str, other: str, rng: np.random.Generator) -> tuple[str, str]:
        if first == other:
            return text_mix.paraphrases(scene, first, rng)[1:]
        return text_mix.translations(scene, first, other, rng)[1:]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Each group told twice."""
        return {"first": self.ids[indices, :, 0], "second": self.ids[indices, :, 1]}


def build(name: str, out: Path, options: TwoViewsOptions | None = None, count: int | None = None) -> Path:
    """Train, save, measure and describe one tower, unless all that is done; returns the path of its card."""
    if name not in TOWERS:
        raise runtime.unknown("tower to pretrain", name, TOWERS)
    folder = out / "towers" / name
    make = partial(_make, name, folder, options or OPTIONS[name], count)
    return provenance.Artifact(name, folder, folder / "card.json", make).build()


def _make(name: str, folder: Path, options: TwoViewsOptions, count: int | None) -> dict[str, Any]:
    """Train, save and measure one tower; what its card says."""
    started = time.perf_counter()
    torch.manual_seed(SEED)
    if name == "toy-image":
        half = (count or GROUPS) // 2
        data: Any = ScenePictures([*groups(half, SEED), *crowds(half, SEED)])
        recipe: TwoViews = PictureViews(SIZE, PATCH, CLASSES, options)
    else:
        # A text costs little to read: ten languages get more scenes than one.
        many = groups(count or GROUPS * (6 if len(TOWERS[name]) > 1 else 2), SEED)
        data = Captions(many, TOWERS[name], TRANSLATED[name])
        recipe = CaptionViews(len(language_models.shared_tokenizer()), options)
    prepared = time.perf_counter() - started
    work = runtime.home() / "pretrain" / name
    history = loop.fit(recipe, data, loop.Plan(SEED, work, save_every=200, label=name))
    seconds = prepared + history.seconds

    def extras(beside: Path) -> None:
        if name == "toy-image":
            said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIZE, "width": SIZE}}
            store.write_json(beside / "preprocessor_config.json", said)
        else:
            save_tokenizer(language_models.shared_tokenizer(), beside)

    language_models.save(recipe.encoder, folder, extras)
    return {
        "seed": SEED, "languages": list(TOWERS[name]), "data": f"{len(data)} groups of {TOGETHER} scenes",
        "translated": TRANSLATED.get(name), "options": asdict(options),
        "parameters": sum(p.numel() for p in recipe.encoder.parameters()),
        "last_loss": round(float(np.mean(history.losses[-50:])), 4),
        "measured_on_val": probe(folder) if name == "toy-image" else search(folder),
        "seconds": seconds,
    }  # fmt: skip


def probe(folder: Path, count: int = 1500) -> dict[str, float]:
    """Accuracy of linear probes on the frozen tower's patches, fitted on things of train scenes, asked of val scenes.

    Shape, colour and size from the four patches of a thing's cell; "unseen" are things whose (colour, shape) no train
    picture shows; the tower saw them in crowds.
    """
    tower = load_image_tower(str(folder))
    sides = []
    for split, many in (("train", count), ("val", 400)):
        some = list(islice(scenes(split, 55), many))
        patches = tower.patches(np.stack([toyworld.render(s, SIZE, seed=99) for s in some]))
        things = [(i, thing) for i, s in enumerate(some) for thing in s.things]
        sides.append(([thing for _, thing in things], np.stack([_cell(patches[i], thing) for i, thing in things])))
    unseen = np.array([split_of_combination(pair_name(thing.pair)) != "train" for thing in sides[1][0]])
    found = {}
    for slot, values in ATTRIBUTES.items():
        labels = [torch.tensor([values.index(getattr(thing, slot)) for thing in things]) for things, _ in sides]
        right = _linear([x for _, x in sides], labels, len(values))
        found[slot], found[f"{slot}, unseen"] = (round(float(r.mean()), 3) for r in (right, right[unseen]))
    return found


def _cell(patches: np.ndarray, thing: Thing) -> np.ndarray:
    """The four patches of the thing's own cell, side by side: (P, D) -> (4 D,)."""
    side = SIZE // PATCH
    row, column = 2 * thing.row, 2 * thing.column
    return patches.reshape(side, side, -1)[row : row + 2, column : column + 2].reshape(-1)


def _linear(x: Sequence[np.ndarray], labels: Sequence[Tensor], classes: int) -> np.ndarray:
    """Ridge regression on one-hot labels: fitted on the first part, which of the second it gets right."""
    mean, spread = x[0].mean(0), x[0].std(0) + 1e-6
    a, b = (torch.from_numpy(np.c_[(v - mean) / spread, np.ones(len(v))]).double() for v in x)
    y = torch.nn.functional.one_hot(labels[0], classes).double()
    w = torch.linalg.solve(a.T @ a + 1.0 * torch.eye(a.shape[1]), a.T @ y)
    return ((b @ w).argmax(1) == labels[1]).numpy()


def search(folder: Path, count: int = 300) -> dict[str, float]:
    """Recall@1 among val captions: an English caption's paraphrase, and each language's translation of it."""
    tower, rng = load_text_tower(str(folder)), np.random.default_rng(55)
    found = {}
    asked = list(islice(scenes("val", 55), count))
    for language in grammar.LANGUAGES:
        tell = text_mix.paraphrases if language == text_mix.PIVOT else text_mix.translations
        args = (language,) if language == text_mix.PIVOT else (text_mix.PIVOT, language)
        pairs = {facts: (a, b) for facts, a, b in (tell(s, *args, rng) for s in asked)}
        a, b = (tower.encode([pair[k] for pair in pairs.values()]) for k in (0, 1))
        found[language] = round(retrieval.translation_recall(a, b, np.arange(len(a))), 3)
    return found
