"""`recipe-kit launch`: the file that has a cluster train a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import recipe_kit
from recipe_kit.cli._common import Sentence, overlay_options, recipe_argument, remark
from recipe_kit.errors import LaunchError

if TYPE_CHECKING:
    from recipe_kit.recipe import Recipe

_OF_SLURM = ("time", "partition", "account", "cpus_per_gpu")
_OF_SKY = ("cloud", "spot", "bucket", "volume")


@click.command(cls=Sentence)
@recipe_argument
@overlay_options
@click.option("--slurm", is_flag=True, help="A batch script for Slurm's sbatch.")
@click.option("--sky", is_flag=True, help="A task for SkyPilot: RunPod, Lambda, AWS, GCP, Kubernetes and others.")
@click.option("--print", "prints", is_flag=True, help="Print it, and write nothing.")
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Where to write it. [default: NAME.sbatch or NAME.sky.yaml]"
)
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Machines.")
@click.option(
    "--gpus-per-node", type=click.IntRange(min=1),
    help="GPUs of each machine, one process each. [default: the recipe's launch.num_processes, else 1]",
)  # fmt: skip
@click.option("--gpu", metavar="TYPE", help="Type of GPU, as the cluster calls it: h100, A100-80GB. Needed by --sky.")
@click.option(
    "--accelerate-config", metavar="NAME|PATH",
    help="Launch topology; several machines take the one of the same strategy. [default: the recipe's, or DDP]",
)  # fmt: skip
@click.option(
    "--runs-dir", default="runs", show_default=True,
    help="Where run folders are made: seen by all machines. [--sky with --bucket or --volume: /runs]",
)  # fmt: skip
@click.option(
    "--time", metavar="HH:MM:SS", help="--slurm: time after which the job is queued again. [default: 24:00:00]"
)
@click.option("--partition", help="--slurm: partition.")
@click.option("--account", help="--slurm: account to charge.")
@click.option("--cpus-per-gpu", type=click.IntRange(min=1), help="--slurm: cores for each GPU. [default: 8]")
@click.option("--cloud", help="--sky: where to rent, such as runpod, aws/us-east-1 or k8s. [default: the cheapest]")
@click.option("--spot", is_flag=True, help="--sky: machines that may be taken away, for less.")
@click.option("--bucket", help="--sky: bucket for run folders.")
@click.option("--volume", help="--sky: network volume for run folders.")
def launch(
    recipe: str,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    slurm: bool,
    sky: bool,
    prints: bool,
    out: str | None,
    nodes: int,
    gpus_per_node: int | None,
    gpu: str | None,
    accelerate_config: str | None,
    runs_dir: str,
    **more: Any,
) -> None:
    """Write the file that has a cluster train RECIPE: a Slurm script or a SkyPilot task. Starts nothing.

    A job that is stopped saves a checkpoint, is queued again, and goes on. Recipe and topology are checked first.

    \b
    recipe-kit launch my_recipe.yaml --slurm --print --gpus-per-node 8 --accelerate-config fsdp2
    recipe-kit launch my_recipe.yaml --slurm --nodes 2 --gpus-per-node 8 --partition gpu --time 12:00:00
    recipe-kit launch my_recipe.yaml --sky --gpu H100 --gpus-per-node 4 --cloud runpod --volume my-runs
    """
    if slurm == sky:
        raise click.UsageError(f"give --slurm or --sky; got {'both' if slurm else 'neither'}")
    for name in _OF_SKY if slurm else _OF_SLURM:
        if more[name]:
            kind = "--sky" if slurm else "--slurm"
            raise click.UsageError(f"--{name.replace('_', '-')} is of {kind}, and this is a file for the other")
    from recipe_kit import jobs, topology
    from recipe_kit.recipe import load_recipe

    loaded = load_recipe(recipe, profiles=profiles, overrides=overrides)
    if loaded.training.get("use_cpu"):
        raise LaunchError(
            "training.use_cpu: the recipe trains on a CPU, and a job is for GPUs; choose another profile"
        )
    gpus = gpus_per_node or max(1, (loaded.launch.num_processes or 1) // nodes)
    config = jobs.config_for(accelerate_config or loaded.launch.accelerate_config, nodes, gpus)
    secrets = _secrets(loaded)
    job = jobs.Job(recipe, loaded.name, nodes, gpus, gpu, config, profiles, overrides, runs_dir, secrets)
    topology.check(loaded, jobs.topology_of(job))
    target = Path(out or f"{loaded.name}.{'sbatch' if slurm else 'sky.yaml'}")
    chosen = {name: value for name, value in more.items() if value}
    if slurm:
        text = jobs.slurm(job, file=str(target), **({"time": "24:00:00"} | chosen))
    else:
        here = _needs_this_folder(loaded, recipe, config)
        job = replace(job, recipe=jobs.as_sent(recipe), accelerate_config=config and jobs.as_sent(config))
        text = jobs.sky(job, file=str(target), workdir=here, version=recipe_kit.__version__, **chosen)
    if prints:
        click.echo(text, nl=False)
        return
    _write(target, text)
    click.echo(str(target))
    remark(f"nothing was started; look at it, and then: {'sbatch' if slurm else 'sky jobs launch'} {target}")


def _write(target: Path, text: str) -> None:
    """Raises LaunchError rather than write over a file that somebody may have changed."""
    if target.exists() and target.read_text(encoding="utf-8", errors="replace") != text:
        raise LaunchError(f"{target}: there is another file of this name; remove it, or name one with --out")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LaunchError(f"{target}: cannot be written ({error.strerror}); name another file with --out") from error


def _secrets(recipe: Recipe) -> tuple[str, ...]:
    """Variables that a run of this recipe may ask for: of the Hub, of a service it reports to, of its judge."""
    sources = [source for split in ("train", "eval", "test") for source in recipe.data.sources(split)]
    of_the_hub = any(source.id for source in sources) or (
        ":" not in recipe.model.id and not Path(recipe.model.id).exists()
    )
    found = ["HF_TOKEN"] if of_the_hub else []
    if "wandb" in (recipe.training.get("report_to") or ()):
        found.append("WANDB_API_KEY")
    if recipe.evaluation.judge is not None:
        found.append(recipe.evaluation.judge.api_key_env)
    return tuple(found)


def _needs_this_folder(recipe: Recipe, *names: str | None) -> bool:
    """Whether files of the current folder are read: one of these, rows, or the model."""
    sources = [source for split in ("train", "eval", "test") for source in recipe.data.sources(split)]
    files = [*names, recipe.model.id]
    return any(name is not None and Path(name).exists() for name in files) or any(source.path for source in sources)
