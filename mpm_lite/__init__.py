"""mpm_lite: learn, test and extend multilingual multimodal pivoting.

Names load what they need when they are first used: importing the package touches no network and loads neither triton,
open_clip nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "load_captions": "data",
    "CaptionSet": "data",
    "load_text_tower": "towers.text",
    "load_image_tower": "towers.image",
    "load_lm": "towers.lm",
    "Recipe": "recipes",
    "Stage": "recipes",
    "Experiment": "experiment",
    "sweep": "sweeping",
    "Hypothesis": "hypothesis",
    "Results": "results",
    "asset": "runtime",
    "banner": "runtime",
    "UserError": "runtime",
    "show": "teaching.show",
}
_MODULES = {
    "ops",
    "runtime",
    "data",
    "towers",
    "recipes",
    "train",
    "evaluate",
    "experiment",
    "results",
    "figures",
    "tour",
    "studies",
    "teaching",
}
__all__ = sorted(_WHERE | dict.fromkeys(_MODULES))

if TYPE_CHECKING:  # what editors see behind __getattr__
    from mpm_lite.data import CaptionSet, load_captions
    from mpm_lite.experiment import Experiment
    from mpm_lite.hypothesis import Hypothesis
    from mpm_lite.recipes import Recipe, Stage
    from mpm_lite.results import Results
    from mpm_lite.runtime import UserError, asset, banner
    from mpm_lite.sweeping import sweep
    from mpm_lite.teaching.show import show
    from mpm_lite.towers.image import load_image_tower
    from mpm_lite.towers.lm import load_lm
    from mpm_lite.towers.text import load_text_tower


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mpm_lite.{name}")
    if name in _WHERE:
        found = getattr(importlib.import_module(f"mpm_lite.{_WHERE[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"mpm_lite has no {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
