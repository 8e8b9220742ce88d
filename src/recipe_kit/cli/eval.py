"""`recipe-kit eval`: measure a finished run again."""

from __future__ import annotations

import os
import sys

import click

from recipe_kit.cli._common import (
    Sentence,
    is_first_rank,
    json_option,
    leave_together,
    print_json,
    quiet_libraries,
    remark,
)

PRECISIONS = ("float32", "bfloat16", "float16", "nf4")


@click.command("eval", cls=Sentence)
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["test", "eval"]), default=None, help="Held-out rows to measure on.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Measure on the first N rows only.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Change a value of the recipe's evaluation section, e.g. --set evaluation.metrics=[rouge]. Repeatable.",
)  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default=None, help="Weights' format; default: as trained.")
@click.option("--packed", is_flag=True, help="Measure perplexity on packed rows: it has to be the same.")
@click.option("--fresh", is_flag=True, help="Measure the base model anew, also where its results are kept.")
@click.option("--num-processes", type=click.IntRange(min=1), default=None, help="Share the rows among processes.")
@json_option
def eval_(
    run: str,
    split: str | None,
    limit: int | None,
    overrides: tuple[str, ...],
    precision: str | None,
    packed: bool,
    fresh: bool,
    num_processes: int | None,
    as_json: bool,
) -> None:
    """Measure base and tuned model of RUN on its held-out rows: perplexity, the recipe's metrics on generated answers,
    and answers side by side, each score with its 95 % interval.

    \b
    recipe-kit eval runs/samsum/latest
    recipe-kit eval runs/samsum/latest --split test --limit 100 --json
    recipe-kit eval runs/samsum/latest --set evaluation.metrics=[rouge,chrf]
    """
    from recipe_kit import launch, run_dir, signals

    folder = run_dir.find(run)
    run_dir.require_finished(folder)
    if num_processes is not None and num_processes > 1:
        sys.exit(_share(num_processes))
    signals.end_with_parent()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        os.environ.update(launch.one_gpu())
    quiet_libraries()
    from recipe_kit.evaluation import evaluate

    metrics = evaluate(
        folder, split=split, limit=limit, precision=precision, packed=packed, fresh=fresh, overrides=overrides,
        report=remark if is_first_rank() else lambda text: None,
    )  # fmt: skip
    leave_together()
    if not is_first_rank():
        return
    if as_json:
        print_json(metrics)
    else:
        from recipe_kit.cli.results import show_results

        show_results(folder)


def _share(num_processes: int) -> int:
    """Start this same command in several processes."""
    from recipe_kit import launch

    arguments = sys.argv[1:]
    place = next(i for i, word in enumerate(arguments) if word.startswith("--num-processes"))
    del arguments[place : place + (1 if "=" in arguments[place] else 2)]
    gpus = launch.visible_gpus()
    argv = launch.build_argv(arguments, num_processes=num_processes, on_cpu=gpus == 0, gpu_count=gpus)
    return launch.run(argv, environment=launch.cpu_environment(num_processes) if gpus == 0 else None)
