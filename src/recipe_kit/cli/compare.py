"""`recipe-kit compare`: runs side by side, or recipes times seeds trained and then compared."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recipe_kit.cli._common import RecipeType, Sentence, json_option, overlay_options, print_json, remark
from recipe_kit.errors import RecipeError, RunError

if TYPE_CHECKING:
    from recipe_kit.comparison import Comparison
    from recipe_kit.comparison.plan import Planned

_MANY = ("--recipes", "--seeds")


class ManyValues(Sentence):
    """A command whose options in `_MANY` take all the words that follow: `--recipes A B C --seeds 0 1 2`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, one_flag_for_each(args))


class Price(click.FloatRange):
    """A price: zero or more, and finite, since `nan` and `inf` are numbers too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is no price; give a number such as 2.5.", param, ctx)
        return found


def one_flag_for_each(words: Sequence[str]) -> list[str]:
    """`--seeds 0 1 2` as click reads it: `--seeds 0 --seeds 1 --seeds 2`. What follows `--` stays as it is."""
    found: list[str] = []
    option = None
    for place, word in enumerate(words):
        if word == "--":
            return [*found, *words[place:]]
        if word.startswith("-") and not word[1:2].isdigit():
            option = word if word in _MANY else None
            found.append(word)
        elif option is not None and found[-1] != option:
            found += [option, word]
        else:
            found.append(word)
    return found


@click.command(cls=ManyValues)
@click.argument("runs", nargs=-1, type=click.Path())
@click.option(
    "--recipes", multiple=True, type=RecipeType(), metavar="A B …", help="Train these recipes, then compare."
)
@click.option(
    "--seeds", multiple=True, type=click.IntRange(min=0), metavar="N M …", help="With --recipes: every seed."
)
@overlay_options
@click.option(
    "--runs-dir", default="runs", envvar="RECIPE_KIT_RUNS", show_default=True, type=click.Path(file_okay=False),
    help="With --recipes: where run folders are made, and finished ones are found again.",
)  # fmt: skip
@click.option("--num-processes", type=click.IntRange(min=1), help="With --recipes: training processes.")
@click.option("--dry-run", is_flag=True, help="With --recipes: say what would be trained, and stop.")
@click.option("--price-per-hour", type=Price(min=0), metavar="X", help="Show costs, at X an hour a GPU.")
@click.option(
    "--strict", is_flag=True, help="Refuse a comparison that is not fair (exit code 1) instead of marking it."
)
@click.option("--html", "page", type=click.Path(dir_okay=False), metavar="PAGE", help="Write a page for a browser.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False), metavar="FILE", help="Write one line a run.")
@click.option("--force", is_flag=True, help="Let --html and --csv overwrite files.")
@json_option
def compare(
    runs: tuple[str, ...],
    recipes: tuple[str, ...],
    seeds: tuple[int, ...],
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    runs_dir: str,
    num_processes: int | None,
    dry_run: bool,
    price_per_hour: float | None,
    strict: bool,
    page: str | None,
    csv_file: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare RUNS: scores with intervals, memory, speed, time, size. What is not fair is marked.

    With --recipes the recipes are trained first, each with every seed, on the same rows in the same order. What is
    finished already is not trained again, so an interrupted comparison goes on where it was.

    \b
    recipe-kit compare runs/a/latest runs/b/latest --html comparison.html
    recipe-kit compare runs/a/latest runs/b/latest --price-per-hour 2.5 --strict
    recipe-kit compare --recipes llama32_1b_full llama32_1b_lora --seeds 0 1 2 --profile smoke
    """
    if bool(runs) == bool(recipes):
        raise click.UsageError("give either run folders, or recipes to train with --recipes")
    only = {"--seeds": seeds, "--profile": profiles, "--set": overrides, "--num-processes": num_processes,
            "--dry-run": dry_run}  # fmt: skip
    if runs and (given := [name for name, value in only.items() if value]):
        raise click.UsageError(f"{given[0]} says how to train; it goes with --recipes, not with runs")
    check_files([page, csv_file], force)
    failed = 0
    remarks: list[str] = []
    sources: list[str | Path] = list(runs)
    if recipes:
        from recipe_kit.comparison.plan import plan

        planned = plan(
            recipes, seeds, profiles=profiles, overrides=overrides, runs_dir=runs_dir, num_processes=num_processes
        )
        if dry_run:
            click.echo("\n".join(_would(entry, runs_dir) for entry in planned))
            return
        sources, remarks = _train(planned, runs_dir)
        failed = len(planned) - len(sources)
    from recipe_kit.comparison import compare_runs

    comparison = compare_runs(sources, price_per_hour=price_per_hour, remarks=remarks)
    if strict:
        _refuse_unfair(comparison)
    write_files(comparison, page, csv_file, title=f"{len(comparison.entries)} runs compared")
    show(comparison, as_json=as_json)
    if failed:
        raise click.exceptions.Exit(1)


