"""`recipe-kit train --push`: what can refuse it is looked at before training, the rest follows the training."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipe_kit.cli._common import quiet_libraries, remark
from recipe_kit.errors import PublishError, RecipeKitError

if TYPE_CHECKING:
    from recipe_kit.recipe import Recipe


def check(recipe: Recipe) -> None:
    """Raises PublishError, with a sentence for each reason why this recipe's run could not be pushed."""
    from recipe_kit import publish

    remark("asking the Hub whether this run can be published")
    problems = publish.check_before_training(recipe)
    if problems:
        raise PublishError("\n".join([*problems, "nothing was trained; without --push it would be"]))


def publish_run(run: Path) -> None:
    """Merge if the recipe publishes merged weights, write the card, and push, without a question.

    Whatever fails, the run is finished and keeps what was done so far; the sentence says how to go on.
    """
    from recipe_kit import publish, run_dir
    from recipe_kit.lock import recipe_of

    recipe = recipe_of(run)
    merges = recipe.method != "full" and recipe.publish.what != "adapter"
    try:
        if merges:
            from recipe_kit import launch

            os.environ.update(launch.one_gpu())
            quiet_libraries()
            from recipe_kit.merge import merge

            record = merge(run, report=remark)
            remark(f"merged in {record['dtype']}, {record['parity']['greedy_agreement']:.2%} the same likeliest token")
        planned = publish.plan(run, publish.Wish(), report=remark)
        if planned.problems:
            raise PublishError("\n".join([*planned.problems, "nothing was sent"]))
        record = publish.push(planned, report=remark).record
    except (RecipeKitError, KeyboardInterrupt) as error:
        merged = not merges or (run / run_dir.MERGED).is_dir()
        first = "" if merged else f"`recipe-kit merge {run}` and "
        then = f"the training is finished and kept; go on with {first}`recipe-kit push {run}`"
        if isinstance(error, KeyboardInterrupt):
            remark(f"\ninterrupted: {then}")
            sys.exit(130)
        raise type(error)(f"{error}\n{then}") from error
    click.echo(f"{record['url']}/tree/{record['tag'] or record['revision']}")
    click.echo(f"commit {record['commit']}")
