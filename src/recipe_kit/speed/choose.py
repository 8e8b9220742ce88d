"""What a recipe leaves open, decided for one card: attention, fused layers, batches, checkpointing, optimiser.

The rules, in the order in which they are asked. Each is a function below, and says why.

1. Attention: FlashAttention where it is installed, PyTorch's variable-length attention where card and model allow it,
   transformers' own choice otherwise.
2. Rows: packed as the recipe says. Where attention would work between packed rows too, they are padded in groups of
   like length instead, if that is the less work. Rows that are not packed are joined without padding where attention
   keeps them apart: the same rows in the same steps.
3. Memory: of the settings that fit, the first of no checkpointing before checkpointing, the usual optimiser before the
   paged 8-bit one, and large micro-batches before small ones.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PretrainedConfig

from recipe_kit import varlen
from recipe_kit.errors import RecipeError
from recipe_kit.recipe import Recipe
from recipe_kit.speed import layers
from recipe_kit.speed.card import Card
from recipe_kit.speed.memory import ERROR, Estimate, Work, card_needs, estimate
from recipe_kit.topology import strategy_here

if TYPE_CHECKING:
    import numpy.typing as npt
    import trl

    Lengths = npt.NDArray[np.int64]

FLASH = {"flash_attention_4": "FlashAttention-4", "flash_attention_3": "FlashAttention-3",
         "flash_attention_2": "FlashAttention-2"}  # fmt: skip
KEEP_APART = (varlen.NAME, *FLASH, "flex_attention")  # attention that does no work between packed rows
USUAL_OPTIM, SMALL_OPTIM = "adamw_torch_fused", "paged_adamw_8bit"

# So many tokens a micro-batch are taken to keep a GPU busy; with fewer, a larger batch with checkpointing is taken to
# be faster. An assumption: neither was measured.
_BUSY_TOKENS = 8192
_MOST_TOKENS = 65_536
# Masked attention is taken to reach a quarter of the arithmetic rate of the matrix products around it: an assumption.
_MASKED_ATTENTION = 4.0
_FILLED = 0.97  # of its slots, a pack of best-fit packing is filled


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
    processes: int = 1,
    planned: bool = False,
) -> Choice:
    """Decide for a card, None for a CPU. `planned` says that the card is not in this machine.

    `arguments` are TRL's of this recipe, with what is `auto` still at its smallest; `lengths` are tokens of the
    training rows, and `trained_share` the share of them that is learnt. Raises RecipeError for kernels that are asked
    for and cannot be had.
    """
    notes: list[str] = []
    half = precision != "float32" or arguments.bf16 or arguments.fp16
    attention = choose_attention(recipe, config, card, notes, half=half, planned=planned)
    kernels = _kernels(recipe, config, card, notes, planned=planned)
    together = card is not None and recipe.model.kernels != "none" and not _sharded()
    # What `torch_varlen` cannot do here goes to sdpa, with a mask of all tokens by all tokens.
    by_kernel = half and card is not None and card.varlen and varlen.unsupported(config) is None
    apart = attention in KEEP_APART and (attention != varlen.NAME or by_kernel)
    training = _rows(recipe, config, arguments, lengths, card, attention, apart, notes)
    given = Choice(attention, kernels, together, training, None, notes)
    training |= _sizes(recipe, config, precision, arguments, lengths, trained_share, card, given, processes)
    found = _estimate(recipe, config, precision, _with(arguments, training), lengths, trained_share, given, processes)
    return Choice(attention, kernels, together, training, found if card else None, notes)


def choose_attention(
    recipe: Recipe,
    config: PretrainedConfig,
    card: Card | None,
    notes: list[str],
    *,
    half: bool = True,
    planned: bool = False,
) -> str:
    """The implementation by its name; `auto` where the choice is transformers'. `half`: computed in 16 bits.

    Raises RecipeError where `torch_varlen` is asked for and would compute something else than the model.
    """
    wanted = str(recipe.model.attention)
    if wanted == varlen.NAME and (wrong := varlen.not_by_interface(config)):
        raise RecipeError(f"model.attention: {varlen.NAME} cannot be used, {wrong}; set it to auto")
    if wanted != "auto" or card is None:
        return wanted
    reason = varlen.unsupported(config)
    if reason is None and not card.varlen:
        reason = f"{card.name} is older than Ampere"
    if reason is None and not half:
        reason = "the kernel computes in 16 bits, and this run does not"
    if reason is not None:
        notes.append(f"attention is left to transformers: {reason}")
        return "auto"
    return (None if planned else installed_flash(card.capability)) or varlen.NAME


def installed_flash(capability: tuple[int, int]) -> str | None:
    """The newest FlashAttention that is installed and made for cards of this capability, by transformers' name."""
    from transformers.utils import import_utils

    for name in FLASH:
        installed = getattr(import_utils, f"is_flash_attn_{name[-1]}_available", None)
        made_for = (9, 0) if name[-1] in "34" else (8, 0)
        if installed is not None and installed() and capability >= made_for:
            return name
    return None


def _kernels(
    recipe: Recipe, config: PretrainedConfig, card: Card | None, notes: list[str], *, planned: bool = False
) -> str:
    wanted = recipe.model.kernels
    if card is None or wanted in ("none", "hub"):
        return "none" if card is None else wanted
    reason = layers.unsupported(str(config.model_type))
    if reason is None or (planned and not layers.is_installed()):
        return "liger"
    if wanted == "liger":
        raise RecipeError(f"model.kernels: {reason}; or set it to auto")
    notes.append(f"plain layers: {reason}")
    return "none"


