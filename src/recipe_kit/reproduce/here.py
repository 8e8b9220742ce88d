"""What this machine would make of a lock: environment and prepared rows, before anything is trained."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from recipe_kit import launch
from recipe_kit.recipe import Recipe
from recipe_kit.run_dir import RunInfo


def check_here(recipe: Recipe, *, processes: int, report: Callable[[str], None] = lambda text: None) -> RunInfo:
    """What run.json would say before the first step. Rows are prepared on the way, and found again by the training.

    Raises a RecipeKitError for rows, a formatter or a model that are not here.
    """
    if launch.visible_gpus() == 0 or recipe.training.get("use_cpu"):
        return _look(recipe, processes, report)
    # Whoever asks a GPU for its name holds some of its memory until he ends.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_look, recipe, processes).result()


def _look(recipe: Recipe, processes: int, report: Callable[[str], None] = lambda text: None) -> RunInfo:
    from recipe_kit import data, modeling, provenance

    tokenizer = modeling.load_tokenizer(recipe.model)
    splits = data.prepare(recipe.data, tokenizer, report=report)
    return provenance.run_info(recipe, splits, tokenizer, [], processes, [])
