"""A comparison as a table: a row for each measure, a column for each run, or for each recipe over its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from recipe_kit.comparison import numbers
from recipe_kit.comparison.build import Comparison, Entry, Group
from recipe_kit.comparison.figures import LABELS
from recipe_kit.comparison.numbers import NOTHING

Kind = Literal["run", "score", "base", "difference", "figure"]


@dataclass(frozen=True)
class Row:
    """One measure: its name, the base's score where all runs share it, and a cell for each column."""

    kind: Kind
    name: str
    cells: list[str]
    base: str = ""


@dataclass(frozen=True)
class Layout:
    """A heading for each column, and the rows in the order in which they are read."""

    heads: list[str]
    rows: list[Row]

    def of(self, *kinds: Kind) -> list[Row]:
        return [row for row in self.rows if row.kind in kinds]


def layout(comparison: Comparison, groups: Sequence[Group] | None = None) -> Layout:
    """The table of a comparison. `groups` are its columns: recipes over their seeds, or runs as groups of one."""
    columns = comparison.groups if groups is None else groups
    return Layout(
        [_heading(comparison, column) for column in columns],
        [*_facts(comparison, columns), *_scores(comparison, columns), *_figures(comparison, columns)],
    )


def single_runs(comparison: Comparison) -> list[Group]:
    """Every run as a column of its own."""
    return [Group(entry.label, (entry.seed,), (index,), {}, {}) for index, entry in enumerate(comparison.entries)]


def legend(comparison: Comparison) -> list[str]:
    """How to read the table, and all that was said about it: one sentence each."""
    found = []
    entries = comparison.entries
    if any(part.tuned.low is not None for entry in entries for part in entry.scores.values()):
        found.append("[low, high]: 95 % bootstrap interval over held-out rows.")
    if any(name.startswith("lm_eval/") for entry in entries for name in entry.scores):
        found.append("Of lm-eval: 1.96 standard errors to each side.")
    if comparison.has_seeds:
        found.append("(low–high, sd): lowest, highest and sample standard deviation over the n seeds, not over rows.")
    if comparison.first is not None and len(entries) > 1:
        label = next(group.label for group in comparison.groups if comparison.first in group.runs)
        if not comparison.has_seeds:
            found.append(f"difference: tuned score less that of {label}, on the same rows.")
        else:
            found.append(f"difference: tuned score less that of {label} with the same seed, on the same rows.")
    return found


def numbered_marks(comparison: Comparison) -> list[str]:
    """The sentences of all marks, with the numbers that stand in the headings of their columns."""
    return [f"({number}) {comparison.sentence(mark)}" for number, mark in enumerate(comparison.marks, 1)]


def _heading(comparison: Comparison, column: Group) -> str:
    about = [str(n) for n, mark in enumerate(comparison.marks, 1) if set(mark.runs) & set(column.runs)]
    return f"{column.label} ({', '.join(about)})" if about else column.label


def _facts(comparison: Comparison, columns: Sequence[Group]) -> Iterator[Row]:
    def row(name: str, value: Callable[[Entry], str]) -> Row:
        values = [", ".join(dict.fromkeys(value(comparison.entries[i]) for i in column.runs)) for column in columns]
        return Row("run", name, [text or NOTHING for text in values])

    yield row("method", lambda entry: entry.method)
    yield row("base model", _model)
    yield row("weights, measured in", lambda entry: f"{entry.dtype or NOTHING}, {entry.precision or NOTHING}")
    if comparison.has_seeds:
        yield Row("run", "seeds", [f"{', '.join(map(str, c.seeds))} (n {len(c.seeds)})" for c in columns])
    else:
        yield row("seed", lambda entry: str(entry.seed))
    yield row("held-out rows", _held_out)
    if any(entry.missing for entry in comparison.entries):
        yield row("status", _status)


def _status(entry: Entry) -> str:
    return "not evaluated" if entry.missing and entry.status == "finished" else entry.status


