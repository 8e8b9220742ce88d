"""What a checkpoint brings along although the recipe decides it: taken from the recipe again when a run goes on.

transformers 5.23 restores how often is logged, evaluated and saved, and the learning rate, from the checkpoint, and
warns at most. A recipe that was changed in between would be recorded, and not be what was trained.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RecipeDecides(TrainerCallback):  # type: ignore[misc]
    """Sets intervals and learning rate of a resumed run to what the arguments say; nothing where they say the same."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step == 0:
            return
        state.compute_steps(args, state.max_steps)
        rates = getattr(lr_scheduler, "base_lrs", None)
        if optimizer is not None and rates and len(set(rates)) == 1:  # groups with rates of their own keep them
            _set_rate(optimizer, lr_scheduler, args.learning_rate)


def _set_rate(optimizer: torch.optim.Optimizer, schedule: Any, rate: float) -> None:
    """The next step has the rate that a schedule from `rate` has there, also where its shape is another one now."""
    schedule.base_lrs = [rate for _ in schedule.base_lrs]
    now = [rate * share(schedule.last_epoch) for share in getattr(schedule, "lr_lambdas", [])]
    if len(now) != len(optimizer.param_groups):
        return
    for group, value in zip(optimizer.param_groups, now, strict=True):
        group["initial_lr"], group["lr"] = rate, value
    schedule._last_lr = now
