"""What is not as it was when a run began: recipe, rows, packages, batch and machine, and what each means for going on.

A checkpoint holds weights, optimiser, schedule and random state. All else comes from the recipe, the rows and the
packages of now, so each difference is named. It is one of three kinds:

- noted: nothing that is learnt depends on it (`_NOTED` says which keys); the run goes on and says so,
- asked: the run would go on as another one; refused unless accepted, and recorded for good in `run.json`,
- fixed: the checkpoint does not fit; refused, for there is nothing to go on with.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from recipe_kit import run_dir
from recipe_kit.recipe import ABSENT, Difference, Recipe, diff_recipes
from recipe_kit.run_dir import RunInfo

Kind = Literal["noted", "asked", "fixed"]

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "liger-kernel", "datasets", "tokenizers",
)  # fmt: skip
SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")
_NOTED = re.compile(
    # What is measured, said and published of the result; how processes are started (their number is looked at below).
    r"name|description|(evaluation|proofs|publish|card|launch)\..*"
    # What is written down on the way, and where.
    r"|training\.(logging_.*|report_to|run_name|project|trackio_.*|save_.*|ddp_timeout)"
    # The same numbers with less memory or sooner: activations computed again, rows fetched beforehand.
    r"|training\.(gradient_checkpointing|gradient_checkpointing_kwargs|activation_checkpointing)"
    r"|training\.(per_device_eval_batch_size|eval_accumulation_steps)"
    r"|training\.dataloader_(num_workers|prefetch_factor|persistent_workers|pin_memory)"
    # The commit that it stands for is looked at instead.
    r"|model\.revision"
)
# Shapes of what is saved, and what the saved optimiser holds and would go on with whatever the recipe says.
_FIXED = re.compile(
    r"lora\.(?!(lora_alpha|lora_dropout|use_rslora)$).*"
    r"|training\.(weight_decay|adam_beta1|adam_beta2|adam_epsilon|optim_args|optim_target_modules)"
)
_SHARES_FIXED = ("zero2", "zero3")  # DeepSpeed takes its optimiser's states up in as many processes as wrote them
_NO_SCHEDULE_TO_SCALE = ("reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True)
class Change:
    """Something that is not as it was when the run began."""

    kind: Kind
    subject: str  # the recipe, the rows, the packages, the batch or the machine
    what: str  # such as training.learning_rate or torch
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.what} {_shown(self.then)} then, {_shown(self.now)} now"


def compare(before: RunInfo, now: RunInfo, recipe_before: Recipe, recipe: Recipe) -> Iterator[Change]:
    """Every difference, in the order recipe, batch, rows, packages, machine."""
    same_batch = rows_a_step(before) == rows_a_step(now) or None in (rows_a_step(before), rows_a_step(now))
    differences = diff_recipes(recipe_before, recipe)
    digests = before["recipe_sha256"], now["recipe_sha256"]
    if not differences and digests[0] != digests[1] and before["recipe_kit_version"] == now["recipe_kit_version"]:
        yield Change("asked", "recipe", f"{run_dir.RECIPE} of the run was changed: SHA-256", *digests)
    for difference in differences:
        if difference.key.startswith("data.") and difference.key.endswith(".path"):
            continue  # what is in the file is told by the rows
        change = of_recipe(difference, recipe, (before.get("speed") or {}).get("optim"))
        if change.what.removeprefix("training.") in SIZES:
            change = Change("noted" if same_batch else "asked", change.subject, change.what, change.then, change.now)
        yield change
    if not same_batch:
        yield Change("asked", "batch", "rows a step", rows_a_step(before), rows_a_step(now))
    yield from _rows(before, now)
    yield from _packages(before, now)
    yield from _machine(before, now)


def rows_a_step(info: RunInfo) -> int | None:
    """Rows, or packed rows, of one optimiser step over all processes; None where it was not recorded."""
    speed = info.get("speed") or {}
    sizes = [speed.get(key) for key in SIZES]
    return math.prod(sizes) * info.get("processes", 1) if None not in sizes else None  # type: ignore[arg-type]


def of_recipe(found: Difference, recipe: Recipe | None = None, optim_before: str | None = None) -> Change:
    key, kind = found.key, "asked"
    if _NOTED.fullmatch(key):
        kind = "noted"
    elif _FIXED.fullmatch(key):
        kind = "fixed"
    elif key == "method" and "full" in (found.left, found.right):
        kind = "fixed"  # all weights, or those of an adapter
    elif key == "model.id":
        local = all(str(value).startswith("/") for value in (found.left, found.right))  # it may have been moved
        kind = "asked" if local else "fixed"
    elif key == "training.optim":
        kind = "noted" if found.right in ("auto", ABSENT, optim_before) else "fixed"
    elif key == "training.learning_rate" and recipe is not None:
        kind = "fixed" if recipe.training.get("lr_scheduler_type") in _NO_SCHEDULE_TO_SCALE else "asked"
    return Change(kind, "recipe", key, found.left, found.right)  # type: ignore[arg-type]


def _rows(before: RunInfo, now: RunInfo) -> Iterator[Change]:
    then_splits, now_splits = before["data"].get("splits", {}), now["data"].get("splits", {})
    for name in dict.fromkeys((*then_splits, *now_splits)):
        then, here = (splits.get(name) for splits in (then_splits, now_splits))
        told = _said_rows(then), _said_rows(here)
        if told[0] != told[1]:
            yield Change("asked", "rows", f"{name}:", *told)
        elif name == "train" and then["order_sha256"] != here["order_sha256"] if _ordered(then, here) else False:
            yield Change("asked", "rows", "order of train", *(split["order_sha256"][:12] for split in (then, here)))
    template, commit = "chat_template_sha256", "revision"
    if before["model"].get(template) != now["model"].get(template):
        short = (str(info["model"].get(template))[:12] for info in (before, now))
        yield Change("asked", "rows", "chat template", *short)
    if commit in before["model"] and commit in now["model"] and before["model"][commit] != now["model"][commit]:
        yield Change("asked", "base", "base model", before["model"][commit], now["model"][commit])


def _ordered(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return "order_sha256" in then and "order_sha256" in now


def _said_rows(split: Mapping[str, Any] | None) -> str:
    if not split:
        return "no rows"
    return f"{split['kept']:,} rows of {split['tokens']:,} tokens (content {split['content_sha256'][:12]})"


def _packages(before: RunInfo, now: RunInfo) -> Iterator[Change]:
    then = {**before.get("versions", {}), "recipe-kit": before["recipe_kit_version"]}
    here = {**now.get("versions", {}), "recipe-kit": now["recipe_kit_version"]}
    for name in ("recipe-kit", *PACKAGES):
        if then.get(name) != here.get(name):
            yield Change("asked", "packages", name, then.get(name, "not there"), here.get(name, "not there"))


def _machine(before: RunInfo, now: RunInfo) -> Iterator[Change]:
    """Another card, CUDA or number of processes rounds another way, which is said; shards are read as written."""
    then, here = before.get("hardware", {}), now.get("hardware", {})
    for key in ("device", "name", "machine", "cuda"):
        if then.get(key) != here.get(key):
            yield Change("noted", "machine", f"hardware {key}", then.get(key), here.get(key))
    python = before.get("versions", {}).get("python"), now.get("versions", {}).get("python")
    if python[0] != python[1]:
        yield Change("noted", "machine", "python", *python)
    strategy, strategy_now = ((info.get("speed") or {}).get("strategy") for info in (before, now))
    alike = {strategy, strategy_now} <= {"none", "ddp"}
    if None not in (strategy, strategy_now) and strategy != strategy_now:
        yield Change("noted" if alike else "fixed", "machine", "strategy", strategy, strategy_now)
    if before.get("processes") != now.get("processes"):
        kind: Kind = "fixed" if strategy_now in _SHARES_FIXED else "noted"
        yield Change(kind, "machine", "processes", before.get("processes"), now.get("processes"))


def _shown(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,64}", value):
        return value[:12]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return textwrap.shorten(text, 70, placeholder=" …") if text.strip() else repr(text)
