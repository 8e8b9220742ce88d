"""What the commands share: errors as sentences, output, and the options that choose a recipe."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from recipe_kit import ranks, signals
from recipe_kit.errors import RecipeKitError
from recipe_kit.out_of_memory import Watch, explained
from recipe_kit.signals import Stopped

F = TypeVar("F", bound=Callable[..., Any])


def is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def fail(error: RecipeKitError) -> None:
    """Print the sentence once, whatever the number of ranks, and leave with exit code 1."""
    if ranks.count() > 1:
        ranks.fail(error)
    click.echo(f"recipe-kit: {error}", err=True)
    sys.exit(1)


def stop(stopped: Stopped) -> None:
    """Say what was stopped and how to go on, once, and leave with its exit code."""
    if (listener := signals.listener()) is not None:
        listener.ignore()
    if is_first_rank():
        signals.say(stopped.sentence)
    if ranks.count() > 1:
        if stopped.step is not None:  # all of them stopped at the same step
            leave_together()
        ranks.leave(stopped.exit_code)
    sys.exit(stopped.exit_code)


class _Explained:
    """Turns our own errors into a sentence; other exceptions are bugs and keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with explained(Watch(phase="evaluation" if ctx.info_name == "eval" else None)):
                return super().invoke(ctx)  # type: ignore[misc]
        except RecipeKitError as error:
            return fail(error)
        except Stopped as stopped:
            return stop(stopped)
        except Exception as error:
            if ranks.count() == 1 or isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
                raise
            ranks.fail(error)


class Sentence(_Explained, click.Command):
    """A command whose failures are sentences."""


class Sentences(_Explained, click.Group):
    """A group of commands whose failures are sentences."""


class RecipeType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5; we support 8.4
    """A path or the name of a shipped recipe; completes both."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from recipe_kit import catalog

        names = [CompletionItem(name) for name in catalog.recipe_names() if name.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


recipe_argument = click.argument("recipe", type=RecipeType())


def overlay_options(command: F) -> F:
    """`--profile` and `--set`, the same wherever a recipe is read."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE",
        help="Change one value, e.g. --set training.learning_rate=1e-4; wins over everything else. Repeatable.",
    )(command)  # fmt: skip
    return click.option(
        "--profile", "profiles", multiple=True, metavar="NAME",
        help="Lay one of the recipe's profiles over it, e.g. --profile smoke. Repeatable, in order.",
    )(command)  # fmt: skip


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def remark(text: str) -> None:
    """Say something to the person at the terminal, on stderr."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def quiet_libraries() -> None:
    """Leave the terminal to what matters: no talk of the libraries among themselves, no bars in a log file."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it names optional kernels at every import on a CPU
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


def leave_together() -> None:
    """End the talk between the ranks of this process's group, if it has one.

    A rank that exits while the threads of its group still run may be ended by the C++ runtime (`terminate called
    without an active exception`, seen with torch 2.13 and gloo on a busy machine): everything done, and exit code 1.
    """
    import torch.distributed as group

    if group.is_available() and group.is_initialized():
        group.barrier()
        group.destroy_process_group()


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart."""
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
