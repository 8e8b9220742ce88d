"""Declaring, finding and running metrics."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from recipe_kit.errors import MetricError, RegistryError
from recipe_kit.metrics._statistics import Array, Scored, Statistics, mean
from recipe_kit.options import option_problems, options_of, shown
from recipe_kit.registry import Registry

Numbers: TypeAlias = Sequence[float] | Array
Result: TypeAlias = Numbers | Statistics | Mapping[str, Numbers] | Mapping[str, Statistics]
AnyMetric = TypeVar("AnyMetric", bound=Callable[..., Any])
_MARK = "__recipe_kit_metric__"


class Metric(Protocol):
    """A function of all answers and all references, in the same order; its keyword arguments are its options."""

    def __call__(self, answers: Sequence[str], references: Sequence[str], /, *args: Any, **options: Any) -> Result: ...


@dataclass(frozen=True)
class Declaration:
    """What a metric says about itself."""

    name: str
    higher_is_better: bool | None = True
    label: str | Mapping[str, str] = ""
    describe: Callable[..., Mapping[str, Any]] | None = None
    note: Callable[[Sequence[str]], str] | None = None

    def label_of(self, name: str) -> str:
        """What tables call the score `name`; the name itself where nothing was declared."""
        if isinstance(self.label, str):
            return self.label if self.label and name == self.name else name
        return self.label.get(name, name)


registry: Registry[Metric] = Registry("metric", "recipe_kit.metrics")


def metric(
    name: str,
    *,
    higher_is_better: bool | None = True,
    label: str | Mapping[str, str] = "",
    describe: Callable[..., Mapping[str, Any]] | None = None,
    note: Callable[[Sequence[str]], str] | None = None,
) -> Callable[[AnyMetric], AnyMetric]:
    """Decorator: register a function of answers and references under `name` and return it unchanged.

    `higher_is_better` is None where neither is. `label` is what tables show, by score where there are several.
    `describe(**options)` returns what else decides the number (package and version); the options are recorded
    anyway. `note(references)` returns a sentence when the metric says little about such references, else "".
    """

    def decorate(function: AnyMetric) -> AnyMetric:
        function.__dict__[_MARK] = Declaration(name, higher_is_better, label, describe, note)
        registry.add(name, function)
        return function

    return decorate


def get_metric(name: str) -> Metric:
    """The metric behind a name or `module:attr`; RegistryError if there is none."""
    found = registry.get(name)
    if not callable(found):
        raise RegistryError(f"metric {name!r} should be a function of answers and references, got {shown(found)}")
    return found


def metric_names() -> list[str]:
    """Every built-in and installed metric, sorted. Imports none of them."""
    return registry.names()


def declaration(function: Metric) -> Declaration:
    """What a metric declares; an undecorated function declares its name only."""
    found = getattr(function, _MARK, None)
    return found if isinstance(found, Declaration) else Declaration(getattr(function, "__name__", "metric"))


def check_options(function: Metric, options: Mapping[str, Any]) -> None:
    """MetricError naming every option that is unknown, missing or of the wrong type."""
    known, is_open = options_of(function, data=2)  # after answers and references
    problems = option_problems(f"{declaration(function).name} metric", function, known, is_open, options)
    if problems:
        raise MetricError("; ".join(problems))


def note(name: str, references: Sequence[str]) -> str:
    """Why a metric will say little about such references, known before the first answer is written; else ""."""
    remark = declaration(get_metric(name)).note
    try:
        return remark(references) if remark else ""
    except Exception as error:
        return f"the note of metric {name!r} failed: {type(error).__name__}: {error}"


def score(
    name: str, options: Mapping[str, Any], answers: Sequence[str], references: Sequence[str]
) -> dict[str, Scored]:
    """Run one metric and check what it returned: its scores by name, in its own order.

    Scores are named after the metric, unless it names them itself. Raises RegistryError for an unknown metric and
    MetricError, one sentence, for all else that goes wrong: options, a plugin that raises, numbers that are missing
    or not finite, a row without reference. Rows are counted from 0.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers and {len(references)} references: there should be one for each")
    function = get_metric(name)
    check_options(function, options)
    declared = declaration(function)
    own_name = declared.name if ":" in name else name
    called = f"metric {own_name!r} from {registry.origin(name)}"
    if not answers:
        raise MetricError(f"{called} has no answer to score")
    try:
        with redirect_stdout(sys.stderr):  # what a plugin prints is no result of a command
            returned = function(list(answers), list(references), **options)
        found = _by_name(returned, own_name, len(answers))
        settings = _settings(function, name, options)
        remark = declared.note(references) if declared.note else ""
    except MetricError as error:
        raise MetricError(f"{called}: {error}") from error
    except (Exception, SystemExit) as error:  # a plugin may raise anything, and costs its own score only
        raise MetricError(
            f"{called} failed: {type(error).__name__}: {error}. Correct it, or take it out of evaluation.metrics"
        ) from error
    return {
        key: Scored(statistics, declared.label_of(key), declared.higher_is_better, settings, remark)
        for key, statistics in found.items()
    }


def _settings(function: Metric, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the number: what the metric describes, or where it comes from, and every option it was run with."""
    chosen = {option.name: option.default for option in options_of(function, data=2)[0]} | dict(options)
    describe = declaration(function).describe
    described = describe(**chosen) if describe else {"origin": registry.origin(name)}
    # As it will be read from a file again: a default that JSON does not know is kept as its text.
    settings: dict[str, Any] = json.loads(json.dumps({**described, "options": chosen}, default=str))
    return settings


def _by_name(result: object, own_name: str, count: int) -> dict[str, Statistics]:
    """What a metric returned, checked; MetricError for what is not one number, or one row of Statistics, a row."""
    if not isinstance(result, Mapping):
        return {own_name: _statistics(result, count, "")}
    if not result:
        raise MetricError("it returned no score")
    for key in result:
        if not isinstance(key, str) or not key:
            raise MetricError(f"the name of a score should be text, got {shown(key)}")
    return {key: _statistics(values, count, f" as {key!r}") for key, values in result.items()}


def _statistics(values: object, count: int, name: str) -> Statistics:
    if isinstance(values, Statistics):
        return _checked_total(values, count, name)
    if not isinstance(values, Collection) or isinstance(values, str | bytes | Set | Mapping):
        raise MetricError(f"it should return one number a row{name}, got {shown(values)}")
    if len(values) != count:
        raise MetricError(f"it returned {len(values)} numbers{name} for {count} rows; there should be one a row")
    numbers = np.empty(count)
    for row, value in enumerate(values):
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            numbers[row] = float(value)
        except (TypeError, ValueError):
            raise MetricError(f"it returned {shown(value)}{name} for row {row}, which is no number") from None
        if not np.isfinite(numbers[row]):
            raise MetricError(f"it returned {numbers[row]}{name} for row {row}, which is no finite number")
    return mean(numbers)


def _checked_total(statistics: Statistics, count: int, name: str) -> Statistics:
    if len(statistics.rows) != count:
        raise MetricError(f"it returned Statistics of {len(statistics.rows)} rows{name} for {count} rows")
    try:
        shape: object = statistics.of(statistics.rows[np.newaxis]).shape
    except Exception as error:  # most of all an IndexError, from sums[0] written for sums[..., 0]
        shape = f"{type(error).__name__}: {error}"
    if shape != (1, count):
        columns = statistics.rows.shape[1]
        raise MetricError(
            f"the total of its Statistics{name} should turn sums of shape (1, {count}, {columns}) into scores of "
            f"shape (1, {count}), got {shape}; write sums[..., 0] for the first column"
        )
    statistics.value()
    return statistics
