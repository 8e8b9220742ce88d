"""How sure a score is: bootstrap intervals over rows, base and tuned on the same rows, and a sign test."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from recipe_kit.errors import MetricError
from recipe_kit.metrics._statistics import Array, Scored, Statistics
from recipe_kit.run_dir import Estimate, ScoreEntry

RESAMPLES = 1000
_WEIGHTS_AT_ONCE = 1 << 20  # 8 MiB of them


class Comparison(TypedDict):
    """Base against tuned on the same rows.

    A row is better for the model with the better score on it alone. Where neither direction is better, `tuned_better`
    counts the rows where tuned is higher. `p_value`: two-sided exact sign test, ties left out.
    """

    base: Estimate
    tuned: Estimate
    difference: Estimate  # tuned - base, over the same resampled rows
    rows: int
    tuned_better: int
    base_better: int
    ties: int  # equal within 1e-12, and rows that have no score of their own
    p_value: float


def estimate(statistics: Statistics, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """A score of all rows and its interval. MetricError when there is no row, or no finite score."""
    value = statistics.value()
    return _interval(value, statistics.of(_resampled_sums(statistics.rows, seed, resamples)))


def compare(
    base: Statistics,
    tuned: Statistics,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    higher_is_better: bool | None = True,
) -> Comparison:
    """Base against tuned: both scores, their difference, and the rows each is better on.

    Row i of both is the same held-out row, and every resample draws the same rows for both, so what makes a row easy
    or hard for both models cancels in the difference. MetricError when there is no row, or no finite score.
    """
    if len(base.rows) != len(tuned.rows):
        raise ValueError(f"base has {len(base.rows)} rows and tuned {len(tuned.rows)}; they should be the same rows")
    value_of_base, value_of_tuned = base.value(), tuned.value()
    sums = _resampled_sums(np.hstack([base.rows, tuned.rows]), seed, resamples)
    columns = base.rows.shape[1]
    of_base, of_tuned = base.of(sums[:, :columns]), tuned.of(sums[:, columns:])
    tuned_better, base_better = _rows_won(base.values(), tuned.values(), higher_is_better)
    return {
        "base": _interval(value_of_base, of_base),
        "tuned": _interval(value_of_tuned, of_tuned),
        "difference": _interval(value_of_tuned - value_of_base, of_tuned - of_base),
        "rows": len(base.rows),
        "tuned_better": tuned_better,
        "base_better": base_better,
        "ties": len(base.rows) - tuned_better - base_better,
        "p_value": sign_test(tuned_better, base_better),
    }


def score_entry(base: Scored, tuned: Scored, *, seed: int, resamples: int = RESAMPLES) -> ScoreEntry:
    """What `metrics.json` says of one score. MetricError, naming it, when there is no row or no finite score."""
    direction = tuned.higher_is_better
    try:
        compared = compare(
            base.statistics, tuned.statistics, seed=seed, resamples=resamples, higher_is_better=direction
        )
    except MetricError as error:
        raise MetricError(f"{tuned.label}: {error}") from error
    entry: ScoreEntry = {
        "label": tuned.label,
        "base": compared["base"],
        "tuned": compared["tuned"],
        "difference": compared["difference"],
        "higher_is_better": direction,
        "rows": compared["rows"],
        "tuned_better": compared["tuned_better"],
        "base_better": compared["base_better"],
        "ties": compared["ties"],
        "p_value": compared["p_value"],
        "settings": dict(tuned.settings),
    }
    if tuned.note:
        entry["note"] = tuned.note
    return entry


def select(statistics: Statistics, which: ArrayLike) -> Statistics:
    """The same score over some rows: `which` is a mask of one bool a row, or the rows' numbers, counted from 0."""
    chosen = np.asarray(which)
    if chosen.dtype != bool:
        chosen = chosen.astype(np.intp)  # also an empty list, which numpy takes for floats
    elif chosen.shape != (len(statistics.rows),):
        raise ValueError(f"a mask has one bool a row: {len(statistics.rows)} rows, mask of shape {chosen.shape}")
    return Statistics(statistics.rows[chosen], statistics.total)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value for this many rows won and lost, were both equally likely; 1.0 for none."""
    rows, fewer = wins + losses, min(wins, losses)
    ways = term = 1  # ways to win exactly `won` rows; whole numbers, so that any number of rows is exact
    for won in range(fewer):
        term = term * (rows - won) // (won + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << rows))


def _rows_won(base: Array, tuned: Array, higher_is_better: bool | None) -> tuple[int, int]:
    """Rows won by tuned and by base; a row that is equal, or NaN for either, is won by nobody."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        gains = tuned - base if higher_is_better is not False else base - tuned
    decided = ~np.isclose(base, tuned, rtol=1e-12, atol=1e-12)
    return int(np.sum(decided & (gains > 0))), int(np.sum(decided & (gains < 0)))


def _resampled_sums(rows: Array, seed: int, resamples: int) -> Array:
    """The sums of `resamples` draws of n rows with replacement, (resamples, k).

    The draws depend on the seed and n alone. A draw is held as how often each row was drawn, a few draws at a time:
    memory grows with the rows only.
    """
    random = np.random.default_rng(seed)
    count, columns = rows.shape
    sums = np.empty((resamples, columns))
    step = max(1, _WEIGHTS_AT_ONCE // count)
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        drawn = random.integers(count, size=(draws, count)) + count * np.arange(draws)[:, np.newaxis]
        weights = np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count)
        sums[start : start + draws] = weights @ rows
    return sums


def _interval(value: float, resampled: Array) -> Estimate:
    finite = resampled[np.isfinite(resampled)]  # a resample of rows without a token has no perplexity
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (value, value)
    return {"value": value, "low": float(low), "high": float(high)}
