"""A training that was asked to stop does so at the end of a step, in all processes at the same one, and saves it."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as group
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from recipe_kit import checkpoints
from recipe_kit.errors import LaunchError, first_line
from recipe_kit.saving import SavingTrainer
from recipe_kit.signals import Listener, Stopped

LONG_STEP_SECONDS = 1.0


class Votes:
    """Which signal any of the processes was sent: the same answer in all of them, at the same step.

    Each step's votes are summed up while the next one is computed, on the CPU and beside the GPU's own talk, and read
    at its end. Where steps are long they are read at once: a wait of a millisecond, and no step of a grace period is
    lost.
    Raises LaunchError where the processes cannot talk this way.
    """

    def __init__(self, timeout_seconds: float) -> None:
        try:
            self._group = group.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        except RuntimeError as error:
            raise LaunchError(
                f"the processes cannot talk over gloo ({first_line(error)}); set GLOO_SOCKET_IFNAME to the "
                "network interface that connects the machines, such as eth0"
            ) from error
        self._votes: torch.Tensor | None = None
        self._work: Any = None
        self._long_steps = False

    def count(self, own: int, step_seconds: float) -> int:
        """The number of a signal; 0 for none. Called by all processes, equally often."""
        if found := self._read():
            return found
        self._votes = torch.tensor([own, step_seconds], dtype=torch.float64)
        self._work = group.all_reduce(self._votes, op=group.ReduceOp.MAX, group=self._group, async_op=True)
        return self._read() if self._long_steps else 0

    def _read(self) -> int:
        if self._votes is None:
            return 0
        self._work.wait()
        number, seconds = self._votes.tolist()
        self._votes = self._work = None
        self._long_steps = seconds >= LONG_STEP_SECONDS
        return int(number)

    def finish(self) -> None:
        """No vote is left under way."""
        self._read()


class StopAtStep(TrainerCallback):  # type: ignore[misc]
    """Ends training after the step, or the batch of an evaluation, in which a request came. To be added last.

    The trainer itself saves the checkpoint, whatever its `save_strategy`. A training at its last step is not stopped:
    it has only to save its weights, and what comes then listens by itself. Raises Stopped out of `Trainer.train`.
    """

    def __init__(self, listener: Listener, trainer: SavingTrainer) -> None:
        self.listener, self.trainer = listener, trainer
        self.votes: Votes | None = None
        self.stopped: Stopped | None = None
        self._since = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.listener.waits = True
        if hasattr(signal, "sigwaitinfo"):  # not on macOS
            _let_workers_finish()
        if args.world_size > 1:
            self.votes = Votes(args.ddp_timeout)
        # An evaluation that a request cut short is made up for.
        args.eval_on_start = args.eval_on_start or _evaluation_is_missing(args, state)
        self._since = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        asked = self._asked()
        if asked is None or state.global_step >= state.max_steps:
            return
        control.should_training_stop = control.should_save = True
        control.should_evaluate = False
        self._stop(asked, args, state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.trainer.is_in_train or state.global_step >= state.max_steps or (asked := self._asked()) is None:
            return
        control.should_training_stop = True
        self._stop(asked, args, state)
        if self.trainer.saved_step != state.global_step:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
        self._leave(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped is not None:  # the checkpoint is saved; the epoch has not really ended
            self._leave(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.votes is not None:
            self.votes.finish()

    def _asked(self) -> signal.Signals | None:
        own, now = self.listener.asked, time.monotonic()
        if self.votes is None:
            return own
        number = self.votes.count(own or 0, now - self._since)
        self._since = time.monotonic()
        return signal.Signals(number) if number else None

    def _stop(self, asked: signal.Signals, args: TrainingArguments, state: TrainerState) -> None:
        run = Path(args.output_dir).parent
        self.listener.asked = asked
        self.stopped = Stopped(asked, step=state.global_step, of=state.max_steps, run=run)

    def _leave(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Trackers write what they hold back; the trainer's own ending might load or remove checkpoints."""
        assert self.stopped is not None and self.stopped.run is not None
        here = self.trainer.saved_step == state.global_step
        self.stopped.saved = state.global_step if here else checkpoints.last_step(self.stopped.run)
        self.trainer.callback_handler.on_train_end(args, state, control)
        raise self.stopped


def _let_workers_finish() -> None:
    """Processes that load batches end at a SIGTERM of their owner, and at no other: the step under way needs them.

    torch has them end at any other as well (2.13), and that fails the step where a scheduler sends one to all.
    """
    from torch.utils.data._utils import signal_handling

    torchs_own = signal_handling._set_worker_signal_handlers  # type: ignore[attr-defined]

    def _set_worker_signal_handlers() -> None:
        torchs_own()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_owner, daemon=True).start()

    signal_handling._set_worker_signal_handlers = _set_worker_signal_handlers  # type: ignore[attr-defined]


def _end_with_owner() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _evaluation_is_missing(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether a training that goes on should have been evaluated at the step where it stopped."""
    step = state.global_step
    if step == 0 or any(line.get("step") == step and "eval_loss" in line for line in state.log_history):
        return False
    if args.eval_strategy == IntervalStrategy.STEPS:
        return bool(step % state.eval_steps == 0 and step >= args.eval_delay)
    whole = state.epoch is not None and float(state.epoch).is_integer()
    return bool(args.eval_strategy == IntervalStrategy.EPOCH and whole and state.epoch >= args.eval_delay)
