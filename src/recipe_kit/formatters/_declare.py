"""Declaring, finding, describing and applying formatters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from recipe_kit.errors import FormatError, RegistryError
from recipe_kit.formatters._example import Example, Row, check_example
from recipe_kit.options import REQUIRED as REQUIRED
from recipe_kit.options import Option as Option
from recipe_kit.options import listed, option_problems, options_of, shown
from recipe_kit.registry import Registry
from recipe_kit.suggest import did_you_mean, nearest

AnyFormatter = TypeVar("AnyFormatter", bound=Callable[..., Example])
_MARK = "__recipe_kit_formatter__"


class Formatter(Protocol):
    """A function of one row. Options are its keyword arguments; a plain function is one, decorated or not."""

    def __call__(self, row: Row, /, *args: Any, **options: Any) -> Example: ...


@dataclass(frozen=True)
class Declaration:
    """What a formatter says about itself."""

    name: str
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...]
    options: tuple[Option, ...]
    open_options: bool  # takes any keyword
    example: Mapping[str, Any] | None


@dataclass(frozen=True)
class FormatterInfo:
    """All that a page or a command shows about one formatter."""

    name: str
    summary: str
    doc: str
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...]
    options: tuple[Option, ...]
    origin: str
    example_row: Mapping[str, Any] | None
    example_result: Example | None


registry: Registry[Formatter] = Registry("formatter", "recipe_kit.formatters")


def formatter(
    name: str,
    *,
    columns: Sequence[str] = (),
    optional_columns: Sequence[str] = (),
    example: Row | None = None,
) -> Callable[[AnyFormatter], AnyFormatter]:
    """Decorator: register a function of one row under `name` and return it unchanged.

    `columns` are the input columns that must be there, `optional_columns` those that may be; both can be renamed by a
    recipe. The keyword arguments of the function are its options. `example` is a row to show in listings; its
    result is computed, never written down.
    """

    def decorate(function: AnyFormatter) -> AnyFormatter:
        function.__dict__[_MARK] = _declare(function, name, tuple(columns), tuple(optional_columns), example)
        registry.add(name, function)
        return function

    return decorate


def get_formatter(name: str) -> Formatter:
    """The formatter behind a name or `module:attr`, called as `f(row, **options)`; RegistryError if there is none."""
    found = registry.get(name)
    if not callable(found):
        raise RegistryError(f"formatter {name!r} should be a function of one row, got {shown(found)}")
    return found


def formatter_names() -> list[str]:
    """Every built-in and installed formatter, sorted."""
    return registry.names()


def declaration(function: Formatter) -> Declaration:
    """What a formatter declares; an undecorated function declares its options only."""
    found = getattr(function, _MARK, None)
    if isinstance(found, Declaration):
        return found
    return _declare(function, getattr(function, "__name__", type(function).__name__), (), (), None)


def describe_formatter(name: str) -> FormatterInfo:
    """Everything known about one formatter, with its example row worked out."""
    function = get_formatter(name)
    declared = declaration(function)
    doc = inspect.getdoc(function) or ""
    return FormatterInfo(
        name=name,
        summary=doc.partition("\n")[0],
        doc=doc,
        columns=declared.columns,
        optional_columns=declared.optional_columns,
        options=declared.options,
        origin=registry.origin(name),
        example_row=declared.example,
        example_result=None if declared.example is None else format_row(function, declared.example),
    )


def format_row(
    function: Formatter,
    row: Row,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Example:
    """One row, formatted and checked. `columns` maps a formatter's column to the column of the data that holds it.

    Raises FormatError for a row, a column or an option that does not fit, and SkipRow for a row left out on purpose.
    """
    columns = columns or {}
    check_columns(function, row, columns)
    return bind(function, options, columns)(row)


def bind(
    function: Formatter, options: Mapping[str, Any] | None = None, columns: Mapping[str, str] | None = None
) -> Callable[[Row], Example]:
    """`format_row` with its options and columns, for many rows whose columns were checked once.

    Raises FormatError for an option that does not fit.
    """
    chosen, renamed = dict(options or {}), dict(columns or {})
    check_options(function, chosen)

    def format_one(row: Row) -> Example:
        given = {**row, **{ours: row[theirs] for ours, theirs in renamed.items()}} if renamed else row
        try:
            return check_example(function(given, **chosen))
        except FormatError as error:
            theirs = renamed.get(error.column or "")
            if theirs is None or theirs == error.column:
                raise
            raise type(error)(f"{error} (read from column {theirs!r})", column=theirs) from error

    return format_one


def check_options(function: Formatter, options: Mapping[str, Any]) -> None:
    """FormatError naming every option that is unknown, missing or of the wrong type."""
    declared = declaration(function)
    problems = option_problems(
        f"{declared.name} formatter", function, declared.options, declared.open_options, options
    )
    if problems:
        raise FormatError("; ".join(problems))


def check_columns(
    function: Formatter, available_columns: Iterable[str], columns: Mapping[str, str] | None = None
) -> None:
    """FormatError unless every column the formatter needs is available, after renaming by `columns`."""
    declared = declaration(function)
    available, columns = list(available_columns), columns or {}
    have = f"the rows have {listed(available) or 'no columns'}"
    known = (*declared.columns, *declared.optional_columns)
    for ours, theirs in columns.items():
        if known and ours not in known:
            raise FormatError(
                f"the {declared.name} formatter has no column {ours!r}, named in data.formatter.columns"
                + (did_you_mean(ours, known) or f"; it has {listed(known)}"),
                column=ours,
            )
        if theirs not in available:
            raise FormatError(
                f"data.formatter.columns reads {ours!r} from column {theirs!r}, which is missing; {have}"
                + did_you_mean(theirs, available),
                column=theirs,
            )
    missing = [name for name in declared.columns if name not in columns and name not in available]
    if missing:
        guesses = {name: nearest(name, available) for name in missing}
        mapping = ", ".join(f"{name}: {near or '<your column>'}" for name, near in guesses.items())
        near_names = [near for near in guesses.values() if near]
        raise FormatError(
            f"the {declared.name} formatter needs column{'s' * (len(missing) > 1)} {listed(missing)}; {have}"
            + (f"; did you mean {listed(near_names)}?" if near_names else ".")
            + f" Set data.formatter.columns: {{{mapping}}}",
            column=missing[0],
        )


def _declare(
    function: Callable[..., Any],
    name: str,
    columns: tuple[str, ...],
    optional_columns: tuple[str, ...],
    example: Row | None,
) -> Declaration:
    options, is_open = options_of(function, data=1)
    return Declaration(name, columns, optional_columns, options, is_open, example)
