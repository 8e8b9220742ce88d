"""Job files for clusters: a Slurm batch script and a SkyPilot task, as text, from what a training needs.

Both start `recipe-kit train` once on each machine and tell it its place by the variables that `launch` reads (NNODES,
NODE_RANK, MASTER_ADDR, MASTER_PORT). A run that is stopped saves a checkpoint and leaves with code 75 (`signals`);
both files have it queued again on that code, and `--resume auto` goes on where it was. No secret is ever written.
Forms are those of the manuals of sbatch and srun, and of SkyPilot's YAML reference (`recover_on_exit_codes` came with
its pull request 8324, December 2025); its 0.14.1 reads the tasks. Neither was tried on a cluster.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from recipe_kit import catalog, signals, topology
from recipe_kit.errors import LaunchError

GRACE_SECONDS = 300  # from Slurm's warning to the end of the job's time; it may come a minute early
_PORT = 29500
_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){1,2}")
_PLAIN = re.compile(r"[A-Za-z0-9][\w./+*:,-]*")  # what a name in a job's header may consist of
_ENVIRONMENT = "~/recipe-kit-env"


@dataclass(frozen=True)
class Job:
    """What is trained, on which machines. `accelerate_config` is a name or a file, None for one process on one GPU."""

    recipe: str  # as `recipe-kit train` takes it
    name: str
    nodes: int = 1
    gpus_per_node: int = 1
    gpu: str | None = None  # its type, as the cluster calls it
    accelerate_config: str | None = None
    profiles: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    runs_dir: str = "runs"
    secrets: tuple[str, ...] = ()  # names of environment variables that the run may need

    @property
    def processes(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def overlay(self) -> list[str]:
        """The words that lay profiles and changes over the recipe."""
        return [word for flag, values in (("--profile", self.profiles), ("--set", self.overrides))
                for value in values for word in (flag, value)]  # fmt: skip

    @property
    def place(self) -> list[str]:
        """The words that say how many processes train, and how they share the model."""
        if self.accelerate_config is None:
            return []
        return ["--accelerate-config", self.accelerate_config, "--num-processes", str(self.processes)]

    def train(self) -> list[str]:
        """The command of each machine."""
        return ["recipe-kit", "train", self.recipe, *self.overlay, *self.place,
                "--runs-dir", self.runs_dir, "--resume", "auto"]  # fmt: skip

    def plan(self) -> list[str]:
        """The command that prepares the rows, and refuses what would fail."""
        return ["recipe-kit", "plan", self.recipe, *self.overlay, *self.place,
                "--runs-dir", self.runs_dir, "--sample", "1000", "--no-quality"]  # fmt: skip


def config_for(name: str | None, nodes: int, gpus_per_node: int) -> str | None:
    """The accelerate configuration for so many machines: of those that ship, the one of the same strategy.

    Raises LaunchError where none ships for several machines, and for a file of your own that is for another number.
    """
    if nodes * gpus_per_node == 1 and name in (None, "single_gpu"):
        return None
    if name in (None, "single_gpu"):
        name = "multi_gpu"
    ships = catalog.accelerate_config_names()
    if name in ships and nodes > 1 and not name.startswith("multi_node"):
        wanted = "multi_node" if name == "multi_gpu" else f"multi_node_{name}"
        if wanted not in ships:
            there = ", ".join(known for known in ships if known.startswith("multi_node"))
            raise LaunchError(
                f"--accelerate-config: {name} is for one machine, and nothing like it ships for {nodes}; take one of "
                f"{there}, or a file of your own with num_machines: {nodes}"
            )
        name = wanted
    machines = topology.read(str(name)).machines
    if nodes == 1 and machines > 1:
        raise LaunchError(f"--accelerate-config: {name} is for several machines; give --nodes, or take another")
    if name not in ships and machines != nodes:
        raise LaunchError(f"{name}: num_machines is {machines}, and --nodes {nodes}; make them equal")
    return name


def topology_of(job: Job) -> topology.Topology:
    """How the processes of a job train together, for `topology.check`."""
    if job.accelerate_config is None:
        return topology.Topology("single_gpu", "none", 1)
    return replace(topology.read(job.accelerate_config), machines=job.nodes, processes=job.processes)


def slurm(
    job: Job, *, file: str, time: str, partition: str | None = None, account: str | None = None, cpus_per_gpu: int = 8
) -> str:
    """A batch script for `sbatch`, to be written to `file`. Raises LaunchError for what cannot stand in its header."""
    if not _TIME.fullmatch(time):
        raise LaunchError(f"--time: expected HH:MM:SS or D-HH:MM:SS, got {time!r}")
    for flag, value in (("--partition", partition), ("--account", account), ("--gpu", job.gpu)):
        _check_plain(flag, value)
    gpus = f"{job.gpu}:{job.gpus_per_node}" if job.gpu else str(job.gpus_per_node)
    header = {
        "job-name": job.name, "nodes": job.nodes, "ntasks-per-node": 1, "gpus-per-node": gpus,
        "cpus-per-task": cpus_per_gpu * job.gpus_per_node, "time": time, "partition": partition, "account": account,
        "output": f"{job.name}-%j.log", "open-mode": "append", "signal": f"B:USR1@{GRACE_SECONDS}",
    }  # fmt: skip
    lines = [f"#SBATCH --{key}={value}" for key, value in header.items() if value is not None]
    return _SLURM.format(
        what=_what(job), header="\n".join([*lines, "#SBATCH --requeue"]), secrets=_secrets_of_slurm(job),
        plan=shlex.join(job.plan()), train=shlex.join(job.train()), stopped=signals.EXIT_CODE,
        grace=GRACE_SECONDS, file=shlex.quote(file),
    )  # fmt: skip


def sky(
    job: Job,
    *,
    file: str,
    cloud: str | None = None,
    spot: bool = False,
    bucket: str | None = None,
    volume: str | None = None,
    workdir: bool = True,
    version: str,
) -> str:
    """A task for `sky jobs launch`, as YAML for `file`. Raises LaunchError for a value that cannot stand in it.

    Run folders go to the `bucket` or network `volume` of this name, without which a job that is recovered on another
    machine begins again. `workdir` sends the current folder along. `version` is that of the kit to install.
    """
    for flag, value in (("--cloud", cloud), ("--bucket", bucket), ("--volume", volume), ("--gpu", job.gpu)):
        _check_plain(flag, value)
    if job.gpu is None:
        raise LaunchError("--gpu: SkyPilot rents by the type of GPU; give one, such as --gpu H100")
    if bucket and volume:
        raise LaunchError("--bucket and --volume: run folders go to one of them; give one")
    kept = bucket or volume
    job = replace(job, runs_dir="/runs") if kept else job
    extras = "[deepspeed]" if topology_of(job).strategy.startswith("zero") else ""
    lines = [f"# {line}" for line in (_what(job), *_how_to_launch_sky(job, file, bool(kept)))]
    lines += [f"name: {job.name}", f"num_nodes: {job.nodes}"]
    lines += ["workdir: .  # the recipe, and what else lies here, but for what .gitignore names"] if workdir else []
    lines += ["", "resources:"]
    lines += [f"  infra: {_scalar(cloud)}"] if cloud else []
    lines += [f"  accelerators: {_scalar(f'{job.gpu}:{job.gpus_per_node}')}"]
    lines += ["  use_spot: true"] if spot else []
    lines += ["  job_recovery:", f"    recover_on_exit_codes: [{signals.EXIT_CODE}]  # stopped, to go on later", ""]
    if bucket:  # several machines write shards of one checkpoint: no cache between them and the bucket
        mode = "MOUNT" if job.nodes > 1 else "MOUNT_CACHED"
        lines += ["file_mounts:", "  /runs:", f"    name: {_scalar(bucket)}", f"    mode: {mode}", ""]
    if volume:
        lines += ["volumes:", f"  /runs: {_scalar(volume)}", ""]
    if job.secrets:
        lines += ["secrets:  # empty here: sky takes the values from --secret", *(f"  {n}:" for n in job.secrets), ""]
    setup = _SKY_SETUP.format(environment=_ENVIRONMENT, package=shlex.quote(f"recipe-kit{extras}=={version}"))
    run = _SKY_RUN.format(environment=_ENVIRONMENT, train=shlex.join(job.train()), port=_PORT)
    return "\n".join([*lines, "setup: |", _indented(setup), "", "run: |", _indented(run)]) + "\n"


def _what(job: Job) -> str:
    machines = f"{job.nodes} machine{'s' if job.nodes > 1 else ''}"
    gpus = f"{job.gpus_per_node} GPU{'s' if job.gpus_per_node > 1 else ''}"
    how = topology.NAMES[topology_of(job).strategy]
    return (
        f"{job.name} on {machines} with {gpus}{' each' if job.nodes > 1 else ''}, {how}; written by recipe-kit launch."
    )


def _secrets_of_slurm(job: Job) -> str:
    if not job.secrets:
        return ""
    names = " and ".join(job.secrets)
    return (
        f"# {names}: never write secrets here. sbatch passes your environment on (export them before you submit);\n"
        "# for the Hub, `hf auth login` once on a shared home folder does as well.\n"
    )


def _how_to_launch_sky(job: Job, file: str, kept: bool) -> list[str]:
    secrets = "".join(f" --secret {name}" for name in job.secrets)
    if kept:
        then = f"Stopped with exit code {signals.EXIT_CODE}, or its machine lost, it is started again and goes on."
    else:
        then = "Run folders stay on the machine and go with it: write it anew with --bucket or --volume to keep them."
    return [f"sky jobs launch {shlex.quote(file)}{secrets}", then]


def _check_plain(flag: str, value: str | None) -> None:
    if value is not None and not _PLAIN.fullmatch(value):
        raise LaunchError(f"{flag}: expected a name of letters, digits and -_./:, got {value!r}")


def _scalar(value: str) -> str:
    """A string as YAML, quoted: every JSON string is one."""
    return json.dumps(value, ensure_ascii=False)


def _indented(text: str) -> str:
    return textwrap.indent(text.strip("\n"), "  ")


def as_sent(name: str) -> str:
    """A file as it is called in the current folder, which SkyPilot sends along; a name is left as it is.

    Raises LaunchError for a file that lies elsewhere.
    """
    path = Path(name)
    if not path.exists():
        return name
    if not path.resolve().is_relative_to(Path.cwd()):
        raise LaunchError(
            f"{name}: SkyPilot sends the current folder along, and this lies elsewhere; go to its folder"
        )
    return str(path.resolve().relative_to(Path.cwd()))


_SLURM = r"""#!/bin/bash
# {what}
# From the folder this was written in: sbatch {file}
{header}
set -u

