"""Whether a step learns the same however its rows are cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import trl
from transformers import PreTrainedModel, TrainerCallback

from recipe_kit.labels import IGNORED
from recipe_kit.proofs import Verdict
from recipe_kit.wiring.setup import FLOAT32_TOLERANCE, Row, Setup, folded, tail, trained
from recipe_kit.wiring.small import miniature

_TRAINED = (1, 2, 3, 5, 8, 13, 21, 34)  # trained tokens of the eight rows, context apart
_CONTEXT = 8  # tokens


def batch_size_does_not_matter(setup: Setup) -> Verdict:
    """Whether eight rows give one loss and one gradient, as one batch and one at a time.

    The rows are ends of the user's, with 1 to 34 trained tokens each: averaging over each micro-batch on its own, as
    transformers once did, gives another loss. The plain loss is also computed from the model's own logits.
    """
    name, arguments = "batch_size_does_not_matter", setup.arguments
    rows = _uneven(setup.rows, arguments.max_length)
    longest = max(len(ids) for ids, _ in rows)
    changes: dict[str, Any] = {
        "max_length": longest if arguments.max_length else None,  # where rows are packed, they make several packs
        "max_steps": 1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "router_aux_loss_coef": 0.0,  # balances the experts within a batch: not a mean over tokens
        "use_liger_kernel": False,
    }
    count = len(setup.trainer(miniature(setup.config), rows, **changes).train_dataset)
    steps = []
    for size in (count, 1):
        changes |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": count // size}
        steps.append(_one_step(setup.trainer(miniature(setup.config), rows, **changes)))
    (loss, gradients), (loss_by_one, gradients_by_one) = steps
    losses = [loss, loss_by_one]
    seen = (
        f"8 rows with 1 to {max(map(trained, rows))} trained tokens give loss {loss:.6f} in one batch of "
        f"{count} and {loss_by_one:.6f} in {count} of one"
    )
    if arguments.loss_type == "nll" and not arguments.label_smoothing_factor:
        losses.append(_plain_loss(miniature(setup.config), rows))
        seen += f", {losses[-1]:.6f} by hand"
    gap = _largest([a - b for a, b in zip(gradients, gradients_by_one, strict=True)]) / _largest(gradients)
    seen += f"; gradients differ by {gap:.1e} of their largest value"
    loss_gap = max(abs(other / loss - 1) for other in losses[1:])
    if not (loss_gap <= FLOAT32_TOLERANCE and gap <= FLOAT32_TOLERANCE):  # nor when one of them is not a number
        return Verdict(
            name,
            False,
            seen,
            "use versions of trl and transformers that divide the loss once, by all trained tokens of a step (with "
            "these, gradient_accumulation_steps changes what is learnt); where packed rows see each other, stop that",
        )
    return Verdict(name, True, seen)


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([tensor.abs().max() for tensor in tensors]).max())


def _plain_loss(model: PreTrainedModel, rows: Sequence[Row]) -> float:
    """Cross entropy summed over all trained tokens, each row on its own, divided once by their number."""
    total = 0.0
    with torch.no_grad():
        for ids, labels in rows:
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum"))
    return total / sum(map(trained, rows))


def _one_step(trainer: trl.SFTTrainer) -> tuple[float, list[torch.Tensor]]:
    """The loss of one optimiser step, summed over its micro-batches, and the gradients the optimiser is given."""
    losses: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    step = trainer.training_step

    def remembering(*args: Any, **kwargs: Any) -> torch.Tensor:
        losses.append(step(*args, **kwargs))
        return losses[-1]

    class Gradients(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            gradients.extend(p.grad.clone() for p in trainer.model.parameters() if p.grad is not None)

    trainer.training_step = remembering
    trainer.add_callback(Gradients)
    trainer.train()
    return float(sum(losses)), gradients


def _uneven(rows: Sequence[Row], max_length: int | None) -> list[Row]:
    """Eight short rows made of the ends of the given ones, with very different numbers of trained tokens."""
    made = []
    for number, count in enumerate(_TRAINED):
        length = min(count + _CONTEXT, max_length or count + _CONTEXT)
        ids, _ = folded(tail(rows[number % len(rows)], length))
        ids = (ids * length)[-length:]  # a row that is too short goes round
        made.append((ids, (*[IGNORED] * (length - count), *ids[-count:])))
    return made
