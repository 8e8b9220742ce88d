"""The trainer as something that may be killed: whole checkpoints or none, and totals that go on where they stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.trainer import TRAINER_STATE_NAME

from recipe_kit import checkpoints
from recipe_kit.errors import RunError
from recipe_kit.finite import ruined
from recipe_kit.halving import HalvingTrainer
from recipe_kit.progress import ProgressLog, peak_memory_bytes

TOTALS = "totals_{rank}.json"  # in a checkpoint, one for each rank


class SavingTrainer(HalvingTrainer):
    """TRL's trainer with checkpoints moved into place when they are whole, and a run that goes on as if never stopped.

    A checkpoint that cannot be written costs a sentence and not the run: all ranks agree on it, the half of it is
    removed, and the last one stays. Weights that are no numbers any more end the run, and are not saved: the last good
    checkpoint would make room for them. What transformers 5.23 and TRL 1.16 do not restore is kept in
    `totals_RANK.json`: tokens, time, the running means of the log. Nothing is trained where the last step was
    (transformers would train one step more).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.report: Callable[[str], None] = lambda text: None
        self.rehearsal: Callable[[], int] | None = None  # done after the first step; the bytes of the final weights
        self.weights_bytes = 0
        self.rehearsal_seconds = 0.0
        self.began = self.loaded_from = time.monotonic()  # of the training, and of all that `wall_seconds` counts
        self.seconds_before = self.wall_seconds_before = 0.0  # in processes that were stopped, up to the checkpoint
        self.memory_before = 0
        self.counted_from_step = 0
        self.saved_step: int | None = None
        self._failures: list[BaseException] | None = None  # while a checkpoint is being written
        self._resumed = False
        super().__init__(*args, **kwargs)

    @property
    def seconds(self) -> float:
        """In training, with what the run had spent up to the checkpoint it goes on from, and without the rehearsal."""
        return self.seconds_before + time.monotonic() - self.began - self.rehearsal_seconds

    @property
    def wall_seconds(self) -> float:
        """Since the model began to load, with what the run had spent up to the checkpoint it goes on from."""
        return self.wall_seconds_before + time.monotonic() - self.loaded_from

    @property
    def peak_memory_bytes(self) -> int:
        return max(self.memory_before, peak_memory_bytes())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.began = time.monotonic()
        return super().train(*args, **kwargs)

    def agreed(self, problem: str) -> str:
        """The problem of the first rank that has one, on all ranks; "" where none has."""
        found: list[str] = gather_object([problem]) if self.args.world_size > 1 else [problem]
        return next((text for text in found if text), "")

    # Weights that are still numbers

    def require_numbers(self, *, loss: float | None = None) -> None:
        """Raises RunError where a trained weight is not one, in all ranks alike; called by every rank."""
        name = self.agreed(ruined(self.accelerator.unwrap_model(self.model).named_parameters()))
        if not name:
            return
        run = Path(self.args.output_dir).parent
        last = checkpoints.last_step(run)
        logged = "" if loss is None else f" (loss {loss:g})"
        remedy = "a lower training.learning_rate" + (", or model.dtype: bfloat16" if self.args.fp16 else "")
        if last is not None:
            then = f"the checkpoint of step {last} is from before, and --resume {run} goes on from it with {remedy}"
        elif self.state.global_step > 1:
            then = f"no checkpoint was saved before; train again with {remedy}"
        else:
            then = (
                "after one step this is seldom the learning rate: look for weights of model.id that are no numbers or "
                f"rows of zeros, and try model.kernels: none, model.attention: sdpa, or {remedy}"
            )
        raise RunError(
            f"training went wrong by step {self.state.global_step}{logged}: {name} holds values that are no numbers, "
            f"which no later step mends; {then}"
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)
        # In float16 a step whose gradients overflow is left out, and the weights are as they were.
        if not all(math.isfinite(logs[key]) for key in ("loss", "grad_norm") if key in logs):
            self.require_numbers(loss=logs.get("loss"))
            self._tr_loss.zero_()  # transformers takes it from itself, which leaves NaN in the log for good

    # Checkpoints

    def _get_output_dir(self, trial: Any = None) -> str:
        """Where transformers writes checkpoints, and looks for those it may remove: it finds none there."""
        return str(Path(self.args.output_dir) / checkpoints.WRITING)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.require_numbers()
        step, folder = self.state.global_step, Path(self.args.output_dir)
        written = Path(self._get_output_dir()) / f"checkpoint-{step}"
        is_local_main = self.accelerator.is_local_main_process
        best_before = self.state.best_model_checkpoint
        problem = self.agreed(self._room(written) if is_local_main else "")
        if not problem:
            problem = self.agreed(self._write(model, trial, folder))
        self._name_best(folder, step)
        for is_mine in (self.accelerator.is_main_process, is_local_main):
            if not problem:  # in turn: on a disk that machines share, nothing is left for the others to move
                problem = self.agreed(self._settle(written, step) if is_mine and written.is_dir() else "")
        if not problem:
            self.saved_step = step
            return
        lost = "; it was the best one" if self.state.best_global_step == step else ""
        self.state.best_model_checkpoint = best_before
        if is_local_main:
            checkpoints.discard(written)
        last = checkpoints.last_step(folder.parent)
        stays = f"the last one is of step {last}" if last is not None else "there is none yet"
        fewer = "" if self.args.save_total_limit == 1 else ", or set training.save_total_limit: 1"
        stops = self.control.should_training_stop and step < self.state.max_steps  # it was asked to
        then = "the run stops" if stops else "the run goes on"
        self.report(f"no checkpoint of step {step}: {problem}{lost}; {then}, and {stays}. Free some space{fewer}")

    def _room(self, written: Path) -> str:
        """Why a checkpoint cannot even be begun, or ""."""
        folder = Path(self.args.output_dir)
        try:
            written.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"it cannot be written ({checkpoints.in_words(error, folder)})"
        return checkpoints.shortage(folder, self._checkpoint_bytes(folder))

    def _write(self, model: torch.nn.Module, trial: Any, folder: Path) -> str:
        """Write it with transformers' own code; why that failed, or ""."""
        self._failures = []
        # With it, transformers would look for the best checkpoint beside the one being written, after a barrier that a
        # rank without space would not reach.
        best, self.state.best_global_step = self.state.best_global_step, None
        try:
            with self._noted():
                super()._save_checkpoint(model, trial)
        finally:
            self.state.best_global_step = best
            failures, self._failures = self._failures, None
        return f"it cannot be written ({checkpoints.in_words(failures[0], folder)})" if failures else ""

    def _settle(self, written: Path, step: int) -> str:
        """Make it a checkpoint, move it into place, and let older ones go; why that failed, or ""."""
        folder = Path(self.args.output_dir)
        try:
            if (written / TRAINER_STATE_NAME).is_file():
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
            checkpoints.complete(written, step)
            checkpoints.move_into_place(written, folder / written.name)
        except OSError as error:
            return f"it cannot be written ({checkpoints.in_words(error, folder)})"
        try:
            checkpoints.rotate(folder, step, self.args.save_total_limit, self.state.best_model_checkpoint)
        except OSError as error:
            self.report(f"older checkpoints stay: they cannot be removed ({checkpoints.in_words(error, folder)})")
        return ""

    def _name_best(self, folder: Path, step: int | None = None) -> None:
        """Let the trainer's state name the place where the best checkpoint is, or will be once that of `step` is."""
        if self.state.best_global_step:
            best = folder / f"checkpoint-{self.state.best_global_step}"
            if best.is_dir() or self.state.best_global_step == step:
                self.state.best_model_checkpoint = str(best)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Let a rank that cannot write take part in what the others do next, and tell them afterwards."""
        try:
            yield
        except BaseException as error:
            if self._failures is None or not checkpoints.is_disk_error(error):
                raise
            self._failures.append(error)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        with self._noted():
            super().save_model(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._noted():
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_scaler(self, output_dir: str) -> None:
        with self._noted():
            super()._save_scaler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        with self._noted():
            super()._save_rng_state(output_dir)
            path = Path(output_dir) / TOTALS.format(rank=self.args.process_index)
            path.write_text(json.dumps(self._totals(), indent=1), encoding="utf-8")

    def _checkpoint_bytes(self, folder: Path) -> int:
        """What the next checkpoint takes: as much as the last one, or weights and optimiser states in memory."""
        last = checkpoints.last_bytes(folder)
        if last is not None:
            return last
        states = getattr(self.optimizer, "state", None) or {}
        tensors = [v for state in states.values() for v in state.values() if isinstance(v, torch.Tensor)]
        shards = self.args.world_size if self.is_deepspeed_enabled else 1
        return self.weights_bytes + shards * sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    # Going on

    def _totals(self) -> dict[str, Any]:
        return {
            "tokens": int(self._total_train_tokens),
            "seconds": self.seconds,
            "wall_seconds": self.wall_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "counted_from_step": self.counted_from_step,
            "loss_sum": self._total_loss_scalar,
            "loss_since_log": self._tr_loss.item(),
            "last_logged_step": self._globalstep_last_logged,
            "means_since_log": {name: list(values) for name, values in self._metrics["train"].items()},
        }

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._init_training_state(*args, **kwargs)
        self._name_best(Path(self.args.output_dir))  # the run folder may have been moved
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        checkpoint = kwargs.get("resume_from_checkpoint")
        if checkpoint and not self._resumed:
            self._resumed = True
            self._go_on(Path(checkpoint))
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _go_on(self, checkpoint: Path) -> None:
        self.saved_step = self.state.global_step
        named = (checkpoint / TOTALS.format(rank=rank) for rank in (self.args.process_index, 0))
        path = next((path for path in named if path.is_file()), None)
        if path is None:  # as with save_only_model
            self.counted_from_step = self.state.global_step
            return
        told = json.loads(path.read_text(encoding="utf-8"))
        self._total_train_tokens = told["tokens"]
        self.seconds_before, self.wall_seconds_before = told["seconds"], told["wall_seconds"]
        self.memory_before, self.counted_from_step = told["peak_memory_bytes"], told["counted_from_step"]
        self._initial_global_step = self.counted_from_step
        self._total_loss_scalar, self._globalstep_last_logged = told["loss_sum"], told["last_logged_step"]
        self._tr_loss += told["loss_since_log"]
        for name, values in told["means_since_log"].items():
            self._metrics["train"][name] = values
        for log in self._progress_logs():
            log.go_on(told["seconds"], told["tokens"])

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Draws nothing from the training's random state: one evaluation more or less changes nothing of it."""
        with _random_state_kept():
            return super().evaluate(*args, **kwargs)

    # Rehearsal

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        rehearsal, self.rehearsal = self.rehearsal, None
        if rehearsal is not None:
            started = time.monotonic()
            with self.watch.during("save"), _random_state_kept():
                self.weights_bytes = rehearsal()
            self.rehearsal_seconds = time.monotonic() - started
            for log in self._progress_logs():
                log.pause(self.rehearsal_seconds)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _progress_logs(self) -> list[ProgressLog]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, ProgressLog)]


def _random_state_kept() -> Any:
    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])
