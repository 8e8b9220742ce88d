"""What came out of a sweep: its trials by loss, how sure the best one is, a page, and the best setting as a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe_kit import page, run_dir
from recipe_kit.comparison import Comparison, as_page, compare_runs
from recipe_kit.comparison.runs import read_runs, short
from recipe_kit.comparison.scores import Difference, Estimate, differences
from recipe_kit.errors import LaunchError, RunError
from recipe_kit.sweep import best
from recipe_kit.sweep.drive import Tried, outcome
from recipe_kit.sweep.plan import SweepPlan

PAGE = "sweep.html"
_SIDE_BY_SIDE = 12  # trials whose runs are compared in full


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """Each trial once: finished ones by loss, then the others in their order."""
    unique = list({one.digest or one.number: one for one in reversed(tried)}.values())[::-1]
    finished = [one for one in unique if one.loss is not None]
    others = [one for one in unique if one.loss is None]
    return sorted(finished, key=lambda one: (one.loss.value if one.loss else 0.0, one.number)) + others


def require_best(tried: Sequence[Tried]) -> Tried:
    """The trial with the lowest held-out loss. Raises LaunchError when none finished, and RunError when their losses
    are over different rows or tokens, since the lowest then says nothing."""
    order = ranked(tried)
    if not order or order[0].loss is None:
        last = next((one for one in reversed(order) if one.reason), None)
        reason = f"; the last: {last.reason}" if last else ""
        raise LaunchError(f"none of the {len(order)} trials finished, so there is no best setting{reason}")
    measured: dict[tuple[Any, ...], int] = {}
    for one in order:
        if one.loss is not None and one.run is not None:
            found: dict[str, Any] = dict(run_dir.read_metrics(Path(one.run)))
            rows = (found.get("content_sha256"), found.get("rows"), (found.get("tuned") or {}).get("tokens"))
            measured.setdefault(rows, one.number)
    if len(measured) > 1:
        first, second = list(measured.values())[:2]
        raise RunError(
            f"trials {first} and {second} were measured on other rows or tokens (a setting changed which rows are "
            "kept or how they are written), so their losses cannot be compared and no best setting is chosen"
        )
    return order[0]


def table_rows(plan: SweepPlan, tried: Sequence[Tried]) -> list[tuple[str, ...]]:
    """Header and rows of the table of trials."""
    header = ("trial", *(_short_key(key, plan.keys) for key in plan.keys), "held-out loss", "how it ended")
    rows = [header]
    for one in ranked(tried):
        loss = outcome(one).removeprefix("held-out loss ") if one.loss else "–"
        ended = "finished" if one.loss else outcome(one)
        rows.append((str(one.number), *(short(value) for value in one.settings.values()), loss, ended))
    return rows


def remarks(plan: SweepPlan, tried: Sequence[Tried]) -> list[str]:
    """How far the result can be trusted, a sentence each."""
    order = [one for one in ranked(tried) if one.loss is not None]
    found = [plan.remark] if plan.remark else []
    if len(order) > 1:
        close = closeness(order[0], order[1])
        found += [close] if close else []
    if "training.seed" not in plan.keys:
        found.append(
            f"every setting was trained with one seed; `recipe-kit compare --recipes {plan.out} --seeds 0 1 2` shows "
            "how much the seed changes"
        )
    if len(order) > 1:
        found.append(
            f"the lowest of {len(order)} losses on the rows it was chosen by flatters the setting a little; "
            "judge it by rows the sweep did not look at"
        )
    return found


def closeness(first: Tried, second: Tried) -> str:
    """A sentence when the rows cannot tell the two apart: by their paired difference, else by their intervals."""
    losses = f"{outcome(first)} and {outcome(second).removeprefix('held-out loss ')}"
    apart = _paired(first, second)
    if apart is not None:
        if not apart.low <= 0 <= apart.high:
            return ""
        why = f"paired difference of perplexity {apart.value:+.4g} [{apart.low:+.4g}, {apart.high:+.4g}]"
    elif _overlap(first.loss, second.loss):
        why = "their intervals overlap"
    else:
        return ""
    return (
        f"the best two, trials {first.number} and {second.number}, differ by less than their intervals "
        f"({losses}; {why}): either may be the better one"
    )


def _paired(first: Tried, second: Tried) -> Difference | None:
    if first.run is None or second.run is None:
        return None
    records, *_ = read_runs([first.run, second.run])
    return differences(records[0], records[1])[0].get("perplexity") if len(records) == 2 else None


def _overlap(first: Estimate | None, second: Estimate | None) -> bool:
    if first is None or second is None or first.high is None or second.low is None:
        return True  # without intervals nothing says that they differ
    return second.low <= first.high


def compared(tried: Sequence[Tried], notes: Sequence[str], *, price_per_hour: float | None = None) -> Comparison:
    """The best trials' runs side by side, each held against the best one."""
    finished = [one.run for one in ranked(tried) if one.loss is not None and one.run is not None]
    notes = [*notes]
    if len(finished) > _SIDE_BY_SIDE:
        notes.append(f"the best {_SIDE_BY_SIDE} of {len(finished)} finished trials are compared in full")
    return compare_runs(finished[:_SIDE_BY_SIDE], price_per_hour=price_per_hour, remarks=notes)


def html(plan: SweepPlan, tried: Sequence[Tried], comparison: Comparison) -> str:
    """The page of a sweep: its trials, then the comparison."""
    header, *rows = table_rows(plan, tried)
    trials = page.table(header, rows, caption=f"Trials by held-out loss on the eval rows; the best is in {plan.out}")
    return as_page(comparison, title=f"{plan.name}: {len(ranked(tried))} trials", before=[("Trials", trials)])


def write_best(plan: SweepPlan, tried: Sequence[Tried]) -> Tried:
    """Write the best setting as a recipe and return its trial."""
    chosen = require_best(tried)
    words = shlex.join(["recipe-kit", "train", str(plan.out)])
    finished = sum(one.loss is not None for one in ranked(tried))
    given = [f"--profile {name}" for name in plan.profiles] + [f"--set {change}" for change in plan.overrides]
    comments = [
        f"The best of {finished} finished trials of a sweep over {', '.join(plan.keys)}; one seed each.",
        f"{outcome(chosen)[0].upper()}{outcome(chosen)[1:]} nats per token, on the eval rows it was chosen by.",
        *([f"Holds what was given to the sweep: {' '.join(given)}"] if given else []),
        f"Command: {words}",
    ]
    best.write(plan.out, plan.source, plan.wanted(chosen.settings), comments=comments, memory=plan.memory)
    return chosen


def _short_key(key: str, keys: Sequence[str]) -> str:
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in keys].count(last) == 1 else key
