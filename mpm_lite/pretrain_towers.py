"""The toy world's towers: an image tower that never met a word, an English and a multilingual text tower.

    mpm-lite pretrain toy-image toy-text toy-text-en --out assets

Each is a transformers checkpoint with a card. The cards hold what a linear probe or a search finds on val.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpm_lite import ops, pretrain, runtime, train
from mpm_lite.cache import digest
from mpm_lite.data import grammar, text, toyworld
from mpm_lite.data.scenes import COLOURS, SHAPES, SIZES, Scene, neighbours, scenes
from mpm_lite.recipes.two_views import CaptionViews, PictureViews, TwoViews, TwoViewsOptions
from mpm_lite.towers.image import load_image_tower
from mpm_lite.towers.text import load_text_tower
from mpm_lite.towers.tokens import save_tokenizer

SIZE, PATCH = 48, 8  # pixels: each of the nine cells is two by two patches
GROUPS, TOGETHER = 2_000, 4  # scenes, each with three neighbours
VIEWS = 4  # drawings or captions of a scene
SEED = 0
TOWERS = {"toy-image": (), "toy-text": grammar.LANGUAGES, "toy-text-en": ("en",)}
# Folder of each tower under assets/towers, and how much of a text tower's pairs are translations.
TRANSLATED = {"toy-text": 0.5, "toy-text-en": 0.0}
OPTIONS = {"toy-image": TwoViewsOptions(steps=800), "toy-text": TwoViewsOptions(steps=1200),
           "toy-text-en": TwoViewsOptions(steps=400)}  # fmt: skip


def groups(count: int, seed: int) -> list[list[Scene]]:
    """Scenes of train, each with neighbours that are hard to tell from it."""
    rng = np.random.default_rng([seed, 9])
    found = ([scene, *neighbours(scene, rng, TOGETHER - 1)] for scene in scenes("train", seed + 100))
    return list(islice((group for group in found if len(group) == TOGETHER), count))


class Pictures:
    """Drawings of groups of scenes: an example is a group, its two views differ in jitter."""

    def __init__(self, many: Sequence[Sequence[Scene]]) -> None:
        self.digest = digest([toyworld.RENDER, *(s.id for group in many for s in group)])
        drawn = [[[toyworld.render(s, SIZE, seed=k) for k in range(VIEWS)] for s in group] for group in many]
        self.drawn = torch.from_numpy(np.array(drawn))  # (N, G, VIEWS, S, S, 3)

    def __len__(self) -> int:
        return len(self.drawn)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Two different views of each group."""
        one, two = _two(indices)
        some = self.drawn[indices]
        return {"first": some[:, :, one], "second": some[:, :, two]}


def _two(indices: Tensor) -> tuple[int, int]:
    """Which two of the views a batch shows, by the batch itself, so that a resumed run sees the same."""
    one, two = np.random.default_rng(indices.numpy()).permutation(VIEWS)[:2]
    return int(one), int(two)


class Captions:
    """Captions of groups of scenes in pairs of languages: an example is a group told twice."""

    def __init__(self, many: Sequence[Sequence[Scene]], languages: Sequence[str], translated: float) -> None:
        tokenizer, rng = pretrain.shared_tokenizer(), np.random.default_rng([SEED, len(languages)])
        told = []
        for group in many:
            first = languages[rng.integers(len(languages))]
            others = [language for language in languages if language != first]
            other = others[rng.integers(len(others))] if others and rng.random() < translated else first
            # All members of a group in the same two languages: what tells them apart is what they say.
            told += [self._tell(scene, first, other, rng) for scene in group]
        self.digest = digest(t for pair in told for t in pair)
        flat = [row for pair in told for row in tokenizer(list(pair))["input_ids"]]
        ids = torch.zeros(len(flat), max(map(len, flat)), dtype=torch.long)
        for i, row in enumerate(flat):
            ids[i, : len(row)] = torch.tensor(row)
        self.ids = ids.view(len(many), TOGETHER, 2, -1)  # (N, G, 2, T)

    @staticmethod
    def _tell(scene: Scene, first: str, other: str, rng: np.random.Generator) -> tuple[str, str]:
        if first == other:
            return text.paraphrases(scene, first, rng)[1:]
        return text.translations(scene, first, other, rng)[1:]

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
    if pretrain.intact(folder, folder / "card.json"):
        return folder / "card.json"
    options, started = options or OPTIONS[name], time.perf_counter()
    torch.manual_seed(SEED)
    if name == "toy-image":
        data: Any = Pictures(groups(count or GROUPS, SEED))
        recipe: TwoViews = PictureViews(SIZE, PATCH, options)
    else:
        # A text costs little to read: ten languages get more scenes than one.
        many = groups(count or GROUPS * (6 if len(TOWERS[name]) > 1 else 2), SEED)
        data = Captions(many, TOWERS[name], TRANSLATED[name])
        recipe = CaptionViews(len(pretrain.shared_tokenizer()), options)
    work = runtime.home() / "pretrain" / name
    history = train.fit(recipe, data, train.Plan(SEED, work, save_every=200, label=name))
    seconds = time.perf_counter() - started

    def extras(beside: Path) -> None:
        if name == "toy-image":
            said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIZE, "width": SIZE}}
            pretrain.write_json(beside / "preprocessor_config.json", said)
        else:
            save_tokenizer(pretrain.shared_tokenizer(), beside)

    sha = pretrain.save(recipe.encoder, folder, extras)
    card = {
        "name": name, "seed": SEED, "languages": list(TOWERS[name]), "data": f"{len(data)} groups of {TOGETHER} scenes",
        "translated": TRANSLATED.get(name), "options": asdict(options),
        "parameters": sum(p.numel() for p in recipe.encoder.parameters()),
        "last_loss": round(float(np.mean(history.losses[-50:])), 4),
        "measured_on_val": probe(folder) if name == "toy-image" else search(folder, TOWERS[name]),
        **pretrain.provenance(sha, seconds, name),
    }  # fmt: skip
    pretrain.write_json(folder / "card.json", card)
    return folder / "card.json"


