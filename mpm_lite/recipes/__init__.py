"""One page a system. `RECIPES` names them for the command line and for `Experiment`."""

from mpm_lite.core.runtime import unknown
from mpm_lite.recipes.align import Align
from mpm_lite.recipes.base import Recipe, Stage, TrainData, build_options

RECIPES: dict[str, type[Recipe]] = {"align": Align}

__all__ = ["RECIPES", "Align", "Recipe", "Stage", "TrainData", "build_options", "recipe_class"]


def recipe_class(name: str | type[Recipe]) -> type[Recipe]:
    """The class of a recipe by name; raises UserError with the nearest name where nobody knows it."""
    if isinstance(name, type) and issubclass(name, Recipe):
        return name
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
