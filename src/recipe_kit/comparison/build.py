"""Runs to a comparison: entries, groups over seeds, marks and remarks. Reads run folders and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipe_kit.comparison import fairness
from recipe_kit.comparison.fairness import Mark
from recipe_kit.comparison.figures import Figure, cost_remark, figures
from recipe_kit.comparison.runs import RunRecord, labels, read_runs
from recipe_kit.comparison.scores import Difference, ScorePart, differences, score_parts
from recipe_kit.comparison.seeds import SeedGroup, Spread, group_by_seed, spread


@dataclass(frozen=True)
class Entry:
    """One run of a comparison."""

    label: str
    folder: str
    name: str
    method: str
    status: str
    seed: int
    recipe_sha256: str
    base_model: str
    revision: str | None
    dtype: str | None  # of the base's weights while training
    precision: str | None  # in which base and tuned were measured
    held_out: dict[str, Any]  # split, rows, content_sha256
    scores: dict[str, ScorePart]
    against_first: dict[str, Difference]  # paired over rows; {} for the first run itself
    figures: dict[str, Figure]
    missing: str  # why scores or figures are not there; empty when they are


@dataclass(frozen=True)
class GroupScore:
    """One score over the seeds of a recipe. `against_first` pairs equal seeds; None where there are none."""

    tuned: Spread
    base: Spread | None
    against_first: Spread | None


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in their seed."""

    label: str
    seeds: tuple[int, ...]
    runs: tuple[int, ...]
    scores: dict[str, GroupScore]
    figures: dict[str, Spread]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. `first` is the place of the run the others are compared with, None when none has scores."""

    entries: tuple[Entry, ...]
    groups: tuple[Group, ...]
    marks: tuple[Mark, ...]
    remarks: tuple[str, ...]
    damaged: tuple[str, ...]  # why runs are left out, which is among the remarks too
    first: int | None

    @property
    def has_seeds(self) -> bool:
        return any(len(group.runs) > 1 for group in self.groups)

    def sentence(self, mark: Mark) -> str:
        """A mark in words; a recipe stands for its runs where it is about all of them."""
        names: dict[str, None] = {}
        for index in mark.runs:
            group = next((group for group in self.groups if index in group.runs), None)
            whole = group is not None and len(group.runs) > 1 and set(group.runs) <= set(mark.runs)
            names[group.label if group is not None and whole else self.entries[index].label] = None
        return mark.sentence(list(names))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        marks = [
            {"kind": mark.kind, "affects": mark.affects, "runs": mark.runs, "sentence": self.sentence(mark)}
            for mark in self.marks
        ]
        return {
            "schema_version": 1,
            "first": self.first,
            "runs": [asdict(entry) for entry in self.entries],
            "groups": [asdict(group) for group in self.groups],
            "marks": marks,
            "remarks": list(self.remarks),
        }


def compare_runs(
    sources: Sequence[str | Path], *, price_per_hour: float | None = None, remarks: Sequence[str] = ()
) -> Comparison:
    """The runs in these folders, side by side. Raises RunError where there is no run.

    What is not there, or not comparable, is said; the rest is compared. `remarks` come before those of this function.
    """
    records, found, damaged = read_runs(sources)
    all_remarks = [*remarks, *damaged, *found]
    names = labels(records)
    all_remarks += [f"{name} {record.missing}" for name, record in zip(names, records, strict=True) if record.missing]
    scored = [index for index, record in enumerate(records) if score_parts(record)]
    first = scored[0] if scored else None
    if first not in (0, None):
        all_remarks.append(f"the others are compared with {names[first or 0]}, the first run that has scores")
    entries = []
    for index, record in enumerate(records):
        apart: dict[str, Difference] = {}
        if first is not None and index in scored[1:] and fairness.same_rows(records[first], record):
            apart, more = differences(records[first], record, seed=_bootstrap_seed(records[first]))
            all_remarks += [f"{names[index]}: {remark}" for remark in more]
        entries.append(_entry(record, names[index], apart, price_per_hour))
    groups, more = group_by_seed(records)
    all_remarks += more
    all_remarks += _problems(records, names)
    all_remarks += _unequal_evaluation(records, names)
    if price_per_hour is not None:
        all_remarks.append(cost_remark(price_per_hour, records))
    return Comparison(
        tuple(entries),
        tuple(_group(group, groups, entries, first) for group in groups),
        tuple(fairness.marks(records, names)),
        tuple(dict.fromkeys(all_remarks)),
        tuple(damaged),
        first,
    )


def _problems(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """What the evaluations could not measure, each sentence once with the runs it is about."""
    about: dict[str, list[str]] = {}
    for record, name in zip(records, names, strict=True):
        for problem in (record.metrics or {}).get("problems") or ():
            about.setdefault(str(problem), []).append(name)
    return [f"{', '.join(runs)}: {problem}" for problem, runs in about.items()]


def _unequal_evaluation(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """A sentence where some of the wall times hold the measuring of the base model and others do not."""
    pairs = zip(names, records, strict=True)
    measured = [(name, bool(record.metrics.get("base_from_cache"))) for name, record in pairs if record.metrics]
    if len({known for _, known in measured}) < 2:
        return []
    spared = ", ".join(name for name, known in measured if known)
    return [f"wall time: the base model's scores were known already for {spared}; the others measured them too"]


def _bootstrap_seed(record: RunRecord) -> int:
    return record.recipe.evaluation.seed if record.recipe else 42


def _entry(record: RunRecord, label: str, apart: dict[str, Difference], price_per_hour: float | None) -> Entry:
    model, found = record.info["model"], record.metrics or {}
    return Entry(
        label=label,
        folder=str(record.folder),
        name=record.info["name"],
        method=record.info["method"],
        status=record.info["status"],
        seed=record.seed,
        recipe_sha256=record.info["recipe_sha256"],
        base_model=str(model.get("id")),
        revision=model.get("revision"),
        dtype=model.get("dtype"),
        precision=found.get("precision"),
        held_out={key: found.get(key) for key in ("split", "rows", "content_sha256")} if found else {},
        scores=score_parts(record),
        against_first=apart,
        figures=figures(record, price_per_hour),
        missing=record.missing,
    )


def _group(group: SeedGroup, groups: Sequence[SeedGroup], entries: Sequence[Entry], first: int | None) -> Group:
    mine = [entries[index] for index in group.runs]
    others = next((other for other in groups if first in other.runs), None)
    reference = [entries[index] for index in others.runs] if others is not None and others is not group else []
    scores: dict[str, GroupScore] = {}
    for name in dict.fromkeys(name for entry in mine for name in entry.scores):
        having = [entry for entry in mine if name in entry.scores]
        tuned = spread(entry.scores[name].tuned.value for entry in having)
        bases = [base.value for entry in having if (base := entry.scores[name].base) is not None]
        scores[name] = GroupScore(tuned, spread(bases) if bases else None, _apart(name, having, reference))
    values: dict[str, Spread] = {}
    for name in dict.fromkeys(name for entry in mine for name in entry.figures):
        known = [value for entry in mine if (value := entry.figures.get(name)) is not None]
        if known:
            values[name] = spread(known)
    return Group(group.label, group.seeds, group.runs, scores, values)


def _apart(name: str, mine: Sequence[Entry], reference: Sequence[Entry]) -> Spread | None:
    """How far this recipe's score lies from the first one's, seed by seed, over the seeds that both have.

    Only where both were measured on the same rows.
    """
    theirs: Mapping[int, Entry] = {entry.seed: entry for entry in reference if name in entry.scores}
    value: Callable[[Entry], float] = lambda entry: entry.scores[name].tuned.value  # noqa: E731
    pairs = [
        value(entry) - value(theirs[entry.seed])
        for entry in mine
        if entry.seed in theirs and theirs[entry.seed].held_out == entry.held_out
    ]
    return spread(pairs) if pairs else None