def probe(folder: Path, count: int = 1500) -> dict[str, float]:
    """Accuracy of linear probes on the frozen tower, fitted on train scenes and asked on val scenes of one thing.

    From the whole picture's vector and from the mean of its patches: shape, colour, size and place of the thing.
    """
    tower = load_image_tower(str(folder))
    sides = []
    for split in ("train", "val"):
        one = [s for s in islice(scenes(split, 55), 12 * count) if s.kind == "one"][
            : count if split == "train" else 300
        ]
        pictures = np.stack([toyworld.render(s, SIZE, seed=99) for s in one])
        sides.append((one, tower.encode(pictures), tower.patches(pictures)))
    found = {}
    for slot, values in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES)):
        labels = [torch.tensor([values.index(getattr(s.things[0], slot)) for s in one]) for one, _, _ in sides]
        for what, x in (("picture", [v for _, v, _ in sides]), ("patches", [_at_thing(o, p) for o, _, p in sides])):
            found[f"{slot} from {what}"] = round(_linear(x, labels, len(values)), 3)
    return found


def _at_thing(one: Sequence[Scene], patches: np.ndarray) -> np.ndarray:
    """The four patches of the thing's own cell, side by side: (N, 4 D)."""
    n, side = len(one), SIZE // PATCH
    grid = patches.reshape(n, side, side, -1)
    cells = [(s.things[0].row * 2, s.things[0].column * 2) for s in one]
    return np.stack([g[r : r + 2, c : c + 2].reshape(-1) for g, (r, c) in zip(grid, cells, strict=True)])


def _linear(x: Sequence[np.ndarray], labels: Sequence[Tensor], classes: int) -> float:
    """Ridge regression on one-hot labels: fitted on the first part, its accuracy on the second."""
    mean, spread = x[0].mean(0), x[0].std(0) + 1e-6
    a, b = (torch.from_numpy(np.c_[(v - mean) / spread, np.ones(len(v))]).double() for v in x)
    y = torch.nn.functional.one_hot(labels[0], classes).double()
    w = torch.linalg.solve(a.T @ a + 1.0 * torch.eye(a.shape[1]), a.T @ y)
    return float(((b @ w).argmax(1) == labels[1]).double().mean())


def search(folder: Path, languages: Sequence[str], count: int = 300) -> dict[str, float]:
    """Recall@1 among val captions: an English caption's paraphrase, and each language's translation of it."""
    tower, rng = load_text_tower(str(folder)), np.random.default_rng(55)
    found = {}
    for language in grammar.LANGUAGES:
        asked = list(islice(scenes("val", 55), count))
        tell = text.paraphrases if language == text.PIVOT else text.translations
        args = (language,) if language == text.PIVOT else (text.PIVOT, language)
        pairs = {facts: (a, b) for facts, a, b in (tell(s, *args, rng) for s in asked)}
        a, b = (torch.from_numpy(tower.encode([p[k] for p in pairs.values()])) for k in (0, 1))
        found[language] = round(float((ops.retrieval_ranks(b, a, torch.arange(len(a))) < 1).float().mean()), 3)
    return found
