"""`recipe-kit sweep`: one recipe with many settings, the best of them written as a recipe."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from recipe_kit.cli._common import (
    Sentence,
    json_option,
    overlay_options,
    print_json,
    recipe_argument,
    remark,
    table,
)
from recipe_kit.cli.compare import Price, check_files

if TYPE_CHECKING:
    from recipe_kit.sweep import SweepPlan


@click.command(cls=Sentence)
@recipe_argument
@click.option(
    "--over", multiple=True, required=True, metavar="KEY=V1,V2",
    help="Try these values, e.g. --over lora.r=8,16; with a sampler also a range, 1e-5..1e-3. Repeatable.",
)  # fmt: skip
@overlay_options
@click.option(
    "--runs-dir", default="runs", envvar="RECIPE_KIT_RUNS", show_default=True, type=click.Path(file_okay=False),
    help="Where the folder NAME-sweep with the trials' runs is made.",
)  # fmt: skip
@click.option("--num-processes", type=click.IntRange(min=1), help="Training processes of each trial.")
@click.option(
    "--sampler", type=click.Choice(["grid", "tpe", "random"]), default="grid", show_default=True,
    help="Every combination, or what Optuna suggests.",
)  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), metavar="N", help="How many, with a sampler. [default: 20]")
@click.option("--no-prune", is_flag=True, help="Train every trial to its end, unless its loss is NaN.")
@click.option("--retry-failed", is_flag=True, help="Train trials again that failed before.")
@click.option(
    "--out", type=click.Path(dir_okay=False), metavar="FILE",
    help="The best setting as a recipe. [default: NAME-best.yaml beside the recipe]",
)  # fmt: skip
@click.option(
    "--html", "page", type=click.Path(dir_okay=False), metavar="PAGE",
    help="The page of results. [default: sweep.html in the sweep's folder]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Let --html overwrite PAGE.")
@click.option("--price-per-hour", type=Price(min=0), metavar="X", help="Show costs, at X an hour a GPU.")
@click.option("--dry-run", is_flag=True, help="Check every trial, say what would be trained, and stop.")
@json_option
def sweep(
    recipe: str,
    over: tuple[str, ...],
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    runs_dir: str,
    num_processes: int | None,
    sampler: Literal["grid", "tpe", "random"],
    trials: int | None,
    no_prune: bool,
    retry_failed: bool,
    out: str | None,
    page: str | None,
    force: bool,
    price_per_hour: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train RECIPE with every combination of values and write the best as a recipe that extends it.

    The best has the lowest held-out loss on the eval rows; test rows are not looked at. A trial that is worse than
    most finished ones at the same step is stopped. The same command takes an interrupted sweep up again.

    \b
    recipe-kit sweep samsum --over training.learning_rate=1e-4,2e-4 --over lora.r=8,16
    recipe-kit sweep samsum --over training.learning_rate=1e-5..1e-3 --sampler tpe --trials 20
    """
    from recipe_kit.launch import visible_gpus
    from recipe_kit.sweep.plan import plan_sweep, range_lines

    check_files([page], force)
    plan = plan_sweep(
        recipe, over, profiles=profiles, overrides=overrides, runs_dir=runs_dir, num_processes=num_processes,
        sampler=sampler, trials=trials, prune=not no_prune, out=out, on_cpu=visible_gpus() == 0,
    )  # fmt: skip
    for line in range_lines(plan.axes):
        remark(f"searched: {line}")
    if plan.remark:
        remark(plan.remark)
    if dry_run:
        click.echo("\n".join(_would(plan)))
        return
    from recipe_kit import run_dir
    from recipe_kit.signals import code_of
    from recipe_kit.sweep import result
    from recipe_kit.sweep.drive import outcome, run_trials

    try:
        tried = run_trials(plan, retry_failed=retry_failed, report=remark)
    except KeyboardInterrupt as stop:
        remark(f"interrupted; the same command goes on with the trials that are not finished ({plan.folder})")
        sys.exit(code_of(stop))
    rows = result.table_rows(plan, tried)
    if not as_json:
        click.echo(table(rows))
    chosen = result.write_best(plan, tried)
    notes = result.remarks(plan, tried)
    comparison = result.compared(tried, notes, price_per_hour=price_per_hour)
    target = Path(page) if page else plan.folder / result.PAGE
    run_dir.write_text(target, result.html(plan, tried, comparison))
    if as_json:
        print_json(_as_json(plan, result.ranked(tried), chosen, comparison.as_dict()))
        return
    click.echo(f"\nbest: trial {chosen.number}, {outcome(chosen)}; written to {plan.out}")
    for note in notes:
        click.echo(f"  {note}")
    remark(f"\npage: {target}\nnext: {shlex.join(['recipe-kit', 'train', str(plan.out)])}")


def _would(plan: SweepPlan) -> list[str]:
    from recipe_kit.sweep.values import grid
    from recipe_kit.trials import find_finished

    if plan.sampler != "grid":
        axes = "; ".join(f"{axis.key} from {axis.text.partition('=')[2]}" for axis in plan.axes)
        return [f"{plan.trials} trials suggested by Optuna ({plan.sampler}): {axes}", f"best setting to {plan.out}"]
    found = []
    for settings in grid(plan.axes):
        trial = plan.trial(settings)
        run = find_finished(trial, plan.folder)
        found.append(f"finished already: {run}" if run else trial.command(plan.folder))
    return [*found, f"best setting to {plan.out}"]


def _as_json(plan: SweepPlan, tried: Any, chosen: Any, comparison: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "best": asdict(chosen),
        "best_recipe": str(plan.out),
        "trials": [asdict(one) for one in tried],
        "comparison": comparison,
    }
