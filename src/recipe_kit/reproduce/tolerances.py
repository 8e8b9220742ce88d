"""How far a number may be from the recorded one, and why. The only place that says so.

Base scores are the same weights on the same rows: nothing was trained, so only rounding may differ.
  * float32 on a CPU with equal packages and threads: 1e-6, relative.
  * else: 1 % of perplexity. bfloat16, 4-bit weights and other kernels round otherwise; measured differences between a
    CPU and a GPU, and between attention implementations, are a few tenths of a percent.

Tuned perplexity is compared as a log, like the loss that was trained: the gap may be a twentieth of what the training
changed, but no less than 0.005 and no more than 0.05 (5 %).
  * Three seeds of one recipe differ by 0.0002 to 0.002 in log-perplexity; a repetition with the same seed on other
    hardware differs by less. Hence the floor, with room.
  * A share of the gain, because 5 % says nothing where the training changed perplexity by 3 %: another learning rate
    has to be noticed there too.

Scores of answers (ROUGE, chrF, exact match, ...) depend on greedy answers, which one rounded logit can turn: seeds
differ by up to 0.037 in ROUGE-L, and bfloat16 on another number of CPU threads moved it from 0.430 to 0.389, both on
52 rows whose 95 % interval is 0.067 wide on each side. The gap may be half the width of the recorded interval of that
score: what other rows might have given. It is no less than 0.02 (2 points of 100), and no less than what one row can
change, for the interval of few or equal rows says nothing.

Training loss, averaged over the run, may differ by 5 %, and by 0.02 for small ones. It is a weak test: learning rates
far apart can have equal averages. It counts by itself where a run was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from recipe_kit import run_dir
from recipe_kit.run_dir import Metrics, RunInfo

SAME_MACHINE = 1e-6
BASE_PERPLEXITY = 0.01
TUNED_PERPLEXITY_FLOOR, TUNED_PERPLEXITY_SHARE, TUNED_PERPLEXITY_CAP = 0.005, 0.05, 0.05
ANSWER_FLOOR = 0.02  # of a scale from 0 to 1
TRAIN_LOSS_SHARE, TRAIN_LOSS_FLOOR = 0.05, 0.02
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Check:
    """One number, then and now. Gap and what is allowed are relative or in the number's own unit."""

    score: str  # the key in metrics.json, or train_loss
    which: Literal["base", "tuned", "training"]
    label: str
    then: float
    now: float | None  # None where it was not measured, or is no number
    gap: float | None
    allowed: float
    relative: bool

    @property
    def within(self) -> bool:
        return self.gap is not None and self.gap <= self.allowed


def check_scores(then: Metrics, now: Metrics | None, *, same_machine: bool) -> Iterator[Check]:
    """Every recorded score of both models against the new one, and the tasks of lm-eval."""
    scores = now.get("scores", {}) if now else {}
    for name, entry in then.get("scores", {}).items():
        found = scores.get(name)
        for which in ("base", "tuned"):
            value, new = entry[which]["value"], found[which]["value"] if found else None
            if value is None or not math.isfinite(value):
                continue  # there is nothing to hold the new one against
            if name.startswith("perplexity"):
                yield _perplexity(name, entry, which, new, same_machine)
            else:
                allowed = SAME_MACHINE * _scale(entry) if which == "base" and same_machine else _answers(entry, which)
                yield _absolute(name, which, entry["label"], value, new, allowed)
    yield from _tasks(then.get("lm_eval", {}), now.get("lm_eval", {}) if now else {})


def check_training(then: RunInfo, now: RunInfo) -> Iterator[Check]:
    """The average training loss, unless one of the two counts it from where it was resumed."""
    before, after = then.get("training", {}), now.get("training", {})
    value = before.get("train_loss")
    if value is None or run_dir.counted_from(before) or run_dir.counted_from(after):
        return
    allowed = max(TRAIN_LOSS_FLOOR, TRAIN_LOSS_SHARE * abs(value))
    yield _absolute("train_loss", "training", "training loss", value, after.get("train_loss"), allowed)


def _perplexity(name: str, entry: Mapping[str, Any], which: Any, now: float | None, same_machine: bool) -> Check:
    then, base = entry[which]["value"], entry["base"]["value"]
    if which == "base":
        allowed = SAME_MACHINE if same_machine else BASE_PERPLEXITY
    else:
        gain = abs(math.log(then / base)) if base else 0.0
        allowed = min(TUNED_PERPLEXITY_CAP, max(TUNED_PERPLEXITY_FLOOR, TUNED_PERPLEXITY_SHARE * gain))
    number = now is not None and math.isfinite(now) and now > 0
    gap = abs(math.log(now / then)) if number and now else None
    return Check(name, which, entry["label"], then, now if number else None, gap, allowed, relative=True)


def _answers(entry: Mapping[str, Any], which: str) -> float:
    scale, estimate = _scale(entry), entry[which]
    half_width: float = (estimate["high"] - estimate["low"]) / 2
    one_row: float = scale / max(entry["rows"], 1)
    return max(half_width, scale * ANSWER_FLOOR, one_row)


def _scale(entry: Mapping[str, Any]) -> float:
    """1 for shares, 100 for points and lengths in tokens: told by the recorded numbers."""
    ends = [abs(entry[which][end]) for which in ("base", "tuned") for end in ("low", "high")]
    return 1.0 if max(ends) <= 1.5 else 100.0


def _tasks(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Check]:
    tasks, new_tasks = (measured.get("tasks", {}) for measured in (then, now))
    for task, told in tasks.items():
        for metric, values in told["metrics"].items():
            new = new_tasks.get(task, {}).get("metrics", {}).get(metric, {})
            for which in ("base", "tuned"):
                value, found = values.get(which), new.get(which)
                if value is None:
                    continue
                scale = 1.0 if abs(value["value"]) <= 1.5 else 100.0
                allowed = max(_NORMAL_95 * (value.get("stderr") or 0), scale * ANSWER_FLOOR)
                number = found["value"] if found else None
                yield _absolute(f"{task} {metric}", which, f"{task} {metric}", value["value"], number, allowed)


def _absolute(
    score: str, which: Literal["base", "tuned", "training"], label: str, then: float, now: float | None, allowed: float
) -> Check:
    number = now is not None and math.isfinite(now)
    gap = abs(now - then) if number and now is not None else None
    return Check(score, which, label, then, now if number else None, gap, allowed, relative=False)
