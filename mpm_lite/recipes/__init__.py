"""The recipes: one page for each system. `RECIPES` names those that the command line and `Experiment` know."""

from mpm_lite.core.runtime import unknown
from mpm_lite.recipes.align import Align
from mpm_lite.recipes.base import Recipe, Stage, TrainData, build_options

RECIPES: dict[str, type[Recipe]] = {"align": Align}

__all__ = ["RECIPES", "Align", "Recipe", "Stage", "TrainData", "build_options", "recipe_class"]


def recipe_class(name: str | type[Recipe]) -> type[Recipe]:
    """The class of a recipe by its name. Raises UserError, with the nearest name, for one that nobody knows."""
    if isinstance(name, type) and issubclass(name, Recipe):
        return name
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
