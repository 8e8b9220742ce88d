"""What is not equal between runs that are compared, said in a sentence each.

Every run is held against the first one. A mark says what differs and what may therefore not be concluded; it never
removes a number from the table, except the paired difference, which needs the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recipe_kit import run_dir
from recipe_kit.comparison.external import asked_otherwise
from recipe_kit.comparison.runs import RunRecord

TOKENS_APART = 0.01  # share by which the tokens of two trainings may differ

Affects = Literal["scores", "speed", "all"]


@dataclass(frozen=True)
class Mark:
    """One way in which a comparison is not fair."""

    kind: str
    text: str  # what differs, to follow the labels of the runs
    runs: tuple[int, ...]  # places in the list of runs
    affects: Affects

    def sentence(self, names: Sequence[str]) -> str:
        """The mark with the names of what it is about: runs, or recipes where all their seeds are meant."""
        listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
        return f"{listed}: {self.text}"


def marks(records: Sequence[RunRecord], labels: Sequence[str]) -> list[Mark]:
    """What makes runs incomparable with the first run that has what is compared: scores, or a finished training."""
    found: dict[tuple[str, str, Affects], list[int]] = {}
    for checks, usable in ((_OF_SCORES, _is_scored), (_OF_TRAINING, _is_trained)):
        indices = [index for index, record in enumerate(records) if usable(record)]
        for index in indices[1:]:
            first = records[indices[0]]
            for kind, affects, check in checks:
                for text in check(first, records[index]):
                    whole = f"{text} (compared with {labels[indices[0]]})"
                    found.setdefault((kind, whole, affects), []).append(index)
    for index, reference in _token_references(records):
        for text in _token_budget(records[reference], records[index]):
            whole = f"{text} (compared with {labels[reference]})"
            found.setdefault(("token budget", whole, "all"), []).append(index)
    for index, text in _resumed(records):
        found.setdefault(("resumed", text, "speed"), []).append(index)
    for index, text in _changed_on_the_way(records):
        found.setdefault(("changed on the way", text, "all"), []).append(index)
    return [Mark(kind, text, tuple(dict.fromkeys(runs)), affects) for (kind, text, affects), runs in found.items()]


def same_rows(first: RunRecord, other: RunRecord) -> bool:
    """Whether both runs were measured on the same held-out rows."""
    return _rows(first) == _rows(other)


def _is_scored(record: RunRecord) -> bool:
    return record.metrics is not None


def _is_trained(record: RunRecord) -> bool:
    return record.info["status"] == "finished" and bool(record.training)


def _rows(record: RunRecord) -> tuple[Any, Any, Any]:
    metrics = record.metrics or {}
    return metrics.get("split"), metrics.get("rows"), metrics.get("content_sha256")


def _held_out_rows(first: RunRecord, other: RunRecord) -> Iterator[str]:
    mine, theirs = _rows(other), _rows(first)
    if mine != theirs:
        yield f"measured on other held-out rows, {_said_rows(*mine)} instead of {_said_rows(*theirs)}"


def _said_rows(split: Any, rows: Any, digest: Any) -> str:
    return f"{rows} of {split} ({str(digest)[:8]})"


def _decoding(first: RunRecord, other: RunRecord) -> Iterator[str]:
    """Settings that answers depend on, where both runs have scores that are made of answers."""
    if not (_scores_answers(first) and _scores_answers(other)):
        return
    mine, theirs = _generation(other), _generation(first)
    for key, said in (
        ("max_new_tokens", "longest answer"),
        ("do_sample", "sampling"),
        ("answers", "answered prompts"),
    ):
        if mine.get(key) != theirs.get(key):
            yield f"other decoding: {said} ({key}) {mine.get(key)} instead of {theirs.get(key)}"
    stops, first_stops = ({*(which.get("stop_token_ids") or [])} for which in (mine, theirs))
    if stops != first_stops:
        yield f"other decoding: answers stop at the tokens {sorted(stops)} instead of {sorted(first_stops)}"


def _generation(record: RunRecord) -> dict[str, Any]:
    return (record.metrics or {}).get("generation") or {}


def _scores_answers(record: RunRecord) -> bool:
    scores = (record.metrics or {}).get("scores") or {}
    return any(not name.startswith("perplexity") for name in scores)


def _metric_settings(first: RunRecord, other: RunRecord) -> Iterator[str]:
    mine, theirs = ((record.metrics or {}).get("scores") or {} for record in (other, first))
    for name in mine:
        if name in theirs and mine[name].get("settings") != theirs[name].get("settings"):
            yield (
                f"{mine[name].get('label', name)} was computed with other settings, {mine[name].get('settings')} "
                f"instead of {theirs[name].get('settings')}"
            )


def _asked_otherwise(first: RunRecord, other: RunRecord) -> Iterator[str]:
    yield from asked_otherwise(first.metrics or {}, other.metrics or {})


def _base_model(first: RunRecord, other: RunRecord) -> Iterator[str]:
    mine, theirs = other.info["model"], first.info["model"]
    if mine.get("id") != theirs.get("id"):
        yield f"another base model, {mine.get('id')} instead of {theirs.get('id')}"
    elif mine.get("revision") != theirs.get("revision"):
        yield f"another revision of the base model, {mine.get('revision')} instead of {theirs.get('revision')}"


def _precision(first: RunRecord, other: RunRecord) -> Iterator[str]:
    mine, theirs = ((record.metrics or {}).get("precision") for record in (other, first))
    if mine != theirs:
        yield (
            f"measured with weights in {mine} instead of {theirs}: part of the difference is the precision, which "
            "`recipe-kit eval RUN --precision` can make equal"
        )


def _training_rows(first: RunRecord, other: RunRecord) -> Iterator[str]:
    mine, theirs = (
        (record.info.get("data") or {}).get("splits", {}).get("train", {}).get("content_sha256")
        for record in (other, first)
    )
    if mine != theirs:
        yield f"trained on other rows ({str(mine)[:8]} instead of {str(theirs)[:8]})"


def _token_references(records: Sequence[RunRecord]) -> Iterator[tuple[int, int]]:
    """Whose tokens a run's are held against: with another seed other rows are drawn, so a run of the same seed.

    Runs of the first recipe are held against nobody: what their seeds change is part of their spread.
    """
    trained = [index for index, record in enumerate(records) if _is_trained(record)]
    if not trained:
        return
    first = records[trained[0]].recipe_without_seed
    by_seed = {records[i].seed: i for i in reversed(trained) if records[i].recipe_without_seed == first}
    for index in trained:
        if records[index].recipe_without_seed != first:
            yield index, by_seed.get(records[index].seed, trained[0])


def _token_budget(first: RunRecord, other: RunRecord) -> Iterator[str]:
    if run_dir.counted_from(first.training) or run_dir.counted_from(other.training):
        return  # their tokens count from there, which has a mark of its own
    mine, theirs = int(other.training.get("tokens") or 0), int(first.training.get("tokens") or 0)
    if abs(mine - theirs) > TOKENS_APART * theirs:
        change = f" ({mine / theirs - 1:+.0%})" if theirs else ""
        yield f"another token budget, {mine:,} tokens{change} instead of {theirs:,}"


def _processes(first: RunRecord, other: RunRecord) -> Iterator[str]:
    mine, theirs = other.info["processes"], first.info["processes"]
    if mine != theirs:
        yield f"trained in {mine} processes instead of {theirs}: speed and memory are not comparable"


def _hardware(first: RunRecord, other: RunRecord) -> Iterator[str]:
    mine, theirs = _machine(other), _machine(first)
    if mine != theirs:
        yield f"trained on other hardware, {mine} instead of {theirs}: speed and memory are not comparable"


def _machine(record: RunRecord) -> str:
    hardware = record.info.get("hardware") or {}
    if hardware.get("device") == "cuda":
        return str(hardware.get("name"))
    return f"{hardware.get('cores')} {hardware.get('machine')} CPU cores"


def _resumed(records: Sequence[RunRecord]) -> Iterator[tuple[int, str]]:
    for index, record in enumerate(records):
        step = run_dir.counted_from(record.training)
        if step:
            yield index, f"resumed at step {step}: its tokens, speed and time count from there"


def _changed_on_the_way(records: Sequence[RunRecord]) -> Iterator[tuple[int, str]]:
    for index, record in enumerate(records):
        if entries := record.info.get("changed_on_resume"):
            steps = ", ".join(str(entry.get("step")) for entry in entries)
            yield index, f"recipe, rows or packages changed at step {steps}: what is shown of them is the last"


_Check = Callable[[RunRecord, RunRecord], Iterator[str]]
_OF_SCORES: tuple[tuple[str, Affects, _Check], ...] = (
    ("held-out rows", "scores", _held_out_rows),
    ("decoding", "scores", _decoding),
    ("metric settings", "scores", _metric_settings),
    ("judge or task", "scores", _asked_otherwise),
    ("base model", "all", _base_model),
    ("precision", "scores", _precision),
)
_OF_TRAINING: tuple[tuple[str, Affects, _Check], ...] = (
    ("base model", "all", _base_model),
    ("training rows", "all", _training_rows),
    ("processes", "speed", _processes),
    ("hardware", "speed", _hardware),
)
