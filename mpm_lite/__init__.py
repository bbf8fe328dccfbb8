"""mpm_lite: learn, test and extend multilingual multimodal pivoting.

Names load what they need when they are first used: importing the package touches no network and loads neither triton,
open_clip nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mpm_lite.core import __version__

_WHERE = {
    "load_captions": "data",
    "CaptionSet": "data",
    "load_text_tower": "towers.load",
    "load_image_tower": "towers.load",
    "load_lm": "towers.load",
    "Recipe": "recipes",
    "Stage": "recipes",
    "Experiment": "experiments.experiment",
    "sweep": "experiments.sweep",
    "Hypothesis": "experiments.hypothesis",
    "Results": "experiments.results",
    "asset": "core.runtime",
    "banner": "core.runtime",
    "UserError": "core.runtime",
    "show": "teaching.check",
    "draw_system": "teaching.drawings",
}
_MODULES = {
    "ops",
    "core",
    "data",
    "towers",
    "recipes",
    "training",
    "evaluation",
    "experiments",
    "claims",
    "report",
    "teaching",
}
__all__ = sorted({*_WHERE, *_MODULES, "check"})

if TYPE_CHECKING:  # what editors see behind __getattr__
    from mpm_lite.core.runtime import UserError, asset, banner
    from mpm_lite.data import CaptionSet, load_captions
    from mpm_lite.experiments.experiment import Experiment
    from mpm_lite.experiments.hypothesis import Hypothesis
    from mpm_lite.experiments.results import Results
    from mpm_lite.experiments.sweep import sweep
    from mpm_lite.recipes import Recipe, Stage
    from mpm_lite.teaching.check import show
    from mpm_lite.teaching.drawings import draw_system
    from mpm_lite.towers.load import load_image_tower, load_lm, load_text_tower


def __getattr__(name: str) -> Any:
    if name == "check":  # the module: its function is called `check` too
        return importlib.import_module("mpm_lite.teaching.check")
    if name in _MODULES:
        return importlib.import_module(f"mpm_lite.{name}")
    if name in _WHERE:
        found = getattr(importlib.import_module(f"mpm_lite.{_WHERE[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"mpm_lite has no {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
