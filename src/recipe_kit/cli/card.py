"""`recipe-kit card`: the model card of a run, and a look at any card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipe_kit.cli._common import Sentence, remark
from recipe_kit.errors import CardError

if TYPE_CHECKING:
    from recipe_kit.card import Finding


@click.command(cls=Sentence)
@click.argument("run", type=click.Path(), required=False)
@click.option(
    "--what", type=click.Choice(["adapter", "merged", "both"]), default=None,
    help="What is published of the run.  [default: publish.what of the recipe]",
)  # fmt: skip
@click.option(
    "--repo-id", metavar="OWNER/NAME", default=None,
    help="Repository that the code on the card loads.  [default: publish.repo_id of the recipe]",
)  # fmt: skip
@click.option("--stdout", "to_stdout", is_flag=True, help="Print the card and write nothing.")
@click.option(
    "--check", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None, metavar="FILE",
    help="Look at a card that is there, of this kit or another; with RUN, compare it with that run.",
)  # fmt: skip
def card(run: str | None, what: str | None, repo_id: str | None, to_stdout: bool, file: Path | None) -> None:
    """Write the model card of RUN: README.md in its folder, from the files in it alone.

    Says what the card lacks and which key of the recipe would supply it, and what is wrong with it. Exit code 1 when
    there are errors.

    \b
    recipe-kit card runs/samsum/latest
    recipe-kit card runs/samsum/latest --what merged --repo-id acme/Llama-samsum --stdout
    recipe-kit card --check README.md
    """
    from recipe_kit import card as cards
    from recipe_kit.run_dir import RECIPE, find

    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CardError(f"{file}: not UTF-8 text; save the file as UTF-8") from error
        findings = cards.lint(text, run=None if run is None else find(run), what=what, repo_id=repo_id)
        for finding in findings:
            click.echo(f"{file}: {finding}")
        if not findings:
            click.echo(f"{file}: nothing to say against it")
        _leave(findings)
        return
    if run is None:
        raise click.UsageError("Give a RUN to write the card of, or --check FILE.")
    if to_stdout:
        click.echo(cards.render(run, what=what, repo_id=repo_id), nl=False)
        return
    written = cards.write(run, what=what, repo_id=repo_id)
    if written.earlier is not None:
        remark(f"what stood there before is kept in {written.earlier}")
    click.echo(written.path)
    if written.missing:
        remark(f"the card does not say (keys of {written.path.with_name(RECIPE)}, which may be filled in now):")
        for line in written.missing:
            remark(f"  {line}")
    for finding in written.findings:
        remark(str(finding))
    _leave(written.findings)


def _leave(findings: list[Finding]) -> None:
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)
