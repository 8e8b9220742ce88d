"""Whether a run fits on a card, and what to change where it does not: each change is estimated before it is named."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from recipe_kit.errors import RecipeError
from recipe_kit.plan.shape import MemoryChange, MemoryPart
from recipe_kit.recipe import Recipe
from recipe_kit.speed import sharding
from recipe_kit.speed.batches import largest_batch
from recipe_kit.speed.card import CARDS, Card, card
from recipe_kit.speed.choose import SMALL_OPTIM, Choice, estimate
from recipe_kit.speed.memory import CONTEXT_BYTES, Estimate, card_needs
from recipe_kit.suggest import did_you_mean
from recipe_kit.topology import Topology

if TYPE_CHECKING:
    import trl
    from transformers import PretrainedConfig

    from recipe_kit.data.lengths import Lengths

_Smaller = tuple[dict[str, Any], Recipe, "Settings"]  # lines of the recipe, and what they make of it
_Estimated = Callable[[Recipe, "Settings"], Estimate | None]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB)", re.IGNORECASE)
_UNITS = {"gb": 10**9, "gib": 2**30}


@dataclass(frozen=True)
class Settings:
    """What `speed.choose` decided, with TRL's configuration of it, and how processes share the model."""

    choice: Choice
    arguments: trl.SFTConfig
    how: Topology

    @property
    def rows(self) -> int:
        """Of a micro-batch on one device."""
        return int(self.arguments.per_device_train_batch_size)

    @property
    def accumulation(self) -> int:
        return int(self.arguments.gradient_accumulation_steps)

    @property
    def checkpointing(self) -> bool:
        return bool(self.arguments.gradient_checkpointing)

    @property
    def optim(self) -> str:
        return str(getattr(self.arguments.optim, "value", self.arguments.optim))

    @property
    def attention(self) -> str:
        """`auto` is transformers' choice, and that is sdpa."""
        return "sdpa" if self.choice.attention == "auto" else self.choice.attention

    def changed(self, **values: Any) -> Settings:
        """With other options of TRL, for reading only."""
        arguments = copy.copy(self.arguments)
        for key, value in values.items():
            object.__setattr__(arguments, key, value)
        return replace(self, arguments=arguments)


def notes(recipe: Recipe, settings: Settings) -> list[str]:
    """What makes sharing cost more than it must."""
    if settings.how.strategy != "fsdp2" or recipe.method != "full" or settings.accumulation == 1:
        return []
    if sharding.syncs_each_batch(recipe):
        return []
    return [
        "training.accelerator_config: with sync_each_batch: false each GPU sums whole gradients over the "
        f"{settings.accumulation} micro-batches of a step; without this line only its share"
    ]


def find_card(name: str | None) -> Card | None:
    """A card by its name of `CARDS` or by its size, such as `15GB`; without a name this machine's, if it has one.

    Raises RecipeError for a name nobody knows. A size alone is taken for a card that can do all a recent one can.
    """
    if name is None:
        return card()
    if name.lower() in CARDS:
        return CARDS[name.lower()]
    size = _SIZE.fullmatch(name.strip())
    if size:
        known = CARDS["rtx-4090"]
        return replace(known, name=f"a card of {name}", memory_bytes=int(float(size[1]) * _UNITS[size[2].lower()]))
    raise RecipeError(
        f"--card: no card {name!r} is known{did_you_mean(name, CARDS)}; give one of {', '.join(CARDS)}, or a size "
        "such as 15GB"
    )


def precision_on(recipe: Recipe, card: Card | None, here: str) -> str:
    """In what the run computes on a card; `here` is what it would on this machine, which may have none."""
    if recipe.training.get("fp16"):
        return "float16"
    wanted = "bfloat16" if recipe.model.dtype == "auto" else str(recipe.model.dtype)
    if card is None:
        return here
    return "float16" if wanted == "bfloat16" and not card.bfloat16 else wanted


def part(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    lengths: Lengths,
    trained_share: float,
    chosen: Settings,
    card: Card,
) -> MemoryPart | None:
    """The estimate, its judgement for the card, and where it does not fit a change that would."""

    def estimated(recipe: Recipe, chosen: Settings) -> Estimate | None:
        return estimate(recipe, config, precision, chosen.arguments, lengths, trained_share, chosen.choice, chosen.how)

    found = estimated(recipe, chosen)
    if found is None:
        return None
    work = largest_batch(lengths, trained_share, chosen.arguments)
    needed = card_needs(found)
    fits = needed <= card.memory_bytes
    return {
        "peak_bytes": found.peak,
        "phase": found.phase,
        "error": found.error,
        "parts": found.parts,
        "paged_bytes": found.paged,
        "needed_bytes": needed,
        "card": card.name,
        "card_bytes": card.memory_bytes,
        "fits": fits,
        "hopeless": found.peak * (1 - found.error) + CONTEXT_BYTES > card.memory_bytes,
        "rows": chosen.rows,
        "tokens": work.tokens,
        "trained_tokens": work.trained_tokens,
        "checkpointing": chosen.checkpointing,
        "optim": chosen.optim,
        "attention": chosen.attention,
        "fused_layers": chosen.choice.fused_layers,
        "change": None if fits else _change(recipe, chosen, estimated, card),
        "calibrated_peak_bytes": None,
        "strategy": chosen.how.strategy,
        "processes": chosen.how.processes or 1,
        "host_bytes": found.host if isinstance(found, sharding.Sharded) else 0,
    }


def _change(recipe: Recipe, chosen: Settings, estimated: _Estimated, card: Card) -> MemoryChange | None:
    """Lines of the recipe that make it fit, those that cost least time first; all that help where none is enough."""
    lines: dict[str, Any] = {}
    best = estimated(recipe, chosen)
    smaller_ones = [_checkpointed, _small_optimizer, *[_halved] * 16, _quantized]
    if chosen.how.strategy in sharding.SHARDED:  # with which 8-bit states and 4-bit weights do not always go
        smaller_ones = [_checkpointed, *[_halved] * 16]
    for smaller in smaller_ones:
        found = smaller(recipe, chosen)
        after = found and estimated(*found[1:])
        if not found or not after or not best or card_needs(after) >= card_needs(best):
            continue
        (more, recipe, chosen), best = found, after
        lines |= more
        if card_needs(best) <= card.memory_bytes:
            break
    if not lines or not best:
        return None
    fits = card_needs(best) <= card.memory_bytes
    return {"lines": lines, "peak_bytes": best.peak, "needed_bytes": card_needs(best), "fits": fits}


def _checkpointed(recipe: Recipe, chosen: Settings) -> _Smaller | None:
    if chosen.checkpointing:
        return None
    return {"training.gradient_checkpointing": True}, recipe, chosen.changed(gradient_checkpointing=True)


def _small_optimizer(recipe: Recipe, chosen: Settings) -> _Smaller | None:
    return {"training.optim": SMALL_OPTIM}, recipe, chosen.changed(optim=SMALL_OPTIM)


def _halved(recipe: Recipe, chosen: Settings) -> _Smaller | None:
    """Half the rows a micro-batch, and as many a step as before."""
    if chosen.rows < 2 or chosen.rows % 2:
        return None
    rows, accumulation = chosen.rows // 2, chosen.accumulation * 2
    values = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    return {f"training.{key}": value for key, value in values.items()}, recipe, chosen.changed(**values)


def _quantized(recipe: Recipe, chosen: Settings) -> _Smaller | None:
    if recipe.method == "qlora":
        return None
    return {"method": "qlora"}, recipe.model_copy(update={"method": "qlora"}), chosen
