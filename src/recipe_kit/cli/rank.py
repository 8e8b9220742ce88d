"""`accelerate launch -m recipe_kit RECIPE`: the training itself, in the processes the launcher starts."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from recipe_kit.cli._common import (
    RecipeType,
    Sentence,
    is_first_rank,
    leave_together,
    overlay_options,
    quiet_libraries,
    remark,
)

if TYPE_CHECKING:
    from recipe_kit.lock import Locked
    from recipe_kit.recipe import Recipe
    from recipe_kit.run_dir import RunInfo


def run_options(command: Any) -> Any:
    """Where runs go and which one to continue: the same for the ranks and for `recipe-kit train`."""
    command = click.option(
        "--accept-changes", is_flag=True,
        help="With --resume: go on although recipe, rows or packages are not those that the run began with. What "
        "changed is said, and kept in its run.json.",
    )(command)  # fmt: skip
    command = click.option(
        "--resume", is_flag=False, flag_value="newest", default=None, metavar="[auto|RUN]",
        help="Continue the newest unfinished run of this recipe, or the run folder given. With auto, for a job that "
        "is started again and again: continue it if there is one, begin if there is none, do nothing if this recipe's "
        "run is finished.",
    )(command)  # fmt: skip
    command = click.option(
        "--streaming", is_flag=True,
        help="Read and tokenise rows while training, for data larger than the disk: --set data.streaming=true.",
    )(command)  # fmt: skip
    command = click.option(
        "--from-run", metavar="RUN|HUB_ID", default=None,
        help="Train the recipe of a run again, or of a repository that was pushed, with every revision it pins; takes "
        "the place of RECIPE.",
    )(command)  # fmt: skip
    return click.option(
        "--runs-dir", default="runs", envvar="RECIPE_KIT_RUNS", show_default=True, type=click.Path(file_okay=False),
        help="Where run folders are made.",
    )(command)  # fmt: skip


def resumption(resume: str | None, accept_changes: bool) -> bool | str:
    """`--resume` as `train` takes it. Raises UsageError for `--accept-changes` without it."""
    if accept_changes and resume is None:
        raise click.UsageError("--accept-changes says how to go on with a run: add --resume")
    return resume is not None if resume in (None, "newest") else str(resume)


recipe_or_run = click.argument("recipe", type=RecipeType(), required=False)


def load(
    recipe: str | None, from_run: str | None, profiles: tuple[str, ...], overrides: tuple[str, ...]
) -> tuple[Recipe, Locked | None]:
    """The recipe to train, and the lock it comes from if it is that of a run."""
    from recipe_kit import lock
    from recipe_kit.recipe import load_recipe

    if (recipe is None) == (from_run is None):
        given = "got both" if recipe else "got neither"
        raise click.UsageError(f"give a RECIPE or --from-run RUN; {given}")
    if recipe is not None:
        return load_recipe(recipe, profiles=profiles, overrides=overrides), None
    if profiles:
        raise click.UsageError("--profile: the recipe of a run is resolved and has no profiles; change it with --set")
    locked = lock.source_of(str(from_run), overrides)
    return locked.recipe, locked


@click.command(cls=Sentence)
@recipe_or_run
@overlay_options
@run_options
def rank(
    recipe: str | None,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    runs_dir: str,
    from_run: str | None,
    streaming: bool,
    resume: str | None,
    accept_changes: bool,
) -> None:
    """Train RECIPE in this process, as one of those that `accelerate launch` starts.

    \b
    accelerate launch -m recipe_kit recipes/samsum.yaml --profile smoke
    """
    from recipe_kit import launch, signals

    click.get_current_context().with_resource(signals.listening())
    signals.end_with_parent()
    resumed = resumption(resume, accept_changes)
    overrides = (*overrides, "data.streaming=true") if streaming else overrides
    loaded, locked = load(recipe, from_run, profiles, overrides)
    if locked is not None:
        locked.require_files()

    if os.environ.get("WORLD_SIZE", "1") == "1":
        os.environ.update(launch.one_gpu())  # before torch looks
    quiet_libraries()
    from recipe_kit.training import train

    run = train(
        loaded,
        runs_dir=runs_dir,
        resume=resumed,
        accept_changes=accept_changes,
        command=sys.argv,
        on_info=lambda info: None if locked is None else _say_what_differs(locked, info),
        report=remark,
    )
    leave_together()
    if is_first_rank():
        from recipe_kit.cli.results import show_results

        show_results(run)


def _say_what_differs(locked: Locked, info: RunInfo) -> None:
    """Before the model is loaded: what is not as in the run that is trained again."""
    from recipe_kit.reproduce import environment, rows

    info["reproduces"] = {"origin": locked.origin, "recipe_sha256": locked.info.get("recipe_sha256")}
    if not is_first_rank():
        return
    facts = [*environment(locked.info, info), *rows(locked.info, info)]
    for fact in facts:
        if not fact.equal:
            remark(f"not as in {locked.origin}: {fact.what} {fact.now}, then {fact.then}")
    if all(fact.equal for fact in facts):
        remark(f"versions, hardware and rows are those of {locked.origin}")
