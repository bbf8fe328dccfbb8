"""The exercises of notebooks 07 to 12: M3P, MLA, mBLIP, the comparison, real checkpoints, a hypothesis of one's own. See
`exercises` for the form of an entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite.experiments.mla import Acquiring
from mpm_lite.teaching.exercises import exercise

# Notebook 08


def _make_acquirer_cases() -> list[tuple[Any, ...]]:
    """States (B, T, D), the map down (D to K) and the map up (K to D), with weights that are not zero."""
    draw = torch.Generator().manual_seed(8)
    found = []
    for shape, narrow in (((2, 3, 8), 4), ((1, 5, 6), 2)):
        maps = nn.Linear(shape[-1], narrow), nn.Linear(narrow, shape[-1])
        for one in (p for of in maps for p in of.parameters()):
            one.data = torch.randn(one.shape, generator=draw)
        found.append((torch.randn(shape, generator=draw), *maps))
    return found


@exercise(
    "08.1",
    "the acquirer",
    tolerance=1e-4,
    cases=_make_acquirer_cases,
    gradient=True,
    mistakes={
        "the residual is missing: add the state x itself": lambda x, down, up: up(torch.relu(down(x))),
        "the ReLU between the two maps is missing": lambda x, down, up: x + up(down(x)),
        "the ReLU stands behind the second map, not between the two": lambda x, down, up: x + torch.relu(up(down(x))),
        "x is added before the ReLU of the result": lambda x, down, up: torch.relu(x + up(torch.relu(down(x)))),
        "the ReLU is applied to x, not to down(x)": lambda x, down, up: x + up(down(torch.relu(x))),
    },
)
def _apply_acquirer(x: Tensor, down: nn.Linear, up: nn.Linear) -> Tensor:
    return x + up(torch.relu(down(x)))


def _make_transfer_cases() -> list[tuple[Any, ...]]:
    """Sentences' vectors in L and in English, (B, D) each."""
    draw = torch.Generator().manual_seed(9)
    return [tuple(torch.randn(shape, generator=draw) for _ in range(2)) for shape in ((4, 8), (3, 5))]


@exercise(
    "08.2",
    "the loss of Native Language Transfer",
    tolerance=1e-4,
    cases=_make_transfer_cases,
    gradient=True,
    mistakes={
        "a stop-gradient is missing: English must not move, so detach it": F.mse_loss,
        "the stop-gradient stands on the wrong side: detach English, not the new language": (
            lambda said, english: F.mse_loss(said.detach(), english)
        ),
        "the squares are summed, and the mean over B and D is asked for": (
            lambda said, english: (said - english.detach()).square().sum()
        ),
        "the squares are summed over D, and averaged over B only": (
            lambda said, english: (said - english.detach()).square().sum(-1).mean()
        ),
        "a root was taken: the squared distance is asked for": (
            lambda said, english: F.mse_loss(said, english.detach()).sqrt()
        ),
        "the vectors were normalised first: this loss takes them as they are": (
            lambda said, english: F.mse_loss(F.normalize(said, dim=-1), F.normalize(english.detach(), dim=-1))
        ),
        "these are absolute differences, and squared ones are asked for": (
            lambda said, english: F.l1_loss(said, english.detach())
        ),
    },
)
def _lose_transfer(said: Tensor, english: Tensor) -> Tensor:
    return F.mse_loss(said, english.detach())


def _sum_acquirers(recipe: Any, per_layer: Callable[[int, int], int], layers: int | None = None) -> int:
    """Layers times what one acquirer has, by hidden size and bottleneck."""
    config = recipe.english.encoder.config
    return (layers or config.num_hidden_layers) * per_layer(config.hidden_size, recipe.options.bottleneck)


def make_acquirers() -> dict[str, Any]:
    """What stands for a recipe whose acquirers, two of width 8 with bottlenecks of 4, have 152 parameters."""
    encoder = SimpleNamespace(config=SimpleNamespace(hidden_size=8, num_hidden_layers=2))
    dials = SimpleNamespace(bottleneck=4)
    return {"recipe": SimpleNamespace(english=SimpleNamespace(encoder=encoder), options=dials, weights={"de": 152})}


@exercise(
    "08.3",
    "parameters of one language",
    tolerance=0.5,
    example=make_acquirers,
    mistakes={
        "the biases are missing": lambda recipe: _sum_acquirers(recipe, lambda d, k: 2 * d * k),
        "this is one layer only": lambda recipe: _sum_acquirers(recipe, lambda d, k: 2 * d * k + d + k, 1),
        "this is one of the two maps only": lambda recipe: _sum_acquirers(recipe, lambda d, k: d * k + k),
    },
)
def _count_acquirers(recipe: Any) -> int:
    return recipe.weights["de"]


SLOW = {"exposure_lr": 2e-4}


def make_rates() -> dict[str, Any]:
    """What stands for training: scores that depend on the learning rate."""

    def test(system: Acquiring) -> pd.DataFrame:
        real = [0.36, 0.95] if system.options["exposure_lr"] < 1e-3 else [0.8, 0.96]
        return pd.DataFrame({"real": real, "blind": [0.05, 0.06]}, index=["German", "English"])

    return {"test": test, "german": Acquiring(languages=("de",)), "seen": {"exposure_lr": 2e-3}}


def _score_exposure(
    test: Callable[[Any], Any], german: Any, seen: Mapping[str, Any], slow: Mapping[str, Any] = SLOW
) -> Any:
    """Scores by language and look after pictures alone, at the lower learning rate."""
    return test(replace(german, options={**seen, **slow}))


@exercise(
    "08.4",
    "pictures alone at a tenth of the learning rate",
    example=make_rates,
    mistakes={
        "this is the score without the picture": lambda **given: _score_exposure(**given).loc["German", "blind"],
        "this is the score in English": lambda **given: _score_exposure(**given).loc["English", "real"],
        "this is still the higher learning rate": lambda **given: _score_exposure(**given, slow={}).loc[
            "German", "real"
        ],
    },
)
def _expose_slowly(test: Callable[[Any], Any], german: Any, seen: Mapping[str, Any]) -> float:
    """`test` trains a system and returns its scores by language and look."""
    return _score_exposure(test, german, seen).loc["German", "real"]
