"""`recipe-kit report`: one page about one run."""

from __future__ import annotations

from pathlib import Path

import click

from recipe_kit.cli._common import remark


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=None,
    help="Where to write the page.  [default: report.html in the run folder]",
)  # fmt: skip
@click.option(
    "--figures", type=click.Path(file_okay=False, path_type=Path), default=None, metavar="DIR",
    help="Also write the plots there as PNG for papers, with metrics.csv and training_log.csv.",
)  # fmt: skip
def report(run: str, out: Path | None, figures: Path | None) -> None:
    """Write one HTML page about RUN: did it help, on what, how sure, and what did it cost.

    The page is made of the files in the run folder alone and needs no network when opened. It can be written while
    training goes on, and again later.

    \b
    recipe-kit report runs/samsum/latest
    recipe-kit report runs/samsum/latest --out samsum.html --figures figures
    """
    from recipe_kit.report import write_report

    path = write_report(run, out=out, figures=figures)
    if figures is not None:
        remark(f"plots and numbers are in {figures}")
    click.echo(path)
