"""Commands about recipes: list, new, show, diff, validate, schema. None of them imports torch."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipe_kit.cli._common import json_option, overlay_options, print_json, recipe_argument, remark, table
from recipe_kit.errors import RecipeError

if TYPE_CHECKING:
    from recipe_kit.recipe import Origin


@click.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the recipes that ship, with their profiles.

    \b
    recipe-kit list
    """
    from recipe_kit import catalog
    from recipe_kit.recipe import check_profiles

    rows = []
    for name in catalog.recipe_names():
        variants = check_profiles(name)
        plain, profiles = variants[""], [profile for profile in variants if profile]
        rows.append((name, plain.method, plain.model.id, ", ".join(profiles), plain.description or ""))
    if as_json:
        keys = ("name", "method", "model", "profiles", "description")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        click.echo(table([("name", "method", "model", "profiles", "what for"), *rows]))


@click.command()
@click.argument("path", type=click.Path(dir_okay=False))
@click.option("--from", "source", default="quickstart", show_default=True, help="The shipped recipe to copy.")
def new(path: str, source: str) -> None:
    """Write a copy of a shipped recipe to PATH, to change and train.

    \b
    recipe-kit new my_recipe.yaml --from samsum
    """
    from recipe_kit import catalog

    target = Path(path)
    text = catalog.recipe_path(source).read_text(encoding="utf-8")
    if target.exists():
        raise RecipeError(f"{target} exists already; choose another name, or remove it first")
    schema = catalog.recipe_path(source).with_name("recipe.schema.json")
    text = re.sub(r"(?m)^(# yaml-language-server: \$schema=).*$", lambda line: f"{line[1]}{schema}", text, count=1)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot write {target}: {error.strerror or error}") from error
    click.echo(str(target))
    remark(f"next: recipe-kit validate {target}")


@click.command()
@recipe_argument
@overlay_options
@click.option("--resolved/--source", default=True, help="All values written out (default), or the file as it stands.")
@click.option("--origins", is_flag=True, help="Say behind each value where it comes from.")
@json_option
def show(
    recipe: str, profiles: tuple[str, ...], overrides: tuple[str, ...], resolved: bool, origins: bool, as_json: bool
) -> None:
    """Show RECIPE as it would be run.

    \b
    recipe-kit show samsum --profile smoke --origins
    """
    from recipe_kit.recipe import dump_recipe, flatten, resolve, to_data

    found = resolve(recipe, profiles=profiles, overrides=overrides)
    if not resolved:
        click.echo(Path(found.source).read_text(encoding="utf-8"), nl=False)
    elif origins:
        rows = [(key, value, _origin(found.origins, key)) for key, value in flatten(found.recipe).items()]
        if as_json:
            print_json([{"key": key, "value": value, "origin": origin} for key, value, origin in rows])
        else:
            shown = [(key, json.dumps(value, ensure_ascii=False), origin) for key, value, origin in rows]
            click.echo(table([("key", "value", "from"), *[(k, textwrap.shorten(v, 60), o) for k, v, o in shown]]))
    elif as_json:
        print_json(to_data(found.recipe))
    else:
        click.echo(dump_recipe(found.recipe), nl=False)


@click.command()
@click.argument("left")
@click.argument("right")
@json_option
def diff(left: str, right: str, as_json: bool) -> None:
    """Show what differs between two recipes once both are resolved. Exit code 0 either way.

    \b
    recipe-kit diff llama32_1b_lora llama32_1b_qlora
    """
    from recipe_kit.recipe import diff_recipes, load_recipe

    differences = diff_recipes(load_recipe(left), load_recipe(right))
    if as_json:
        print_json([{"key": d.key, "left": d.left, "right": d.right} for d in differences])
    elif differences:
        click.echo(table([("key", left, right), *[(d.key, str(d.left), str(d.right)) for d in differences]]))
    else:
        remark("no difference")


@click.command()
@click.argument("recipes", nargs=-1, required=True)
@overlay_options
@json_option
def validate(recipes: tuple[str, ...], profiles: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check recipes and all their profiles; every mistake at once, with file and line. Downloads nothing.

    \b
    recipe-kit validate my_recipe.yaml
    recipe-kit validate recipes/*.yaml
    """
    import recipe_kit

    report = {r: recipe_kit.validate(r, profiles=profiles, overrides=overrides) for r in recipes}
    if as_json:
        print_json({recipe: [problem.__dict__ for problem in problems] for recipe, problems in report.items()})
    else:
        for recipe, problems in report.items():
            click.echo("\n".join(map(str, problems)) if problems else f"{recipe}: ok")
    if any(report.values()):
        raise click.exceptions.Exit(1)


@click.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors.

    \b
    recipe-kit schema > recipe.schema.json
    """
    from recipe_kit.recipe import recipe_json_schema

    print_json(recipe_json_schema())


def _origin(origins: dict[str, Origin], key: str) -> str:
    origin = origins.get(key)
    return "default" if origin is None else origin.where or origin.kind
