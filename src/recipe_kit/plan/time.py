"""How long a run takes and what it costs: training steps alone, without preparation, evaluation and saving."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from recipe_kit.plan.memory import Settings
from recipe_kit.plan.shape import BatchesPart, StepsPart, TimePart
from recipe_kit.recipe import Recipe
from recipe_kit.speed import throughput
from recipe_kit.speed.card import CARDS, Card
from recipe_kit.speed.throughput import Calibration, Load

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def part(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    chosen: Settings,
    batches: BatchesPart,
    steps: StepsPart,
    card: Card | None,
    calibration: Calibration | None,
    price_per_hour: float | None,
) -> TimePart | None:
    """Seconds, hours and cost; None where nothing is known of the card. `price_per_hour` is of the whole machine."""
    if calibration is not None:
        name: str | None = calibration.card
        tokens_per_second = calibration.tokens_per_second * steps["processes"]
        seconds, source, where = (
            calibration.seconds_per_step,
            "calibrated",
            f"calibrated here, {calibration.steps} steps",
        )
    else:
        name = _table_name(card)
        useful = steps["tokens_per_step"] / steps["accumulation"] / steps["processes"]
        trained = steps["trained_tokens_per_step"] / steps["accumulation"] / steps["processes"]
        load = Load(useful / (1 - batches["padding_share"]), useful, trained)
        speed = (
            throughput.predict(recipe, config, precision, load, name, checkpointing=chosen.checkpointing)
            if name is not None
            else None
        )
        if speed is None:
            return None
        tokens_per_second = speed.tokens_per_second * steps["processes"]
        seconds, source, where = speed.seconds_per_micro_batch * steps["accumulation"], speed.source, speed.where
    if steps["processes"] > 1:
        where += f"; that {steps['processes']} GPUs are as many times as fast is assumed, not measured"
    hours = seconds * steps["steps"] / 3600
    return {
        "card": str(name),
        "source": source,
        "where": where,
        "tokens_per_second": tokens_per_second,
        "seconds_per_step": seconds,
        "hours": hours,
        "price_per_hour": price_per_hour,
        "cost": None if price_per_hour is None else price_per_hour * hours,
    }


def calibrate(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    chosen: Settings,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> Calibration:
    """A few real steps of these rows on this machine, with random weights in the place of the model's."""
    from recipe_kit.trainer import make_trainer

    quiet = chosen.changed(report_to=[], output_dir=tempfile.gettempdir()).arguments
    model = throughput.random_model(recipe, config, precision)
    model.set_attn_implementation(chosen.attention)
    return throughput.calibrate(lambda: make_trainer(recipe, model, tokenizer, quiet, chosen.choice, precision, rows))


def _table_name(card: Card | None) -> str | None:
    """The card's name in the tables of `speed.throughput`."""
    if card is None:
        return None
    return next((key for key, known in CARDS.items() if known == card), None) or throughput.known_card(card.name)