# Your environment. Every machine needs the same packages, and the folder this is submitted from.
# module load cuda
# source venv/bin/activate

# Where rows are prepared and models are kept, once for all machines: folders that all of them see.
# export RECIPE_KIT_CACHE=/shared/recipe-kit HF_HOME=/shared/huggingface
# Machines without internet: have everything in HF_HOME before, and
# export HF_HUB_OFFLINE=1
{secrets}
training=({train})

export NNODES="$SLURM_JOB_NUM_NODES"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT="$((10000 + SLURM_JOB_ID % 20000))"

# Rows are prepared once, on one machine; what would fail is told before all of them wait for it.
if [ "${{SLURM_RESTART_COUNT:-0}}" -eq 0 ]; then
  srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" {plan} || exit
fi

# One task a machine starts its processes. A machine that is done waits for the others to save.
srun --kill-on-bad-exit=0 --wait={grace} --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  bash -c 'export NODE_RANK="$SLURM_NODEID"; exec "$@"' training "${{training[@]}}" &
step=$!

# Slurm warns this script before the time is over (USR1), and ends it when the job is cancelled (TERM).
caught="" cancelled=""
trap 'caught=1; kill -USR1 "$step" 2>/dev/null' USR1
trap 'caught=1; cancelled=1; kill -TERM "$step" 2>/dev/null' TERM
while :; do
  caught=""
  wait "$step"
  code=$?
  [ -n "$caught" ] || break # else the wait was cut short, and the training is still saving
done

if [ "$code" -eq {stopped} ] && [ -z "$cancelled" ]; then
  echo "stopped, to go on later: the job is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

_SKY_SETUP = """
python3 -m venv {environment}
{environment}/bin/pip install {package}  # or, with a checkout in the workdir: pip install .
"""

_SKY_RUN = """
source {environment}/bin/activate
export NNODES="$SKYPILOT_NUM_NODES" NODE_RANK="$SKYPILOT_NODE_RANK"
MASTER_ADDR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"
export MASTER_ADDR MASTER_PORT={port}
exec {train}
"""
