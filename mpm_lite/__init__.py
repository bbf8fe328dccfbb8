"""mpm_lite: learn, test and extend multilingual multimodal pivoting.

Names load what they need when they are first used: importing the package touches no network and loads neither triton,
open_clip nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mpm_lite.core import __version__

_OF = {
    "data": "load_captions CaptionSet",
    "towers.load": "load_text_tower load_image_tower load_lm",
    "recipes": "Recipe Stage",
    "experiments.experiment": "Experiment",
    "experiments.sweep": "sweep",
    "experiments.hypothesis": "Hypothesis",
    "experiments.results": "Results",
    "core.runtime": "asset banner UserError",
    "teaching.check": "show",
    "teaching.drawings": "draw_system",
}
_WHERE = {name: module for module, names in _OF.items() for name in names.split()}
_MODULES = set("ops core data towers recipes training evaluation experiments claims report teaching".split())
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
