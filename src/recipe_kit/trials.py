"""One training run after another, each in a process of its own: found when it is finished already, else started.

A trial is a recipe with its profiles and `--set` values. It is trained by `recipe-kit train` itself, in a child
process, so that a comparison and a sweep measure exactly what a user gets by hand, and a crash costs one trial.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Literal

from recipe_kit import run_dir, signals
from recipe_kit.errors import RunError
from recipe_kit.recipe import Recipe, load_recipe, recipe_digest

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 60.0  # for a child that was told to stop to write down where it was
_TRAIN = "from recipe_kit.cli import main; main(prog_name='recipe-kit')"  # `python -m recipe_kit` is a rank

Line = dict[str, Any]  # of a run's training log
Watch = Callable[[Line], str | None]  # why a run should stop, told by a line of its log; None lets it go on


@dataclass(frozen=True)
class Trial:
    """One recipe as it is to be trained."""

    source: str  # a path or the name of a shipped recipe, as the user wrote it
    profiles: tuple[str, ...]
    overrides: tuple[str, ...]
    recipe: Recipe
    num_processes: int | None = None

    @property
    def digest(self) -> str:
        return recipe_digest(self.recipe)

    def words(self, runs_dir: str | Path) -> list[str]:
        """What follows `recipe-kit` to train it by hand."""
        found = ["train", self.source, "--runs-dir", str(runs_dir)]
        found += [word for name in self.profiles for word in ("--profile", name)]
        found += [word for change in self.overrides for word in ("--set", change)]
        return found + ([] if self.num_processes is None else ["--num-processes", str(self.num_processes)])

    def command(self, runs_dir: str | Path) -> str:
        """The whole line, to be read and typed."""
        return shlex.join(["recipe-kit", *self.words(runs_dir)])


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `reason` is a sentence unless it finished."""

    status: Literal["finished", "stopped", "failed"]
    run: Path | None
    reason: str = ""


def load(source: str, profiles: Sequence[str], overrides: Sequence[str], *, num_processes: int | None = None) -> Trial:
    """The trial of a recipe. Raises RecipeError with every problem of it."""
    recipe = load_recipe(source, profiles=profiles, overrides=overrides)
    return Trial(source, tuple(profiles), tuple(overrides), recipe, num_processes)


def find_finished(trial: Trial, runs_dir: str | Path) -> Path | None:
    """The newest finished run of the very same recipe, in as many processes where that was said; None without one."""
    for run in sorted(_runs(trial, Path(runs_dir)), reverse=True):
        info = _info(run)
        processes = trial.num_processes or trial.recipe.launch.num_processes or info.get("processes")
        same = info.get("recipe_sha256") == trial.digest and info.get("processes") == processes
        same = same and not info.get("changed_on_resume")  # another recipe trained its first steps
        if same and info.get("status") == "finished":
            return run
    return None


