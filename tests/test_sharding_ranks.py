"""Steps of several micro-batches under FSDP2: the weights of one process, and only a share of the gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.distributed.fsdp import FSDPModule

from recipe_kit import run_dir
from recipe_kit.trainer import Trainer
from topologies import FULL, largest_gap, train

pytestmark = pytest.mark.slow
STEPS = 2
# Plain descent, unlike Adam, shows a gradient of the wrong size.
CHANGES = [
    *FULL, "training.gradient_accumulation_steps=2", f"training.max_steps={STEPS}", "training.save_strategy=no",
    "training.optim=sgd", "training.learning_rate=1", "training.lr_scheduler_type=constant",
    "training.max_grad_norm=0", "data.train.limit=32",
]  # fmt: skip


@pytest.fixture
def gradients_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are forked from here say after each micro-batch whether all weights have their gradient's share.

    FSDP2 gives a weight no gradient before it was shared out, and keeps a whole one to itself until then.
    """
    step = Trainer.training_step

    def telling(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        loss = step(self, model, *arguments, **options)
        if isinstance(model, FSDPModule):
            print("shared out:", {value.grad is not None for value in model.parameters()}, flush=True)
        return loss

    monkeypatch.setattr(Trainer, "training_step", telling)


def test_micro_batches_under_fsdp2_end_with_the_weights_of_one_process(
    tmp_path: Path, gradients_are_told: None
) -> None:
    one = train(tmp_path / "one", "single_gpu", *CHANGES)
    two = train(tmp_path / "two", "fsdp2", *CHANGES)
    losses = [line["loss"] for line in run_dir.read_lines(one / run_dir.LOG) if "loss" in line]
    assert len(losses) == STEPS and losses[0] - losses[-1] > 0.05
    assert largest_gap(one, two) < 1e-6
    said = (tmp_path / "two.txt").read_text(encoding="utf-8")
    assert said.count("shared out: {True}") == 2 * 2 * STEPS  # by two processes, after both micro-batches
    assert "shared out: {False}" not in said
