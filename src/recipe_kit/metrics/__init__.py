"""Metrics: functions that compare answers with references, and what their numbers say of base against tuned.

A metric takes all answers and all references, in the same order, and returns one number a row:

    >>> from recipe_kit.metrics import metric
    >>> @metric("ends_politely", label="Ends politely")
    ... def ends_politely(answers, references, *, phrase: str = "thank you"):
    ...     return [answer.lower().rstrip(".! ").endswith(phrase) for answer in answers]

The kit averages the numbers, puts an interval around the mean and compares base and tuned row by row. The keyword
arguments of the function are its options. A metric with several results returns `{"name": numbers, ...}`. A score that
is no mean of rows (a ratio of sums, the score of a whole corpus) returns `Statistics`: a few numbers a row that may
be added up, and the function from their sum to the score; `ratio` makes the most common kind.

A metric that cannot score a row raises `MetricError("row 3 ...")`, rows counted from 0; its other exceptions are
reported with its name and origin. In both cases the other metrics are kept.

A recipe names a metric as `module:attr`, or by the name of an entry point of the group `recipe_kit.metrics`:

    [project.entry-points."recipe_kit.metrics"]
    ends_politely = "my_package.metrics:ends_politely"

Needs numpy; the packages behind the built-in metrics are imported when a metric is computed.
"""

from __future__ import annotations

from recipe_kit.errors import MetricError
from recipe_kit.metrics._declare import (
    Metric,
    Result,
    check_options,
    get_metric,
    metric,
    metric_names,
    note,
    registry,
    score,
)
from recipe_kit.metrics._statistics import Scored, Statistics, grouped, mean, ratio
from recipe_kit.metrics.intervals import Comparison, compare, estimate, score_entry, select
from recipe_kit.run_dir import Estimate, ScoreEntry

for _name in ("chrf", "exact_match", "length_ratio", "normalised_match", "rouge"):
    registry.add(_name, f"recipe_kit.metrics.texts:{_name}")

__all__ = [
    "Comparison",
    "Estimate",
    "Metric",
    "MetricError",
    "Result",
    "ScoreEntry",
    "Scored",
    "Statistics",
    "check_options",
    "compare",
    "estimate",
    "get_metric",
    "grouped",
    "mean",
    "metric",
    "metric_names",
    "note",
    "ratio",
    "score",
    "score_entry",
    "select",
]
