"""Memory that runs out: the sentence for each phase, and steps that are repeated in parts with the same outcome.

The device is the border: a model that refuses batches of more than so many rows stands for a GPU that is too small.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import torch
import trl
from click.testing import CliRunner

from recipe_kit import out_of_memory, ranks, run_dir
from recipe_kit.cli._common import Sentence
from recipe_kit.errors import ModelError, OutOfMemory
from recipe_kit.halving import HalvingTrainer, cut, row_count
from recipe_kit.out_of_memory import Device, Watch, explained, is_out_of_memory, remedy, sentence
from recipe_kit.recipe import Recipe, load_recipe

TINY = """
name: tiny
model: {id: "tiny:llama3", dtype: float32}
method: lora
data:
  train: {sample: support, limit: 24}
  eval: {rows: 8}
  formatter: support
  max_length: 256
lora: {r: 4, target_modules: [q_proj, v_proj]}
training: {max_steps: 2, per_device_train_batch_size: 4, gradient_checkpointing: true, learning_rate: 1.0e-2,
           logging_steps: 1, save_strategy: "no", use_cpu: true, report_to: []}
evaluation: {after_training: false, samples: 1, max_new_tokens: 4, batch_size: 2}
"""
SAID = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.75 GiB of which 1.06 GiB is "
    "free. Including non-PyTorch memory, this process has 13.68 GiB memory in use. Of the allocated memory 12.90 GiB "
    "is allocated by PyTorch, and 250.05 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
    "memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
    "documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html)"
)
T4 = Device("Tesla T4", int(14.75 * 2**30), int(12.9 * 2**30))
FOUR_ROWS = SimpleNamespace(
    per_device_train_batch_size=4, per_device_eval_batch_size=8, gradient_accumulation_steps=2,
    gradient_checkpointing=True, optim="adamw_torch_fused",
)  # fmt: skip


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return load_recipe(path, overrides=overrides)


def arguments(**changes: Any) -> Any:
    return SimpleNamespace(**{**vars(FOUR_ROWS), **changes})


# The sentence


def test_the_sentence_names_phase_step_need_card_peaks_and_one_line_of_the_recipe(tmp_path: Path) -> None:
    given = arguments(gradient_checkpointing=False)
    watch = Watch(recipe(tmp_path), given, estimated_peak_bytes=int(11.2 * 2**30), phase="backward", step=12)
    assert sentence(watch, SAID, T4) == (
        "out of GPU memory in backward at step 12: 2.00 GiB more needed, 1.06 GiB of the Tesla T4's 14.75 GiB free; "
        "peak 12.90 GiB, estimated 11.20 GiB; set training.gradient_checkpointing: true"
    )


@pytest.mark.parametrize(
    ("said", "fact"),
    [
        ("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`", "the Tesla T4's 14.75 GiB are full; peak"),
        (SAID.replace("13.68", "3.68"), "; other programs hold 10.01 GiB of it; "),
        (SAID.replace("250.05 MiB", "2.50 GiB"), "; 2.50 GiB lie unused in pieces, which PYTORCH_ALLOC_CONF="),
        (
            SAID.replace("Of the allocated", "15.00 GiB allowed; Of the allocated").replace("14.75", "80.00"),
            "2.00 GiB more needed, and this process may use 15.00 GiB of the Tesla T4's 80.00 GiB;",
        ),
    ],
)
def test_what_cuda_said_becomes_a_few_words(tmp_path: Path, said: str, fact: str) -> None:
    told = sentence(Watch(recipe(tmp_path), FOUR_ROWS, phase="forward"), said, T4)
    assert fact in told and "\n" not in told and "Memory Management" not in told and "DSA" not in told


@pytest.mark.parametrize(
    ("phase", "changes", "given", "line"),
    [
        ("load", [], {}, "set method: qlora"),
        ("load", ["method=full", "lora=null"], {}, "set method: qlora"),
        ("load", ["method=qlora"], {}, "name a smaller model in model.id, or take a card with more memory"),
        ("forward", [], {"gradient_checkpointing": False}, "set training.gradient_checkpointing: true"),
        (
            "forward", [], {},
            "set training.per_device_train_batch_size: 2 and training.gradient_accumulation_steps: 4, "
            "which is the same effective batch",
        ),
        (
            "backward", [], {"per_device_train_batch_size": 9},
            "set training.per_device_train_batch_size: 3 and training.gradient_accumulation_steps: 6, "
            "which is the same effective batch",
        ),
        ("backward", [], {"per_device_train_batch_size": 1}, "set method: qlora, or data.max_length: 128"),
        ("backward", ["method=qlora"], {"per_device_train_batch_size": 1}, "set data.max_length: 128"),
        ("optimiser", ["method=full", "lora=null"], {}, "set training.optim: paged_adamw_8bit"),
        ("optimiser", ["method=full", "lora=null"], {"optim": "adamw_8bit"}, "set method: lora"),
        ("optimiser", [], {"optim": "paged_adamw_8bit"}, "set method: qlora"),
        ("evaluation", [], {}, "set training.per_device_eval_batch_size: 4"),
        (
            "evaluation", [], {"per_device_eval_batch_size": 1},
            "set training.eval_strategy: no; what is measured after training stays",
        ),
        ("save", [], {}, "set training.optim: paged_adamw_8bit"),
        ("save", ["method=full", "lora=null"], {"optim": "paged_adamw_8bit"}, "set method: lora"),
        (
            "save", ["method=qlora"], {"optim": "paged_adamw_8bit"},
            "set training.save_strategy: no; the weights are still saved at the end",
        ),
    ],
)  # fmt: skip
def test_each_phase_has_a_line_that_helps(
    tmp_path: Path, phase: Any, changes: list[str], given: dict[str, Any], line: str
) -> None:
    settings = recipe(tmp_path, "model.dtype=auto", *changes)
    assert remedy(Watch(settings, arguments(**given), phase=phase)) == line


def test_float32_weights_that_do_not_fit_are_halved_before_anything_else(tmp_path: Path) -> None:
    assert remedy(Watch(recipe(tmp_path), phase="load")) == "set model.dtype: bfloat16"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ([], "measure with --precision nf4"),
        (["method=qlora"], "set evaluation.max_new_tokens: 2"),
        (["evaluation.lm_eval={tasks: [arc_easy]}"], "set evaluation.batch_size: 1"),
    ],
)
def test_an_evaluation_after_training_is_made_smaller_by_its_own_keys(
    tmp_path: Path, changes: list[str], line: str
) -> None:
    assert remedy(Watch(recipe(tmp_path, *changes), phase="evaluation")) == line


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (MemoryError("out of memory"), False),  # the machine's, not the card's
    ],
)
def test_errors_of_the_cards_memory_are_told_from_others(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_a_bug_passes_and_so_does_a_sentence_about_something_else() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained(Watch()):
        raise RuntimeError("shapes cannot be multiplied")
    with pytest.raises(ModelError, match="^model.id: no such folder$"), explained(Watch()):
        raise ModelError("model.id: no such folder")


def test_memory_that_ran_out_unseen_while_weights_were_quantised_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.23 logs the error, skips the weight, and says that there were issues with the checkpoint."""
    refused = iter([0, 1])
    monkeypatch.setattr(out_of_memory, "_refused_allocations", lambda: next(refused))
    with pytest.raises(OutOfMemory, match="^out of GPU memory in load: "), explained(Watch()):
        raise ModelError("model.id: cannot load acme/base (We encountered some issues during automatic conversion)")


