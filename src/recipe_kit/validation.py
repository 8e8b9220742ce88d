"""Everything about a recipe that can be checked without reading a row or importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from recipe_kit.errors import FormatError, Problem, RecipeError, RegistryError
from recipe_kit.formatters import check_options, get_formatter
from recipe_kit.recipe import FormatterSpec, Origin, Recipe, Resolved, check_profiles, resolve


def validate(source: str | Path, *, profiles: Sequence[str] = (), overrides: Sequence[str] = ()) -> list[Problem]:
    """All that is wrong with a recipe, in file order; [] when nothing is.

    Without `profiles` and `overrides` the recipe is checked by itself and under each of its profiles.
    """
    choices = [tuple(profiles)]
    try:
        if not profiles and not overrides:
            choices += [(name,) for name in check_profiles(source) if name]
        variants = [resolve(source, profiles=chosen, overrides=overrides) for chosen in choices]
    except RecipeError as error:
        return error.problems
    return list(dict.fromkeys(problem for resolved in variants for problem in _formatter_problems(resolved)))


def _formatter_problems(resolved: Resolved) -> Iterator[Problem]:
    """What is wrong with the formatters a recipe names: unknown, not importable, or given options they do not take."""
    for key, spec in _formatters(resolved.recipe):
        try:
            check_options(get_formatter(spec.name), spec.options)
        except (RegistryError, FormatError) as error:
            origin = resolved.origins.get(f"{key}.name", Origin("default", file=resolved.source))
            yield origin.problem(str(error), tuple(key.split(".")))


def _formatters(recipe: Recipe) -> Iterator[tuple[str, FormatterSpec]]:
    yield "data.formatter", recipe.data.formatter
    for split in ("train", "eval", "test"):
        sources = recipe.data.sources(split)
        for index, source in enumerate(sources):
            if source.formatter is not None:
                place = f"data.{split}.{index}" if len(sources) > 1 else f"data.{split}"
                yield f"{place}.formatter", source.formatter
