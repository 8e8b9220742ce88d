"""What a recipe leaves open, decided for one card: attention, fused layers, batches, checkpointing, optimiser.

The rules, in the order in which they are asked:

1. Attention and fused layers (`kernels.py`): FlashAttention where it is installed, PyTorch's variable-length attention
   where card and model allow it, transformers' own choice otherwise.
2. Rows (`batches.py`): packed as the recipe says. Where attention would work between packed rows too, they are padded
   in groups of like length instead, if that is the less work. Rows that are not packed are joined without padding
   where attention keeps them apart: the same rows in the same steps.
3. Memory of each GPU, alone or among several (`sharding.py`): of the settings that fit, the first of no checkpointing
   before checkpointing, the usual optimiser before the paged 8-bit one, and large micro-batches before small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from recipe_kit import varlen
from recipe_kit.recipe import Recipe
from recipe_kit.speed import sharding
from recipe_kit.speed.batches import choose_rows, largest_batch
from recipe_kit.speed.card import Card
from recipe_kit.speed.kernels import KEEP_APART, choose_attention, choose_kernels
from recipe_kit.speed.memory import Estimate, card_needs
from recipe_kit.topology import Strategy, Topology

if TYPE_CHECKING:
    import trl

    from recipe_kit.speed.batches import Lengths

USUAL_OPTIM, SMALL_OPTIM = "adamw_torch_fused", "paged_adamw_8bit"

# So many tokens a micro-batch are taken to keep a GPU busy; with fewer, a larger batch with checkpointing is taken to
# be faster. An assumption: neither was measured.
_BUSY_TOKENS = 8192
_MOST_TOKENS = 65_536
_ALONE = Topology("alone", "none", 1)


@dataclass(frozen=True)
class Choice:
    """What a run on this card uses.

    `training` are options for TRL in the place of the recipe's. `attention` is the name of an implementation, or
    `auto` where transformers chooses. `together` says that linear layers are computed as in `projections.py`.
    """

    attention: str = "auto"
    kernels: str = "none"  # none, liger or hub
    together: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    estimate: Estimate | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def fused_layers(self) -> bool:
        return self.kernels == "liger"


def choose(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    arguments: trl.SFTConfig,
    lengths: Lengths,
    trained_share: float,
    card: Card | None,
    *,
    how: Topology = _ALONE,
    planned: bool = False,
) -> Choice:
    """Decide for a card, None for a CPU. `planned` says that the card is not in this machine.

    `arguments` are TRL's of this recipe, with what is `auto` still at its smallest; `lengths` are tokens of the
    training rows, and `trained_share` the share of them that is learnt. `how` says what the processes share, and so
    what each card holds. Raises RecipeError for kernels that are asked for and cannot be had.
    """
    notes: list[str] = []
    half = precision != "float32" or arguments.bf16 or arguments.fp16
    attention = choose_attention(recipe, config, card, notes, half=half, planned=planned)
    kernels = choose_kernels(recipe, config, card, notes, planned=planned)
    # Weights of FSDP and DeepSpeed come and go with the calls of their own modules.
    together = card is not None and recipe.model.kernels != "none" and how.strategy not in sharding.SHARDED
    # What `torch_varlen` cannot do here goes to sdpa, with a mask of all tokens by all tokens.
    by_kernel = half and card is not None and card.varlen and varlen.unsupported(config) is None
    apart = attention in KEEP_APART and (attention != varlen.NAME or by_kernel)
    training = choose_rows(recipe, config, arguments, lengths, card, attention, apart, notes)
    given = Choice(attention, kernels, together, training, None, notes)

    def estimated(now: Any) -> Estimate | None:
        return estimate(recipe, config, precision, now, lengths, trained_share, given, how)

    training |= _sizes(recipe, arguments, card, given, how.strategy, estimated)
    found = estimated(_with(arguments, training))
    return Choice(attention, kernels, together, training, found if card else None, notes)


def as_begun(
    choice: Choice,
    arguments: trl.SFTConfig,
    begun: Mapping[str, Any],
    *,
    processes: tuple[int, int] = (1, 1),
    set_anew: Container[str] = (),
) -> Choice:
    """The choice for a run that is continued, perhaps on another card: its steps have the rows that they had.

    `arguments` are TRL's with this choice, and `begun` is what `run.json` says under `speed`. An optimiser takes its
    own states alone, so it stays too; micro-batches may be of another size. `processes` are those then and now: where
    the rows of a step cannot be shared out evenly, each process keeps its number. What is in `set_anew` was changed in
    the recipe since, and is left to it.
    """
    changes: dict[str, Any] = {}
    for key in ("packing", "train_sampling_strategy", "optim"):
        now = getattr(arguments, key)
        if key in begun and key not in set_anew and begun[key] != getattr(now, "value", now):
            changes[key] = begun[key]
    rows, steps = "per_device_train_batch_size", "gradient_accumulation_steps"
    if rows in begun and steps in begun and rows not in set_anew and steps not in set_anew:
        all_rows = begun[rows] * begun[steps] * processes[0]
        if all_rows != int(getattr(arguments, rows)) * int(getattr(arguments, steps)) * processes[1]:
            share, rest = divmod(all_rows, processes[1])
            size = begun[rows] if rest else math.gcd(begun[rows], share)
            changes |= {rows: size, steps: begun[steps] if rest else share // size}
    if not changes:
        return choice
    told = ", ".join(f"{key} {value}" for key, value in changes.items())
    note = f"this card would choose otherwise, but the run goes on as it was begun: {told}"
    if processes[0] != processes[1]:
        note = f"in {processes[1]} processes the run keeps the rows a step that it had in {processes[0]}: {told}"
    return replace(choice, training=choice.training | changes, notes=[*choice.notes, note])


def _sizes(
    recipe: Recipe,
    arguments: trl.SFTConfig,
    card: Card | None,
    given: Choice,
    strategy: Strategy,
    estimated: Callable[[Any], Estimate | None],
) -> dict[str, Any]:
    """Batch, checkpointing and optimiser, where they are `auto`."""
    open_keys = {
        key for key in ("per_device_train_batch_size", "gradient_checkpointing", "optim") if _auto(recipe, key)
    }
    now = _with(arguments, given.training)
    rows, accumulation = int(now.per_device_train_batch_size), int(now.gradient_accumulation_steps)
    if card is None:
        return _on_a_cpu(open_keys, accumulation)
    if not open_keys:
        return {}
    smallest: tuple[float, dict[str, Any]] = (math.inf, {})  # not always the last: a sum of gradients takes memory too
    for settings in _candidates(open_keys, rows, accumulation, now, strategy):
        found = estimated(_with(now, settings))
        if found is None:
            break
        needed = card_needs(found)
        if (1 + found.error) * needed <= card.memory_bytes:
            return settings
        if needed <= smallest[0]:
            smallest = needed, settings
    else:
        given.notes.append(
            f"nothing that was tried is sure to fit into the {card.memory_bytes / 2**30:.1f} GiB of {card.name}: "
            "the smallest is used"
        )
        return smallest[1]
    given.notes.append("memory of this kind of model is not estimated: auto takes what needs least of it")
    return list(_candidates(open_keys, rows, accumulation, now, strategy))[-1]


def _candidates(
    open_keys: set[str], rows: int, accumulation: int, now: trl.SFTConfig, strategy: Strategy
) -> Iterator[dict[str, Any]]:
    """Settings from fast and large to slow and small; the keys that are not open stay out."""
    sizes = [rows]
    if "per_device_train_batch_size" in open_keys:
        sizes = [size for size in range(accumulation, 0, -1) if accumulation % size == 0]
        longest = int(now.max_length or 1)
        sizes = [size for size in sizes if size * longest <= _MOST_TOKENS] or [1]
    choices = [False, True] if "gradient_checkpointing" in open_keys else [None]
    # States that lie in shares are small already, and FSDP2 cannot share out paged ones.
    optims = (USUAL_OPTIM,) if strategy in sharding.SHARDED else (USUAL_OPTIM, SMALL_OPTIM)
    for optim in optims if "optim" in open_keys else (None,):
        for checkpointing in choices:
            for size in sizes:
                if checkpointing is False and size < sizes[0] and size * int(now.max_length or 1) < _BUSY_TOKENS:
                    continue  # a larger batch with checkpointing is faster than this
                settings: dict[str, Any] = {}
                if "per_device_train_batch_size" in open_keys:
                    settings["per_device_train_batch_size"] = size
                    settings["gradient_accumulation_steps"] = accumulation // size
                if checkpointing is not None:
                    settings["gradient_checkpointing"] = checkpointing
                if optim is not None:
                    settings["optim"] = optim
                yield settings


def _on_a_cpu(open_keys: set[str], accumulation: int) -> dict[str, Any]:
    """Memory is rarely short, recomputing costs a third, and batches of more than eight rows win nothing."""
    size = max(size for size in range(1, min(8, accumulation) + 1) if accumulation % size == 0)
    settings = {
        "per_device_train_batch_size": size,
        "gradient_checkpointing": False,
        "optim": "adamw_torch",
    }
    found = {key: value for key, value in settings.items() if key in open_keys}
    if "per_device_train_batch_size" in found:
        found["gradient_accumulation_steps"] = accumulation // size
    return found


def _auto(recipe: Recipe, key: str) -> bool:
    if key == "gradient_checkpointing" and recipe.training.get("activation_checkpointing") is not None:
        return False  # its newer name, which wins in transformers
    return recipe.training.get(key, "auto" if key == "gradient_checkpointing" else None) == "auto"


def _with(arguments: trl.SFTConfig, changes: dict[str, Any]) -> Any:
    """The arguments with some options changed, for reading only."""
    import copy

    changed = copy.copy(arguments)
    for key, value in changes.items():
        object.__setattr__(changed, key, value)
    return changed


def estimate(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    arguments: Any,
    lengths: Lengths,
    trained_share: float,
    choice: Choice,
    how: Topology,
) -> Estimate | None:
    """Memory of one process that trains with TRL's `arguments` and computes as `choice` says; else as for `choose`."""
    return sharding.estimate(
        recipe,
        config,
        precision,
        largest_batch(lengths, trained_share, arguments),
        checkpointing=bool(arguments.gradient_checkpointing),
        optim=str(getattr(arguments.optim, "value", arguments.optim)),
        fused_layers=choice.fused_layers,
        in_place_adapters=choice.together,
        attention="sdpa" if choice.attention == "auto" else choice.attention,
        accumulates=int(arguments.gradient_accumulation_steps) > 1,
        strategy=how.strategy,
        offload=how.offload,
        processes=how.processes or 1,
    )
