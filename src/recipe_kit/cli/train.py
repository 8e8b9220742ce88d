"""`recipe-kit train`: build the launch line and start it."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from recipe_kit.cli._common import Sentence, overlay_options, quiet_libraries, recipe_argument, remark
from recipe_kit.cli.rank import run_options

if TYPE_CHECKING:
    from recipe_kit.recipe import Recipe


@click.command(cls=Sentence)
@recipe_argument
@overlay_options
@run_options
@click.option("--num-processes", type=int, default=None, help="Training processes; one GPU each, or on the CPU.")
@click.option(
    "--accelerate-config", metavar="NAME|PATH", default=None, help="Launch topology: a shipped name or a file."
)
@click.option("--print-command", is_flag=True, help="Print the launch line and stop.")
def train(
    recipe: str,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    runs_dir: str,
    resume: str | None,
    streaming: bool,
    num_processes: int | None,
    accelerate_config: str | None,
    print_command: bool,
) -> None:
    """Train RECIPE, measure it against its base model, and keep everything in a run folder.

    \b
    recipe-kit train samsum --profile smoke
    recipe-kit train my_recipe.yaml --set training.learning_rate=1e-4
    recipe-kit train my_recipe.yaml --num-processes 2
    recipe-kit train my_recipe.yaml --resume
    """
    from recipe_kit import launch, run_dir
    from recipe_kit.recipe import load_recipe

    overrides = (*overrides, "data.streaming=true") if streaming else overrides
    loaded = load_recipe(recipe, profiles=profiles, overrides=overrides)
    gpus = launch.visible_gpus()
    rank_arguments = [recipe, "--runs-dir", runs_dir]
    rank_arguments += [word for name in profiles for word in ("--profile", name)]
    rank_arguments += [word for change in overrides for word in ("--set", change)]
    if resume is not None:
        rank_arguments += ["--resume"] if resume == "newest" else ["--resume", resume]
    on_cpu = bool(loaded.training.get("use_cpu")) or gpus == 0
    processes = num_processes if num_processes is not None else loaded.launch.num_processes
    argv = launch.build_argv(
        rank_arguments,
        accelerate_config=accelerate_config or loaded.launch.accelerate_config,
        num_processes=processes,
        on_cpu=on_cpu,
        gpu_count=gpus,
    )
    if print_command:
        click.echo(shlex.join(argv))
        return
    from pathlib import Path

    run_dir.check_writable(Path(runs_dir))
    if (processes or 1) > 1 and not loaded.data.streaming:
        _prepare(loaded)
    sys.exit(launch.run(argv, environment=launch.cpu_environment(processes or 1) if on_cpu else None))


def _prepare(recipe: Recipe) -> None:
    """Rows are prepared once, with all cores, before the ranks start; each of them then finds them on disk."""
    quiet_libraries()
    from recipe_kit import data, modeling

    data.prepare(recipe.data, modeling.load_tokenizer(recipe.model), report=remark)
