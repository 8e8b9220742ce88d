"""Which base a QLoRA adapter is merged into, by the loss of either on the same held-out rows.

Neither is right as such: the adapter was trained on what 4 bits made of the weights, and the original weights are the
better model (unsloth-zoo #810).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bitsandbytes
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit import modeling
from recipe_kit.evaluation import inference
from recipe_kit.evaluation.perplexity import row_losses
from recipe_kit.merge.parity import free_memory, load_merged
from recipe_kit.merge.rows import Row
from recipe_kit.merge.weights import Source

ROWS = 64  # held-out rows that decide
NOISE = 1e-4  # nats a token: below this two losses are the same


def choose(
    folders: Mapping[str, Path],
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    arithmetic: str,
) -> tuple[str, dict[str, Any]]:
    """The base to keep, and what was measured: answer-token losses of both folders and of the run as trained."""
    pad_id = int(tokenizer.pad_token_id)
    losses = {"as_trained": _as_trained(source, tokenizer, rows)}
    free_memory()
    for name, folder in folders.items():
        losses[name] = _loss(load_merged(folder, source.recipe, arithmetic), rows, pad_id)
        free_memory()
    better = "nf4" if losses["nf4"] < losses["original"] - NOISE else "original"
    tokens = sum(label != -100 for row in rows for label in row.labels[1:])
    return better, {"reason": _reason(better, losses), "rows": len(rows), "tokens": tokens, "loss": losses}


def _reason(better: str, losses: Mapping[str, float]) -> str:
    gap = losses["original"] - losses["nf4"]
    if abs(gap) <= NOISE:
        return "the same loss on held-out rows with either base: the original weights"
    words = {"nf4": "the base as 4 bits made it", "original": "the original weights"}
    return f"a loss on held-out rows lower by {abs(gap):.4f} nats a token with {words[better]}"


def _as_trained(source: Source, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> float:
    """The loss of the adapter on its 4-bit base."""
    precision = modeling.choose_precision(source.recipe, [])
    model = modeling.load_tuned(source.recipe, source.adapter.folder, tokenizer, precision, quantize=True)
    return _loss(model, rows, int(tokenizer.pad_token_id))


def _loss(model: PreTrainedModel, rows: Sequence[Row], pad_id: int) -> float:
    with inference(model):
        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                # In evaluation mode bitsandbytes 0.50 repacks 4-bit weights on a CPU with AVX512-BF16, rounding their
                # scales. The layer has no dropout: in training mode it computes as it did in training, and no more.
                module.train()
        found = row_losses(model, rows, pad_id=pad_id)
    return sum(row.answer_sum for row in found) / sum(row.answer_tokens for row in found)
