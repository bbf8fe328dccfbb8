"""Experiment: one hypothesis as data. It trains a recipe on some pairs, tests it in many languages, and returns `Results`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite import evaluate, train
from mpm_lite.data import CaptionSet, load_captions
from mpm_lite.data.languages import bcp47
from mpm_lite.ops import across
from mpm_lite.recipes import Recipe, build_options, recipe_class
from mpm_lite.results import Results
from mpm_lite.runtime import UserError, unknown
from mpm_lite.towers.features import image_features, text_features
from mpm_lite.towers.image import load_image_tower
from mpm_lite.towers.text import load_text_tower

CONDITIONS = ("real", "shuffled", "blind", "random-image")
Where = tuple[str, Any]  # ("emoji+stamps", ["en"]) or ("stamps", "all")


class Pairs:
    """Frozen features by number: images (N, D_image), texts (N, D_text), row i of one belongs to row i of the other."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self.images, self.texts = images, texts
        self.digest = hashlib.sha256(images.numpy().tobytes() + texts.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"image": self.images[indices], "text": self.texts[indices]}


@dataclass(frozen=True)
class Experiment:
    """What is trained on what and tested on what. Every field has a default; `run()` returns `Results`.

    val: where the best step is chosen; None chooses nothing, takes the last step, and trains on train + val together (the
    last fit, after every choice was made). pairs: how many training pairs a language (None = all), one number or {"en": None, "zh": 300}; smaller numbers are
    subsets of larger ones for the same seed. require: train only on pictures that have a caption in these languages too
    (so that two languages can be compared on the same pictures). condition: real | shuffled (training pairs permuted) |
    blind (one picture for all) | random-image (noise instead of features).
    Raises UserError on any unknown name, with the nearest known one.
    """

    recipe: str | type[Recipe] = "align"
    text: Any = "use-m"
    image: Any = "efficientnet-lite1"
    lm: str | None = None
    train: Where = ("emoji+stamps+clipart", ["en"])
    val: Where | None = ("emoji+stamps", None)  # None in place of the languages: those of training
    test: Where | list[Where] = ("stamps", "all")
    pairs: int | dict[str, int | None] | None = None
    steps: int | None = None
    seed: int = 0
    seeds: int = 3
    device: str | None = None
    condition: str = "real"
    require: tuple[str, ...] = ()
    pivot: str = "en"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def all_options(self) -> dict[str, Any]:
        """The recipe's options that are given, `steps` among them."""
        return self.options | ({"steps": self.steps} if self.steps else {})

    def run(
        self,
        out: str | Path | None = None,
        progress: bool = True,
        track: str = "",
        parts: int = 1,
        precision: str = "",
        shard: bool = False,
    ) -> Results:
        """Train and test once per seed. With `out`, checkpoints go there and a stopped run continues.

        `track`, `parts`, `precision` and `shard` are those of `train.Plan`. Started by `accelerate launch`, the processes share every
        batch, all of them return the results, and the first writes.
        """
        if self.condition not in CONDITIONS:
            raise unknown("condition", self.condition, CONDITIONS)
        if self.lm is not None:
            raise UserError(f"Recipe {self.recipe!r} uses no language model; leave lm out.")
        kind = recipe_class(self.recipe)
        options = build_options(kind.Options, self.all_options)
        across.start(self.device)
        bench = _Bench(self, progress, {"track": track, "parts": parts, "precision": precision, "shard": shard})
        tables, items, models = [], [], {}
        for seed in range(self.seed, self.seed + self.seeds):
            recipe, history = bench.train(kind, options, seed, Path(out) / f"seed-{seed}" if out else None)
            table, hits = bench.test(recipe, seed)
            tables.append(table.assign(kept_step=history.kept_step))
            items.append(hits)
            models[seed] = recipe
        meta = {"experiment": self.describe(), "options": asdict(options), "pairs": bench.n_pairs}
        return Results(
            pd.concat(tables, ignore_index=True), pd.concat(items, ignore_index=True), models, meta, bench.galleries
        )

    def describe(self) -> dict[str, Any]:
        """The fields as plain JSON-able values."""
        named = {f: getattr(self, f) for f in self.__dataclass_fields__}
        return {k: plain(v) if k in ("recipe", "text", "image") else v for k, v in named.items()}


