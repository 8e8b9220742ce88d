"""`recipe-kit plan`: what training would do, without training."""

from __future__ import annotations

import click

from recipe_kit.cli._common import (
    Sentence,
    json_option,
    overlay_options,
    print_json,
    quiet_libraries,
    recipe_argument,
    remark,
)


@click.command(cls=Sentence)
@recipe_argument
@overlay_options
@click.option(
    "--runs-dir", default="runs", envvar="RECIPE_KIT_RUNS", show_default=True, type=click.Path(file_okay=False),
    help="Where run folders would be made.",
)  # fmt: skip
@click.option("--num-processes", type=click.IntRange(min=1), help="Training processes, as for `recipe-kit train`.")
@click.option(
    "--accelerate-config", metavar="NAME|PATH", default=None,
    help="Launch topology, as for `recipe-kit train`: memory is told for each GPU.",
)  # fmt: skip
@click.option("--sample", type=click.IntRange(min=1), help="Prove this many rows of each split. [default: all]")
@click.option("--quality/--no-quality", default=True, help="Look for duplicates, overlap and personal data.")
@click.option(
    "--card", metavar="NAME", help="Tell memory and time for this card (t4, rtx-4090, h100, …) or size (15GB). "
    "[default: this machine's GPU]",
)  # fmt: skip
@click.option("--price-per-hour", type=click.FloatRange(min=0), help="Price of the machine an hour, for the cost.")
@click.option("--calibrate", is_flag=True, help="Run a few steps here, with random weights, and tell time from them.")
@click.option("--origins", is_flag=True, help="Show every value of the recipe and where it comes from.")
@json_option
def plan(
    recipe: str,
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    runs_dir: str,
    num_processes: int | None,
    accelerate_config: str | None,
    sample: int | None,
    quality: bool,
    card: str | None,
    price_per_hour: float | None,
    calibrate: bool,
    origins: bool,
    as_json: bool,
) -> None:
    """Say what training RECIPE would do: rows, tokens, steps, memory, time, proofs. Needs no GPU and trains nothing.

    Exit code 1 when training would fail.

    \b
    recipe-kit plan samsum --profile smoke
    recipe-kit plan my_recipe.yaml --num-processes 4
    recipe-kit plan my_recipe.yaml --accelerate-config fsdp2 --num-processes 8 --card h100
    recipe-kit plan guanaco --card t4 --price-per-hour 0.35
    recipe-kit plan my_recipe.yaml --sample 1000 --no-quality --json
    """
    from recipe_kit.recipe import resolve

    resolved = resolve(recipe, profiles=profiles, overrides=overrides)
    quiet_libraries()
    from recipe_kit.plan import build, lines, problems

    planned = build(
        resolved, runs_dir=runs_dir, processes=num_processes, accelerate_config=accelerate_config, sample=sample,
        quality=quality, card=card, price_per_hour=price_per_hour, calibrate=calibrate, report=remark,
    )  # fmt: skip
    found = problems(planned)
    if as_json:
        print_json({**planned, "problems": found})
    else:
        click.echo("\n".join(lines(planned, origins=origins)))
    if found:
        raise click.exceptions.Exit(1)
