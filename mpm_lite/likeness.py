"""How painted pictures compare with drawn ones, as sets (FID, KID) and beside prompts (R-precision), on frozen features.

FID (1706.08500) and KID (1801.01401) are torchmetrics', on the toy image tower's features in Inception's place; they say
nothing outside this world, and little without the floor of drawings against other drawings of the same scenes, at the
same n. R-precision (1711.10485): is a picture's own English caption the nearest of a hundred, by an alignment that learned
English captions? It is asked in English whatever language the prompt was in, so that no judge's grasp of a language counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from mpm_lite import runtime
from mpm_lite.experiment import Experiment, image_tower, text_tower
from mpm_lite.runtime import UserError

CANDIDATES = 100  # captions to choose from, the right one among them
SUBSETS = 50  # of KID, each of half the pictures


class _AsTheyAre(nn.Module):
    """Features, where torchmetrics expects a network that makes some of pictures."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


def fid(real: Tensor, painted: Tensor) -> float:
    """Frechet distance of two sets of features (N, D), in float64. UserError for fewer than two rows."""
    _check(real, painted)
    metric = FrechetInceptionDistance(feature=_AsTheyAre(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(painted.double(), real=False)
    return float(metric.compute())


def kid(real: Tensor, painted: Tensor) -> float:
    """Kernel distance of two sets of features (N, D): the mean over random halves, the same ones each time."""
    _check(real, painted)
    half = min(len(real), len(painted)) // 2 + 1
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of features kept in memory: they are few
        torch.manual_seed(0)
        metric = KernelInceptionDistance(feature=_AsTheyAre(real.shape[1]), subsets=SUBSETS, subset_size=half)
        metric.update(real, real=True)
        metric.update(painted, real=False)
        return float(metric.compute()[0])


def _check(*sets: Tensor) -> None:
    for features in sets:
        if len(features) < 2 or not torch.isfinite(features).all():
            raise UserError("Two sets of pictures are compared: each needs two and more, and finite features.")


class Likeness:
    """An image tower, and an alignment of it with a text tower that learned English captions: of the toy world, with the
    toy towers, unless others are named."""

    def __init__(
        self, pairs: int | None = 8_000, progress: bool = True, image: str = "toy", text: str = "toy", sets: str = "toyworld"
    ) -> None:  # fmt: skip
        self.tower, self.pairs, self.progress = image_tower(image), pairs, progress
        self.image, self.text, self.sets = image, text, sets

    def features(self, pictures: np.ndarray) -> Tensor:
        """Pictures uint8 (N, H, H, 3) -> float32 (N, D)."""
        return torch.from_numpy(np.asarray(self.tower.encode(list(pictures)))).float()

    @cached_property
    def alignment(self) -> Any:
        """The trained `align` recipe, kept in MPM_LITE_HOME/likeness."""
        english = (self.sets, ["en"])
        one = Experiment(text=self.text, image=self.image, train=english, val=english, test=english, pairs=self.pairs, seeds=1)  # fmt: skip
        place = runtime.home() / "likeness" / f"{self.image}-{self.text}-{self.sets}-{self.pairs}"
        return one.run(place, self.progress).models[0]

    def _near(self, pictures: Tensor, captions: Sequence[str]) -> np.ndarray:
        """Cosines of pictures' features (N, D) and M captions, (N, M)."""
        texts = torch.from_numpy(np.asarray(text_tower(self.text).encode(list(captions)))).float()
        alignment = self.alignment  # trained now, if it was not yet: with gradients
        with torch.no_grad():
            on = runtime.where(alignment)
            said = alignment.predict({"image": pictures.to(on), "text": texts.to(on)})
        return (F.normalize(said["image"], dim=-1) @ F.normalize(said["text"], dim=-1).T).cpu().numpy()

    def nearness(self, pictures: Tensor, captions: Sequence[str]) -> np.ndarray:
        """Cosine of each picture's features (N, D) and its own caption, (N,): what a hidden reranker chooses by."""
        return self._near(pictures, captions).diagonal()

    def r_precision(self, pictures: Tensor, captions: Sequence[str]) -> np.ndarray:
        """For each picture's features (N, D), 1.0 where its own caption of N is nearer than CANDIDATES - 1 others that
        read otherwise, float64 (N,). UserError for fewer captions than that."""
        if len(set(captions)) < CANDIDATES:
            raise UserError(f"R-precision chooses among {CANDIDATES} captions and there are {len(set(captions))}.")
        near, different = self._near(pictures, captions), np.array(captions)
        found, rng = np.zeros(len(captions)), np.random.default_rng(0)
        for i, own in enumerate(captions):
            rivals = rng.choice(np.flatnonzero(different != own), CANDIDATES - 1, replace=False)
            found[i] = float(near[i, i] > near[i, rivals].max())
        return found
