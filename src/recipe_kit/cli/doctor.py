"""`recipe-kit doctor`: what this machine can do."""

from __future__ import annotations

import click

from recipe_kit.cli._common import json_option, print_json, table


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, GPU, number formats, 4-bit support, disk and Hub token of this machine. Sends nothing.

    \b
    recipe-kit doctor
    """
    from recipe_kit.doctor import examine

    findings = examine()
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        click.echo(table([(finding.status, finding.what, finding.detail) for finding in findings]))
    if any(finding.status == "missing" for finding in findings):
        raise click.exceptions.Exit(1)
