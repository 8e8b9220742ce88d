"""A sweep from its first trial to its last: trained, stopped early, remembered, and taken up again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from recipe_kit import run_dir, trials
from recipe_kit.comparison.runs import short
from recipe_kit.comparison.scores import Estimate
from recipe_kit.errors import RecipeError, RunError
from recipe_kit.sweep import best
from recipe_kit.sweep.plan import SweepPlan
from recipe_kit.sweep.pruning import Curve, Prune, Watcher, curve_of, median_rule, schedule
from recipe_kit.sweep.values import Settings
from recipe_kit.trials import Trial

Report = Callable[[str], None]


@dataclass(frozen=True)
class Tried:
    """One trial of a sweep, ended."""

    number: int  # 1-based, in the order of the search
    settings: Settings
    digest: str
    status: Literal["finished", "pruned", "failed"]
    run: str | None = None
    loss: Estimate | None = None  # held-out, nats per token; None unless finished
    curve: Curve | None = None  # held-out losses while it trained
    reason: str = ""  # why it was pruned or failed
    remembered: bool = False  # pruned or failed when the sweep was run before


def run_trials(plan: SweepPlan, *, retry_failed: bool = False, report: Report = lambda text: None) -> list[Tried]:
    """Every trial of a sweep, in order. What was finished, pruned or seen failing before is not trained again.

    `retry_failed` gives failed ones another chance. Raises RunError when the folder cannot be written or its memory is
    damaged, and KeyboardInterrupt after the running trial was stopped.
    """
    run_dir.check_writable(plan.folder)
    memory = _read_memory(plan.memory)
    search = plan.search()
    tried: list[Tried] = []
    schedules: dict[str, str] = {}  # digest -> schedule
    while (settings := search.ask()) is not None:
        number = len(tried) + 1
        report(f"[{number}/{plan.trials}] {said(settings)}")
        try:
            trial = plan.trial(settings)
        except RecipeError as error:  # a sampled value between two ends that are allowed
            one = Tried(number, settings, "", "failed", reason=str(error.problems[0]))
        else:
            schedules[trial.digest] = schedule(trial.recipe)
            alike = [other for other in tried if schedules.get(other.digest) == schedules[trial.digest]]
            prune = search.prune(_rule(alike)) if plan.prune else None
            one = _remembered(number, settings, trial, plan, memory, retry_failed) or _train(
                number, settings, trial, plan, prune, report
            )
            memory[trial.digest] = one
            _write_memory(plan, memory)
        search.tell(one.loss.value if one.loss else None, one.curve or {}, pruned=one.status == "pruned")
        tried.append(one)
        report(f"  {outcome(one)}")
    return tried


def said(settings: Settings) -> str:
    """`learning_rate 1e-4, r 8`."""
    return ", ".join(f"{key.rpartition('.')[2]} {short(value)}" for key, value in settings.items())


def outcome(one: Tried) -> str:
    """How a trial ended, in a sentence."""
    if one.loss is None:
        before = " (failed before; --retry-failed trains it again)"
        return f"{one.status}: {one.reason}{before if one.remembered and one.status == 'failed' else ''}"
    interval = "" if one.loss.low is None else f" [{one.loss.low:.4f}, {one.loss.high:.4f}]"
    return f"held-out loss {one.loss.value:.4f}{interval}"


def _rule(alike: Sequence[Tried]) -> Prune:
    finished = [one for one in alike if one.status == "finished" and one.run is not None]
    steps = [run_dir.read(Path(one.run)).get("training", {}).get("steps") for one in finished if one.run]
    return median_rule([one.curve or {} for one in finished], max(filter(None, steps), default=None))


def _remembered(
    number: int, settings: Settings, trial: Trial, plan: SweepPlan, memory: dict[str, Tried], retry_failed: bool
) -> Tried | None:
    """The trial as it ended before; None when it has to be trained."""
    run = trials.find_finished(trial, plan.folder)
    if run is not None:
        return _finished(number, settings, trial, run)
    before = memory.get(trial.digest)
    if before is None or before.status == "finished":  # its run folder is gone
        return None
    if (before.status == "failed" and retry_failed) or (before.status == "pruned" and not plan.prune):
        return None
    return replace(before, number=number, settings=settings, loss=None, remembered=True)


def _train(
    number: int, settings: Settings, trial: Trial, plan: SweepPlan, prune: Prune | None, report: Report
) -> Tried:
    watcher = Watcher(prune)
    ended = trials.train(trial, plan.folder, watch=watcher, echo=lambda line: report(f"    {line}"))
    if ended.status == "finished" and ended.run is not None:
        return _finished(number, settings, trial, ended.run)
    status: Literal["pruned", "failed"] = "pruned" if ended.status == "stopped" else "failed"
    run = str(ended.run) if ended.run else None
    return Tried(number, settings, trial.digest, status, run, None, watcher.curve, ended.reason)


def _finished(number: int, settings: Settings, trial: Trial, run: Path) -> Tried:
    """A trained trial with its loss; one without a loss counts as failed."""
    curve = curve_of(trials.read_log(run))
    try:
        loss = held_out_loss(dict(run_dir.read_metrics(run)))
    except RunError as error:
        return Tried(number, settings, trial.digest, "failed", str(run), None, curve, str(error))
    return Tried(number, settings, trial.digest, "finished", str(run), loss, curve)


def held_out_loss(metrics: dict[str, Any]) -> Estimate:
    """The tuned model's loss per token and its interval. Raises RunError, with the reason, when there is none."""
    value = (metrics.get("tuned") or {}).get("loss")
    if value is None or not math.isfinite(value):
        problems = metrics.get("problems") or ["its perplexity was not measured"]
        raise RunError(f"trained, but no held-out loss was measured: {problems[0]}")
    perplexity = ((metrics.get("scores") or {}).get("perplexity") or {}).get("tuned") or {}
    ends = [perplexity.get(end) for end in ("low", "high")]
    if any(end is None or not 0 < end < math.inf for end in ends):
        return Estimate(value)
    return Estimate(value, *(math.log(end) for end in ends if end is not None))


def _read_memory(path: Path) -> dict[str, Tried]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["trials"]
        return {digest: _tried(entry) for digest, entry in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); remove it to go on: finished trials are found again by their runs, "
            "only pruned and failed ones are trained again"
        ) from error


def _tried(entry: dict[str, Any]) -> Tried:
    loss = Estimate(**entry["loss"]) if entry["loss"] else None
    curve = {int(step): value for step, value in (entry["curve"] or {}).items()}
    return Tried(**{**entry, "loss": loss, "curve": curve})


def _write_memory(plan: SweepPlan, memory: dict[str, Tried]) -> None:
    value = {
        "schema_version": 1,
        "recipe": plan.source,
        "profiles": plan.profiles,
        "overrides": plan.overrides,
        "over": [axis.text for axis in plan.axes],
        "sampler": plan.sampler,
        "best_sha256": best.written(plan.memory),
        "trials": {digest: asdict(one) for digest, one in memory.items()},
    }
    run_dir.write_json(plan.memory, value)
