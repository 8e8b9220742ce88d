"""The keyword arguments of formatters and metrics: what they are called, and whether a value may be given for them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from recipe_kit.suggest import did_you_mean

REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """A keyword of a function. `default` is REQUIRED when there is none; `type` is its annotation as written."""

    name: str
    type: str
    default: Any


def options_of(function: Callable[..., Any], data: int) -> tuple[tuple[Option, ...], bool]:
    """The options of a function whose first `data` parameters are no options, and whether it takes any keyword."""
    parameters = list(inspect.signature(function).parameters.values())[data:]
    options = [
        Option(p.name, _written(p.annotation), p.default)
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return tuple(options), any(p.kind is p.VAR_KEYWORD for p in parameters)


def option_problems(
    called: str, function: Callable[..., Any], options: Iterable[Option], is_open: bool, given: Mapping[str, Any]
) -> list[str]:
    """A sentence for every given option that is unknown, missing or of the wrong type; `called` names the function."""
    known = {option.name: option for option in options}
    problems = []
    for name, value in given.items():
        if name not in known:
            if not is_open:
                hint = did_you_mean(name, known) or f"; it has {listed(known) or 'none'}"
                problems.append(f"the {called} has no option {name!r}{hint}")
        elif not _fits(value, _annotation(function, name)):
            problems.append(f"option {name!r} of the {called} takes {known[name].type}, got {shown(value)}")
    missing = [name for name, option in known.items() if option.default is REQUIRED and name not in given]
    return problems + [f"the {called} needs option {name!r}" for name in missing]


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: `'a', 'b'`."""
    return ", ".join(repr(name) for name in names)


def shown(value: object) -> str:
    """A value for an error message: short, and with its type where that helps."""
    if value is None or isinstance(value, bool):
        return repr(value)
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _written(annotation: Any) -> str:
    if annotation is REQUIRED:
        return "Any"
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _annotation(function: Any, option: str) -> Any:
    """An option's type; Any where it is not written or names something that is imported for type checkers only."""
    written = getattr(function, "__annotations__", {}).get(option, Any)
    if not isinstance(written, str):
        return written
    try:
        return eval(written, vars(sys.modules[function.__module__]))
    except Exception:  # an annotation we cannot read is no reason to refuse a value
        return Any


def _fits(value: object, annotation: Any) -> bool:
    """Whether a value from a YAML file may be given for an annotation; what cannot be judged here is let through."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (tuple, list, Sequence):
        items = [choice for choice in arguments if choice is not Ellipsis]
        return isinstance(value, list | tuple) and all(any(_fits(item, kind) for kind in items) for item in value)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    return True
