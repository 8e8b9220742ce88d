"""What `--over` says: which keys take which values, and every combination of them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipe_kit.errors import Problem, RecipeError
from recipe_kit.recipe.yaml_source import read_value

Settings = dict[str, Any]  # dotted key -> value

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})\s*")
_LOG_FROM = 10  # a range whose ends are that many times apart is searched by its logarithm
_EXAMPLE = "`--over training.learning_rate=1e-4,2e-4`"
# Where trials could not be told apart by the held-out loss, since it would be another loss.
_REFUSED = {
    "evaluation": "the held-out loss does not depend on it",
    "launch": "it says how processes are started, not what is learnt",
    "name": "it names the run folders",
    "data.eval": "every trial would be measured on other rows",
    "data.test": "a sweep never looks at the test rows",
    "data.split_seed": "every trial would be measured on other rows",
    "data.train_on": "every trial would be measured on other tokens",
    "data.max_length": "every trial would be measured on other tokens",
    "training.eval_strategy": "it says when the loss is measured, not what is learnt",
    "training.eval_steps": "it says when the loss is measured, not what is learnt",
}


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; whole ones when both ends are."""

    low: float
    high: float
    whole: bool

    @property
    def log(self) -> bool:
        """Whether equal factors count as equal steps."""
        return self.low > 0 and self.high / self.low >= _LOG_FROM

    @property
    def ends(self) -> tuple[float, float]:
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def __str__(self) -> str:
        low, high = self.ends
        return f"{low:g} to {high:g}{', whole numbers' if self.whole else ''}{', on a log scale' if self.log else ''}"


@dataclass(frozen=True)
class Axis:
    """One key and what it may be."""

    key: str
    text: str  # as the user wrote it
    values: tuple[Any, ...] | Range

    @property
    def corners(self) -> tuple[Any, ...]:
        """Every listed value, or the ends of a range: what can be checked before anything is tried."""
        return self.values.ends if isinstance(self.values, Range) else self.values


def parse(over: Sequence[str], *, ranges: bool, overrides: Sequence[str] = ()) -> list[Axis]:
    """The axes that `--over KEY=VALUE,VALUE` or, where `ranges` may be searched, `KEY=LOW..HIGH` name.

    Values are read as in a recipe file. Raises RecipeError with everything that is wrong.
    """
    axes: list[Axis] = []
    problems: list[Problem] = []
    taken = {change.partition("=")[0].strip(): f"--set {change}" for change in overrides}
    for text in over:
        key, _, written = (part.strip() for part in text.partition("="))
        where = f"--over {text}"
        problem = _key_problem(key, [axis.key for axis in axes], taken)
        values: tuple[Any, ...] | Range = ()
        if problem is None:
            values, problem = _values(written, ranges)
        if problem is not None:
            problems.append(Problem(problem, key=where))
        axes.append(Axis(key, text, values))
    if problems:
        raise RecipeError(problems)
    return axes


def _key_problem(key: str, before: Sequence[str], taken: dict[str, str]) -> str | None:
    if not key or not all(key.split(".")):
        return f"expected KEY=VALUE,VALUE, such as {_EXAMPLE}"
    for refused, reason in _REFUSED.items():
        if _inside(key, refused):
            return f"{key} cannot be swept: {reason}"
    for other in before:
        if key == other:
            return f"{key} is given twice; write all its values after one --over"
        if _inside(key, other) or _inside(other, key):
            return f"{key} and {other} are parts of one another; sweep over one of them"
    for other, where in taken.items():
        if _inside(key, other) or _inside(other, key):
            return f"{where} sets it as well; leave one of the two out"
    return None


def _inside(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _values(written: str, ranges: bool) -> tuple[tuple[Any, ...] | Range, str | None]:
    found = _RANGE.fullmatch(written)
    if found is not None:
        low, high = (float(end) for end in found.groups())
        if not ranges:
            return (), "a range needs `--sampler tpe` or `--sampler random`; a grid takes values, such as 1e-5,1e-4"
        if low >= high:
            return (), f"the range {written} is empty; write the lower end first"
        return Range(low, high, whole=all(re.fullmatch(r"[-+]?\d+", end) for end in found.groups())), None
    try:
        values = read_value(f"[{written}]")
    except RecipeError as error:
        return (), f"{error.problems[0].message}; separate values by commas, and quote those that hold one"
    if not values:
        return (), f"no value is given; write them after the =, such as {_EXAMPLE}"
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        return (), f"{twice} is given twice"
    return tuple(values), None


def grid(axes: Sequence[Axis]) -> list[Settings]:
    """Every combination, the last key changing fastest."""
    lists = [axis.corners for axis in axes]
    return [dict(zip([axis.key for axis in axes], values, strict=True)) for values in itertools.product(*lists)]


def corners(axes: Sequence[Axis]) -> list[Settings]:
    """Combinations in which every listed value and every end of a range occurs at least once."""
    first = {axis.key: axis.corners[0] for axis in axes}
    return [first, *({**first, axis.key: value} for axis in axes for value in axis.corners[1:])]


def as_overrides(settings: Settings) -> list[str]:
    """The settings as `--set` takes them. JSON is YAML, and says text from number."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