def check_files(files: Sequence[str | None], force: bool) -> None:
    """Raises RecipeError for a file that exists, or cannot be, or is named twice: before anything slow."""
    named = [Path(file).resolve() for file in files if file is not None]
    if len(set(named)) < len(named):
        raise RecipeError(f"{named[0]} is named for two outputs, and one would overwrite the other; choose two files")
    for file in files:
        if file is not None and Path(file).exists() and not force:
            raise RecipeError(f"{file} exists already; choose another name, or add --force to overwrite it")
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise RecipeError(f"cannot write {file}: there is no folder {Path(file).parent}")


def _refuse_unfair(comparison: Comparison) -> None:
    """Raises RunError for marks, and for runs that have nothing to compare: a sentence each."""
    sentences = [f"{entry.label} {entry.missing}" for entry in comparison.entries if entry.missing]
    sentences += [*comparison.damaged, *map(comparison.sentence, comparison.marks)]
    if sentences:
        raise RunError("--strict: not a fair comparison\n" + "\n".join(sentences))


def write_files(comparison: Comparison, page: str | Path | None, csv_file: str | None, *, title: str) -> None:
    """The page and the CSV file, where they are wanted."""
    from recipe_kit import run_dir
    from recipe_kit.comparison import as_csv, as_page

    if page is not None:
        run_dir.write_text(Path(page), as_page(comparison, title=title))
        remark(f"wrote {page}")
    if csv_file is not None:
        run_dir.write_text(Path(csv_file), as_csv(comparison))
        remark(f"wrote {csv_file}")


def show(comparison: Comparison, *, as_json: bool) -> None:
    """The comparison on stdout."""
    from recipe_kit.comparison import as_text

    if as_json:
        print_json(comparison.as_dict())
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo(as_text(comparison, width=width))


def _would(entry: Planned, runs_dir: str) -> str:
    if entry.finished is not None:
        return f"finished already: {entry.finished}"
    return entry.trial.command(runs_dir)


def _train(planned: Sequence[Planned], runs_dir: str) -> tuple[list[str | Path], list[str]]:
    """The runs, each trained unless it was there, and a remark for each that failed and on equal tokens."""
    from recipe_kit import run_dir, trials
    from recipe_kit.comparison.plan import tokens_remark
    from recipe_kit.comparison.runs import read_runs
    from recipe_kit.signals import code_of

    run_dir.check_writable(Path(runs_dir))
    found: list[str | Path] = []
    remarks: list[str] = []
    for number, entry in enumerate(planned, 1):
        name = f"[{number}/{len(planned)}] {entry.trial.recipe.name}, seed {entry.seed}"
        if entry.finished is not None:
            remark(f"{name}: finished already in {entry.finished}")
            found.append(entry.finished)
            continue
        remark(f"{name}: {entry.trial.command(runs_dir)}")
        try:
            outcome = trials.train(entry.trial, runs_dir, echo=lambda line: remark(f"  {line}"))
        except KeyboardInterrupt as stop:
            remark(
                f"interrupted with {number - 1} of {len(planned)} runs finished or failed; the same command goes on"
            )
            sys.exit(code_of(stop))
        if outcome.status == "finished" and outcome.run is not None:
            found.append(outcome.run)
        else:
            remarks.append(f"{entry.trial.recipe.name}, seed {entry.seed}, failed: {outcome.reason}")
            remark(f"{name} failed: {outcome.reason}")
    if not found:
        raise RunError(f"all {len(planned)} trainings failed, the last because of: {remarks[-1]}")
    tokens = tokens_remark(read_runs(found)[0])
    return found, [*remarks, *([tokens] if tokens else [])]
