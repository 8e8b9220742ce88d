"""How long the rows are and what share of them is trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from recipe_kit.data.lengths import Lengths, list_column
from recipe_kit.data.lengths import row_lengths as row_lengths
from recipe_kit.plan.shape import Bin, LengthsPart, TrainedPart, TurnPart

if TYPE_CHECKING:
    import datasets

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}


def turn_totals(details: datasets.Dataset) -> tuple[Lengths, Lengths]:
    """Rows that have a first, second, … trained turn, and the trained tokens of those turns."""
    totals = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for column in list_column(details, "turn_lengths"):
        tokens = column.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        turns = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        first = np.repeat(np.cumsum(turns) - turns, turns)
        place = np.arange(len(tokens)) - first
        counted = np.bincount(place), np.bincount(place, weights=tokens).astype(np.int64)
        totals = _added(totals[0], counted[0]), _added(totals[1], counted[1])
    return totals


def lengths_part(lengths: Lengths, max_length: int) -> LengthsPart:
    return {
        "rows": len(lengths),
        "max_length": max_length,
        "quantiles": quantiles(lengths),
        "bins": histogram(lengths),
    }


def quantiles(lengths: Lengths) -> dict[str, int]:
    """Lengths that half of the rows, nine of ten, … do not exceed; each is the length of some row."""
    if not len(lengths):
        return dict.fromkeys(_QUANTILES, 0)
    values = np.quantile(lengths, list(_QUANTILES.values()), method="inverted_cdf")
    return dict(zip(_QUANTILES, map(int, values), strict=True))


def histogram(lengths: Lengths, bins: int = 10) -> list[Bin]:
    """Rows by length, in at most `bins` bins of one round width, from 1 up to the longest row."""
    if not len(lengths):
        return []
    width = _round_width(int(lengths.max()) / bins)
    counts = np.bincount((np.maximum(lengths, 1) - 1) // width)
    return [
        {"first": index * width + 1, "last": (index + 1) * width, "rows": int(rows)}
        for index, rows in enumerate(counts)
    ]


def trained_part(tokens: int, trained_tokens: int, turns: tuple[Lengths, Lengths]) -> TrainedPart:
    """The share of the tokens that is trained, and how the trained ones spread over the turns of a chat."""
    in_turns = max(int(turns[1].sum()), 1)
    parts: list[TurnPart] = [
        {"turn": index + 1, "rows": int(rows), "tokens": int(turn_tokens), "share": int(turn_tokens) / in_turns}
        for index, (rows, turn_tokens) in enumerate(zip(*turns, strict=True))
    ]
    share = trained_tokens / max(tokens, 1)
    return {"tokens": tokens, "trained_tokens": trained_tokens, "share": share, "turns": parts}


def _added(left: Lengths, right: npt.NDArray[np.int64]) -> Lengths:
    total = np.zeros(max(len(left), len(right)), np.int64)
    total[: len(left)] += left
    total[: len(right)] += right
    return total


def _round_width(at_least: float) -> int:
    """The smallest of 1, 2, 3, 4, 5, 6, 8, 10, 20, … that is not below `at_least`."""
    scale = int(10 ** math.floor(math.log10(max(at_least, 1))))
    return next(step * scale for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * scale >= at_least)
