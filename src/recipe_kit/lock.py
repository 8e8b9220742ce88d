"""What a run folder pins: the recipe with every revision that was resolved when it was trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from recipe_kit import run_dir
from recipe_kit.recipe import Recipe, load_recipe


def recipe_of(run: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a run, with the base model pinned to the commit that the run recorded."""
    recipe = load_recipe(run / run_dir.RECIPE, overrides=tuple(overrides))
    commit = run_dir.read(run)["model"].get("revision")
    if recipe.model.revision is not None or commit is None:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": commit})})