def test_tensors_of_the_failed_call_are_let_go_while_the_error_is_kept() -> None:
    """In a notebook the last error stays, and what its frames hold would fill the card for the next attempt."""
    kept: list[Any] = []

    def fails() -> None:
        tensor = torch.zeros(8)
        kept.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError(SAID)

    with pytest.raises(OutOfMemory) as caught, explained(Watch()):
        fails()
    gc.collect()
    assert caught.value.__cause__ is not None and kept[0]() is None


@pytest.mark.parametrize(("rank", "said_by"), [("0", "recipe-kit"), ("1", "recipe-kit, process 1")])
def test_a_command_that_runs_out_of_memory_ends_with_a_sentence_on_any_rank(
    rank: str, said_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command(cls=Sentence, name="eval")
    def measure() -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(ranks, "leave", sys.exit)
    done = CliRunner().invoke(measure)
    assert done.exit_code == 1
    assert done.stderr == (
        f"{said_by}: out of GPU memory in evaluation: 2.00 GiB more needed, 1.06 GiB of the card's 14.75 GiB free; "
        "add --precision nf4, or run it on the CPU with `CUDA_VISIBLE_DEVICES=` before the command\n"
    )


# Batches in parts


def test_a_padded_batch_is_cut_between_rows_and_loses_the_padding_it_no_longer_needs() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 0, 0], [5, 0, 0, 0], [5, 6, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]),
        "labels": torch.tensor([[-100, 6, -100, -100], [-100] * 4, [-100, 6, 7, 8]]),
    }
    first, second = cut(batch, 1)
    assert first["input_ids"].tolist() == [[5, 6]]
    assert second["input_ids"].tolist() == [[5, 0, 0, 0], [5, 6, 7, 8]]
    assert [part["labels"].tolist() for part in cut(batch, 2)] == [[[-100, 6]], [[-100]], [[-100, 6, 7, 8]]]
    assert [part["input_ids"].shape[1] for part in cut(batch, 5, multiple=4)] == [4, 4, 4]