def plain(thing: Any) -> Any:
    """What a table may show of a value."""
    if isinstance(thing, (str, int, float, bool)) or thing is None:
        return thing
    return str(getattr(thing, "name", None) or thing)


def _languages(asked: Any) -> Any:
    return asked if asked == "all" else [bcp47(code) for code in ([asked] if isinstance(asked, str) else asked)]


@lru_cache(maxsize=4)
def text_tower(name: str, device: str | None = None) -> Any:
    """A text tower, loaded once for all experiments of a process."""
    return load_text_tower(name, device)


@lru_cache(maxsize=4)
def image_tower(name: str, device: str | None = None) -> Any:
    """An image tower, loaded once for all experiments of a process."""
    return load_image_tower(name, device)


class _Bench:
    """The features of one experiment, loaded once and used by all seeds."""

    def __init__(self, experiment: Experiment, progress: bool, how: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.e, self.progress, self.how = experiment, progress, how
        self.text = (
            text_tower(experiment.text, experiment.device) if isinstance(experiment.text, str) else experiment.text
        )
        self.image = (
            image_tower(experiment.image, experiment.device) if isinstance(experiment.image, str) else experiment.image
        )
        name, languages = experiment.train
        self.train_languages = _languages(languages)
        wanted = list(dict.fromkeys([*self.train_languages, *_languages(experiment.require)]))
        self.train_set = load_captions(name, "train" if experiment.val else "train+val", wanted)
        tests = experiment.test if isinstance(experiment.test, list) else [experiment.test]
        self.tests = [
            (n, load_captions(n, "test", "all" if langs == "all" else _languages(langs))) for n, langs in tests
        ]
        self.galleries: dict[str, CaptionSet] = dict(self.tests)
        self.val_set, self.val_languages = None, []
        if experiment.val:
            name, languages = experiment.val
            self.val_languages = self.train_languages if languages is None else _languages(languages)
            self.val_set = load_captions(name, "val", self.val_languages)
        self.n_pairs: dict[str, int] = {}
        self._seen: dict[tuple[int, str], Tensor] = {}

    def images(self, captions: CaptionSet) -> Tensor:
        """(N, D_image), as the condition wants them."""
        key = (id(captions), "image")
        if key not in self._seen:
            with across.first():
                x = torch.from_numpy(image_features(captions, self.image, self.progress).copy())
            if self.e.condition == "blind":
                x = x.mean(dim=0, keepdim=True).expand_as(x).clone()
            elif self.e.condition == "random-image":
                seeds = [int(hashlib.sha256(i.encode()).hexdigest()[:12], 16) for i in captions.ids]
                x = torch.stack([torch.randn(x.shape[1], generator=torch.Generator().manual_seed(s)) for s in seeds])
            self._seen[key] = x
        return self._seen[key]

    def texts(self, captions: CaptionSet, language: str) -> Tensor:
        """(N, D_text); NaN where there is no caption."""
        key = (id(captions), language)
        if key not in self._seen:
            with across.first():
                self._seen[key] = torch.from_numpy(text_features(captions, language, self.text, self.progress).copy())
        return self._seen[key]

    def pairs(self, seed: int) -> Pairs:
        """The training pairs of one seed: all languages, limited and permuted as the experiment says."""
        chosen, images = self.train_set, self.images(self.train_set)
        fit = np.ones(len(chosen), dtype=bool)
        for language in [bcp47(code) for code in self.e.require]:
            fit &= np.array([bool(c) for c in chosen.captions[language]])
        rows, said = [], []
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(9_000 + seed)).numpy()
        for language in self.train_languages:
            there = fit & np.array([bool(c) for c in chosen.captions[language]])
            limit = self.e.pairs.get(language) if isinstance(self.e.pairs, dict) else self.e.pairs
            take = order[there[order]][:limit]
            self.n_pairs[language] = len(take)
            rows.append(torch.from_numpy(take))
            said.append(self.texts(chosen, language)[torch.from_numpy(take)])
        where = torch.cat(rows)
        if self.e.condition == "shuffled":
            where = where[torch.randperm(len(where), generator=torch.Generator().manual_seed(8_000 + seed))]
        return Pairs(images[where], torch.cat(said))

    def train(self, kind: type[Recipe], options: Any, seed: int, out: Path | None) -> tuple[Recipe, train.History]:
        data = self.pairs(seed)
        torch.manual_seed(seed)
        recipe = kind(data.images.shape[1], data.texts.shape[1], options)
        recipe.prepare(data.images, data.texts)
        label = f"{plain(self.e.text)} {self.e.condition} seed {seed}"
        plan = train.Plan(seed=seed, out=out, progress=self.progress, label=label, **self.how)
        return recipe, train.fit(recipe, data, plan, self.val_score if self.val_set else None, self.e.device)

    def val_score(self, recipe: Recipe) -> float:
        """Text-to-image R@10 on the validation gallery, mean over the training languages."""
        scores = [hits["t2i_r@10"].mean() for _, _, hits, _ in self._hits(recipe, self.val_set, self.val_languages)]
        return float(np.mean(scores))

    def _hits(
        self, recipe: Recipe, captions: CaptionSet, languages: list[str]
    ) -> Iterator[tuple[str, np.ndarray, dict, dict]]:
        """For each language: its code, the items asked about, its hits, and the pivot's on the same queries."""
        pivot = bcp47(self.e.pivot)
        with torch.inference_mode():
            on = next(recipe.parameters()).device
            images = recipe.predict({"image": self.images(captions).to(on)})["image"].cpu()
            for language in languages:
                said = captions.captions[language]
                asked = np.flatnonzero([bool(text) for text in said])
                if not len(asked):
                    continue
                both = {language, pivot} & set(captions.languages)
                groups = evaluate.equal_groups(*(captions.captions[code] for code in sorted(both)))
                scored = {}
                for code in both:
                    texts = recipe.predict({"text": self.texts(captions, code).to(on)})["text"].cpu()
                    scored[code] = evaluate.retrieval_hits(images, texts, asked, groups)
                yield language, asked, scored[language], scored.get(pivot, {})

    def test(self, recipe: Recipe, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Scores of one seed on every test set: a tidy table, and the same by item."""
        rows, items = [], []
        set_name, languages = self.e.train
        named = {
            "recipe": recipe.name,
            "text": plain(self.e.text) if isinstance(self.e.text, str) else self.text.name,
            "image": plain(self.e.image) if isinstance(self.e.image, str) else self.image.name,
            "lm": self.e.lm or "",
            "train": f"{set_name}[{','.join(self.train_languages)}]",
        }
        for test_name, captions in self.tests:
            same = {**named, "test": test_name, "condition": self.e.condition, "seed": seed}
            for language, asked, hits, pivot in self._hits(recipe, captions, captions.languages):
                for metric in evaluate.METRICS:
                    row = {"language": language, "metric": metric, "value": hits[metric].mean()}
                    rows.append({**same, **row, "n": len(asked), "chance": hits[f"chance {metric}"].mean()})
                by_item = {"item": [captions.ids[i] for i in asked], "concept": [captions.concepts[i] for i in asked]}
                by_item |= hits | {f"pivot {m}": v for m, v in pivot.items() if m in evaluate.METRICS}
                items.append(pd.DataFrame({**same, "language": language, **by_item}))
        return pd.DataFrame(rows), pd.concat(items, ignore_index=True)
