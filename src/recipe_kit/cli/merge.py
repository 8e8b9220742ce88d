"""`recipe-kit merge`: the adapter of a run into whole weights."""

from __future__ import annotations

from typing import Any

import click

from recipe_kit.cli._common import Sentence, json_option, print_json, quiet_libraries, remark

DTYPES = ("bfloat16", "float16", "float32")
BASES = ("auto", "original", "nf4")


@click.command("merge", cls=Sentence)
@click.argument("run", type=click.Path())
@click.option("--dtype", type=click.Choice(DTYPES), default=None, help="Type of the weights; default: the recipe's.")
@click.option(
    "--base", type=click.Choice(BASES), default=None,
    help="For a QLoRA run: merge into the original weights, into what 4 bits made of them, or measure both.",
)  # fmt: skip
@click.option("--gguf", "gguf_type", metavar="TYPE", default=None, help="Also write GGUF of this type, e.g. q8_0.")
@click.option("--llama-cpp", metavar="DIR", default=None, help="A llama.cpp folder; default: $LLAMA_CPP, then PATH.")
@json_option
def merge(
    run: str, dtype: str | None, base: str | None, gguf_type: str | None, llama_cpp: str | None, as_json: bool
) -> None:
    """Merge the adapter of RUN into its base's weights, as RUN/merged, which plain transformers loads.

    The merged model is compared with the adapter model on held-out rows and kept only if rounding is all that is
    between them. What was measured is in run.json.

    \b
    recipe-kit merge runs/guanaco/latest
    recipe-kit merge runs/guanaco/latest --dtype float16 --base original
    recipe-kit merge runs/guanaco/latest --gguf q8_0 --llama-cpp ~/llama.cpp
    """
    import os
    from pathlib import Path

    from recipe_kit import gguf, launch, run_dir

    folder = run_dir.find(run)
    tools = Path(llama_cpp) if llama_cpp else None
    if gguf_type:
        gguf.find_tools(gguf_type, tools)  # before minutes of merging
    os.environ.update(launch.one_gpu())
    quiet_libraries()
    from recipe_kit.lock import recipe_of
    from recipe_kit.merge import merge

    record = merge(folder, dtype=dtype, base=base, report=remark)
    files: list[Path] = []
    if gguf_type:
        recipe = recipe_of(folder)
        files = gguf.export(
            folder / run_dir.MERGED, folder / run_dir.GGUF, outtype=gguf_type, llama_cpp=tools,
            system=recipe.data.system, name=recipe.name, report=remark,
        )  # fmt: skip
    if as_json:
        print_json(record | {"gguf": [str(path) for path in files]} if gguf_type else record)
        return
    click.echo("\n".join([*_summary(record), *(str(path) for path in files)]))
    click.echo(str(folder / run_dir.MERGED))


def _summary(record: dict[str, Any]) -> list[str]:
    parity = record["parity"]
    lines = [
        f"merged in {record['dtype']}, {record['tensors_changed']} tensors changed, base: {record['base']}",
        f"parity: {parity['mean_kl']:.2g} nats a position apart on {parity['positions']:,} positions "
        f"({parity['rows_from']}), {parity['greedy_agreement']:.2%} the same likeliest token",
    ]
    if record["choice"]:
        losses = record["choice"]["loss"]
        lines.append("; ".join([f"{name} {loss:.4f}" for name, loss in losses.items()] + [record["choice"]["reason"]]))
    return [*lines, *record["notes"]]
