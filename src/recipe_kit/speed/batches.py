"""How rows become batches: packed, padded or joined, whichever is the least work, and how large a batch may be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PretrainedConfig

from recipe_kit.recipe import Recipe
from recipe_kit.speed.card import Card
from recipe_kit.speed.moments import Work

if TYPE_CHECKING:
    import numpy.typing as npt
    import trl

    Lengths = npt.NDArray[np.int64]

# Masked attention is taken to reach a quarter of the arithmetic rate of the matrix products around it: an assumption.
_MASKED_ATTENTION = 4.0
_FILLED = 0.97  # of its slots, a pack of best-fit packing is filled


def choose_rows(
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
