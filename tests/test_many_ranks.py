"""Two processes train what one does: the same weights, tokens, losses, split and scores, written by one of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forked
from recipe_kit import checkpoints, run_dir

pytestmark = pytest.mark.slow
STEPS = 4
CHANGES = [
    "model.id=tiny:tinyllama", "method=lora", "quantization=null", "lora.lora_dropout=0",
    "lora.modules_to_save=[lm_head]", "training.optim=adamw_torch",
    f"training.max_steps={STEPS}", "training.logging_steps=1", "training.learning_rate=0.001", "data.train.limit=64",
    "training.gradient_accumulation_steps=1", "training.save_steps=2", "training.save_strategy=steps",
    "evaluation.limit=15", "evaluation.answers=15", "evaluation.max_new_tokens=4",
]  # fmt: skip
FULL = ["method=full", "lora=null", "evaluation.after_training=false"]
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "ACCELERATE_TORCH_DEVICE": "cpu",
}  # fmt: skip


def train(place: Path, *changes: str, ranks: int, rows: int, **environment: str) -> Path:
    """A run of samsum's wiring check with `rows` rows in each micro-batch of each rank; returns its folder.

    All ranks but the first are slow to look at files, as they may be on a busy machine or a distant disk.
    """
    told = [*CHANGES, *changes, f"training.per_device_train_batch_size={rows}"]
    words = ["samsum", "--profile", "smoke", "--runs-dir", place, *(w for change in told for w in ("--set", change))]
    act = _slow_to_look(forked.train(*words))
    group = forked.start(
        place.with_suffix(".txt"), _as_if_on_gpus(act) if environment else act, ranks=ranks, **environment
    )
    assert group.codes() == [0] * ranks, group.said[-3000:]
    return run_dir.find(place / "samsum")


def _slow_to_look(act: Callable[[], object]) -> Callable[[], object]:
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


def _as_if_on_gpus(act: Callable[[], object]) -> Callable[[], object]:
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
        return act()

    return acting


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("ranks")
    return {
        "one": train(place / "one", ranks=1, rows=4),
        "two": train(place / "two", ranks=2, rows=2),
        "fsdp2": train(place / "fsdp2", ranks=2, rows=2, **FSDP2),
    }


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    found: dict[str, Any] = load_file(file)
    return found


def largest_gap(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert {value.dtype for value in first.values()} == {value.dtype for value in second.values()}
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("name", ["two", "fsdp2"])
def test_two_processes_end_with_the_weights_of_one(runs: dict[str, Path], name: str) -> None:
    """Losses and gradients are summed over the tokens of all, also those of a head that TRL does not call."""
    assert max(float(value.abs().max()) for value in weights(runs["one"]).values()) > 0.01
    assert largest_gap(runs["one"], runs[name]) < 1e-5
    alone, shared = (run_dir.require_finished(runs[key]) for key in ("one", name))
    assert (alone["processes"], shared["processes"]) == (1, 2)
    assert shared["data"] == alone["data"]
    for key in ("steps", "tokens", "effective_batch_size", "epochs"):
        assert shared["training"][key] == alone["training"][key], key
    losses = [
        [line["loss"] for line in run_dir.read_lines(runs[key] / run_dir.LOG) if "loss" in line]
        for key in ("one", name)
    ]
    assert len(losses[0]) == STEPS and losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("name", ["two", "fsdp2"])
def test_an_odd_number_of_rows_is_measured_once_each(runs: dict[str, Path], name: str) -> None:
    one, other = (run_dir.read_metrics(runs[key]) for key in ("one", name))
    assert (one["rows"], other["rows"], other["processes"]) == (15, 15, 2)
    for which in ("base", "tuned"):
        assert other[which]["tokens"] == one[which]["tokens"]
        assert other[which]["loss"] == pytest.approx(one[which]["loss"], abs=1e-5)
    assert other["scores"]["rouge1"]["base"]["value"] == one["scores"]["rouge1"]["base"]["value"]
    lines = [run_dir.read_lines(runs[key] / run_dir.SCORES) for key in ("one", name)]
    assert [line["row"] for line in lines[1]] == [line["row"] for line in lines[0]]
    assert len(lines[1]) == 15 and all(line["answers"][0]["tuned"]["text"] is not None for line in lines[1])


@pytest.mark.parametrize("name", ["two", "fsdp2"])
def test_one_process_writes_the_run(runs: dict[str, Path], name: str) -> None:
    runs_of_it = [path for path in runs[name].parent.iterdir() if path.name != "latest"]
    assert runs_of_it == [runs[name]]
    assert {path.name for path in (runs[name] / "adapter").iterdir()} == {
        path.name for path in (runs["one"] / "adapter").iterdir()
    }
    said = runs[name].parent.parent.with_suffix(".txt").read_text()
    assert said.count("saving to ") == 1 and said.count("step 4/4") == 1


def test_fsdp2_keeps_shards_in_checkpoints_and_ordinary_files_in_the_end(runs: dict[str, Path]) -> None:
    checkpoint = runs["fsdp2"] / run_dir.CHECKPOINTS / f"checkpoint-{STEPS}"
    assert (checkpoint / "optimizer_0" / "__1_0.distcp").is_file()  # of the second process
    assert json.loads((runs["fsdp2"] / "adapter" / "adapter_config.json").read_text())["r"] == 8
    assert "loading the saved weights to measure them" in runs["fsdp2"].parent.parent.with_suffix(".txt").read_text()


def test_full_weights_of_fsdp2_are_those_of_one_process(tmp_path: Path) -> None:
    one = train(tmp_path / "one", *FULL, ranks=1, rows=4)
    other = train(tmp_path / "two", *FULL, ranks=2, rows=2, **FSDP2)
    assert largest_gap(one, other) < 1e-5
    assert {path.name for path in (one / "model").iterdir()} == {path.name for path in (other / "model").iterdir()}
