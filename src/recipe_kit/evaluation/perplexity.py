"""Token-weighted loss: sums over tokens, divided once at the very end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from recipe_kit.labels import IGNORED
from recipe_kit.run_dir import Score


@torch.inference_mode()
def loss_sum(model: PreTrainedModel, input_ids: Sequence[int], labels: Sequence[int]) -> tuple[float, int]:
    """Sum of the negative log-likelihoods of one row's trained tokens, in nats, and their number.

    Logits are made only for the positions that predict a trained token, in float32, and are gone when this returns:
    memory does not grow with the number of rows. A trained first token has nothing before it and is left out, as in
    training.
    """
    positions = [index for index in range(1, len(labels)) if labels[index] != IGNORED]
    if not positions:
        return 0.0, 0
    device = model.device
    logits = model(
        input_ids=torch.tensor([list(input_ids)], device=device),
        attention_mask=torch.ones(1, len(input_ids), dtype=torch.long, device=device),
        logits_to_keep=torch.tensor([index - 1 for index in positions], device=device),
        use_cache=False,
    ).logits[0]
    targets = torch.tensor([labels[index] for index in positions], device=device)
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    return float(losses.double().sum()), len(positions)


def score(loss_total: float, token_count: int) -> Score:
    """Mean loss per token and its exponential, from sums over all rows and ranks."""
    loss = loss_total / token_count
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": token_count}
