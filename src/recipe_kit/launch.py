"""The command line that starts the training processes: decided by `build_argv`, started by `run`.

A failed rank says its sentence and an interrupted one where to go on. The launchers would bury that under tracebacks
of their own, so `run` calls the same launchers in a child process (`python -m recipe_kit.launch`) that ends quietly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipe_kit import catalog, signals, topology
from recipe_kit.errors import LaunchError

_ACCELERATE = ("accelerate", "launch", "--quiet")  # quiet: no traceback of the launcher when a rank has failed


def build_argv(
    rank_arguments: Sequence[str],
    *,
    accelerate_config: str | None = None,
    num_processes: int | None = None,
    on_cpu: bool,
    gpu_count: int = 0,
) -> list[str]:
    """The command that runs `python -m recipe_kit RANK_ARGUMENTS` in the wanted number of processes.

    On a CPU several processes are started by torch's own launcher: `accelerate launch --cpu` starts one, whatever
    `--num_processes` says (accelerate 1.15). Everything else is `accelerate launch` with a configuration file. Of
    several machines, each runs the command and is told its place by the environment (`_place`).
    Raises LaunchError for more processes than GPUs, and for a configuration that does not exist.
    """
    module = ["-m", "recipe_kit", *rank_arguments]
    if num_processes is not None and num_processes < 1:
        raise LaunchError(f"--num-processes: expected 1 or more, got {num_processes}")
    if on_cpu:
        if (num_processes or 1) > 1:
            return ["torchrun", "--standalone", f"--nproc_per_node={num_processes}", *module]
        config = catalog.accelerate_config_path(
            "cpu" if accelerate_config in (None, "single_gpu", "multi_gpu") else accelerate_config
        )
        return [*_ACCELERATE, "--config_file", str(config), *module]
    chosen = resolve(accelerate_config, num_processes, gpu_count)
    each = (chosen.processes or 1) // chosen.machines
    if num_processes is not None and each > gpu_count:
        raise LaunchError(f"--num-processes: {each} processes need {each} GPUs, and this machine has {gpu_count}")
    own = accelerate_config is not None and accelerate_config not in catalog.accelerate_config_names()
    config = catalog.accelerate_config_path(accelerate_config if own and accelerate_config else chosen.name)
    counted = num_processes is not None or not (own or chosen.strategy == "none")  # a file of your own knows best
    count = [f"--num_processes={chosen.processes}"] if counted else []
    return [*_ACCELERATE, "--config_file", str(config), *count, *_place(chosen, own=own), *module]


def resolve(accelerate_config: str | None, num_processes: int | None, gpu_count: int) -> topology.Topology:
    """The topology of a configuration on this machine's GPUs, with the numbers of processes and machines it will have.

    Files that ship take all GPUs unless `num_processes` says otherwise; a file of your own says it itself. Raises
    LaunchError for a configuration that does not exist.
    """
    name = accelerate_config or "single_gpu"
    if name == "single_gpu" and (num_processes or 1) > 1:
        name = "multi_gpu"
    chosen = topology.read(name)
    machines = os.environ.get("NNODES", "")
    if chosen.machines > 1 and machines.isdigit():
        chosen = replace(chosen, machines=max(1, int(machines)))
    processes = num_processes or chosen.processes
    if num_processes is None and chosen.strategy != "none" and name in catalog.accelerate_config_names():
        processes = max(1, gpu_count) * chosen.machines
    return replace(chosen, processes=processes)


def _place(chosen: topology.Topology, *, own: bool) -> list[str]:
    """The words that tell accelerate's launcher which of several machines this one is.

    They come from the variables that clusters set for torch; a file of your own may hold them instead.
    """
    names = {"num_machines": "NNODES", "machine_rank": "NODE_RANK", "main_process_ip": "MASTER_ADDR",
             "main_process_port": "MASTER_PORT"}  # fmt: skip
    told = {flag: os.environ[name] for flag, name in names.items() if os.environ.get(name)}
    missing = [names[flag] for flag in names if flag not in told and flag != "main_process_port"]
    if chosen.strategy == "none":
        return []
    if chosen.machines == 1:
        told = {flag: value for flag, value in told.items() if flag == "main_process_port"}
    elif missing and not own:
        raise LaunchError(
            f"{chosen.name}: this machine does not know its place among the others; set {', '.join(missing)} on each "
            "of them (NNODES says how many there are, NODE_RANK which one this is, from 0, and MASTER_ADDR where the "
            "first one is)"
        )
    return [f"--{flag}={value}" for flag, value in told.items()]


def run(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> int:
    """Start a launch line, wait for it, and return its exit code.

    Requests to stop (SIGTERM, SIGUSR1, Ctrl-C) are passed on, and the child ends in its own time.
    """
    child = [sys.executable, "-m", "recipe_kit.launch", *argv]
    started: list[int] = []
    own = {**os.environ, **(environment or {}), **signals.as_parent()}
    with signals.forwarding(lambda: started) as forwarder, subprocess.Popen(child, env=own) as process:
        started.append(process.pid)
        for asked in tuple(forwarder.heard):  # in the moment before
            forwarder.send(asked)
        code = process.wait()
    return _exit_code(code, forwarder.heard, "the launcher")


def cpu_environment(num_processes: int) -> dict[str, str]:
    """Threads for each CPU process: both launchers would give it one, and half of a small machine would idle."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // num_processes))}


