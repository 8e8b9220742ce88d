"""`recipe-kit reproduce`: train a run again from what it pins, and compare."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from recipe_kit.cli._common import Sentence, json_option, print_json, quiet_libraries, remark, table

if TYPE_CHECKING:
    from pathlib import Path

    from recipe_kit.lock import Locked
    from recipe_kit.reproduce import Comparison, Fact


@click.command(cls=Sentence)
@click.argument("source", metavar="HUB_ID|RUN", type=click.Path())
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Say where a local file is, e.g. --set data.train.path=rows.jsonl, or change a value on purpose. Repeatable.",
)  # fmt: skip
@click.option(
    "--runs-dir", default="runs", envvar="RECIPE_KIT_RUNS", show_default=True, type=click.Path(file_okay=False),
    help="Where the new run folder is made.",
)  # fmt: skip
@click.option("--num-processes", type=click.IntRange(min=1), default=None, help="Processes; default: as recorded.")
@click.option("--check-only", is_flag=True, help="Compare environment and rows, and stop before training.")
@click.option("--anyway", is_flag=True, help="Train also when the rows are not those that were recorded.")
@json_option
def reproduce(
    source: str,
    overrides: tuple[str, ...],
    runs_dir: str,
    num_processes: int | None,
    check_only: bool,
    anyway: bool,
    as_json: bool,
) -> None:
    """Train HUB_ID or RUN again from what it pins (revisions, rows, seed, processes), and hold every score against the
    recorded one. Exit code 0 says that all are within what is allowed.

    \b
    recipe-kit reproduce acme/support-lora
    recipe-kit reproduce acme/support-lora@v1.0 --set data.train.path=rows.jsonl
    recipe-kit reproduce runs/samsum/latest --check-only
    """
    from pathlib import Path

    from recipe_kit import lock, run_dir
    from recipe_kit.errors import RunError
    from recipe_kit.reproduce import environment, rows, threads

    locked = lock.source_of(source, overrides)
    if not locked.foreign:
        run_dir.require_finished(locked.folder)
    for note in locked.notes:
        remark(f"{locked.origin}: {note}")
    locked.require_files()
    run_dir.check_writable(Path(runs_dir))
    for name, value in threads(locked.info).items():
        os.environ.setdefault(name, value)
    quiet_libraries()
    from recipe_kit.reproduce import check_here

    processes = num_processes or locked.info.get("processes", 1)
    here = check_here(locked.recipe, processes=processes, report=remark)
    before, prepared = environment(locked.info, here), rows(locked.info, here)
    if not as_json:
        click.echo(facts_table([*before, *prepared]))
    result: dict[str, Any] = {
        "origin": locked.origin,
        "environment": [fact.__dict__ | {"equal": fact.equal} for fact in before],
        "rows": [fact.__dict__ | {"equal": fact.equal} for fact in prepared],
    }
    changed = [fact for fact in prepared if not fact.equal]
    if check_only and as_json:
        print_json(result)
    if changed and (check_only or not anyway):
        raise RunError(_changed(changed, locked))
    if check_only:
        remark("the rows are those that were recorded")
        return
    run, comparison = _train_and_compare(locked, overrides, Path(runs_dir), processes)
    if as_json:
        print_json(result | {"run": str(run)} | comparison.as_dict())
    else:
        click.echo("\n" + comparison_text(comparison))
        click.echo(run)
    if not comparison.reproduced:
        raise RunError(comparison.sentence)
    remark(comparison.sentence)


def _train_and_compare(
    locked: Locked, overrides: tuple[str, ...], runs_dir: Path, processes: int
) -> tuple[Path, Comparison]:
    from recipe_kit import lock, run_dir, signals, trials
    from recipe_kit.errors import RunError
    from recipe_kit.recipe import load_recipe
    from recipe_kit.reproduce import Record, compare

    # The command line as a user would type it, so that exactly that is what is measured.
    trial = trials.Trial(f"--from-run={locked.origin}", (), overrides, locked.recipe, processes)
    remark(trial.command(runs_dir))
    try:
        outcome = trials.train(trial, runs_dir, echo=remark)
    except KeyboardInterrupt as stop:
        remark("interrupted before the end of training; the same command begins anew")
        sys.exit(signals.code_of(stop))
    if outcome.status != "finished" or outcome.run is None:
        raise RunError(f"not reproduced, for the training failed: {outcome.reason}")
    run = outcome.run
    metrics = run_dir.read_metrics(run) if (run / run_dir.METRICS).is_file() else None
    info = run_dir.read(run)
    new = Record(info, metrics, load_recipe(run / run_dir.RECIPE), lock.weights_sha256(run, info["method"]))
    return run, compare(Record(locked.info, locked.metrics, locked.as_recorded, locked.weights), new)


def facts_table(facts: list[Fact]) -> str:
    """What was recorded then and what is here now, a line each."""
    lines = [("", "then", "now", "")]
    return table([*lines, *((fact.what, fact.then, fact.now, "" if fact.equal else "differs") for fact in facts)])


def comparison_text(comparison: Comparison) -> str:
    """Every number then and now with what is allowed, and all that differs."""
    from recipe_kit.reproduce.verdict import gap_and_allowed, number

    lines: list[tuple[str, ...]] = [("score", "model", "then", "now", "gap", "allowed", "within")]
    for check in comparison.checks:
        shown = (number(check.then), number(check.now), *gap_and_allowed(check))
        model = "" if check.which == "training" else check.which
        lines.append((check.label, model, *shown, "yes" if check.within else "NO"))
    parts = [table(lines)] if comparison.checks else []
    parts += [f"note: {note}" for note in comparison.notes]
    if comparison.differs:
        parts.append("what differs\n" + table([(f"  {f.what}", f.then, f.now) for f in comparison.differs]))
    else:
        parts.append("nothing differs in recipe, versions, hardware, rows and training")
    weights = {True: "bit-identical", False: "other bytes", None: "not compared, for one side's files are gone"}
    parts.append(f"weights: {weights[comparison.same_weights]}")
    return "\n\n".join(parts)


def _changed(changed: list[Fact], locked: Locked) -> str:
    told = "; ".join(f"{fact.what}: {fact.then} then, {fact.now} now" for fact in changed)
    local = any(source.path for split in ("train", "eval", "test") for source in locked.recipe.data.sources(split))
    give = "give the file that was used with --set data.train.path=FILE, or " if local else ""
    return f"{locked.origin}: not the rows that were recorded ({told}); {give}train on these with --anyway"
