"""Several seeds of one recipe: the mean over them and how far apart they lie.

A spread over seeds says how much luck there is in training; an interval over rows says how much there is in the rows
measured on. The two are never mixed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recipe_kit.comparison.runs import RunRecord, labels


@dataclass(frozen=True)
class Spread:
    """A number measured once for each of `n` seeds."""

    mean: float
    min: float
    max: float
    sd: float | None  # sample standard deviation; None for a single seed
    n: int


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seed alone; a run that is alone is a group of one."""

    label: str
    seeds: tuple[int, ...]
    runs: tuple[int, ...]  # places in the list of runs, one for each seed


def spread(values: Iterable[float]) -> Spread:
    """Mean, range and sample standard deviation of at least one value."""
    found = list(values)
    sd = statistics.stdev(found) if len(found) > 1 else None
    return Spread(statistics.fmean(found), min(found), max(found), sd, len(found))


def group_by_seed(records: Sequence[RunRecord]) -> tuple[list[SeedGroup], list[str]]:
    """The runs by recipe, in the order in which each recipe first appears, and remarks.

    Of several runs with one recipe and one seed the last one given counts, where there are other seeds too; without
    other seeds each stands alone.
    """
    together: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        together.setdefault(record.recipe_without_seed, []).append(index)
    remarks = []
    members: list[dict[int, int]] = []  # seed -> place of its run
    for indices in together.values():
        by_seed = {records[index].seed: index for index in indices}
        if len(by_seed) == 1:
            members += [{records[index].seed: index} for index in indices]
            continue
        members.append(dict(sorted(by_seed.items())))
        remarks += [
            f"{records[index].folder} has the recipe and seed of another run; the mean over seeds leaves it out"
            for index in indices
            if index not in by_seed.values()
        ]
    first_of_each = [next(iter(group.values())) for group in members]
    named = labels([records[index] for index in first_of_each], with_seed=False)
    alone = labels(records)
    return [
        SeedGroup(
            alone[first] if named.count(label) > 1 else label,
            tuple(group),
            tuple(group.values()),
        )
        for group, first, label in zip(members, first_of_each, named, strict=True)
    ], remarks
