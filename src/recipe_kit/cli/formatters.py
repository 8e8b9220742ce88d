"""`recipe-kit formatters`: what turns rows into chats."""

from __future__ import annotations

import dataclasses
import json

import click

from recipe_kit.cli._common import json_option, print_json, table


@click.command()
@click.argument("name", required=False)
@json_option
def formatters(name: str | None, as_json: bool) -> None:
    """List the formatters, or show one: its columns, options, source and a worked example.

    \b
    recipe-kit formatters
    recipe-kit formatters dialogue_summary
    recipe-kit formatters my_package.rows:my_formatter
    """
    from recipe_kit.formatters import describe_formatter, formatter_names

    if name is None:
        infos = [describe_formatter(known) for known in formatter_names()]
        if as_json:
            print_json(
                [{"name": i.name, "summary": i.summary, "columns": i.columns, "origin": i.origin} for i in infos]
            )
        else:
            click.echo(table([(info.name, ", ".join(info.columns), info.summary) for info in infos]))
        return
    info = describe_formatter(name)
    if as_json:
        print_json(dataclasses.asdict(info))
        return
    click.echo(f"{info.name}  ({info.origin})\n\n{info.doc}\n")
    click.echo(f"columns: {', '.join(info.columns)}")
    if info.optional_columns:
        click.echo(f"         {', '.join(info.optional_columns)} (optional)")
    for option in info.options:
        click.echo(f"option:  {option.name}: {option.type} = {option.default!r}")
    if info.example_row is not None:
        click.echo(f"\nrow:     {json.dumps(info.example_row, ensure_ascii=False)}")
        click.echo(f"becomes: {json.dumps(info.example_result, ensure_ascii=False)}")
