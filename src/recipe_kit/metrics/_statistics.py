"""Scores as sums over rows: what can be resampled, compared row by row, and taken over a part of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipe_kit.errors import MetricError

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """A score that is a function of sums over rows.

    `rows` is (n, k): k numbers for each of n rows. `total` turns sums of rows into scores, many at a time: it takes
    (..., k) and returns (...). Perplexity has the columns (loss in nats, tokens) and the total exp(loss / tokens); a
    mean has (value, 1). `total` may give NaN for a single row that has no score of its own (no token, say).

    Raises MetricError, naming the row, for numbers that are not finite.
    """

    rows: Array
    total: Callable[[Array], Array]

    def __post_init__(self) -> None:
        rows = np.asarray(self.rows, dtype=np.float64)
        if rows.ndim != 2:
            raise ValueError(f"Statistics.rows should have the shape (rows, columns), got {rows.shape}")
        wrong = np.argwhere(~np.isfinite(rows))
        if len(wrong):
            row, column = wrong[0]
            raise MetricError(f"row {row} has {rows[row, column]} where a finite number is needed")
        object.__setattr__(self, "rows", rows)

    def of(self, sums: Array) -> Array:
        """The scores of sums of rows, (..., k) -> (...); NaN or infinity where there is none."""
        with np.errstate(all="ignore"):
            return np.asarray(self.total(sums), dtype=np.float64)

    def value(self) -> float:
        """The score of all rows together. Raises MetricError when there is none."""
        if not len(self.rows):
            raise MetricError("there is no row to score")
        value = float(self.of(self.rows.sum(axis=0)))
        if not np.isfinite(value):
            raise MetricError(f"the score of {len(self.rows)} rows together is {value}, which is no finite number")
        return value

    def values(self) -> Array:
        """The score of each row alone, (n,); NaN for a row that has none."""
        return self.of(self.rows)


@dataclass(frozen=True, eq=False)
class Scored:
    """One score of one model, with what a table shows beside it.

    `settings` is all that decides the number besides the texts: package, version, options. `note` is a remark on
    whether the number means anything for these rows; empty when there is none.
    """

    statistics: Statistics
    label: str
    higher_is_better: bool | None  # None: neither, as with a length
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def mean(values: ArrayLike) -> Statistics:
    """The plain mean of one number a row."""
    column = np.asarray(values, dtype=np.float64)
    return ratio(column, np.ones_like(column))


def ratio(numerators: ArrayLike, denominators: ArrayLike, after: Callable[[Array], Array] | None = None) -> Statistics:
    """A ratio of sums, then `after`: `ratio(loss_sums, tokens, np.exp)` is perplexity.

    A row whose denominator is 0 counts in the sums; alone it has no score, and is a tie in a sign test.
    """
    columns = [np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)]
    if any(column.ndim != 1 for column in columns):
        raise ValueError(f"one number a row is needed, got arrays of shapes {[column.shape for column in columns]}")
    return Statistics(np.stack(columns, axis=1), partial(_divided, after=after))


def grouped(statistics: Statistics, groups: ArrayLike) -> Statistics:
    """One row for each group: the sums of its rows. `groups` names the group of every row.

    Answers of one chat are not independent of each other; as one row they are drawn together.
    """
    names, places = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), statistics.rows.shape[1]))
    np.add.at(sums, places, statistics.rows)
    return Statistics(sums, statistics.total)


def _divided(sums: Array, *, after: Callable[[Array], Array] | None) -> Array:
    divided: Array = np.where(sums[..., 1] == 0, np.nan, sums[..., 0] / sums[..., 1])
    return divided if after is None else after(divided)