def train(
    trial: Trial,
    runs_dir: str | Path,
    *,
    watch: Watch | None = None,
    echo: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train a trial to its end and say how it ended.

    `watch` sees each line of the run's training log as it is written and may stop the run; `echo` gets what the child
    says on stderr. On an interrupt (or SIGTERM, SIGUSR1, SIGHUP) the child may save where it is, then
    KeyboardInterrupt is raised: Stopped, which knows the exit code. So it is when the child alone was asked to stop.
    """
    runs_dir = Path(runs_dir)
    before = set(_runs(trial, runs_dir))
    with _stopped_by_signals(), _child(trial.words(runs_dir)) as (process, said):
        stopping = threading.Event()
        reader = threading.Thread(target=_read, args=(process.stderr, said, echo, stopping), daemon=True)
        reader.start()
        log = _Log()

        def found() -> str | None:
            log.run = log.run or _new_run(trial, runs_dir, before)
            return next(filter(None, map(watch, log.new_lines())), None) if watch else None

        reason = None
        try:
            while process.poll() is None and reason is None:
                time.sleep(POLL_SECONDS)
                reason = found()
            reason = reason or found()  # in what it wrote last
            if reason is not None:
                stopping.set()
                _stop(process)
        except KeyboardInterrupt:
            stopping.set()
            _stop(process)
            raise
        finally:
            reader.join(timeout=5)
    run = log.run or _new_run(trial, runs_dir, before)
    info = _info(run) if run else {}
    if info.get("status") == "finished":
        return Outcome("finished", run)
    if reason is not None:
        return Outcome("stopped", run, reason)
    if process.returncode in (signals.EXIT_CODE, 128 + signal.SIGINT):  # somebody else asked it to stop
        raise signals.Stopped(signal.SIGINT if process.returncode != signals.EXIT_CODE else signal.SIGTERM)
    return Outcome("failed", run, _sentence(info, said, process.returncode))


class _Log:
    """Reads the training log of a run while it grows, whole lines only."""

    def __init__(self) -> None:
        self.run: Path | None = None
        self.offset = 0

    def new_lines(self) -> Iterator[Line]:
        if self.run is None or not (path := self.run / run_dir.LOG).is_file():
            return
        with path.open("rb") as file:
            file.seek(self.offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                self.offset += len(raw)
                with suppress(ValueError):
                    yield json.loads(raw)


def read_log(run: Path) -> list[Line]:
    """Every line of a run's training log; [] where there is none."""
    log = _Log()
    log.run = run
    return list(log.new_lines())


def _runs(trial: Trial, runs_dir: Path) -> list[Path]:
    folder = runs_dir / trial.recipe.name
    found = folder.iterdir() if folder.is_dir() else ()
    return [run for run in found if not run.is_symlink() and (run / run_dir.RUN).is_file()]


def _new_run(trial: Trial, runs_dir: Path, before: set[Path]) -> Path | None:
    new = [run for run in _runs(trial, runs_dir) if run not in before]
    return next((run for run in new if _info(run).get("recipe_sha256") == trial.digest), None)


def _info(run: Path) -> dict[str, Any]:
    try:
        return dict(run_dir.read(run))
    except RunError:
        return {}


@contextmanager
def _child(words: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`recipe-kit WORDS` in a process group of its own, and a place for what it says. It never outlives the block.

    What it prints on stdout (its table of results) is left out: the caller shows all of them together.
    """
    command = [sys.executable, "-c", _TRAIN, *words]
    with _interruptible():
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            encoding="utf-8", errors="replace", process_group=0, env={**os.environ, **signals.as_parent()},
        )  # fmt: skip
    try:
        yield process, []
    finally:
        if process.poll() is None:
            _stop(process, first=signal.SIGTERM)
        if process.stderr is not None:
            process.stderr.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    """A child inherits ignored interrupts, which jobs in the background of a script have; this one must hear ours."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Being ended otherwise than by Ctrl-C also ends the child, which would go on training alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.getsignal(name) for name in names}
    for name in names:
        if before[name] != signal.SIG_IGN:
            signal.signal(name, _interrupt)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise signals.Stopped(signal.Signals(number))


def _stop(process: subprocess.Popen[str], first: signal.Signals = signal.SIGINT) -> None:
    """End a child and all it started: ask, wait, then insist. A second interrupt insists at once."""
    for name in (first, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, name)
        try:
            process.wait(timeout=PATIENCE_SECONDS)
            return
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue


def _read(stream: IO[str] | None, said: list[str], echo: Callable[[str], None], stopping: threading.Event) -> None:
    """Keep what a child says and pass it on; not its last words on `--resume`, which is not how a trial goes on."""
    with suppress(ValueError):  # the stream is closed once the child is gone
        for line in stream or ():
            text = line.rstrip("\n")
            said.append(text)
            del said[:-50]
            if not stopping.is_set():
                echo(text)


def _sentence(info: dict[str, Any], said: Sequence[str], code: int | None) -> str:
    """Why a trial failed: its own sentence, else what its run folder says, else the last it said."""
    own = [line.partition(": ")[2] for line in said if line.startswith(("recipe-kit: ", "recipe-kit, process "))]
    if own:
        return own[-1]
    if info.get("error"):
        return str(info["error"])
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    return last or f"it ended with exit code {code} and said nothing"
