"""`recipe-kit train`: build the launch line and start it."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from recipe_kit.cli import publication
from recipe_kit.cli._common import Sentence, overlay_options, quiet_libraries, remark
from recipe_kit.cli.rank import load, recipe_or_run, resumption, run_options

if TYPE_CHECKING:
    from recipe_kit.recipe import Recipe


@click.command(cls=Sentence)
@recipe_or_run
@overlay_options
@run_options
@click.option("--num-processes", type=int, default=None, help="Training processes; one GPU each, or on the CPU.")
@click.option(
    "--accelerate-config", metavar="NAME|PATH", default=None, help="Launch topology: a shipped name or a file."
)
@click.option("--print-command", is_flag=True, help="Print the launch line and stop.")
@click.option(
    "--push", "pushes", is_flag=True,
    help="Then merge, write the card and push, as the recipe's publish section says; checked before training.",
)  # fmt: skip
def train(
    recipe: str | None,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    runs_dir: str,
    from_run: str | None,
    resume: str | None,
    accept_changes: bool,
    streaming: bool,
    num_processes: int | None,
    accelerate_config: str | None,
    print_command: bool,
    pushes: bool,
) -> None:
    """Train RECIPE, measure it against its base model, and keep everything in a run folder.

    \b
    recipe-kit train samsum --profile smoke
    recipe-kit train my_recipe.yaml --set training.learning_rate=1e-4
    recipe-kit train my_recipe.yaml --num-processes 2
    recipe-kit train my_recipe.yaml --resume
    recipe-kit train my_recipe.yaml --resume --accept-changes --set training.learning_rate=5e-5
    recipe-kit train my_recipe.yaml --resume auto
    recipe-kit train my_recipe.yaml --push --set publish.repo_id=acme/support-bot
    recipe-kit train --from-run runs/samsum/latest --set training.seed=7
    """
    from recipe_kit import launch, run_dir, signals, topology
    from recipe_kit.reproduce import threads

    signals.end_with_parent()
    resumption(resume, accept_changes)
    overrides = (*overrides, "data.streaming=true") if streaming else overrides
    loaded, locked = load(recipe, from_run, profiles, overrides)
    if locked is not None:
        locked.require_files()
        for note in locked.notes:
            remark(f"{locked.origin}: {note}")
    gpus = launch.visible_gpus()
    source = [str(recipe)] if locked is None else ["--from-run", locked.origin]
    rank_arguments = [*source, "--runs-dir", runs_dir]
    rank_arguments += [word for name in profiles for word in ("--profile", name)]
    rank_arguments += [word for change in overrides for word in ("--set", change)]
    command = ["recipe-kit", "train", *rank_arguments]
    if resume is not None:
        rank_arguments += ["--resume"] if resume == "newest" else ["--resume", resume]
        rank_arguments += ["--accept-changes"] if accept_changes else []
    on_cpu = bool(loaded.training.get("use_cpu")) or gpus == 0
    processes = num_processes if num_processes is not None else loaded.launch.num_processes
    if locked is not None and num_processes is None:
        processes = locked.info.get("processes", processes)
    config = accelerate_config or loaded.launch.accelerate_config
    argv = launch.build_argv(
        rank_arguments,
        accelerate_config=config,
        num_processes=processes,
        on_cpu=on_cpu,
        gpu_count=gpus,
    )
    if config is not None:
        topology.check(loaded, launch.resolve(config, processes, gpus), gpus=0 if on_cpu else gpus)
    if print_command:
        click.echo(shlex.join(argv))
        return
    from pathlib import Path

    run_dir.check_writable(Path(runs_dir))
    if pushes:
        publication.check(loaded)
    if (processes or 1) > 1 and not loaded.data.streaming:
        with signals.listening():
            _prepare(loaded)
    environment = launch.cpu_environment(processes or 1) if on_cpu else {}
    if environment and locked is not None:
        environment |= threads(locked.info)
    command += ["--num-processes", str(num_processes)] if num_processes is not None else []
    command += ["--accelerate-config", accelerate_config] if accelerate_config is not None else []
    command += ["--push"] if pushes else []
    code = launch.run(argv, environment={**environment, signals.COMMAND: shlex.join(command)})
    if pushes and code == 0:
        publication.publish_run(run_dir.find(Path(runs_dir) / loaded.name))
    sys.exit(code)


def _prepare(recipe: Recipe) -> None:
    """Rows are prepared once, with all cores, before the ranks start; each of them then finds them on disk."""
    quiet_libraries()
    from recipe_kit import data, modeling

    data.prepare(recipe.data, modeling.load_tokenizer(recipe.model), report=remark)
