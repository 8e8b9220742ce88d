"""What the model is called with: the prepared rows and labels, each once?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import trl

from recipe_kit.labels import IGNORED
from recipe_kit.proofs import Verdict
from recipe_kit.wiring.setup import Row, Setup, pairs, trained
from recipe_kit.wiring.small import miniature


def labels_reach_the_model(setup: Setup) -> Verdict:
    """Whether the model is called with every row and label once, under the recipe's options and their neighbours.

    The neighbours are packing and fused kernels, each the other way round. The first label of a row is trained by
    nobody: it is expected to be gone.
    """
    name = "labels_reach_the_model"
    expected = [(ids, (IGNORED, *labels[1:])) for ids, labels in setup.rows]
    batches = 0
    for options in _neighbours(setup.arguments):
        trainer = setup.trainer(miniature(setup.config), setup.rows, **options)
        received: list[Row] = []
        for inputs in _inputs_of_the_model(trainer):
            received += pairs(_unpacked(inputs))
            batches += 1
        if problem := _difference(expected, received):
            shown = ", ".join(f"{key}: {str(value).lower()}" for key, value in options.items())
            return Verdict(
                name,
                False,
                f"with {shown} in `training`, {problem}",
                "leave out options that rewrite rows (packing_strategy: wrapped, a max_length below data.max_length); "
                "if there are none, use another version of trl",
            )
    packings = "packing on and off" if setup.arguments.max_length else "packing as it is"
    return Verdict(
        name,
        True,
        f"{len(setup.rows)} rows, {sum(map(trained, setup.rows)):,} labels: equal in {batches} batches, "
        f"with {packings} and with fused kernels on and off",
    )


def _neighbours(arguments: trl.SFTConfig) -> Iterator[dict[str, Any]]:
    """The recipe's own options first. Packing cannot be switched on without a length of packs."""
    own, fused = bool(arguments.packing), bool(arguments.use_liger_kernel)
    for packing in (own, not own) if arguments.max_length else (own,):
        other = {} if packing == own else {"packing_strategy": "bfd", "padding_free": False}
        yield {"packing": packing, **other, "use_liger_kernel": fused}
        yield {"packing": packing, **other, "use_liger_kernel": not fused}


class _ReachedError(Exception):
    """Carries what the model was called with out of the training step, before anything is computed."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs


def _inputs_of_the_model(trainer: trl.SFTTrainer) -> Iterator[dict[str, Any]]:
    def stop(module: torch.nn.Module, arguments: Any, inputs: dict[str, Any]) -> None:
        raise _ReachedError(inputs)

    trainer.model.register_forward_pre_hook(stop, with_kwargs=True)
    batches = iter(trainer.get_train_dataloader())
    while True:
        batch, label_count = trainer.get_batch_samples(batches, 1, trainer.args.device)
        if not batch:
            return
        labels = batch[0]["labels"]
        try:
            trainer.training_step(trainer.model, batch[0], label_count)
        except _ReachedError as reached:
            yield {"labels": labels, **reached.inputs}  # label smoothing calls the model without them


def _unpacked(inputs: Mapping[str, Any]) -> Iterator[dict[str, list[int]]]:
    """The rows in one batch, without padding: cut where positions start again, or where the attention mask ends.

    Variable-length attention goes by cumulative lengths instead; where those disagree, the rows of both are given.
    The first label of a sequence is dropped, as the model does; one further on would be trained.
    """
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    for index, (ids, labels) in enumerate(zip(inputs["input_ids"], inputs["labels"], strict=True)):
        labels = torch.cat([torch.full_like(labels[:1], IGNORED), labels[1:]])
        boundaries = {(0, len(ids))}
        if mask is not None:
            kept = mask[index].bool() | (labels != IGNORED)  # a label on padding is one that nobody prepared
            ids, labels, boundaries = ids[kept], labels[kept], {(0, int(kept.sum()))}
        elif positions is not None:
            boundaries = {(*(positions[index] == 0).nonzero().flatten().tolist(), len(ids))}
            boundaries |= {
                tuple(inputs[name].tolist()) for name in ("cu_seq_lens_q", "cu_seq_lens_k") if name in inputs
            }
        for cuts in boundaries:
            for start, end in pairwise(cuts):
                yield {"input_ids": ids[start:end].tolist(), "labels": labels[start:end].tolist()}


def _difference(prepared: Sequence[Row], received: Sequence[Row]) -> str:
    """The first prepared row that was not received as it is, in words; empty when both are the same, in any order."""
    missing, surplus = Counter(prepared) - Counter(received), Counter(received) - Counter(prepared)
    if not missing:
        return f"{surplus.total()} rows reach the model that were not prepared" if surplus else ""
    number, (ids, labels) = next((n, row) for n, row in enumerate(prepared, start=1) if row in missing)
    where = f"row {number} of {len(prepared)}"
    for other_ids, other_labels in surplus:
        if other_ids == ids:
            wrong = [place for place in range(len(ids)) if labels[place] != other_labels[place]]
            return (
                f"{where} reaches the model with {len(wrong)} of {len(ids)} labels changed, first that of token "
                f"{wrong[0] + 1}: {labels[wrong[0]]} was prepared, {other_labels[wrong[0]]} arrives"
            )
    for other_ids, _ in surplus:
        if other_ids and (other_ids == ids[: len(other_ids)] or other_ids == ids[-len(other_ids) :]):
            return f"{where} reaches the model cut: {len(other_ids)} of its {len(ids)} tokens arrive in one piece"
    return f"{where} ({len(ids)} tokens) does not reach the model ({missing.total()} rows are missing)"
