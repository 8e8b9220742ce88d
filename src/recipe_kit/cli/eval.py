"""`recipe-kit eval`: measure a finished run again."""

from __future__ import annotations

import click

from recipe_kit.cli._common import json_option, print_json, quiet_libraries, remark


@click.command("eval")
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["test", "eval"]), default=None, help="Held-out rows to measure on.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Measure on the first N rows only.")
@json_option
def eval_(run: str, split: str | None, limit: int | None, as_json: bool) -> None:
    """Measure base and tuned model of RUN on its held-out rows: token-weighted perplexity, and answers side by side.

    \b
    recipe-kit eval runs/samsum/latest
    recipe-kit eval runs/samsum/latest --split test --limit 100 --json
    """
    from recipe_kit import run_dir

    folder = run_dir.find(run)
    run_dir.require_finished(folder)
    quiet_libraries()
    from recipe_kit.evaluation import evaluate

    metrics = evaluate(folder, split=split, limit=limit, report=remark)
    if as_json:
        print_json(metrics)
    else:
        from recipe_kit.cli.results import show_results

        show_results(folder)
