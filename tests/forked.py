"""`python -m recipe_kit` in processes forked from this one, which has imported everything: a start takes no time."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

several_go_on = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="this transformers cannot load an optimiser in several processes on a CPU (seen with 5.17)",
)


@dataclass
class Forked:
    """The ranks of one run. `said` is what they wrote to stderr, all in one file."""

    pids: list[int]
    out: Path

    @property
    def said(self) -> str:
        return self.out.read_text(encoding="utf-8")

    def wait_for(self, text: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < end, f"nobody said {text!r}:\n{self.said}"
            time.sleep(0.02)

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        os.kill(self.pids[rank], number)

    def codes(self, seconds: float = 60) -> list[int]:
        """How each of them ended; minus the signal that ended it. Those that take longer are killed."""
        found: dict[int, int] = {}
        end = time.monotonic() + seconds
        while len(found) < len(self.pids):
            for pid in self.pids:
                if pid not in found and (done := os.waitpid(pid, os.WNOHANG))[0]:
                    found[pid] = os.waitstatus_to_exitcode(done[1])
            if time.monotonic() > end:
                for pid in self.pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        return [found[pid] for pid in self.pids]


def start(out: Path, act: Callable[[], object], *, ranks: int = 1, **environment: str) -> Forked:
    """`act` in each of them, with the environment that a launcher sets and what they say in the file `out`."""
    import recipe_kit.cli.rank
    import recipe_kit.training  # noqa: F401 - all of it once, before forking

    with suppress(ImportError):
        import deepspeed  # noqa: F401 - which accelerate imports in any training, where it is installed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **count, **environment}
    out.write_text("", encoding="utf-8")
    pids = []
    for rank in range(ranks):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else environment
        if not (pid := os.fork()):
            _run(act, own, out)
        pids.append(pid)
    return Forked(pids, out)


def _run(act: Callable[[], object], environment: dict[str, str], out: Path) -> None:
    code = 1
    try:
        file = os.open(out, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import torch
        from accelerate.state import AcceleratorState, PartialState

        torch.set_num_threads(1)  # OpenMP's threads are not there after a fork
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        os.environ.update(environment, TOKENIZERS_PARALLELISM="false")
        act()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launched_by(name: str) -> dict[str, str]:
    """What accelerate's launcher tells each process of a topology that ships, with torch's launcher below: no ssh."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    from recipe_kit import catalog

    words = ["--config_file", str(catalog.accelerate_config_path(name)), "--main_process_ip=localhost", "-m", "x"]
    arguments = launch.launch_command_parser().parse_args(words)
    arguments, defaults, _ = launch._validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        command, environment = prepare_deepspeed_cmd_env(arguments)
        assert command is None
    else:
        environment = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in environment.items() if key.startswith(("ACCELERATE_", "FSDP_"))}


def train(*words: str | Path) -> Callable[[], object]:
    """`python -m recipe_kit WORDS`."""

    def act() -> None:
        from recipe_kit.cli.rank import rank

        rank.main([str(word) for word in words], prog_name="python -m recipe_kit")

    return act
