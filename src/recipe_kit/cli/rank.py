"""`accelerate launch -m recipe_kit RECIPE`: the training itself, in the processes the launcher starts."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from recipe_kit.cli._common import (
    Sentence,
    is_first_rank,
    leave_together,
    overlay_options,
    quiet_libraries,
    recipe_argument,
    remark,
)


def run_options(command: Any) -> Any:
    """Where runs go and which one to continue: the same for the ranks and for `recipe-kit train`."""
    command = click.option(
        "--resume", is_flag=False, flag_value="newest", default=None, metavar="[RUN]",
        help="Continue the newest unfinished run of this recipe, or the run folder given.",
    )(command)  # fmt: skip
    command = click.option(
        "--streaming", is_flag=True,
        help="Read and tokenise rows while training, for data larger than the disk: --set data.streaming=true.",
    )(command)  # fmt: skip
    return click.option(
        "--runs-dir", default="runs", envvar="RECIPE_KIT_RUNS", show_default=True, type=click.Path(file_okay=False),
        help="Where run folders are made.",
    )(command)  # fmt: skip


@click.command(cls=Sentence)
@recipe_argument
@overlay_options
@run_options
def rank(
    recipe: str,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    runs_dir: str,
    streaming: bool,
    resume: str | None,
) -> None:
    """Train RECIPE in this process, as one of those that `accelerate launch` starts.

    \b
    accelerate launch -m recipe_kit recipes/samsum.yaml --profile smoke
    """
    from recipe_kit import launch
    from recipe_kit.recipe import load_recipe

    overrides = (*overrides, "data.streaming=true") if streaming else overrides
    loaded = load_recipe(recipe, profiles=profiles, overrides=overrides)

    if os.environ.get("WORLD_SIZE", "1") == "1":
        os.environ.update(launch.one_gpu())  # before torch looks
    quiet_libraries()
    from recipe_kit.training import train

    try:
        run = train(
            loaded,
            runs_dir=runs_dir,
            resume=resume is not None if resume in (None, "newest") else str(resume),
            command=sys.argv,
            report=remark,
        )
    except KeyboardInterrupt:
        if is_first_rank():
            remark("interrupted; --resume continues from the last checkpoint, if one was saved")
        sys.exit(130)
    leave_together()
    if is_first_rank():
        from recipe_kit.cli.results import show_results

        show_results(run)
