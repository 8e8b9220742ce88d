"""Write the generated pages anew: `python docs/generate.py`; with `--check`, only say whether they are current.

docs/recipe.md                the recipe reference, from the schema
docs/cli.md                   the commands, from their help
recipes/recipe.schema.json    for editors
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from recipe_kit import cli
from recipe_kit.recipe import recipe_json_schema, recipe_reference

ROOT = Path(__file__).resolve().parents[1]


def cli_page() -> str:
    """Each command's own help, in the order of the listing."""
    parts = ["# Commands", "", "Written from `--help`; `make docs` writes it anew.", ""]
    for name in ["", *sorted(cli.main.commands)]:
        words = [name] if name else []
        text = CliRunner().invoke(cli.main, [*words, "--help"], prog_name="recipe-kit", terminal_width=100).output
        parts += [f"## recipe-kit {name}".rstrip(), "", "```text", text.rstrip(), "```", ""]
    return "\n".join(parts)


def pages() -> dict[Path, str]:
    """Every generated file and what should stand in it."""
    schema = recipe_json_schema(upstream_help=False)
    return {
        ROOT / "docs" / "recipe.md": recipe_reference(),
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "recipes" / "recipe.schema.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
    }


@click.command()
@click.option("--check", is_flag=True, help="Exit 1 if a page is out of date, and write nothing.")
def main(check: bool) -> None:
    """Write docs/recipe.md, docs/cli.md and recipes/recipe.schema.json."""
    stale = []
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.exit(f"out of date: {', '.join(map(str, stale))}; run `make docs`")
    for path in stale:
        print(path)


if __name__ == "__main__":
    main()
