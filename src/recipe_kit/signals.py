"""Being asked to stop, by a scheduler (SIGTERM, SIGUSR1) or a person (Ctrl-C): heard once, at a place that is safe.

A rank listens (`listening`). While nothing is trained yet, a request is raised where the process is; from the first
step to the last saving it is noted, and `stopping.StopAtStep` answers it at the end of a step. The processes above
the ranks pass requests on (`forwarding`): schedulers send to the first process, to all of them, or to their group, so
the same request may come two or three times within a moment, and counts once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from recipe_kit.errors import LaunchError

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start it again
AGAIN_SECONDS = 1.0  # what comes sooner after a request is the same one, on another way
UNWINDING_SECONDS = 3.0  # for a process that is to end at once to write that down
STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
GENTLE = getattr(signal, "SIGUSR1", None)  # a warning by schedulers; never ends a process at once
PEER_ENDED = getattr(signal, "SIGUSR2", signal.SIGTERM)  # from our launcher: another process of the run has ended
COMMAND = "RECIPE_KIT_COMMAND"  # the command a person typed, known to the ranks
_PARENT = "RECIPE_KIT_PARENT"  # the id of the process that started this one, if it was a recipe-kit
_LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # known to what accelerate and torchrun start
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
_LINGER_SECONDS = 30  # for a worker that loads batches, when a request is sent to all processes there are


class Stopped(KeyboardInterrupt):
    """The process was asked to stop; a KeyboardInterrupt, so that nothing on the way takes it for an error.

    `step` is the training step it stopped after, None before the first; `saved` that of the newest checkpoint on disk,
    None where there is none.
    """

    def __init__(
        self,
        asked: signal.Signals,
        *,
        at_once: bool = False,
        step: int | None = None,
        of: int = 0,
        run: Path | None = None,
        saved: int | None = None,
    ) -> None:
        self.asked, self.at_once, self.step, self.of, self.run, self.saved = asked, at_once, step, of, run, saved
        after = "" if step is None else f" after step {step} of {of}"
        super().__init__(f"ended at once by a second {asked.name}" if at_once else f"stopped by {asked.name}{after}")

    @property
    def exit_code(self) -> int:
        return exit_code(self.asked, at_once=self.at_once)

    @property
    def sentence(self) -> str:
        """What stopped, after which step, and the command that goes on."""
        if self.at_once:
            return f"{self}; --resume continues from the last checkpoint, if one was saved"
        if self.step is None:
            return f"{self} before training began; the same command begins again"
        if self.saved is None:
            return f"{self}; no checkpoint could be saved, so the same command begins again"
        kept = "the checkpoint is saved"
        if self.saved != self.step:
            kept = f"no checkpoint of this step could be saved, and the last one is of step {self.saved}"
        command = os.environ.get(COMMAND)
        resume = f"--resume {self.run}" if self.run else "--resume"
        return f"{self}; {kept}; go on with: {command or 'the same command and'} {resume}"


class PeerEnded(LaunchError):  # noqa: N818 - mostly not this process's error
    """Another process of the run has ended, and this one cannot go on without it."""


def exit_code(asked: signal.Signals, *, at_once: bool = False) -> int:
    """75, which schedulers can be told to start again, but 130 for Ctrl-C and 128 + signal for what ended at once."""
    return 128 + asked if at_once or asked == signal.SIGINT else EXIT_CODE


def code_of(stop: KeyboardInterrupt) -> int:
    """The exit code of any interrupt: a Stopped has its own."""
    return stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT


class Listener:
    """What a rank heard. `waits` is True while a request is to be noted and not raised."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.waits = False
        self.quiet = False  # this process fails already
        self._owner = os.getpid()
        self._asked_at: float | None = None  # the first SIGTERM or SIGINT
        self._again = False
        self._deaf = False

    def check(self) -> None:
        """Raises Stopped where a request was noted."""
        if self.asked is not None and not self._deaf:
            raise Stopped(self.asked)

    def release(self) -> None:
        """From here on a request is raised where the process is, and so is one that was noted."""
        self.waits = False
        self.check()

    def ignore(self) -> None:
        """The process is about to leave: nothing disturbs it any more."""
        self._deaf = True

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler, in the main thread."""
        if os.getpid() != self._owner:
            _hear_in_a_worker(number, training=self.waits)
            return
        if self._deaf:
            return
        if number == PEER_ENDED:
            self._deaf = True
            raise PeerEnded("another process of this run has ended; what it or the launcher said tells why")
        again = self._again or self._comes_again(number, time.monotonic())
        first, self.asked = self.asked is None, self.asked or signal.Signals(number)
        if again:
            raise Stopped(signal.Signals(number), at_once=True)
        if first and not self.waits:
            raise Stopped(self.asked)
        if first and not self.quiet and os.environ.get("RANK", "0") == "0":
            text = f"{self.asked.name}: training stops when this step has ended and its checkpoint is saved\n"
            with suppress(OSError):
                os.write(2, text.encode())  # not through a buffer, which may be what was interrupted

    def _comes_again(self, number: int, now: float) -> bool:
        if number == GENTLE:
            return False
        if self._asked_at is None:
            self._asked_at = now
        return now - self._asked_at >= AGAIN_SECONDS

    def watch(self, pipe: int) -> None:
        """A thread that ends the process where the main one cannot: it may be inside a call that never returns."""
        first: float | None = None
        while received := os.read(pipe, 64):
            now = time.monotonic()
            for number in received:
                if number == PEER_ENDED and number not in STOPS:
                    _end_soon(1)
                elif number in STOPS and number != GENTLE:
                    first = first or now
                    if now - first >= AGAIN_SECONDS and not self._deaf:
                        self._again = True
                        _end_soon(128 + number)
        os.close(pipe)


def _end_soon(code: int) -> None:
    timer = threading.Timer(UNWINDING_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()


def _hear_in_a_worker(number: int, *, training: bool) -> None:
    """In a process that a rank has forked. While training these load batches, which the step under way needs; what
    is sent to every process must not end them before it. SIGTERM is also how their owner ends them: it may wait."""
    if training:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LINGER_SECONDS)
        return
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


_listener: Listener | None = None


def listener() -> Listener | None:
    """That of this process, when it listens: a program that calls `recipe_kit.train` keeps its own handlers."""
    return _listener


def check() -> None:
    """Raises Stopped where a request was noted: for work that several processes do each for itself."""
    if _listener is not None:
        _listener.check()


def release() -> None:
    """Training and saving are over. A process on its own is interrupted wherever it is from here on; several would
    wait for the one that is gone, so each of them looks (`check`) where it may stop."""
    if _listener is not None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        _listener.release()


@contextmanager
def listening() -> Iterator[Listener]:
    """Hear requests to stop until the end of the block. Signals that are ignored stay ignored, as with `nohup`."""
    global _listener
    found = Listener()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = _install([*STOPS, PEER_ENDED] if several else STOPS, found.hear)
    os.register_at_fork(after_in_child=lambda: _forget_pipe(writing))
    threading.Thread(target=found.watch, args=(reading,), daemon=True, name="signals").start()
    _listener = found
    try:
        yield found
    finally:
        _listener = None
        found.ignore()
        _restore(before)
        signal.set_wakeup_fd(before_fd)
        os.close(writing)  # the thread reads the end, and ends


def _forget_pipe(writing: int) -> None:
    """A forked process would write its own signals into its parent's pipe."""
    with suppress(ValueError):  # not in its main thread
        if (now := signal.set_wakeup_fd(-1)) not in (-1, writing):
            signal.set_wakeup_fd(now)


