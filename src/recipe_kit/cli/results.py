"""A finished run in the terminal: base against tuned, and answers side by side."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click

from recipe_kit import run_dir
from recipe_kit.cli._common import table


def show_results(run: Path, *, samples: int = 4) -> None:
    """Print the run folder, the table, and a few held-out prompts with both answers."""
    if (run / run_dir.METRICS).is_file():
        click.echo(metrics_table(run_dir.read_metrics(run)))
    path = run / run_dir.SAMPLES
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    for line in lines[:samples]:
        click.echo("\n" + side_by_side(line))
    if len(lines) > samples:
        click.echo(f"\n{len(lines) - samples} more in {path}")
    click.echo(f"\n{run}")


def metrics_table(metrics: run_dir.Metrics) -> str:
    """The base's and the tuned model's loss and perplexity on the same rows."""
    heading = f"{metrics['rows']} held-out rows ({metrics['split']}), weights in {metrics['precision']}"
    if "base" not in metrics or "tuned" not in metrics:
        return heading
    base, tuned = metrics["base"], metrics["tuned"]
    rows = [
        ("", "base", "tuned"),
        ("perplexity", f"{base['perplexity']:.2f}", f"{tuned['perplexity']:.2f}"),
        ("loss (nats/token)", f"{base['loss']:.3f}", f"{tuned['loss']:.3f}"),
    ]
    return f"{heading}, {base['tokens']:,} answer tokens\n{table(rows)}"


def side_by_side(line: dict[str, Any], width: int = 100) -> str:
    """One held-out prompt: what was asked, what both models answered, and what stands in the data."""
    parts = [
        ("asked", line["prompt"][-1]["content"]),
        ("base", line["base"]["text"]),
        ("tuned", line["tuned"]["text"]),
        ("reference", line["reference"]),
    ]
    return "\n".join(_labelled(label, text, width) for label, text in parts)


def _labelled(label: str, text: str, width: int) -> str:
    short = textwrap.shorten(" ".join(text.split()), width * 3, placeholder=" …") or "(nothing)"
    return textwrap.fill(short, width, initial_indent=f"{label:>9}  ", subsequent_indent=" " * 11)