def visible_gpus() -> int:
    """How many NVIDIA GPUs a child process would see, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) or len(list(Path("/dev").glob("nvidia[0-9]*")))


def one_gpu() -> dict[str, str]:
    """What shows a process the first of several visible GPUs only: alone with all of them, a trainer would split
    every batch over them by threads, which TRL refuses."""
    if visible_gpus() < 2:
        return {}
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()}


def _launcher(words: list[str]) -> int:
    """Call the launcher a command line names, and turn the ways it ends into an exit code.

    torch's launcher would kill the processes 30 seconds after it was asked to stop. It is told not to listen: the
    request goes to the processes, and it waits for them to end by themselves.
    """
    heard: list[signal.Signals] = []
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # the default of its option `--signals-to-handle`
    try:
        with signals.forwarding(_children, on_none=_stop) as forwarder:
            heard = forwarder.heard
            signals.end_with_parent()
            os.environ.update(signals.as_parent())
            return _launch(words, heard)
    except signals.Stopped as stop:
        return stop.exit_code
    finally:
        for left in _children():
            os.kill(left, signal.SIGTERM)


def _launch(words: list[str], heard: list[signal.Signals]) -> int:
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    _end_others_quickly(heard)
    sys.argv = [word for place, word in enumerate(words) if (place, word) != (_ACCELERATE.index("--quiet"), "--quiet")]
    try:
        if words[0] == "torchrun":
            from torch.distributed import run as torchrun

            torchrun.main()
        else:
            from accelerate.commands import accelerate_cli

            accelerate_cli.main()
    except ChildFailedError as error:
        rank, failure = next(iter(error.failures.items()))  # the first that was seen
        return _exit_code(failure.exitcode, heard, f"process {rank}")
    except subprocess.CalledProcessError as error:  # accelerate's, of a single process
        return _exit_code(error.returncode, heard, "the training process")
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _exit_code(code: int, heard: Sequence[signal.Signals], who: str) -> int:
    """What a child's exit code means for its parent; a child that a signal ended says nothing, so this does."""
    if code >= 0:
        return 128 + signal.SIGINT if code == 1 and signal.SIGINT in heard else code
    ended_by = signal.Signals(-code)
    if ended_by in heard:  # before it listened, or by itself once it had been asked
        return signals.exit_code(ended_by)
    why = {
        signal.SIGKILL: ": the system does this when memory runs out, and a job scheduler at the end of a job's time",
        signal.SIGSEGV: ": a fault in a library that is not Python's",
    }.get(ended_by, "")
    signals.say(f"recipe-kit: {who} was ended by {ended_by.name}{why}; --resume continues from the last checkpoint")
    return 1


def _end_others_quickly(heard: Sequence[signal.Signals]) -> None:
    """When a process has failed, torch asks the others with SIGTERM to end and waits 30 seconds (torch 2.13).

    They wait in vain for the one that is gone, and are told so by a signal of its own. After a request to stop they
    are on their way out, and left alone.
    """
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    close: Any = getattr(SubprocessContext, "_close", None)
    if close is None:  # another torch, which waits as long as it likes
        return

    def _close(self: SubprocessContext, death_sig: signal.Signals, timeout: int = 30) -> None:
        if heard:
            close(self, signal.SIGCONT, timeout)  # which does nothing to a process that runs
        else:
            close(self, signals.PEER_ENDED, int(signals.UNWINDING_SECONDS) + 2)

    SubprocessContext._close = _close  # type: ignore[method-assign]


def _children() -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process().children()]


def _stop(asked: signal.Signals) -> None:
    raise signals.Stopped(asked)


if __name__ == "__main__":
    sys.exit(_launcher(sys.argv[1:]))
