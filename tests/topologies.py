"""Trainings by one process and by two, in a topology that ships, and whether they end the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forked
from recipe_kit import checkpoints, run_dir

STEPS = 4
CHANGES = [
    "model.id=tiny:tinyllama", "method=lora", "quantization=null", "lora.lora_dropout=0",
    "lora.modules_to_save=[lm_head]", "training.optim=adamw_torch",
    f"training.max_steps={STEPS}", "training.logging_steps=1", "training.learning_rate=0.001", "data.train.limit=64",
    "training.gradient_accumulation_steps=1", "training.max_grad_norm=0.3", "training.save_steps=2",
    "training.save_strategy=steps", "evaluation.limit=15", "evaluation.answers=15", "evaluation.max_new_tokens=4",
]  # fmt: skip
FULL = ["method=full", "lora=null", "evaluation.after_training=false"]
Act = Callable[[], object]


def train(place: Path, name: str, *changes: str, resume: bool = False, dies: bool = False) -> Path:
    """A run of samsum's wiring check, four rows a step: of one process, or of two in the topology `name`; its folder.

    All ranks but the first are slow to look at files, as they may be on a busy machine or a distant disk. With `dies`
    the first is killed in its third step.
    """
    ranks = 1 if name == "single_gpu" else 2
    told = [*CHANGES, f"training.per_device_train_batch_size={4 // ranks}", *changes]
    words = ["samsum", "--profile", "smoke", "--runs-dir", place, *(w for change in told for w in ("--set", change))]
    act = _slow_to_look(forked.train(*words, *(["--resume", "auto"] if resume else [])))
    if name in ("fsdp2", "zero2", "zero3"):
        environment = {**forked.launched_by(name), "ACCELERATE_TORCH_DEVICE": "cpu"}
        act = _as_if_on_gpus(act)
    else:
        environment = {}
    group = forked.start(place.with_suffix(".txt"), _killed(act) if dies else act, ranks=ranks, **environment)
    codes = group.codes()
    if dies:
        assert codes[0] == -signal.SIGKILL and codes[1] not in (0, -signal.SIGKILL), group.said[-3000:]
    else:
        assert codes == [0] * ranks, group.said[-3000:]
    return min((place / "samsum").glob(f"*/{run_dir.RUN}")).parent  # not `latest`, which a killed run does not have


def _slow_to_look(act: Act) -> Act:
    """What another rank writes and removes again may be gone before these have seen it."""

    def acting() -> object:
        if os.environ.get("RANK", "0") != "0":
            is_file = Path.is_file

            def slowly(self: Path) -> bool:
                there = is_file(self)
                if checkpoints.WRITING in self.parts:
                    time.sleep(0.3)
                return there

            Path.is_file = slowly  # type: ignore[assignment, method-assign]
        return act()

    return acting


def _as_if_on_gpus(act: Act) -> Act:
    """accelerate 1.15 shards on GPUs alone, though torch does on any device: it takes gloo's processes for a GPU's."""

    def acting() -> object:
        from accelerate.state import PartialState
        from accelerate.utils import DistributedType

        from recipe_kit import topology

        prepare, begin, check = PartialState._prepare_backend, PartialState.__init__, topology.check

        def backend(self: Any, *arguments: Any, **options: Any) -> Any:
            found = prepare(self, *arguments, **options)
            return ("gloo", DistributedType.MULTI_GPU) if "LOCAL_RANK" in os.environ else found

        def state(self: Any, cpu: bool = False, **options: Any) -> None:
            if "LOCAL_RANK" in os.environ:
                cpu = False
                options.pop("backend", None)
            begin(self, cpu, **options)

        PartialState._prepare_backend, PartialState.__init__ = backend, state
        topology.check = lambda *arguments, **options: check(*arguments, **{**options, "gpus": None})
        if "ACCELERATE_USE_DEEPSPEED" in os.environ:
            import deepspeed

            deepspeed.ops.__compatible_ops__ = {}  # gloo as it is: what DeepSpeed puts in its place is compiled first
        return act()

    return acting


def _killed(act: Act) -> Act:
    def acting() -> object:
        from recipe_kit.trainer import Trainer

        compute = Trainer.compute_loss

        def killing(self: Any, *arguments: Any, **options: Any) -> Any:
            if self.state.global_step == 2 and os.environ["RANK"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            return compute(self, *arguments, **options)

        Trainer.compute_loss = killing  # type: ignore[method-assign]
        return act()

    return acting


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    found: dict[str, Any] = load_file(file)
    return found


def _gaps(one: Path, other: Path) -> Any:
    """How far the values of two runs are apart, one by one."""
    import torch

    first, second = weights(one), weights(other)
    assert {name: value.dtype for name, value in second.items()} == {name: v.dtype for name, v in first.items()}
    return torch.cat([(first[name] - second[name]).abs().flatten() for name in first])


def largest_gap(one: Path, other: Path) -> float:
    return float(_gaps(one, other).max())


def require_equal(one: Path, other: Path) -> None:
    """Weights and log are the same, but for the order in which float32 numbers are added up.

    Adam divides a gradient by its size. So a few values, whose gradient is next to nothing, may end up to a step of
    0.001 apart, while on average they differ in the last bit; and a gradient of the wrong scale shows in the log only.
    """
    gaps = _gaps(one, other)
    assert float(gaps.mean()) < 1e-8 and float(gaps.max()) < 1e-4
    logs = [run_dir.read_lines(run / run_dir.LOG) for run in (one, other)]
    assert [line["step"] for line in logs[0]] == list(range(1, STEPS + 1))
    for key in ("step", "loss", "grad_norm", "learning_rate", "num_tokens"):
        assert [line[key] for line in logs[1]] == pytest.approx([line[key] for line in logs[0]], rel=1e-5), key
