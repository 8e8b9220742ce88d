"""For authors of formatters: one call that checks what recipe-kit relies on. Standard library only."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from recipe_kit.errors import FormatError, SkipRow
from recipe_kit.formatters import Example, Formatter, Row, _declare, format_row, get_formatter
from recipe_kit.registry import Registry

HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, 0, -1.5, float("nan"), True, b"bytes", "", " \t\r\n", "\x00\x1b[0m", "\ud800"),
    *("مرحبا שלום", "👩‍👩‍👧", '{"a": [1]}', "### Human: a ### Assistant: b", "<s>[INST] a [/INST] b </s>"),
    *([], {}, [None], [[]], ["text"], [{}], [{1: 2}], [{"role": None}], [{"role": ["user"], "content": "text"}]),
    *([{"role": "user", "content": None}], [{"role": "assistant", "content": [{"type": "image"}]}]),
    *([{"from": {}, "value": 1}], [{"from": "gpt", "value": None}]),
)


def check_formatter(formatter: Formatter | str, rows: Sequence[Row], **options: Any) -> list[Example]:
    """The examples made from `rows`, in order, once the formatter has shown that it can be trained with.

    Checked for every row: two runs give the same example, the row is left as it was, the declared columns are enough,
    and the example is valid and can be written as JSON. Then each column is replaced by hostile values, and taken
    away: the answer is FormatError, SkipRow or a valid example, never another exception. Rows that raise SkipRow are
    left out of the result. Raises AssertionError with a sentence for the first thing that does not hold.
    """
    if isinstance(formatter, str):
        formatter = get_formatter(formatter)
    if not rows:
        raise AssertionError("check_formatter needs at least one row")
    examples = []
    for number, row in enumerate(rows):
        example = _check_row(formatter, row, options, f"row {number}")
        if example is not None:
            examples.append(example)
    _check_hostile_rows(formatter, rows[0], options)
    return examples


@contextmanager
def isolated_registry() -> Iterator[Registry[Formatter]]:
    """Formatters registered inside the block are forgotten after it; packages installed meanwhile are seen in it."""
    before, _declare.registry = _declare.registry, _declare.registry.copy()
    try:
        yield _declare.registry
    finally:
        _declare.registry = before


def _check_row(formatter: Formatter, row: Row, options: Mapping[str, Any], place: str) -> Example | None:
    given = copy.deepcopy(dict(row))
    first = _outcome(formatter, given, options, place)
    if given != row:
        raise AssertionError(f"{place}: the formatter changed the row it was given")
    if first != _outcome(formatter, copy.deepcopy(dict(row)), options, place):
        raise AssertionError(f"{place}: two runs on the same row gave two results")
    declared = _declare.declaration(formatter)
    known = {*declared.columns, *declared.optional_columns}
    if known:
        needed = {column: value for column, value in copy.deepcopy(dict(row)).items() if column in known}
        if first != _outcome(formatter, needed, options, f"{place}, cut down to the declared columns"):
            raise AssertionError(f"{place}: the result depends on a column that the formatter does not declare")
    if isinstance(first, SkipRow | str):
        return None
    try:
        json.dumps(first, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{place}: the example cannot be written as JSON: {error}") from error
    return first


def _outcome(formatter: Formatter, row: Row, options: Mapping[str, Any], place: str) -> Example | str:
    try:
        return format_row(formatter, row, options)
    except SkipRow as skipped:
        return f"skipped: {skipped}"
    except FormatError as error:
        raise AssertionError(f"{place} was refused: {error}") from error
    except Exception as error:
        raise AssertionError(f"{place} raised {type(error).__name__}: {error}") from error


def _check_hostile_rows(formatter: Formatter, row: Row, options: Mapping[str, Any]) -> None:
    declared = _declare.declaration(formatter)
    for column in (*declared.columns, *declared.optional_columns) or tuple(row):
        rest = {name: value for name, value in row.items() if name != column}
        for hostile in (rest, *({**rest, column: value} for value in HOSTILE_VALUES)):
            try:
                format_row(formatter, copy.deepcopy(hostile), options)
            except FormatError:
                continue
            except Exception as error:
                got = f"{column!r} holding {hostile[column]!r}" if column in hostile else f"no column {column!r}"
                raise AssertionError(
                    f"a row with {got} raised {type(error).__name__}: {error}; a row that does not fit raises "
                    "FormatError (text_cell reads a column and does so)"
                ) from error