def _sharded() -> bool:
    """Weights of FSDP and DeepSpeed come and go with the calls of their own modules."""
    return strategy_here() not in ("none", "ddp")


def _rows(
    recipe: Recipe,
    config: PretrainedConfig,
    arguments: trl.SFTConfig,
    lengths: Lengths,
    card: Card | None,
    attention: str,
    apart: bool,
    notes: list[str],
) -> dict[str, Any]:
    """How rows become batches where the recipe's way would cost too much, or padding can be done without."""
    if card is None:
        return {}
    if not arguments.packing:
        joined = apart and attention != "flex_attention"
        return {"padding_free": True} if joined and "padding_free" not in recipe.training else {}
    if apart or recipe.model.attention != "auto" or not len(lengths) or recipe.data.streaming:
        return {}
    packed, padded = work_of_packing(config, arguments, lengths)
    if packed <= padded:
        return {}
    each = max(1, round(_FILLED * int(arguments.max_length) / float(lengths.mean())))
    notes.append(
        f"rows are not packed: without attention that keeps them apart it would be {packed / padded:.1f} times the "
        f"work of batches of like length, which are made of {each} times as many rows a step instead"
    )
    accumulation = int(arguments.gradient_accumulation_steps) * each
    return {
        "packing": False,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "group_by_length",
    }


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


def work_of_packing(config: PretrainedConfig, arguments: trl.SFTConfig, lengths: Lengths) -> tuple[float, float]:
    """Work a useful token, packed with a mask of all tokens by all tokens, and padded in groups of like length.

    In units of 2 FLOP a weight of the layers. Attention over S tokens takes 2 S H multiplications a token and layer
    (H: heads times their size), counted `_MASKED_ATTENTION` times for its slower kernels; padding is work like any.
    """
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    inner = int(getattr(text, "intermediate_size", 4 * text.hidden_size))
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    weights = text.hidden_size * size * (2 * heads + 2 * groups) + 3 * text.hidden_size * inner
    rows = int(arguments.per_device_train_batch_size)
    joined = arguments.packing_strategy in ("bfd", "bfd_split")  # TRL makes one row of the whole batch
    tokens = int(arguments.max_length) * (rows if joined else 1)
    packed = 1 + _MASKED_ATTENTION * 2 * tokens * heads * size / weights
    ordered = np.sort(lengths)
    batches = np.concatenate([ordered, np.zeros(-len(ordered) % rows, np.int64)]).reshape(-1, rows)
    return packed, float((batches.max(axis=1) * (batches > 0).sum(axis=1)).sum() / max(int(lengths.sum()), 1))


def _sizes(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    arguments: trl.SFTConfig,
    lengths: Lengths,
    trained_share: float,
    card: Card | None,
    given: Choice,
    processes: int,
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
    for settings in _candidates(open_keys, rows, accumulation, now):
        tried = _with(now, settings)
        found = _estimate(recipe, config, precision, tried, lengths, trained_share, given, processes)
        if found is None:
            break
        needed = card_needs(found)
        if (1 + ERROR) * needed <= card.memory_bytes:
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
    return list(_candidates(open_keys, rows, accumulation, now))[-1]


def _candidates(open_keys: set[str], rows: int, accumulation: int, now: trl.SFTConfig) -> Iterator[dict[str, Any]]:
    """Settings from fast and large to slow and small; the keys that are not open stay out."""
    sizes = [rows]
    if "per_device_train_batch_size" in open_keys:
        sizes = [size for size in range(accumulation, 0, -1) if accumulation % size == 0]
        longest = int(now.max_length or 1)
        sizes = [size for size in sizes if size * longest <= _MOST_TOKENS] or [1]
    choices = [False, True] if "gradient_checkpointing" in open_keys else [None]
    optims = (USUAL_OPTIM,) if _sharded() else (USUAL_OPTIM, SMALL_OPTIM)  # the states are in shares already
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


def _estimate(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    now: Any,
    lengths: Lengths,
    trained_share: float,
    given: Choice,
    processes: int,
) -> Estimate | None:
    return estimate(
        recipe,
        config,
        precision,
        largest_batch(lengths, trained_share, now),
        checkpointing=bool(now.gradient_checkpointing),
        optim=str(getattr(now.optim, "value", now.optim)),
        fused_layers=given.fused_layers,
        in_place_adapters=given.together,
        attention="sdpa" if given.attention == "auto" else given.attention,
        accumulates=int(now.gradient_accumulation_steps) > 1,
        processes=processes,
    )


def largest_batch(lengths: Lengths, trained_share: float, now: Any) -> Work:
    """The largest micro-batch of rows of these lengths, in an order that is possible and not the run's own."""
    rows, longest = int(now.per_device_train_batch_size), int(lengths.max())
    if now.packing:
        row = int(now.max_length)
        if now.packing_strategy in ("bfd", "bfd_split"):
            tokens = max(min(rows * row, int(lengths.sum())), longest)
            return Work(1, tokens, tokens, math.ceil(tokens * trained_share), longest)
        return Work(rows, row, rows * row, math.ceil(rows * row * trained_share), longest)
    ordered = np.sort(lengths)
    if str(now.train_sampling_strategy) != "group_by_length":
        ordered = np.random.default_rng(now.seed).permutation(lengths)
    batches = np.concatenate([ordered, np.zeros(-len(ordered) % rows, np.int64)]).reshape(-1, rows)
    useful = int(batches.sum(axis=1).max())
    if now.padding_free:
        return Work(1, useful, useful, math.ceil(useful * trained_share), longest)
    return Work(rows, longest, rows * longest, math.ceil(useful * trained_share), longest)
