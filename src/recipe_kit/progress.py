"""What a person sees while a run goes on, and the log that keeps it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipe_kit import run_dir


def peak_memory_bytes() -> int:
    """The most memory this process has held: allocated on its GPU, or resident where there is none."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()
    import resource

    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes if sys.platform == "darwin" else kibibytes * 1024


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Countdown:
    """Says how far a long piece of work is and how long the rest will take, at most every ten seconds."""

    def __init__(self, what: str, total: int, report: Callable[[str], None], *, every: float = 10.0) -> None:
        self.what, self.total, self.report, self.every = what, total, report, every
        self.done = 0
        self.started = self.said = time.monotonic()

    def step(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        now = time.monotonic()
        if now - self.said >= self.every and self.done < self.total:
            left = (now - self.started) / self.done * (self.total - self.done)
            self.report(f"{self.what}: {self.done:,} of {self.total:,}, left {duration(left)}")
            self.said = now


class ProgressLog(TrainerCallback):  # type: ignore[misc]
    """Writes each logged step to `training_log.jsonl`, and shows loss, speed, memory and time left on stderr.

    Speed counts all tokens the model read, padding left out, over all ranks, per second since the last logged step.
    Where a run goes on from a checkpoint, lines of later steps are taken out of the log: those steps are done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = 0
        self.started = self.last = time.monotonic()
        self.last_tokens = 0
        self.first_step = 0
        self.seconds_before = 0.0  # in processes that were stopped
        self.unwritten = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = self.last = time.monotonic()
        self.first_step = state.global_step
        if state.is_world_process_zero and self.path.is_file():
            lines = self.path.read_text("utf-8").splitlines(keepends=True)
            run_dir.write_text(self.path, "".join(line for line in lines if _is_before(line, self.first_step)))

    def go_on(self, seconds: float, tokens: int) -> None:
        """Time and tokens count on from what they were at the checkpoint."""
        self.seconds_before, self.last_tokens = seconds, tokens

    def pause(self, seconds: float) -> None:
        """So much of the time that passed was no training."""
        self.started += seconds
        self.last += seconds

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = dict(logs or {})
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        now = time.monotonic()
        seconds = self.seconds_before + now - self.started
        line: dict[str, Any] = {"step": state.global_step, "seconds": round(seconds, 3), **logs}
        if "loss" in logs:
            self.tokens = int(logs.get("num_tokens", 0))
            line["tokens_per_second"] = round((self.tokens - self.last_tokens) / max(now - self.last, 1e-9), 1)
            line["peak_memory_bytes"] = peak_memory_bytes()
            self.last, self.last_tokens = now, self.tokens
        self._write(json.dumps(line) + "\n")
        self._show(line, state, now)

    def _write(self, line: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:  # a full disk ends no training
            if not self.unwritten:
                self._print(f"{self.path} cannot be written ({error.strerror or error}): steps are shown here only")
            self.unwritten = True

    def _show(self, line: dict[str, Any], state: TrainerState, now: float) -> None:
        place = f"step {state.global_step}/{state.max_steps}"
        if "eval_loss" in line:
            self._print(f"{place}  held-out loss {line['eval_loss']:.3f}")
        elif "loss" in line:
            done = state.global_step - self.first_step
            left = (now - self.started) / max(done, 1) * (state.max_steps - state.global_step)
            self._print(
                f"{place}  loss {line['loss']:.3f}  {line['tokens_per_second']:,.0f} tokens/s  "
                f"peak {line['peak_memory_bytes'] / 2**30:.1f} GiB  left {duration(left)}"
            )

    @staticmethod
    def _print(text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _is_before(line: str, step: int) -> bool:
    """Whether a line of the log is whole and of a step up to this one."""
    try:
        return line.endswith("\n") and int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False
