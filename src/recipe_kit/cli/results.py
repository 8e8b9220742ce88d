"""A finished run in the terminal: base against tuned, and answers side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from recipe_kit import run_dir
from recipe_kit.cli._common import remark, table
from recipe_kit.errors import RecipeKitError


def show_results(run: Path, *, samples: int = 4) -> None:
    """Print the scores and a few prompts with both answers, and write the page that shows all of it."""
    from recipe_kit.report import write_report

    if (run / run_dir.METRICS).is_file():
        metrics = run_dir.read_metrics(run)
        click.echo(metrics_table(metrics))
        for problem in metrics.get("problems", []):
            click.echo(f"note: {problem}")
        for line in _others(metrics):
            click.echo(line)
    lines = run_dir.read_lines(run / run_dir.SAMPLES)
    # Some held-out prompts and some of the recipe's own, as many of each as there are.
    own = [line for line in lines if line.get("kind") == "prompt"][: samples // 2]
    held_out = [line for line in lines if line.get("kind") != "prompt"][: samples - len(own)]
    for line in [*held_out, *own]:
        click.echo("\n" + side_by_side(line))
    if len(lines) > len(held_out) + len(own):
        click.echo(f"\n{len(lines) - len(held_out) - len(own)} more in {run / run_dir.SAMPLES}")
    try:
        page = f"\nreport: {write_report(run)}"
    except RecipeKitError as error:  # the run is what matters
        page = ""
        remark(str(error))
    click.echo(f"{page}\n{run}")


def metrics_table(metrics: run_dir.Metrics) -> str:
    """Every score of base and tuned model on the same rows, with 95 % intervals over rows; groups of rows after it."""
    heading = f"{metrics['rows']} held-out rows ({metrics['split']}), weights in {metrics['precision']}"
    if "tuned" in metrics:
        heading += f", {metrics['tuned']['tokens']:,} answer tokens"
    parts = [heading]
    if metrics.get("scores"):
        parts.append(_scores(metrics["scores"]))
        parts.append("[95 % interval over rows]; p: sign test over rows")
    for name, group in metrics.get("groups", {}).items():
        parts.append(f"\n{name}: {group['rows']} rows\n{_scores(group['scores'])}")
    return "\n".join(parts)


def _others(metrics: run_dir.Metrics) -> Iterator[str]:
    """What a judge and lm-eval's tasks say, a line each."""
    if judge := metrics.get("judge"):
        share = judge["win_share"]
        cost = f", cost {judge['cost']:.4f}" if judge.get("cost") is not None else ""
        yield (
            f"judge {judge['model']}: tuned better in {judge['wins']}, base in {judge['losses']}, {judge['ties']} ties"
            f", {judge['failed']} failed; win share {_estimate(share, 2)}, p {_p(judge['p_value'])}{cost}"
        )
    for task, found in metrics.get("lm_eval", {}).get("tasks", {}).items():
        for name, values in found["metrics"].items():
            base, tuned = (values[which] for which in ("base", "tuned"))
            if base is not None:
                yield f"{task} {name}: base {base['value']:.3f}, tuned {tuned['value']:.3f}"


def _scores(scores: dict[str, run_dir.ScoreEntry]) -> str:
    rows: list[tuple[str, ...]] = [("", "base", "tuned", "difference", "tuned better on")]
    for entry in scores.values():
        digits = _digits(entry)
        better = f"{entry['tuned_better']}/{entry['rows']} rows, p {_p(entry['p_value'])}"
        base, tuned = _estimate(entry["base"], digits), _estimate(entry["tuned"], digits)
        difference = _estimate(entry["difference"], digits, signed=True)
        rows.append((entry["label"], base, tuned, difference, "" if entry["higher_is_better"] is None else better))
    return table(rows)


def _digits(entry: run_dir.ScoreEntry) -> int:
    """Decimals that tell the two apart: three for shares of one, fewer for large numbers."""
    largest = max(abs(entry["base"]["value"]), abs(entry["tuned"]["value"]))
    return 3 if largest <= 1.5 else 2 if largest < 1000 else 0


def _estimate(estimate: run_dir.Estimate, digits: int, *, signed: bool = False) -> str:
    numbers = (estimate["value"], estimate["low"], estimate["high"])
    value, low, high = (f"{number:{'+' if signed else ''},.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def side_by_side(line: dict[str, Any], width: int = 100) -> str:
    """One held-out prompt: what was asked, what both models answered, and what stands in the data."""
    parts = [
        ("asked", line["prompt"][-1]["content"]),
        ("base", line["base"]["text"]),
        ("tuned", line["tuned"]["text"]),
        ("reference", line["reference"]),
    ]
    parts = [(label, text) for label, text in parts if text is not None]
    return "\n".join(_labelled(label, text, width) for label, text in parts)


def _labelled(label: str, text: str, width: int) -> str:
    short = textwrap.shorten(" ".join(text.split()), width * 3, placeholder=" …") or "(nothing)"
    return textwrap.fill(short, width, initial_indent=f"{label:>9}  ", subsequent_indent=" " * 11)
