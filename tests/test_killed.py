"""A run killed without a word, wherever it is, and gone on with ends with the weights of one that was not."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forked
from recipe_kit import checkpoints, run_dir
from recipe_kit.recipe import Recipe, load_recipe

pytestmark = pytest.mark.slow

# Dropout, so that the random state matters; 6 steps an epoch, so that a run goes on within one and into the next.
RECIPE = """
name: tiny
model: {id: "tiny:llama3", dtype: float32}
method: lora
data: {train: {sample: support, limit: 32}, eval: {rows: 8}, formatter: support, max_length: 256}
lora: {r: 4, lora_dropout: 0.3, target_modules: [q_proj, v_proj]}
training: {max_steps: 8, per_device_train_batch_size: 4, learning_rate: 1.0e-2, logging_steps: 3, save_steps: 2,
           save_total_limit: 1, use_cpu: true, report_to: []}
evaluation: {samples: 0, max_new_tokens: 2, metrics: []}
"""
FULL = ("method=full", "lora=null", "training.learning_rate=1e-3", "training.save_only_model=false")
Kill = Callable[[pytest.MonkeyPatch], None]


def recipe(folder: Path, *changes: str) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return load_recipe(folder / "tiny.yaml", overrides=changes)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(work: Callable[[], object], **environment: str) -> int:
    """A process that has imported all that this one has, its pid."""
    import recipe_kit.training  # noqa: F401, here and not in each child

    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        import torch
        from accelerate.state import AcceleratorState, PartialState

        torch.set_num_threads(1)  # OpenMP's threads are not there after a fork
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        os.environ.update(environment, TOKENIZERS_PARALLELISM="false")
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code of a child; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def trained(folder: Path, *changes: str, kill: Kill | None = None, ranks: int = 1, resume: Any = "auto") -> list[int]:
    """How the processes of one training ended."""
    from recipe_kit import training

    def work() -> None:
        patch = pytest.MonkeyPatch()
        patch.setattr("recipe_kit.wiring.check", lambda *args, **kwargs: [])  # half of the time, and not asked here
        if kill is not None:
            kill(patch)
        run = training.train(recipe(folder, *changes), runs_dir=folder / "runs", resume=resume)
        (folder / "trained").write_text(str(run))

    if ranks == 1:
        return [ended(child(work))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    pids = [child(work, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(ranks)]
    return [ended(pid) for pid in pids]


def finished(folder: Path) -> Path:
    run = Path((folder / "trained").read_text())
    assert run_dir.read(run)["status"] == "finished"
    return run


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = run_dir.weights(run, run_dir.read(run)["method"]).glob("*.safetensors")
    return dict(load_file(file))


def curve(run: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock and the machine."""
    timed = ("seconds", "tokens_per_second", "peak_memory_bytes")
    return [
        {key: value for key, value in line.items() if key not in timed}
        for line in run_dir.read_lines(run / run_dir.LOG)
    ]


def require_same(resumed: Path, whole: Path) -> None:
    expected, found = weights(whole), weights(resumed)
    assert found.keys() == expected.keys()
    assert all((found[name] - expected[name]).abs().max() <= 1e-6 for name in expected)
    assert curve(resumed) == [pytest.approx(line, rel=1e-5) for line in curve(whole)]
    training, before = run_dir.read(resumed)["training"], run_dir.read(whole)["training"]
    assert training["counted_from_step"] == 0
    same = ("steps", "epochs", "tokens", "train_loss", "final_loss")
    assert {key: training[key] for key in same} == pytest.approx({key: before[key] for key in same}, rel=1e-5)
    assert not list(resumed.rglob(checkpoints.WRITING)) and not list(resumed.rglob(checkpoints.REMOVING))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert trained(folder) == [0]
    return finished(folder)


def in_preparation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("recipe_kit.data.prepare", lambda *args, **kwargs: die())


def while_the_model_loads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("recipe_kit.modeling.load_model", lambda *args, **kwargs: die())


