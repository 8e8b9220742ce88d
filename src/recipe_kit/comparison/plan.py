"""Recipes times seeds: what `recipe-kit compare --recipes` has to train, and whether that would be a fair comparison.

Decided before anything is trained, from the recipes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_kit import trials
from recipe_kit.comparison.runs import RunRecord
from recipe_kit.errors import Problem, RecipeError
from recipe_kit.recipe import Recipe, flatten
from recipe_kit.trials import Trial

# What decides which tokens are read in which order, with TRL's defaults.
_ORDER: dict[str, Any] = {
    "max_steps": -1,
    "num_train_epochs": 3.0,
    "packing": False,
    "packing_strategy": "bfd",
    "train_sampling_strategy": "random",
    "shuffle_dataset": False,
    "dataloader_drop_last": False,
    "data_seed": None,
}
_REMEDY = (
    "the recipes would not read the same tokens in the same order; make them equal, e.g. with --set, or train them by "
    "themselves and give `recipe-kit compare` the runs"
)
_KEYS_WITH_VALUES = 3  # of `data`; where more differ, their names say that these are other data


@dataclass(frozen=True)
class Planned:
    """One trial and the finished run that makes it unnecessary, if there is one."""

    trial: Trial
    seed: int
    finished: Path | None


def plan(
    recipes: Sequence[str],
    seeds: Sequence[int],
    *,
    profiles: Sequence[str] = (),
    overrides: Sequence[str] = (),
    runs_dir: str | Path = "runs",
    num_processes: int | None = None,
) -> list[Planned]:
    """Every recipe with every seed, seeds outermost; without `seeds` each recipe with its own, which must be equal.

    Raises RecipeError with every problem of every recipe, and with all that would make them read other tokens or in
    another order.
    """
    loaded = _load_all(recipes, profiles, overrides, num_processes)
    problems = [problem for other in loaded[1:] for problem in apart(loaded[0], other, with_seed=not seeds)]
    problems += [Problem(_REMEDY)] if problems else []
    problems += _given_twice("--recipes", recipes) + _given_twice("--seeds", seeds)
    if problems:
        raise RecipeError(problems)
    planned = []
    for seed in seeds or [seed_of(loaded[0].recipe)]:
        for recipe in recipes:
            changed = [*overrides, f"training.seed={seed}"] if seeds else overrides
            trial = trials.load(recipe, profiles, changed, num_processes=num_processes)
            planned.append(Planned(trial, seed, trials.find_finished(trial, runs_dir)))
    return planned


def apart(first: Trial, other: Trial, *, with_seed: bool) -> Iterator[Problem]:
    """In what two recipes would read other rows, other tokens, or in another order; a problem for each key, and one
    for all keys of `data` where many differ."""
    ours, theirs = _data(other.recipe), _data(first.recipe)
    keys = [key for key in dict.fromkeys([*theirs, *ours]) if ours.get(key) != theirs.get(key)]
    if len(keys) > _KEYS_WITH_VALUES:
        names = ", ".join(key.removeprefix("data.") for key in keys)
        yield Problem(f"{other.source} and {first.source} differ in {names}", key="data")
    else:
        for key in keys:
            yield _problem(key, ours.get(key), theirs.get(key), first, other)
    for key, default in _ORDER.items():
        mine, first_has = (trial.recipe.training.get(key, default) for trial in (other, first))
        if mine != first_has:
            yield _problem(f"training.{key}", mine, first_has, first, other)
    mine, first_has = effective_batch_size(other), effective_batch_size(first)
    if mine != first_has:
        yield _problem("effective batch size", mine, first_has, first, other)
    if with_seed and seed_of(other.recipe) != seed_of(first.recipe):
        yield _problem("training.seed", seed_of(other.recipe), seed_of(first.recipe), first, other)


def _data(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in flatten(recipe).items() if key.startswith("data.")}


def effective_batch_size(trial: Trial) -> int:
    """Rows of one optimiser step; one process is assumed where neither recipe nor command line says how many."""
    training = trial.recipe.training
    size = training.get("per_device_train_batch_size", 8)
    # With `auto` the rows of a step stand in the other key, and the card decides in how many pieces they come.
    rows = (1 if size == "auto" else int(size)) * int(training.get("gradient_accumulation_steps", 1))
    return rows * (trial.num_processes or trial.recipe.launch.num_processes or 1)


def seed_of(recipe: Recipe) -> int:
    """The seed a recipe is trained with."""
    return int(recipe.training.get("seed", 42))


def tokens_remark(records: Sequence[RunRecord]) -> str:
    """Whether runs that were to read the same tokens did, in a sentence; empty where fewer than two were trained."""
    by_seed: dict[int, set[int]] = {}
    for record in records:
        if "tokens" in record.training:
            by_seed.setdefault(record.seed, set()).add(int(record.training["tokens"]))
    counted = sum("tokens" in record.training for record in records)
    if counted < 2:
        return ""
    unequal = {seed: tokens for seed, tokens in by_seed.items() if len(tokens) > 1}
    if unequal:
        said = "; ".join(f"seed {seed}: {' and '.join(f'{n:,}' for n in sorted(t))}" for seed, t in unequal.items())
        return f"the recipes did not read equally many tokens in training ({said})"
    read = " or ".join(f"{tokens:,}" for tokens in sorted({n for found in by_seed.values() for n in found}))
    return f"all recipes read equally many tokens in training, {read}, from the same rows in the same order"


def _load_all(
    recipes: Sequence[str], profiles: Sequence[str], overrides: Sequence[str], num_processes: int | None
) -> list[Trial]:
    loaded, problems = [], []
    for recipe in recipes:
        try:
            loaded.append(trials.load(recipe, profiles, overrides, num_processes=num_processes))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return loaded


def _given_twice(option: str, values: Sequence[Any]) -> list[Problem]:
    return [
        Problem(f"{value} is given twice; leave one out", key=option)
        for index, value in enumerate(values)
        if values.index(value) < index
    ]


def _problem(key: str, mine: Any, theirs: Any, first: Trial, other: Trial) -> Problem:
    return Problem(f"{_shown(mine)} in {other.source} and {_shown(theirs)} in {first.source}", key=key)


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
