"""`python -m recipe_kit RECIPE` trains in this process, as `accelerate launch` wants it, and so does `--from-run RUN`
in its place; anything else is the CLI."""

from __future__ import annotations

import sys


def main() -> None:
    from recipe_kit import cli

    arguments = sys.argv[1:]
    first = arguments[0] if arguments else "--help"
    if first == "--from-run" or (not first.startswith("-") and first not in cli.main.commands):
        from recipe_kit.cli.rank import rank

        rank.main(arguments, prog_name="python -m recipe_kit")
    else:
        cli.main(prog_name="recipe-kit")


if __name__ == "__main__":
    main()
