"""`recipe-kit preview`: which tokens a model will learn, row by row."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from recipe_kit.cli._common import (
    json_option,
    overlay_options,
    print_json,
    quiet_libraries,
    recipe_argument,
    remark,
)
from recipe_kit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from recipe_kit.data import Split
    from recipe_kit.preview import Row, Worst
    from recipe_kit.recipe import Recipe


@click.command()
@recipe_argument
@overlay_options
@click.option("--split", type=click.Choice(["train", "eval", "test"]), default="train", show_default=True)
@click.option(
    "--rows", "count", type=click.IntRange(min=1), default=3, metavar="N", show_default=True, help="The first N rows."
)
@click.option("--worst", type=click.Choice(["longest", "least-trained", "truncated"]), help="The worst of all rows.")
@click.option(
    "--row", "numbers", type=click.IntRange(min=1), multiple=True, metavar="K",
    help="This row, as the headings count them. Repeatable.",
)  # fmt: skip
@click.option("--html", "page", type=click.Path(dir_okay=False), metavar="FILE", help="Write a page for a browser.")
@click.option("--force", is_flag=True, help="Let --html overwrite FILE.")
@click.option("--colour/--no-colour", default=None, help="Default: colour in a terminal, unless NO_COLOR is set.")
@json_option
def preview(
    recipe: str,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    split: Literal["train", "eval", "test"],
    count: int,
    worst: Worst | None,
    numbers: tuple[int, ...],
    page: str | None,
    force: bool,
    colour: bool | None,
    as_json: bool,
) -> None:
    """Show which tokens of RECIPE's rows are trained. Loads the tokenizer and the data, but no model.

    \b
    recipe-kit preview samsum --profile smoke
    recipe-kit preview my_recipe.yaml --worst longest --rows 5 --html longest.html
    recipe-kit preview my_recipe.yaml --split eval --row 17 --row 18
    """
    from recipe_kit.preview import html, legend, terminal
    from recipe_kit.recipe import load_recipe

    if worst and numbers:
        raise click.UsageError("--worst chooses the rows by itself: leave out --row, or --worst")
    if page and as_json:
        raise click.UsageError("--html and --json are two ways to show the rows: leave out one")
    if page and Path(page).exists() and not force:
        raise RecipeError(f"{page} exists already; choose another name, or add --force to overwrite it")
    loaded = load_recipe(recipe, profiles=profiles, overrides=overrides)
    quiet_libraries()
    rows = _rows(loaded, split, count, worst, numbers)
    if not rows:
        remark(f"no row of {split} is truncated: nothing to show")
    if as_json:
        print_json([_as_dict(row, example) for row, example in rows])
    elif page and rows:
        title = f"{loaded.name}, {split}: which tokens are trained"
        _write(Path(page), html([row for row, _ in rows], title=title))
        remark(f"wrote {page}: {len(rows)} row{'' if len(rows) == 1 else 's'}")
    elif rows:
        coloured = _wants_colour() if colour is None else colour
        remark(legend(colour=coloured) + "\n")
        click.echo("\n\n".join(terminal(row, colour=coloured) for row, _ in rows), color=coloured)


def _rows(
    recipe: Recipe, split: Literal["train", "eval", "test"], count: int, worst: Worst | None, numbers: tuple[int, ...]
) -> list[tuple[Row, Any]]:
    """The wanted rows of the prepared split, each with the formatted row it was made from."""
    from recipe_kit.data import prepare
    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.preview import preview_row, worst_rows

    if getattr(recipe.data, split) is None:
        raise DataError(f"data.{split}: {recipe.name} names no {split} rows; choose another --split, or name some")
    tokenizer = load_tokenizer(recipe.model)
    prepared: Split = prepare(recipe.data, tokenizer, splits=(split,), report=remark)[split]
    total = len(prepared.rows)
    if missing := [number for number in numbers if number > total]:
        raise DataError(f"--row {missing[0]}: {split} has {total:,} prepared rows; choose a number from 1 to {total}")
    indices = [number - 1 for number in numbers] or list(range(min(count, total)))
    if worst:
        indices = worst_rows(prepared.rows, prepared.details, worst, count)
    found = []
    for index in indices:
        row, detail = prepared.rows[index], prepared.details[index]
        shown = preview_row(
            row["input_ids"],
            row["labels"],
            tokenizer,
            number=index + 1,
            of=total,
            place=prepared.place(index),
            turn_lengths=detail["turn_lengths"],
            truncated=detail["truncated"],
        )
        found.append((shown, json.loads(detail["example"])))
    return found


def _as_dict(row: Row, example: Any) -> dict[str, Any]:
    return {
        "row": row.number,
        "of": row.of,
        "place": row.place,
        "tokens": row.tokens,
        "trained_tokens": row.trained_tokens,
        "turn_lengths": row.turn_lengths,
        "truncated": row.truncated,
        "example": example,
        "pieces": [piece.__dict__ for piece in row.pieces],
    }


def _wants_colour() -> bool:
    """https://no-color.org: any value but an empty one says no."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error.strerror or error}") from error
