"""Everything about a recipe that can be checked without reading a row or importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from recipe_kit.errors import FormatError, MetricError, Problem, RecipeError, RegistryError
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
    return list(dict.fromkeys(problem for resolved in variants for problem in _named_problems(resolved)))


def _named_problems(resolved: Resolved) -> Iterator[Problem]:
    """What is wrong with the formatters and metrics a recipe names: unknown, not importable, or wrong options."""
    for key, spec in _formatters(resolved.recipe):
        try:
            check_options(get_formatter(spec.name), spec.options)
        except (RegistryError, FormatError) as error:
            yield _problem(resolved, key, error)
    if not resolved.recipe.evaluation.metrics:
        return
    from recipe_kit import metrics  # brings numpy, which is slow to import

    for index, metric in enumerate(resolved.recipe.evaluation.metrics):
        try:
            metrics.check_options(metrics.get_metric(metric.name), metric.options)
        except (RegistryError, MetricError) as error:
            yield _problem(resolved, f"evaluation.metrics.{index}", error)


def _problem(resolved: Resolved, key: str, error: Exception) -> Problem:
    keys = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    origin = resolved.origins.get(f"{key}.name", Origin("default", file=resolved.source))
    return origin.problem(str(error), keys)


def _formatters(recipe: Recipe) -> Iterator[tuple[str, FormatterSpec]]:
    yield "data.formatter", recipe.data.formatter
    for split in ("train", "eval", "test"):
        sources = recipe.data.sources(split)
        for index, source in enumerate(sources):
            if source.formatter is not None:
                place = f"data.{split}.{index}" if len(sources) > 1 else f"data.{split}"
                yield f"{place}.formatter", source.formatter
