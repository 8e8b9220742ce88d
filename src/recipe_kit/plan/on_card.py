"""A recipe on the card that is planned for: what it leaves open, decided, and the memory and time it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipe_kit import modeling, topology
from recipe_kit.arguments import training_arguments
from recipe_kit.errors import ModelError
from recipe_kit.plan import memory, rows
from recipe_kit.plan import time as timing
from recipe_kit.plan.shape import Plan
from recipe_kit.plan.stages import Report, Stages
from recipe_kit.recipe import Recipe
from recipe_kit.speed.card import Card
from recipe_kit.speed.choose import choose
from recipe_kit.speed.memory import unsupported
from recipe_kit.speed.throughput import Calibration

if TYPE_CHECKING:
    import trl
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from recipe_kit.data import Split


def trains_here(recipe: Recipe) -> bool:
    """Whether this machine is the kind that the recipe is for; a plan may be made on another."""
    for_cpu = bool(recipe.training.get("use_cpu")) or recipe.launch.accelerate_config == "cpu"
    return for_cpu or not modeling.uses_cpu(recipe)


def choose_for(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    arguments: trl.SFTConfig,
    splits: dict[str, Split],
    card: Card | None,
    how: topology.Topology,
    *,
    named: bool,
) -> memory.Settings:
    """What the recipe leaves open, as training on this card would decide it."""
    train, card = splits["train"], None if recipe.training.get("use_cpu") else card
    share = train.counts.trained_tokens / max(train.counts.tokens, 1)
    lengths = rows.row_lengths(train.rows)
    choice = choose(recipe, config, precision, arguments, lengths, share, card, how=how, planned=named)
    return memory.Settings(choice, training_arguments(recipe, precision, choice.training), how)


def memory_and_time(
    plan: Plan,
    recipe: Recipe,
    stages: Stages,
    splits: dict[str, Split] | None,
    config: PretrainedConfig | None,
    precision: str,
    chosen: memory.Settings | None,
    card: Card | None,
    tried: Calibration | None,
    price_per_hour: float | None,
) -> None:
    """Fill in what a GPU needs and how long it takes; and where that is not told, why."""
    on_cpu = bool(recipe.training.get("use_cpu"))
    batches, steps_part = plan["batches"], plan["steps"]
    reason = "the recipe trains on a CPU" if on_cpu else unsupported(recipe, config) if config is not None else None
    if splits is None or config is None or chosen is None or not batches or not steps_part:
        reason = reason or stages.not_looked_at.get("rows", "rows, config or training section are missing")
        stages.leave_out("memory", reason)
        stages.leave_out("time", reason)
        return
    no_card = "no GPU here; name one with --card NAME, or its size with --card 15GB"
    if reason or card is None:
        stages.leave_out("memory", reason or no_card)
    else:
        counts, lengths = splits["train"].counts, rows.row_lengths(splits["train"].rows)
        share = counts.trained_tokens / max(counts.tokens, 1)
        plan["memory"] = stages.run(
            "memory",
            lambda: memory.part(recipe, config, precision, lengths, share, chosen, card),
        )
        if tried and plan["memory"]:
            plan["memory"]["calibrated_peak_bytes"] = tried.peak_memory_bytes
    if tried is None and (on_cpu or card is None):
        stages.leave_out("time", "the recipe trains on a CPU" if on_cpu else no_card)
        return
    plan["time"] = stages.run(
        "time",
        lambda: timing.part(recipe, config, precision, chosen, batches, steps_part, card, tried, price_per_hour),
    )
    if plan["time"] is None:
        stages.leave_out("time", f"the speed of {card.name if card else 'this machine'} is not known")


def try_out(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    chosen: memory.Settings,
    tokenizer: PreTrainedTokenizerBase | None,
    splits: dict[str, Split],
    report: Report,
) -> Calibration:
    """A few steps on this machine, with random weights. Raises ModelError where it is not what the recipe is for."""
    if not trains_here(recipe):
        raise ModelError(
            "--calibrate: there is no GPU here to try it on; leave it out: --card NAME tells of a card from a table"
        )
    assert tokenizer is not None  # there are rows
    report("trying a few steps with random weights")
    return timing.calibrate(recipe, config, precision, chosen, tokenizer, splits["train"].rows)