def test_a_packed_batch_is_cut_at_the_row_nearest_to_its_middle_and_gets_new_boundaries() -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    rows = [{"input_ids": list(range(10, 10 + length))} for length in (2, 3, 1, 4)]
    batch = collate(rows)
    assert row_count(batch) == 4
    for part, expected in zip(cut(batch, 1), [collate(rows[:2]), collate(rows[2:])], strict=True):
        assert part.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(part[name], value) if isinstance(value, torch.Tensor) else part[name] == value, name
        assert part["cu_seq_lens_q"].dtype == torch.int32
    assert [part["input_ids"].tolist() for part in cut(batch, 9)] == [
        [[10, 11]], [[10, 11, 12]], [[10]], [[10, 11, 12, 13]],
    ]  # fmt: skip


# Steps in parts

ROWS = [  # token ids of different lengths; the first ones are a prompt
    {"input_ids": [(7 * row + place) % 90 + 5 for place in range(length)],
     "labels": [-100 if place < length // 3 else (7 * row + place) % 90 + 5 for place in range(length)]}
    for row, length in enumerate([9, 17, 5, 30, 12, 8, 21, 14, 6, 25, 11, 19, 7, 16, 28, 10])
]  # fmt: skip
LAYOUTS = {"padded": {}, "padding_free": {"padding_free": True, "max_length": None}, "packed": {"packing": True}}


def a_trainer(tmp_path: Path, layout: str = "padded", **changes: Any) -> HalvingTrainer:
    """Full fine-tuning of the tiny model by plain gradient descent, where an error of a gradient stays its size."""
    from datasets import Dataset

    from recipe_kit import modeling

    settings = recipe(tmp_path, "method=full", "lora=null")
    torch.manual_seed(0)
    model = modeling.load_model(settings, modeling.load_tokenizer(settings.model), "float32")
    options: dict[str, Any] = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2, "learning_rate": 0.1,
        "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0, "logging_steps": 1, "max_length": 40,
        "gradient_checkpointing": False, "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False,
        "disable_tqdm": True, **LAYOUTS[layout], **changes,
    }  # fmt: skip
    if layout == "packed":
        options["per_device_train_batch_size"] = 2  # of about two rows each
    trainer = HalvingTrainer(
        model=model,
        args=trl.SFTConfig(output_dir=str(tmp_path / "out"), **options),
        processing_class=modeling.load_tokenizer(settings.model),
        train_dataset=Dataset.from_list(ROWS),
    )
    trainer.said = []
    trainer.watch = Watch(settings, trainer.args, note=trainer.said.append)
    return trainer


def weights(trainer: HalvingTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def log(trainer: HalvingTrainer) -> list[dict[str, float]]:
    names = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")
    return [{name: line[name] for name in names} for line in trainer.state.log_history if "loss" in line]


def rows_in(inputs: dict[str, Any]) -> int:
    return row_count({name: value for name, value in inputs.items() if value is not None})


def refuse_forward(trainer: HalvingTrainer, when: Callable[[int, int], bool]) -> list[int]:
    """Let the model run out of memory when `when(rows, calls so far)`; the rows of every call, as they come."""
    seen: list[int] = []

    def before(module: torch.nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        seen.append(rows_in(inputs))
        if when(seen[-1], len(seen)):
            raise torch.OutOfMemoryError(SAID)

    trainer.model.register_forward_pre_hook(before, with_kwargs=True)
    return seen


def refuse_backward(trainer: HalvingTrainer, when: Callable[[int, int], bool]) -> list[int]:
    """The same once the gradients are there, so that some of a failed step are left behind."""
    seen = refuse_forward(trainer, lambda rows, calls: False)
    backward = trainer.accelerator.backward

    def then_refuse(loss: torch.Tensor, **options: Any) -> None:
        backward(loss, **options)
        if when(seen[-1], len(seen)):
            raise torch.OutOfMemoryError(SAID)

    trainer.accelerator.backward = then_refuse
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HalvingTrainer]:
    """The trainer of a layout after two steps for which there was memory."""
    made: dict[str, HalvingTrainer] = {}

    def trained(layout: str) -> HalvingTrainer:
        if layout not in made:
            made[layout] = a_trainer(tmp_path_factory.mktemp(layout), layout)
            made[layout].train()
        return made[layout]

    return trained


@pytest.mark.slow
@pytest.mark.parametrize("refuse", [refuse_forward, refuse_backward])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_in_parts_learns_what_the_whole_step_learns(
    layout: str, refuse: Callable[..., list[int]], tmp_path: Path, whole: Callable[[str], HalvingTrainer]
) -> None:
    """The second batch of the first step does not fit: the first is computed again, and counted once."""
    trainer = a_trainer(tmp_path, layout)
    before = weights(trainer)
    seen = refuse(trainer, lambda rows, calls: calls == 2)
    trainer.train()
    expected = whole(layout)
    assert (weights(expected) - before).abs().max() > 1e-3
    assert torch.allclose(weights(trainer), weights(expected), rtol=0, atol=1e-6)
    assert len(log(trainer)) == 2
    for line, wanted in zip(log(trainer), log(expected), strict=True):
        assert line == pytest.approx(wanted, abs=2e-5)
    phase = "forward" if refuse is refuse_forward else "backward"
    (said,) = trainer.said
    assert said.startswith(f"out of GPU memory in {phase} at step 1: each batch (") and "in 2 parts" in said
    batches = 3 if layout == "packed" else 4  # the last step of packed rows has one
    assert len(seen) == 2 + 2 * batches  # the failed attempt, the step again, and the next one in parts at once


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_become_smaller_until_they_fit_and_stay_so(
    layout: str, tmp_path: Path, whole: Callable[[str], HalvingTrainer]
) -> None:
    trainer = a_trainer(tmp_path, layout)
    seen = refuse_forward(trainer, lambda rows, calls: rows > 1)
    trainer.train()
    assert torch.allclose(weights(trainer), weights(whole(layout)), rtol=0, atol=1e-6)
    refused = [number for number, rows in enumerate(seen) if rows > 1]
    assert trainer.watch.parts == 2 ** len(refused) == 2 ** len(trainer.said) >= 4
    assert seen[-1] == 1 and len(refused) < len(seen) / 4


@pytest.mark.slow
def test_a_batch_averaged_on_its_own_is_still_averaged_whole(tmp_path: Path) -> None:
    """A model whose forward takes no `num_items_in_batch` has each batch's mean loss divided by the batches."""
    outcomes = []
    for limit in (4, 1):
        trainer = a_trainer(tmp_path, max_steps=1)
        trainer.model_accepts_loss_kwargs = False
        refuse_forward(trainer, lambda rows, calls, limit=limit: rows > limit)
        trainer.train()
        outcomes.append((weights(trainer), trainer.state.log_history[0]["loss"]))
    assert torch.allclose(outcomes[0][0], outcomes[1][0], rtol=0, atol=1e-6)
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], abs=2e-5)


