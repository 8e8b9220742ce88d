"""Everything about a recipe that can be checked without reading a row or importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipe_kit.errors import FormatError, Problem, RecipeError, RegistryError
from recipe_kit.formatters import check_options, get_formatter
from recipe_kit.recipe import Recipe, check_profiles, load_recipe


def validate(source: str | Path, *, profiles: Sequence[str] = (), overrides: Sequence[str] = ()) -> list[Problem]:
    """All that is wrong with a recipe, in file order; [] when nothing is.

    Without `profiles` and `overrides` the recipe is checked by itself and under each of its profiles.
    """
    try:
        if profiles or overrides:
            variants = {"": load_recipe(source, profiles=profiles, overrides=overrides)}
        else:
            variants = check_profiles(source)
    except RecipeError as error:
        return error.problems
    found = [problem for recipe in variants.values() for problem in formatter_problems(recipe, str(source))]
    return list(dict.fromkeys(found))


def formatter_problems(recipe: Recipe, file: str = "") -> list[Problem]:
    """What is wrong with the formatters a recipe names: unknown, not importable, or given options they do not take."""
    problems = []
    data = recipe.data
    specs = [
        data.formatter,
        *(data.formatter_of(source) for name in ("train", "eval", "test") for source in data.sources(name)),
    ]
    for spec in {spec.name: spec for spec in specs}.values():
        try:
            check_options(get_formatter(spec.name), spec.options)
        except (RegistryError, FormatError) as error:
            problems.append(Problem(str(error), key="data.formatter", file=file))
    return problems
