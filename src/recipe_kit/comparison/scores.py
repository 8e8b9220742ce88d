"""What runs scored, and how far apart two of them are on the same held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe_kit import metrics, run_dir
from recipe_kit.comparison.external import external_scores
from recipe_kit.comparison.runs import RunRecord
from recipe_kit.errors import RecipeKitError, RunError
from recipe_kit.metrics import Statistics

Row = dict[str, Any]
_LOSSES = {"perplexity": ("loss_sum", "tokens"), "perplexity_all_tokens": ("all_loss_sum", "all_tokens")}
_OF_ANSWERS = {"answer_tokens": "tokens"}
_EQUAL = 1e-6  # relative; above it a number recomputed from rows is not the one that was reported


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval over rows; None for both ends where a run recorded none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ScorePart:
    """One score of one run."""

    label: str
    higher_is_better: bool | None
    base: Estimate | None
    tuned: Estimate


@dataclass(frozen=True)
class Difference:
    """A run's tuned score less that of the first run, paired: both on the same rows, resampled together."""

    value: float
    low: float
    high: float
    rows: int
    p_value: float  # two-sided exact sign test over rows

    def verdict(self, higher_is_better: bool | None) -> str:
        """better, worse, higher, lower, or `not clear` where the interval holds zero."""
        if self.low <= 0 <= self.high:
            return "not clear"
        if higher_is_better is None:
            return "higher" if self.value > 0 else "lower"
        return "better" if (self.value > 0) == higher_is_better else "worse"


def score_parts(record: RunRecord) -> dict[str, ScorePart]:
    """The scores of a run by name; those of a part of the rows are named `part/name`. {} for a run without scores."""
    found = record.metrics or {}
    parts = {name: _part(entry, name) for name, entry in (found.get("scores") or {}).items()}
    for group, content in (found.get("groups") or {}).items():
        for name, entry in ((content or {}).get("scores") or {}).items():
            part = _part(entry, name)
            if part is not None:
                label = f"{part.label}, {group} ({content.get('rows')} rows)"
                parts[f"{group}/{name}"] = ScorePart(label, part.higher_is_better, part.base, part.tuned)
    if not parts and found.get("tuned"):
        both = {which: {"value": (found.get(which) or {}).get("perplexity")} for which in ("base", "tuned")}
        parts["perplexity"] = _part({"label": "perplexity", "higher_is_better": False, **both}, "perplexity")
    parts |= {name: _part(entry, name) for name, entry in external_scores(found).items()}
    return {name: part for name, part in parts.items() if part is not None}


def _part(entry: Any, name: str) -> ScorePart | None:
    if not isinstance(entry, Mapping):
        return None
    base, tuned = _estimate(entry.get("base")), _estimate(entry.get("tuned"))
    if tuned is None:
        return None
    return ScorePart(str(entry.get("label") or name), entry.get("higher_is_better"), base, tuned)


def _estimate(value: Any) -> Estimate | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("value"), int | float):
        return None
    return Estimate(float(value["value"]), value.get("low"), value.get("high"))


def differences(first: RunRecord, other: RunRecord, *, seed: int = 42) -> tuple[dict[str, Difference], list[str]]:
    """The paired differences of the tuned scores on the rows both runs were measured on, by score; and remarks.

    Scores that are no mean of rows (of a whole corpus) are computed again from the answers that were kept. A score
    that does not come out as its run reported it is left out, with a remark.
    """
    try:
        pairs = _paired_rows(first, other)
    except RunError as error:
        return {}, [str(error)]
    ours, theirs = score_parts(other), score_parts(first)
    names = [name for name in ours if name in theirs and "/" not in name]
    found: dict[str, Difference] = {}
    left: list[str] = []
    for name in names:
        both = [_statistics(rows, name) for rows in pairs]
        if both[0] is None or both[1] is None or not _as_reported(both, (theirs[name], ours[name])):
            left.append(name)
        else:
            found[name] = _difference(both[0], both[1], ours[name], seed)
    again = _from_texts(left, other, pairs) if left else {}
    remarks = []
    for name in left:
        both = list(again.get(name, (None, None)))
        if both[0] is None or both[1] is None or not _as_reported(both, (theirs[name], ours[name])):
            remarks.append(f"{ours[name].label}: {run_dir.SCORES} does not give it back, so no difference is shown")
        else:
            found[name] = _difference(both[0], both[1], ours[name], seed)
    return {name: found[name] for name in names if name in found}, remarks