@pytest.mark.slow
def test_scaled_gradients_are_unscaled_as_ever(tmp_path: Path) -> None:
    """Float16 scales the loss before the backward pass; the scale changes only after an optimiser step."""
    outcomes = []
    for refused in (0, 2):
        trainer = a_trainer(tmp_path)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        refuse_backward(trainer, lambda rows, calls, refused=refused: calls == refused)
        trainer.train()
        assert trainer.accelerator.scaler.get_scale() == 1024.0
        outcomes.append(weights(trainer))
    assert len(trainer.said) == 1
    assert torch.allclose(*outcomes, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_nothing_of_the_failed_attempt_is_held_when_the_step_is_repeated(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path, max_steps=1)
    left: list[Any] = []
    backward = trainer.accelerator.backward

    def refuse_once(loss: torch.Tensor, **options: Any) -> None:
        if not left:
            left.append(weakref.ref(loss))
            raise torch.OutOfMemoryError(SAID)
        assert left[0]() is None
        assert len(left) > 1 or all(parameter.grad is None for parameter in trainer.model.parameters())
        left.append(None)
        backward(loss, **options)

    trainer.accelerator.backward = refuse_once
    trainer.train()
    assert len(left) == 1 + 4


@pytest.mark.slow
def test_several_processes_are_not_halved(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer._may_halve(batch)
    trainer.args = SimpleNamespace(world_size=2)
    assert not trainer._may_halve(batch)
    told = sentence(replace(trainer.watch, arguments=FOUR_ROWS, phase="forward"), SAID, None)
    assert "; not halved, since 2 processes wait for one another in every step; set training.per_device_" in told


# Whole runs


def trained(tmp_path: Path, *overrides: str) -> Path:
    from recipe_kit.training import train

    return train(recipe(tmp_path, *overrides), runs_dir=tmp_path / "runs")


def failed(tmp_path: Path) -> str:
    """What the run folder says of a run that ended with an error."""
    (file,) = (tmp_path / "runs").rglob("run.json")
    info = json.loads(file.read_text())
    assert info["status"] == "failed"
    return str(info["error"])


def refuse(*args: Any, **kwargs: Any) -> None:
    raise torch.OutOfMemoryError(SAID)


def refuse_rows(monkeypatch: pytest.MonkeyPatch, more_than: int) -> None:
    compute = HalvingTrainer.__mro__[1].compute_loss

    def limited(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model.training and self.watch.recipe is not None and rows_in(inputs) > more_than:
            raise torch.OutOfMemoryError(SAID)
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(HalvingTrainer.__mro__[1], "compute_loss", limited)


@pytest.mark.slow
def test_a_run_whose_batches_were_halved_says_so_and_counts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_rows(monkeypatch, more_than=2)
    info = run_dir.read(trained(tmp_path))
    assert info["status"] == "finished" and info["speed"]["parts"] == 2
    assert info["training"]["effective_batch_size"] == 4
    assert info["notes"][-1] == (
        "out of GPU memory in forward at step 1: each batch (4 rows in this one) is now computed in 2 parts; the step "
        "is repeated, and the effective batch stays as it is"
    )


@pytest.mark.slow
def test_a_single_row_that_does_not_fit_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_rows(monkeypatch, more_than=0)
    with pytest.raises(OutOfMemory) as caught:
        trained(tmp_path)
    assert str(caught.value) == failed(tmp_path) == (
        "out of GPU memory in forward at step 1: 2.00 GiB more needed, 1.06 GiB of the card's 14.75 GiB free; "
        "one row alone does not fit; set method: qlora, or data.max_length: 128"
    )  # fmt: skip


@pytest.mark.slow
def test_a_recipe_that_wants_to_stop_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_rows(monkeypatch, more_than=2)
    with pytest.raises(OutOfMemory, match="free; set training.per_device_train_batch_size: 2 and"):
        trained(tmp_path, "launch.on_oom=stop")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "changes", "told"),
    [
        ("recipe_kit.modeling.load_model", [], "in load: "),
        ("torch.optim.AdamW.step", [], "in optimiser at step 1: "),
        ("transformers.Trainer.evaluation_loop", ["training.eval_strategy=steps"], "in evaluation at step 1: "),
        ("transformers.Trainer._save", [], "in save at step 1: "),
        (
            "transformers.Trainer._save_optimizer_and_scheduler",
            ["training.save_strategy=epoch"],
            "in save at step 2: ",
        ),
    ],
)
def test_whatever_phase_memory_runs_out_in_is_named(
    place: str, changes: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, refuse)
    with pytest.raises(OutOfMemory) as caught:
        trained(tmp_path, *changes)
    assert str(caught.value) == failed(tmp_path)
    assert str(caught.value).startswith(f"out of GPU memory {told}2.00 GiB more needed")


@pytest.mark.slow
def test_an_evaluation_after_training_that_does_not_fit_leaves_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipe_kit.evaluation.work.perplexity.row_losses", refuse)
    run = trained(tmp_path, "evaluation.after_training=true")
    assert run_dir.require_finished(run)["notes"][-1] == (
        "not evaluated (out of GPU memory in evaluation: 2.00 GiB more needed, 1.06 GiB of the card's 14.75 GiB free; "
        "measure with --precision nf4); run `recipe-kit eval` on this folder"
    )
