"""Checkpoints are whole or not there, a full disk costs a sentence, and saving is tried before it matters."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipe_kit import checkpoints, run_dir
from recipe_kit.errors import RunError
from recipe_kit.recipe import Recipe, load_recipe

Usage = namedtuple("Usage", "total used free")

TINY = """
name: tiny
model: {id: "tiny:llama3", dtype: float32}
method: lora
data: {train: {sample: support, limit: 32}, eval: {rows: 8}, formatter: support, max_length: 256}
lora: {r: 4, lora_dropout: 0.3, target_modules: [q_proj, v_proj]}
training: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-2, logging_steps: 1, save_steps: 2,
           use_cpu: true, report_to: []}
evaluation: {after_training: false}
"""


def checkpoint(run: Path, step: int, **files: str) -> Path:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    for name, text in {"weights": "abc", **files}.items():
        (folder / name).write_text(text)
    (folder / "global_step" / "shard").write_text("shard")
    checkpoints.complete(folder, step)
    return folder


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_manifest_names_each_file_with_its_size_and_hash(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    assert json.loads((folder / "complete.json").read_text()) == {
        "schema_version": 1,
        "step": 2,
        "files": {
            "global_step/shard": {
                "bytes": 5, "sha256": "df3598cd66f1bb5bc4e2c17be89b7c7ecf0c81e53939f471a6b72db8d139edae"
            },
            "weights": {
                "bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
            },
        },
    }  # fmt: skip
    assert checkpoints.fault(folder) == ""


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "complete.json").unlink(), "it has no complete.json, so it was not"),
        (lambda folder: (folder / "complete.json").write_text("{"), "its complete.json cannot be read"),
        (lambda folder: (folder / "complete.json").write_text('{"files": 3}'), "its complete.json cannot be read"),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "weights").write_text("ab"), "weights has 2 bytes instead of 3"),
        (lambda folder: (folder / "global_step" / "shard").write_text("Shard"), "global_step/shard is not the file"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_left_out_and_said(
    tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    before, damaged = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)  # by number, and not by name
    damage(damaged)
    said: list[str] = []
    assert checkpoints.newest(tmp_path, said.append) == before
    (text,) = said
    assert text.startswith(f"{damaged} is left out: ") and sentence in text and "\n" not in text


def test_without_a_whole_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path, print) is None and not checkpoints.any_saved(tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    assert checkpoints.newest(tmp_path, print) is None and not checkpoints.any_saved(tmp_path)
    checkpoint(tmp_path, 4)
    assert checkpoints.any_saved(tmp_path) and checkpoints.last_step(tmp_path) == 4


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [
        (None, None, [2, 4, 6, 8]),
        (2, None, [6, 8]),
        (1, None, [8]),
        (2, 4, [4, 8]),
        (1, 2, [2, 8]),
        (3, 4, [4, 6, 8]),
        (9, None, [2, 4, 6, 8]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int | None, best: int | None, kept: list[int]) -> None:
    for step in (2, 4, 6, 8):
        checkpoint(tmp_path, step)
    checkpoints.rotate(tmp_path / "checkpoints", 8, keep, f"elsewhere/checkpoint-{best}" if best else None)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_later_ones_that_a_resumed_run_left_out_go_with_its_next_checkpoint(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    checkpoints.rotate(tmp_path / "checkpoints", 4, None, None)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_a_removal_that_is_cut_off_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *args, **kwargs: None)
    checkpoints.remove(first)
    monkeypatch.undo()
    assert names(tmp_path) == [".removing", "checkpoint-4"]
    checkpoints.clear(tmp_path)
    assert names(tmp_path) == ["checkpoint-4"] and checkpoints.fault(second) == ""


def test_a_checkpoint_written_again_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    place = checkpoint(tmp_path, 2)
    written = tmp_path / "checkpoints" / ".writing" / "checkpoint-2"
    shutil.copytree(place, written)
    (written / "weights").write_text("new")
    checkpoints.complete(written, 2)
    checkpoints.move_into_place(written, place)
    assert (place / "weights").read_text() == "new" and names(tmp_path) == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (RuntimeError("[enforce fail at inline_container.cc:857] . PytorchStreamWriter failed"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("os error"), False),
        (KeyboardInterrupt(), False),
    ],
)  # fmt: skip
def test_which_errors_are_the_disks(error: BaseException, is_one: bool) -> None:
    assert checkpoints.is_disk_error(error) is is_one


# With a real training


def recipe(folder: Path, *changes: str) -> Recipe:
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return load_recipe(folder / "tiny.yaml", overrides=changes)


def trained(folder: Path, *changes: str, **options: Any) -> Path:
    from recipe_kit.training import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipe_kit.wiring.check", lambda *args, **kwargs: [])  # half of the time, and not asked here
        return train(recipe(folder, *changes), runs_dir=folder / "runs", **options)


def only_run(folder: Path) -> Path:
    (run,) = (path.parent for path in (folder / "runs" / "tiny").glob("*/run.json") if path.parent.name != "latest")
    return run


def full_from(monkeypatch: pytest.MonkeyPatch, place: str, free: list[int]) -> None:
    """Let the disk have so much free each time it is asked for this place, and plenty elsewhere."""
    real = shutil.disk_usage

    def usage(path: Path) -> Any:
        asked = Path(path)
        return Usage(10**12, 0, free.pop(0) if free and asked.name == place else real(path).free)

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", usage)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_costs_a_sentence_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_from(monkeypatch, "checkpoints", [10**9, 1000])  # there is room for the first one only
    said: list[str] = []
    run = trained(tmp_path, report=said.append)
    assert run_dir.read(run)["status"] == "finished"
    assert names(run) == ["checkpoint-2"] and checkpoints.fault(run / "checkpoints" / "checkpoint-2") == ""
    (text,) = [text for text in said if "no checkpoint" in text]
    assert text.startswith(f"no checkpoint of step 4: {run / 'checkpoints'} has 0.0 MB free and 1")
    assert text.endswith(
        "are needed; the run goes on, and the last one is of step 2. Free some space, or set "
        "training.save_total_limit: 1"
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["safetensors", "torch", "manifest"])
def test_a_disk_that_fills_up_while_a_checkpoint_is_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """accelerate #1427, transformers #29137: a run of hours ended with half a checkpoint on a full disk."""
    from recipe_kit.trainer import Trainer

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def at_step_4(owner: Any, name: str, before: Callable[..., Any] | None = None) -> None:
        method = getattr(owner, name)

        def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 4 and self._failures is not None:
                (before or full)(self, *args, **kwargs)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, failing)

    if where == "safetensors":
        at_step_4(Trainer, "_save")
    elif where == "torch":  # as PyTorch says it, after half of the file

        def half(self: Any, folder: str) -> None:
            (Path(folder) / "optimizer.pt").write_text("half")
            raise RuntimeError(
                "[enforce fail at inline_container.cc:857] . PytorchStreamWriter failed writing file data/0"
            )

        at_step_4(Trainer, "_save_optimizer_and_scheduler", half)
    else:
        complete = checkpoints.complete
        monkeypatch.setattr(
            checkpoints, "complete", lambda folder, step: full() if step == 4 else complete(folder, step)
        )
    said: list[str] = []
    run = trained(tmp_path, report=said.append)
    assert run_dir.read(run)["status"] == "finished"
    assert names(run) == ["checkpoint-2"] and checkpoints.fault(run / "checkpoints" / "checkpoint-2") == ""
    (text,) = [text for text in said if "no checkpoint" in text]
    reason = "PytorchStreamWriter failed" if where == "torch" else "(No space left on device; "
    assert text.startswith("no checkpoint of step 4: it cannot be written (") and reason in text
    assert "the run goes on, and the last one is of step 2" in text and "\n" not in text


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_a_full_disk_for_torch_and_for_safetensors(tmp_path: Path) -> None:
    """With the kernel's own refusal (EFBIG), and what PyTorch and safetensors make of it."""
    import resource

    import torch
    from safetensors.torch import save_file

    tensor = {"a": torch.zeros(10**6)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1]))
    try:
        for save in (
            lambda: torch.save(tensor, tmp_path / "a.pt"),
            lambda: save_file(tensor, tmp_path / "a.safetensors"),
        ):
            with pytest.raises(Exception) as caught:
                save()
            assert checkpoints.is_disk_error(caught.value)
            assert "MB are free" in checkpoints.in_words(
                caught.value, tmp_path
            ) or "GB are free" in checkpoints.in_words(caught.value, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.slow
def test_final_weights_that_do_not_fit_are_explained_and_saved_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    whole = load_file(trained(tmp_path) / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "runs")
    folder: list[str] = []
    # Asked in the run folder: before the rehearsal, and twice before the final save.
    full_from_name = lambda info: folder or folder.append(info["name"])  # noqa: E731
    real = shutil.disk_usage
    asked: list[int] = []

    def usage(path: Path) -> Any:
        if Path(path).parent.name == "tiny":
            asked.append(1)
            return Usage(10**12, 0, 10**9 if len(asked) == 1 else 1000)
        return real(path)

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", usage)
    with pytest.raises(RunError) as caught:
        trained(tmp_path, on_info=full_from_name)
    monkeypatch.undo()
    run = only_run(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{run / 'adapter'}: the trained weights could not be saved: {run} has 0.0 MB free and ")
    assert f"`recipe-kit train ... --resume {run}` goes on from the checkpoint of step 4" in text and "\n" not in text
    assert run_dir.read(run)["status"] == "failed" and not (run / "adapter").exists()
    resumed = trained(tmp_path, resume=True)
    assert resumed == run and not (run / ".writing").exists()
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all((saved[name] - whole[name]).abs().max() <= 1e-6 for name in whole)


@pytest.mark.slow
def test_a_final_save_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move, tries = checkpoints.move_into_place, []

    def failing(written: Path, place: Path) -> None:
        if place.name == "adapter":
            tries.append(place)
            if len(tries) == 1:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        move(written, place)

    monkeypatch.setattr(checkpoints, "move_into_place", failing)
    said: list[str] = []
    run = trained(tmp_path, "training.save_strategy=no", report=said.append)
    assert run_dir.read(run)["status"] == "finished" and len(tries) == 2
    assert [text for text in said if "trying again" in text]
    assert names(run) == [] and not (run / ".writing").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("fault", ["missing", "changed"])
def test_what_could_not_be_saved_ends_the_run_at_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, fault: str
) -> None:
    """PEFT #2880: layers that were trained are not in the saved adapter, which nobody sees until it is loaded."""
    from safetensors.torch import load_file, save_file

    from recipe_kit import running

    write = running._write

    def wrong(trainer: Any, job: Any, folder: Path) -> None:
        write(trainer, job, folder)
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        name = next(name for name in tensors if "v_proj" in name)
        if fault == "missing":
            del tensors[name]
        else:
            tensors[name] = tensors[name] + 1e-3
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(running, "_write", wrong)
    changes = ["lora=null"] if method == "full" else []
    with pytest.raises(RunError) as caught:
        trained(tmp_path, f"method={method}", *changes)
    text, run = str(caught.value), only_run(tmp_path)
    assert "could not be saved" in text and "v_proj" in text and "\n" not in text
    assert ("would not be in the files" if fault == "missing" else "in the files is not") in text
    assert names(run) == [] and not (run / ".writing").exists() and not (run / "adapter").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["lora={r: 4, use_dora: true, bias: lora_only, target_modules: [q_proj], modules_to_save: [lm_head]}"],
        ["lora={r: 4, target_modules: [embed_tokens, q_proj]}"],
        [
            "lora={r: 4, target_modules: [q_proj], trainable_token_indices: {embed_tokens: [5, 6]}}",
            "model.id=tiny:chatml",
        ],
        ["method=qlora"],
        ["method=full", "lora=null", "model.id=tiny:chatml"],
    ],
)
def test_every_kind_of_weights_passes_the_rehearsal(tmp_path: Path, changes: list[str]) -> None:
    said: list[str] = []
    run = trained(tmp_path, "training.max_steps=1", "training.save_strategy=no", *changes, report=said.append)
    (text,) = [text for text in said if text.startswith("saving rehearsed: ")]
    assert "MB written, read back and as in memory, in " in text
    training = run_dir.read(run)["training"]
    assert 0 < training["rehearsal_seconds"] < training["wall_seconds"]


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_where_the_trainer_says_it_is_and_loaded_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from recipe_kit.trainer import Trainer

    evaluate = Trainer.evaluate

    def worse_and_worse(self: Any, *arguments: Any, **options: Any) -> dict[str, float]:
        return {**evaluate(self, *arguments, **options), "eval_loss": float(self.state.global_step)}

    monkeypatch.setattr(Trainer, "evaluate", worse_and_worse)
    run = trained(
        tmp_path, "training.eval_strategy=steps", "training.eval_steps=2", "training.load_best_model_at_end=true",
        "training.max_steps=8", "training.save_total_limit=1",
    )  # fmt: skip
    best = run / "checkpoints" / "checkpoint-2"
    assert names(run) == ["checkpoint-2", "checkpoint-8"]
    state = json.loads((run / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best) and state["best_global_step"] == 2
    saved, expected = (load_file(path / "adapter_model.safetensors") for path in (run / "adapter", best))
    assert all((saved[name] == expected[name]).all() for name in expected)
    last = load_file(run / "checkpoints" / "checkpoint-8" / "adapter_model.safetensors")
    assert not all((saved[name] == last[name]).all() for name in last)