def _install(numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], Any]) -> dict[Any, Any]:
    before = {number: signal.getsignal(number) for number in numbers}
    for number, was in before.items():
        if was != signal.SIG_IGN:
            signal.signal(number, handler)
    return before


def _restore(before: dict[Any, Any]) -> None:
    for number, was in before.items():
        signal.signal(number, signal.SIG_DFL if was is None else was)


class Forwarder:
    """Passes requests to stop on to the processes below, each once. `heard` are those that came."""

    def __init__(self, children: Callable[[], Iterable[int]], *, on_none: Callable[[signal.Signals], None]) -> None:
        self.heard: list[signal.Signals] = []
        self._children, self._on_none = children, on_none
        self._last: dict[int, float] = {}

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        now = time.monotonic()
        if now - self._last.get(number, float("-inf")) < AGAIN_SECONDS / 2:
            return
        self._last[number] = now
        self.heard.append(signal.Signals(number))
        self.send(number)

    def send(self, number: int) -> None:
        pids = list(self._children())
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if not pids:
            self._on_none(signal.Signals(number))


@contextmanager
def forwarding(
    children: Callable[[], Iterable[int]], *, on_none: Callable[[signal.Signals], None] = lambda asked: None
) -> Iterator[Forwarder]:
    """Pass requests to stop on to `children()` until the end of the block; `on_none` is told where there are none."""
    forwarder = Forwarder(children, on_none=on_none)
    if threading.current_thread() is not threading.main_thread():
        yield forwarder
        return
    before = _install(STOPS, forwarder.hear)
    try:
        yield forwarder
    finally:
        _restore(before)


def as_parent() -> dict[str, str]:
    """The environment by which a child may know that it belongs to this process (`end_with_parent`)."""
    return {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Have the system ask this process to stop when its parent dies, if that is a recipe-kit or a launcher.

    A parent that is gone can pass nothing on, and what it has started would train on unseen and hold its GPUs. From a
    recipe-kit it is a SIGTERM. A plain launcher may have died of a signal that this process got too, and a second
    SIGTERM would end it at once, so there it is SIGUSR1. On Linux only.
    """
    ours = os.environ.get(_PARENT) == str(os.getppid())
    if sys.platform != "linux" or not (ours or any(name in os.environ for name in _LAUNCHED)):
        return
    import ctypes

    with suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signal.SIGTERM if ours else signal.SIGUSR1))


def say(text: str) -> None:
    """A sentence for a person, also where the terminal has gone."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