def in_a_step(patch: pytest.MonkeyPatch) -> None:
    """In the seventh, the first of the second epoch, after its forward pass."""
    from recipe_kit.trainer import Trainer

    compute = Trainer.compute_loss

    def killing(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        if self.model.training and self.state.global_step == 6:
            die()
        return loss

    patch.setattr(Trainer, "compute_loss", killing)


def at(step: int, owner: Any, name: str, patch: pytest.MonkeyPatch) -> None:
    """In place of a method of the trainer, at this step."""
    method = getattr(owner, name)

    def killing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            die()
        return method(self, *args, **kwargs)

    patch.setattr(owner, name, killing)


def between_steps(patch: pytest.MonkeyPatch) -> None:
    from recipe_kit.trainer import Trainer

    at(5, Trainer, "_maybe_log_save_evaluate", patch)


def in_the_rehearsal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("recipe_kit.final_save._difference", lambda *args: die())


def while_a_checkpoint_is_written(patch: pytest.MonkeyPatch) -> None:
    """The weights are there, and half of the optimiser."""
    from recipe_kit.trainer import Trainer

    save = Trainer._save_optimizer_and_scheduler

    def killing(self: Any, output_dir: str) -> None:
        save(self, output_dir)
        if self.state.global_step == 4:
            optimizer = Path(output_dir) / "optimizer.pt"
            if self.args.should_save:
                os.truncate(optimizer, optimizer.stat().st_size // 2)
            die()

    patch.setattr(Trainer, "_save_optimizer_and_scheduler", killing)


def between_manifest_and_move(patch: pytest.MonkeyPatch) -> None:
    move = checkpoints.move_into_place
    patch.setattr(checkpoints, "move_into_place", lambda w, p: die() if p.name == "checkpoint-4" else move(w, p))


def while_an_older_checkpoint_is_removed(patch: pytest.MonkeyPatch) -> None:
    remove = checkpoints.shutil.rmtree

    def killing(path: Path, **kwargs: Any) -> None:
        if Path(path).name.startswith("checkpoint-4") and Path(path).is_dir():
            (Path(path) / "optimizer.pt").unlink()
            die()
        remove(path, **kwargs)

    patch.setattr(checkpoints.shutil, "rmtree", killing)


def after_the_last_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("recipe_kit.running._save", lambda *args: die())


def in_the_final_save(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checkpoints, "flush", lambda folder: die())


def in_the_evaluation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("recipe_kit.evaluation.measure", lambda *args, **kwargs: die())


@pytest.mark.parametrize(
    ("kill", "goes_on_at"),
    [
        (in_preparation, None),
        (while_the_model_loads, None),
        (in_the_rehearsal, None),
        (in_a_step, 6),
        (between_steps, 4),
        (while_a_checkpoint_is_written, 2),
        (between_manifest_and_move, 2),
        (while_an_older_checkpoint_is_removed, 6),
        (after_the_last_step, 8),
        (in_the_final_save, 8),
        (in_the_evaluation, 8),
    ],
)
def test_a_run_killed_anywhere_ends_with_the_weights_of_one_that_was_not(
    whole: Path, tmp_path: Path, kill: Kill, goes_on_at: int | None
) -> None:
    assert trained(tmp_path, kill=kill) == [-signal.SIGKILL]
    assert trained(tmp_path) == [0]
    resumed = finished(tmp_path)
    require_same(resumed, whole)
    assert run_dir.read(resumed)["training"]["resumed_at_step"] == goes_on_at
    assert [path.name for path in (resumed / "checkpoints").iterdir()] == ["checkpoint-8"]


def test_a_full_model_killed_in_its_final_save_and_a_checkpoint_ends_the_same(tmp_path: Path) -> None:
    assert trained(tmp_path / "whole", *FULL) == [0]
    assert trained(tmp_path, *FULL, kill=while_a_checkpoint_is_written) == [-signal.SIGKILL]
    assert trained(tmp_path, *FULL, kill=in_the_final_save) == [-signal.SIGKILL]
    assert trained(tmp_path, *FULL) == [0]
    require_same(finished(tmp_path), finished(tmp_path / "whole"))


@forked.several_go_on
def test_two_processes_killed_while_a_checkpoint_is_written_end_the_same(tmp_path: Path) -> None:
    half = ("training.per_device_train_batch_size=2",)
    assert trained(tmp_path / "whole", *half, ranks=2) == [0, 0]
    assert trained(tmp_path, *half, kill=while_a_checkpoint_is_written, ranks=2) == [-signal.SIGKILL] * 2
    assert trained(tmp_path, *half, ranks=2) == [0, 0]
    resumed = finished(tmp_path)
    require_same(resumed, finished(tmp_path / "whole"))
    assert run_dir.read(resumed)["training"]["resumed_at_step"] == 2
    names = {path.name for path in (resumed / "checkpoints" / "checkpoint-8").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "totals_0.json", "totals_1.json"} <= names


def test_the_newest_checkpoint_damaged_afterwards_is_left_out_with_a_word(whole: Path, tmp_path: Path) -> None:
    """transformers takes the folder with the highest number, whatever is in it."""
    changes = ("training.save_total_limit=2",)
    assert trained(tmp_path, *changes, kill=after_the_last_step) == [-signal.SIGKILL]
    (run,) = (path for path in (tmp_path / "runs" / "tiny").iterdir())
    optimizer = run / "checkpoints" / "checkpoint-8" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    said: list[str] = []
    assert checkpoints.newest(run, said.append) == run / "checkpoints" / "checkpoint-6"
    assert said == [
        f"{optimizer.parent} is left out: optimizer.pt is not the file that was written (its SHA-256 is another)"
    ]
    assert trained(tmp_path, *changes) == [0]
    require_same(finished(tmp_path), whole)
    assert json.loads((run / "checkpoints" / "checkpoint-8" / "complete.json").read_text())["step"] == 8


def one_rank_cannot_write(patch: pytest.MonkeyPatch) -> None:
    """The second one finds its disk full at step 4, in the middle of the checkpoint."""
    from recipe_kit.trainer import Trainer

    totals = Trainer._totals

    def full(self: Any) -> Any:
        if self.state.global_step == 4 and self.args.process_index == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return totals(self)

    patch.setattr(Trainer, "_totals", full)


def test_a_rank_that_cannot_write_costs_the_checkpoint_of_all_and_no_step(tmp_path: Path) -> None:
    half = ("training.per_device_train_batch_size=2", "training.save_total_limit=9")
    assert trained(tmp_path, *half, kill=one_rank_cannot_write, ranks=2) == [0, 0]
    run = finished(tmp_path)
    steps = {path.name for path in (run / "checkpoints").iterdir()}
    assert steps == {"checkpoint-2", "checkpoint-6", "checkpoint-8"}
    (note,) = [note for note in run_dir.read(run)["notes"] if "no checkpoint of step 4" in note]
    assert "No space left on device" in note and "the last one is of step 2" in note