def _paired_rows(first: RunRecord, other: RunRecord) -> tuple[list[Row], list[Row]]:
    """The tuned parts of the rows of both runs, in the same order. Raises RunError where they are not the same.

    Answers are left out where the two runs did not answer the same prompts.
    """
    mine, theirs = _read_rows(other), _read_rows(first)
    if [row["digest"] for row in mine] != [row["digest"] for row in theirs]:
        raise RunError(
            f"{other.folder / run_dir.SCORES} has other rows than that of {first.folder}, so no paired difference"
        )
    for one, another in zip(mine, theirs, strict=True):
        if [answer["turn"] for answer in one["answers"]] != [answer["turn"] for answer in another["answers"]]:
            return [{**row, "answers": []} for row in theirs], [{**row, "answers": []} for row in mine]
    return theirs, mine


def _read_rows(record: RunRecord) -> list[Row]:
    path = record.folder / run_dir.SCORES
    if not path.is_file():
        raise RunError(f"{path}: not there, so no paired difference; `recipe-kit eval {record.folder}`")
    try:
        return [
            {
                **line["tuned"],
                "digest": line["digest"],
                "answers": [{**answer["tuned"], "turn": answer["turn"], "reference": answer["reference"] or ""}
                            for answer in line["answers"]],
            }
            for line in run_dir.read_lines(path)
        ]  # fmt: skip
    except KeyError as error:
        raise RunError(
            f"{path}: was written by an earlier version, so no paired difference; `recipe-kit eval {record.folder}` "
            "measures it again"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read ({error}), so no paired difference") from error


def _statistics(rows: Sequence[Row], name: str) -> Statistics | None:
    """A score as sums over the rows that have it; None when no row does."""
    if name in _LOSSES:
        losses, tokens = _LOSSES[name]
        counted = [row for row in rows if row.get(tokens)]
        sums, counts = [row[losses] for row in counted], [row[tokens] for row in counted]
        return metrics.ratio(sums, counts, np.exp) if counted and all(map(_is_finite, sums)) else None
    answers = _scored_answers(rows)
    values = [_value_of(answer, name) for _, answer in answers]
    if not answers or not all(map(_is_finite, values)):
        return None
    return metrics.grouped(metrics.mean(values), [row for row, _ in answers])


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _scored_answers(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """The answers that have a reference, each with the place of its row."""
    return [
        (place, answer) for place, row in enumerate(rows) for answer in row["answers"] if answer["reference"].strip()
    ]


def _value_of(answer: Row, name: str) -> Any:
    if name == "stop_rate":  # an answer that says nothing did not end, as evaluation counts it
        return float(bool(answer.get("stopped") and answer.get("tokens")))
    return answer.get(_OF_ANSWERS[name]) if name in _OF_ANSWERS else (answer.get("scores") or {}).get(name)


def _from_texts(
    names: Sequence[str], record: RunRecord, pairs: tuple[list[Row], list[Row]]
) -> dict[str, tuple[Statistics, Statistics]]:
    """Scores computed again by the recipe's own metrics; those of a metric that fails are not there."""
    specs = record.recipe.evaluation.metrics if record.recipe else []
    specs = sorted(specs, key=lambda spec: not any(name.startswith(spec.name) for name in names))
    both_answers = [_scored_answers(rows) for rows in pairs]
    places = [row for row, _ in both_answers[0]]
    references = [answer["reference"] for _, answer in both_answers[0]]
    found: dict[str, tuple[Statistics, Statistics]] = {}
    for spec in specs:
        if not places or all(name in found for name in names):
            break
        try:
            first, other = (
                metrics.score(spec.name, spec.options, [answer["text"] for _, answer in answers], references)
                for answers in both_answers
            )
        except RecipeKitError:
            continue
        for name in first.keys() & other.keys():
            found[name] = (
                metrics.grouped(first[name].statistics, places),
                metrics.grouped(other[name].statistics, places),
            )
    return found


def _as_reported(both: Sequence[Statistics | None], parts: Sequence[ScorePart]) -> bool:
    """Whether these rows give the scores that the two runs reported, and are equally many."""
    known = [statistics for statistics in both if statistics is not None]
    if len(known) < 2 or len(known[0].rows) != len(known[1].rows):
        return False
    try:
        values = [statistics.value() for statistics in known]
    except RecipeKitError:
        return False
    return all(
        math.isclose(value, part.tuned.value, rel_tol=_EQUAL, abs_tol=_EQUAL)
        for value, part in zip(values, parts, strict=True)
    )


def _difference(first: Statistics, other: Statistics, part: ScorePart, seed: int) -> Difference:
    found = metrics.compare(first, other, seed=seed, higher_is_better=part.higher_is_better)
    return Difference(**found["difference"], rows=found["rows"], p_value=found["p_value"])
