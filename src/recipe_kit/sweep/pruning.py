"""When a trial is not worth finishing: told from the losses it logs, held against those of finished trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from recipe_kit.recipe import Recipe, recipe_digest

Curve = dict[int, float]  # optimiser step -> held-out loss

FINISHED_NEEDED = 2
# Settings that decide what a step is: trials that differ in one of them are at different places at the same step.
SCHEDULE_KEYS = (
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "packing",
    "packing_strategy", "eval_strategy", "eval_steps",
)  # fmt: skip

Prune = Callable[[int, float, int], str | None]  # step, held-out loss, evaluations so far -> why to stop, or None


def schedule(recipe: Recipe) -> str:
    """Equal for trials whose losses at the same step may be compared."""
    training = {key: recipe.training.get(key) for key in SCHEDULE_KEYS}
    return recipe_digest(recipe.model_copy(update={"training": training, "lora": {}, "quantization": {}}))


def median_rule(curves: Sequence[Curve], last_step: int | None = None) -> Prune:
    """Stop a trial whose held-out loss is above the median of the finished trials' at the same step.

    Not before two of them have a loss there, not at a trial's first evaluation, since many good settings begin slowly,
    and not at `last_step`, where nothing would be saved.
    """

    def worse_than_median(step: int, loss: float, evaluations: int) -> str | None:
        known = [curve[step] for curve in curves if step in curve]
        if evaluations < 2 or len(known) < FINISHED_NEEDED or (last_step is not None and step >= last_step):
            return None
        median = statistics.median(known)
        if loss <= median:
            return None
        return (
            f"held-out loss {loss:.4f} at step {step}, above the median {median:.4f} of {len(known)} finished trials"
        )

    return worse_than_median


class Watcher:
    """Reads a trial's log as it grows, keeps its curve, and says when to stop."""

    def __init__(self, prune: Prune | None) -> None:
        self.prune = prune
        self.curve: Curve = {}

    def __call__(self, line: dict[str, Any]) -> str | None:
        """Why the trial should stop, or None."""
        step = int(line.get("step", 0))
        for key, name in (("loss", "training loss"), ("eval_loss", "held-out loss")):
            value = line.get(key, 0.0)
            if value is None or (isinstance(value, int | float) and not math.isfinite(value)):
                said = "not a number" if value is None else value
                return f"{name} is {said} at step {step}: it will not recover"
        if "eval_loss" not in line:
            return None
        self.curve[step] = float(line["eval_loss"])
        return self.prune(step, self.curve[step], len(self.curve)) if self.prune else None


def curve_of(lines: Sequence[dict[str, Any]]) -> Curve:
    """The held-out losses in a training log."""
    return {
        int(line["step"]): float(line["eval_loss"])
        for line in lines
        if line.get("eval_loss") is not None and "step" in line
    }
