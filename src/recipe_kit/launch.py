"""The command line that starts the training processes: decided by `build_argv`, started by `run`.

A failed rank says its sentence and an interrupted one where to go on. The launchers would bury that under tracebacks
of their own, so `run` calls the same launchers in a child process (`python -m recipe_kit.launch`) that ends quietly.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipe_kit import catalog
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
    `--num_processes` says (accelerate 1.15). Everything else is `accelerate launch` with a configuration file.
    Raises LaunchError for more processes than GPUs, and for a configuration that does not exist.
    """
    module = ["-m", "recipe_kit", *rank_arguments]
    if num_processes is not None and num_processes < 1:
        raise LaunchError(f"--num-processes: expected 1 or more, got {num_processes}")
    if on_cpu:
        if (num_processes or 1) > 1:
            return ["torchrun", "--standalone", f"--nproc_per_node={num_processes}", *module]
        config = catalog.accelerate_config_path(
            "cpu" if accelerate_config in (None, "single_gpu") else accelerate_config
        )
        return [*_ACCELERATE, "--config_file", str(config), *module]
    if accelerate_config == "single_gpu" and (num_processes or 1) > 1:
        accelerate_config = "multi_gpu"
    if accelerate_config == "multi_gpu" and num_processes is None:
        num_processes = gpu_count
    if num_processes is not None and num_processes > gpu_count:
        raise LaunchError(
            f"--num-processes: {num_processes} processes need {num_processes} GPUs, and this machine has {gpu_count}"
        )
    config = catalog.accelerate_config_path(
        accelerate_config or ("multi_gpu" if (num_processes or 1) > 1 else "single_gpu")
    )
    count = [] if num_processes is None else [f"--num_processes={num_processes}"]  # a file of your own knows best
    return [*_ACCELERATE, "--config_file", str(config), *count, *module]


def run(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> int:
    """Start a launch line, wait for it, and return its exit code; on an interrupt the child ends in its own time."""
    child = [sys.executable, "-m", "recipe_kit.launch", *argv]
    with subprocess.Popen(child, env={**os.environ, **(environment or {})}) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the terminal has sent it to the children too: let them write down where they were


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
    """Call the launcher a command line names, and turn the ways it ends into an exit code."""
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    sys.argv = words
    try:
        if words[0] == "torchrun":
            from torch.distributed import run as torchrun

            torchrun.main()
        else:
            from accelerate.commands import accelerate_cli

            accelerate_cli.main()
    except ChildFailedError:
        return 1
    except (KeyboardInterrupt, SignalException):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_launcher(sys.argv[1:]))