def _model(entry: Entry) -> str:
    revision = f"@{entry.revision[:8]}" if entry.revision else ""
    name = entry.base_model
    return (name if len(name) <= 40 else f"…{name[-39:]}") + revision


def _held_out(entry: Entry) -> str:
    return f"{entry.held_out.get('rows')} of {entry.held_out.get('split')}" if entry.held_out else ""


def _scores(comparison: Comparison, columns: Sequence[Group]) -> Iterator[Row]:
    entries, shared = comparison.entries, _shared_bases(comparison)
    shown = {i for column in columns for i in column.runs}
    for name in dict.fromkeys(name for i, entry in enumerate(entries) if i in shown for name in entry.scores):
        part = next(entry.scores[name] for entry in entries if name in entry.scores)
        yield Row("score", part.label, [_tuned(comparison, c, name) for c in columns], shared.get(name, ""))
        if name not in shared and any(entry.scores[name].base for entry in entries if name in entry.scores):
            yield Row("base", part.label, [_base(comparison, column, name) for column in columns])
        apart = [_apart(comparison, column, name, part.higher_is_better) for column in columns]
        if any(cell != NOTHING for cell in apart):
            yield Row("difference", part.label, apart)


def _shared_bases(comparison: Comparison) -> dict[str, str]:
    """The base's scores that are the same for all runs, so that they need to be shown once only."""
    shared = {}
    for name in dict.fromkeys(name for entry in comparison.entries for name in entry.scores):
        bases = [entry.scores[name].base for entry in comparison.entries if name in entry.scores]
        rows = [entry.held_out for entry in comparison.entries if name in entry.scores]
        first = bases[0]
        if first is not None and all(
            base is not None and math.isclose(base.value, first.value, rel_tol=1e-9) and where == rows[0]
            for base, where in zip(bases, rows, strict=True)
        ):
            shared[name] = numbers.estimate(first)
    return shared


def _alone(comparison: Comparison, column: Group) -> Entry | None:
    return comparison.entries[column.runs[0]] if len(column.runs) == 1 else None


def _tuned(comparison: Comparison, column: Group, name: str) -> str:
    alone = _alone(comparison, column)
    if alone is not None:
        return numbers.estimate(alone.scores[name].tuned) if name in alone.scores else NOTHING
    return numbers.spread(column.scores[name].tuned, len(column.runs)) if name in column.scores else NOTHING


def _base(comparison: Comparison, column: Group, name: str) -> str:
    alone = _alone(comparison, column)
    if alone is not None:
        return numbers.estimate(alone.scores[name].base) if name in alone.scores else NOTHING
    score = column.scores.get(name)
    if score is None or score.base is None:
        return NOTHING
    if math.isclose(score.base.min, score.base.max, rel_tol=1e-9):
        return numbers.number(score.base.mean)
    return numbers.spread(score.base, len(column.runs))


def _apart(comparison: Comparison, column: Group, name: str, higher_is_better: bool | None) -> str:
    alone = _alone(comparison, column)
    if alone is not None and not (comparison.has_seeds and column.scores):  # else: a recipe over its one seed
        return numbers.difference(alone.against_first.get(name), higher_is_better)
    score = column.scores.get(name)
    return numbers.difference_over_seeds(score.against_first if score else None, higher_is_better)


def _figures(comparison: Comparison, columns: Sequence[Group]) -> Iterator[Row]:
    for name, label in LABELS.items():
        cells = [_figure(comparison, column, name) for column in columns]
        if any(cell != NOTHING for cell in cells):
            yield Row("figure", label, cells)


def _figure(comparison: Comparison, column: Group, name: str) -> str:
    alone = _alone(comparison, column)
    if alone is not None:
        value = alone.figures.get(name)
        return NOTHING if value is None else numbers.figure(name, value)
    found = column.figures.get(name)
    return numbers.spread(found, len(column.runs), lambda value: numbers.figure(name, value))
