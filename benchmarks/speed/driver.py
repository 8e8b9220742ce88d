"""Starting workers ahead of their turn and letting them run one at a time, in turn."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 300.0  # to import, with other workers importing beside it
LAST_LINES = 12  # of a worker's output, told when it fails


@dataclass(frozen=True)
class Task:
    """One worker's one turn: its name, its command line, and what its environment has beside ours."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Turn:
    """What came of a task: the worker's numbers, or {"failed": reason}."""

    task: Task
    result: dict[str, Any]

    @property
    def failed(self) -> str | None:
        return self.result.get("failed")


class Worker:
    """A started process that waits for its turn."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self._log = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            list(task.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=folder,
            env=os.environ | task.environment,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_until_ready(self, seconds: float) -> dict[str, Any] | None:
        """None once the worker waits for its turn; otherwise what it said, or how it ended."""
        return self._answer(seconds, ready=True)

    def run(self, seconds: float) -> dict[str, Any]:
        """Let the worker go and return its numbers; it is ended after that many seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"failed": f"it ended while it waited: {self._tail()}"}
        result = self._answer(seconds, ready=False)
        assert result is not None
        if "failed" not in result:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        self.end()
        return result

    def end(self) -> None:
        """End the process and all that it started; the GPU's memory is free afterwards."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answer(self, seconds: float, *, ready: bool) -> dict[str, Any] | None:
        """The next line that is JSON (or `ready`); anything else on stdout is some library's remark."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return {"failed": f"not {'ready' if ready else 'done'} after {seconds:g} s: {self._tail()}"}
            if line is None:
                return {"failed": f"it ended with {self._process.wait()}: {self._tail()}"}
            if ready and line.strip() == "ready":
                return None
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict):
                return told

    def _tail(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-LAST_LINES:])[-1500:] or "it wrote nothing"


def run(
    tasks: Sequence[Task],
    *,
    ahead: int,
    seconds: float,
    folder: Path,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[Turn]:
    """Every task's turn, in order. `ahead` workers are started together and have imported before the first one runs.

    Nobody imports while another is measured. A worker that fails or takes longer than `seconds` is told and ended.
    """
    for start in range(0, len(tasks), ahead):
        workers = [Worker(task, folder) for task in tasks[start : start + ahead]]
        try:
            deadline = time.monotonic() + START_SECONDS
            early = [worker.wait_until_ready(max(1.0, deadline - time.monotonic())) for worker in workers]
            for worker, failure in zip(workers, early, strict=True):
                turn = Turn(worker.task, failure or worker.run(seconds))
                report(f"{turn.task.name}: {turn.failed or _short(turn.result)}")
                yield turn
        finally:
            for worker in workers:
                worker.end()


def _short(result: dict[str, Any]) -> str:
    if "tflops" in result:
        return f"{result['tflops']:,.1f} TFLOP/s"
    peak = f", peak {result['peak_bytes'] / 2**30:.1f} GiB" if result.get("peak_bytes") else ""
    return f"{result.get('tokens_per_second', 0):,.0f} tok/s{peak}"
