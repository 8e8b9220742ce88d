"""Token-weighted loss: sums over tokens, divided once at the very end.

Rows go through the model in batches of similar length; logits exist for a few hundred positions at a time, so memory
depends neither on the number of rows nor on how much of them is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from recipe_kit.errors import ModelError
from recipe_kit.labels import IGNORED
from recipe_kit.run_dir import Score

LOGIT_BYTES = 2**28  # of float32 logits at a time
TOKENS_AT_ONCE = {"cuda": 16384, "cpu": 1024}  # padded tokens in one forward pass


@dataclass(frozen=True)
class RowLoss:
    """Sums of negative log-likelihoods of one row, in nats, and how many tokens they are over.

    `answer` counts the trained tokens, `every` all tokens that have one before them, `turns` the trained tokens of
    each unbroken stretch. A first token is predicted by nothing and left out, as in training.
    """

    answer_sum: float
    answer_tokens: int
    every_sum: float
    every_tokens: int
    turns: list[tuple[float, int]] = field(default_factory=list)


@torch.inference_mode()
def row_losses(
    model: PreTrainedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    tokens_at_once: int | None = None,
    packed: bool = False,
    on_rows: Callable[[int], None] = lambda count: None,
) -> list[RowLoss]:
    """The losses of rows `(input_ids, labels)`, in their order.

    Batches are padded on the right. `packed` lays rows one after another instead, with positions that start anew, as
    training with packing does. `on_rows` hears how many rows were just done.
    """
    limit = tokens_at_once or TOKENS_AT_ONCE["cuda" if model.device.type == "cuda" else "cpu"]
    found: dict[int, RowLoss] = {}
    for batch in _batches([len(ids) for ids, _ in rows], limit, packed):
        by_row = _halved_if_needed(model, [rows[index][0] for index in batch], pad_id, packed)
        for index, losses in zip(batch, by_row, strict=True):
            found[index] = _row_loss(losses, rows[index][1])
        on_rows(len(batch))
    return [found[index] for index in range(len(rows))]


def score(loss_total: float, token_count: int) -> Score:
    """Mean loss per token and its exponential, from sums over all rows and ranks."""
    loss = loss_total / token_count
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": token_count}


def _batches(lengths: Sequence[int], limit: int, packed: bool) -> Iterator[list[int]]:
    """Indices of rows that fit into one forward pass together, longest first: what does not fit fails at once."""
    batch: list[int] = []
    size = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        grown = size + lengths[index] if packed else (len(batch) + 1) * lengths[batch[0] if batch else index]
        if batch and grown > limit:
            yield batch
            batch, grown = [], lengths[index]
        batch.append(index)
        size = grown
    if batch:
        yield batch


def check_packed(model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, pad_id: int) -> None:
    """Raises ModelError when rows laid one after another see each other: the architecture takes no boundaries."""
    few = rows[:4]
    padded, packed = (row_losses(model, few, pad_id=pad_id, packed=layout) for layout in (False, True))
    exact = next(model.parameters()).dtype == torch.float32
    for one, other in zip(padded, packed, strict=True):
        if abs(one.every_sum - other.every_sum) > (1e-3 if exact else 0.03) * max(one.every_sum, 1.0):
            raise ModelError(
                f"--packed: rows of {model.config.model_type} see each other when laid one after another "
                f"({one.every_sum:.2f} nats alone, {other.every_sum:.2f} packed); measure without --packed"
            )


def _halved_if_needed(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int, packed: bool
) -> list[NDArray[np.float64]]:
    """`_token_losses`; rows that do not fit into memory together are taken in halves."""
    try:
        return _token_losses(model, rows, pad_id, packed)
    except torch.cuda.OutOfMemoryError:
        if len(rows) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(rows) // 2
    parts = (_halved_if_needed(model, part, pad_id, packed) for part in (rows[:half], rows[half:]))
    return [losses for part in parts for losses in part]


def _token_losses(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int, packed: bool
) -> list[NDArray[np.float64]]:
    """The loss of every token of each row but its first, `(length - 1,)` each."""
    lengths = [len(ids) for ids in rows]
    if packed:
        inputs = {
            "input_ids": torch.tensor([[token for ids in rows for token in ids]]),
            "position_ids": torch.tensor([[place for length in lengths for place in range(length)]]),
        }
    else:
        width = max(lengths)
        inputs = {
            "input_ids": torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in rows]),
            "attention_mask": torch.tensor([[1] * n + [0] * (width - n) for n in lengths]),
        }
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    losses = _next_token_losses(model, inputs).double().cpu().numpy()
    if packed:
        starts = np.cumsum([0, *lengths])
        return [losses[0, start : start + n - 1] for start, n in zip(starts, lengths, strict=False)]
    return [losses[row, : n - 1] for row, n in enumerate(lengths)]


def _next_token_losses(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss of each next token, `(batch, time - 1)` in float32."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.get_decoder()
    if decoder is None or decoder is base:  # an architecture that does not say what comes before its head
        return _cross_entropy(model(**inputs, use_cache=False).logits[:, :-1], inputs["input_ids"][:, 1:])
    output = decoder(**inputs, use_cache=False)
    hidden = output.last_hidden_state[:, :-1]
    targets = inputs["input_ids"][:, 1:]
    step = max(1, LOGIT_BYTES // (4 * base.config.get_text_config().vocab_size * len(targets)))
    with _given(decoder, type(output)) as give:
        parts = []
        for start in range(0, hidden.shape[1], step):
            give(hidden[:, start : start + step])
            logits = base(input_ids=targets[:, start : start + step], use_cache=False).logits
            parts.append(_cross_entropy(logits, targets[:, start : start + step]))
    return torch.cat(parts, dim=1) if parts else torch.empty(targets.shape, device=targets.device)


@contextmanager
def _given(decoder: torch.nn.Module, kind: type[ModelOutput]) -> Iterator[Callable[[torch.Tensor], None]]:
    """Let `decoder` return hidden states that are given to it, in an output of its own kind.

    The model then applies its own head to them, with whatever caps and scales its logits (Gemma, Cohere, Granite).
    """
    states: list[torch.Tensor] = []

    def give(hidden: torch.Tensor) -> None:
        states[:] = [hidden]

    own = decoder.forward
    decoder.forward = lambda *args, **kwargs: kind(last_hidden_state=states[0])
    try:
        yield give
    finally:
        decoder.forward = own


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    flat = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def _row_loss(losses: NDArray[np.float64], labels: Sequence[int]) -> RowLoss:
    trained = np.asarray(labels[1:]) != IGNORED
    turns, start = [], 0
    for is_trained, group in groupby(trained.tolist()):
        length = sum(1 for _ in group)
        if is_trained:
            turns.append((float(losses[start : start + length].sum()), length))
        start += length
    return RowLoss(float(losses[trained].sum()), int(trained.sum()), float(losses.sum()), len(losses), turns)
