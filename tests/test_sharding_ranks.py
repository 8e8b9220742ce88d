"""What FSDP2 does to gradients and to 4-bit weights: several micro-batches in a step, and bits as they were."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from recipe_kit import run_dir
from recipe_kit.trainer import Trainer
from topologies import FULL, largest_gap, require_equal, train
from topologies import STEPS as TRAINED_STEPS

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


QLORA = [
    "method=qlora", "quantization={}", "model.dtype=bfloat16", "training.bf16=true", "lora.modules_to_save=null",
    "lora.layers_to_transform=[0]", "evaluation.after_training=false", "training.save_strategy=no",
]  # fmt: skip


def as_cuda_does(places: list[torch.Tensor], values: list[torch.Tensor], non_blocking: bool = False) -> None:
    """`torch._foreach_copy_` by way of float32: a pattern that is no 16-bit number becomes another one."""
    for place, value in zip(places, values, strict=True):
        place.copy_(value.float() if value.dtype == place.dtype and value.is_floating_point() else value)


def test_fsdp2_puts_4_bit_weights_together_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed into bfloat16, as other tools want them, 0.1 % were changed: a loss 2.6 % higher on two H100s.

    One layer has no adapter: there nothing but 4-bit weights and norms is put together.
    """
    before = train(tmp_path / "cpu", "fsdp2", *QLORA)
    monkeypatch.setattr(torch, "_foreach_copy_", as_cuda_does)
    after = train(tmp_path / "cuda", "fsdp2", *QLORA)
    assert largest_gap(before, after) == 0
    losses = [[line["loss"] for line in run_dir.read_lines(run / run_dir.LOG)] for run in (before, after)]
    assert losses[0] == losses[1] and len(losses[0]) == TRAINED_STEPS


def test_adapters_of_4_bit_weights_compute_in_16_bits_under_fsdp2_as_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate has no autocast there: PEFT computed them in float32, and two H100s kept half as much again."""
    compute = Trainer.compute_loss

    def telling(self: Any, *arguments: Any, **options: Any) -> Any:
        kept: Counter[str] = Counter()

        def keep(value: torch.Tensor) -> torch.Tensor:
            kept[str(value.dtype)] += value.nbytes
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss = compute(self, *arguments, **options)
        if self.rehearsal is not None and self.state.global_step == 0 and os.environ.get("RANK", "0") == "0":
            print("kept for the backward pass:", sorted(kept.items()), flush=True)
        return loss

    monkeypatch.setattr(Trainer, "compute_loss", telling)
    changes = [*QLORA, "training.per_device_train_batch_size=2", "training.max_steps=1"]
    for name in ("single_gpu", "fsdp2"):
        train(tmp_path / name, name, *changes)
    said = [(tmp_path / f"{name}.txt").read_text(encoding="utf-8") for name in ("single_gpu", "fsdp2")]
    one, two = ([line for line in text.splitlines() if line.startswith("kept for")] for text in said)
    assert len(one) == 1 and one == two


def test_4_bit_weights_under_fsdp2_train_as_in_one_process(tmp_path: Path) -> None:
    changes = [*QLORA, "model.dtype=float32", "training.bf16=false"]
    one = train(tmp_path / "one", "single_gpu", *changes)
    two = train(tmp_path / "two", "fsdp2", *changes)
    require_equal(one, two)
