"""A step that does not fit into memory, computed in smaller parts: the same rows, the same sum, the same update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import trl
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache

from recipe_kit.out_of_memory import ONE_ROW, Watch, is_out_of_memory

Batch = dict[str, Any]  # of TRL's collator: padded `(rows, time)`, or rows laid end to end in `(1, time)`


def cut(batch: Batch, halvings: int, *, multiple: int = 1) -> list[Batch]:
    """The batch in at most `2 ** halvings` parts, none of which cuts a row; a single row stays whole.

    Padding that a part does not need is left out, up to a width that is a multiple of `multiple`.
    """
    parts = [batch]
    for _ in range(halvings):
        parts = [half for part in parts for half in _halves(part, multiple)]
    return parts


def row_count(batch: Batch) -> int:
    """Rows of a batch, padded or end to end."""
    return len(_starts(batch)) if _is_packed(batch) else len(batch["input_ids"])


def _halves(batch: Batch, multiple: int) -> list[Batch]:
    rows = row_count(batch)
    if rows == 1:
        return [batch]
    if not _is_packed(batch):
        return [_rows(batch, 0, rows // 2, multiple), _rows(batch, rows // 2, rows, multiple)]
    length = batch["input_ids"].shape[1]
    middle = min(_starts(batch)[1:], key=lambda start: abs(start - length / 2))
    return [_span(batch, 0, middle), _span(batch, middle, length)]


def _is_packed(batch: Batch) -> bool:
    return "attention_mask" not in batch


def _starts(batch: Batch) -> list[int]:
    """Where the rows of a packed batch begin."""
    starts: list[int] = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    return starts


def _rows(batch: Batch, first: int, end: int, multiple: int) -> Batch:
    """Some rows of a padded batch, without the columns that are padding in all of them."""
    shape = batch["input_ids"].shape
    used = int(batch["attention_mask"][first:end].any(dim=0).nonzero().max()) + 1
    width = min(-(-used // multiple) * multiple, shape[1])
    return {
        name: value[first:end, :width].contiguous() if _is_tensor(value, shape) else value
        for name, value in batch.items()
    }


def _span(batch: Batch, first: int, end: int) -> Batch:
    """The rows of a packed batch that lie between two of its boundaries, with boundaries of their own."""
    shape = batch["input_ids"].shape
    part = {name: value[:, first:end] if _is_tensor(value, shape) else value for name, value in batch.items()}
    if "seq_idx" in part:
        part["seq_idx"] = part["seq_idx"] - part["seq_idx"][0, 0]
    if "cu_seq_lens_q" in part:
        given = batch["cu_seq_lens_q"]
        bounds = [*(start - first for start in _starts(batch) if first <= start < end), end - first]
        longest = max(after - before for before, after in pairwise(bounds))
        part["cu_seq_lens_q"] = part["cu_seq_lens_k"] = torch.tensor(bounds, dtype=given.dtype, device=given.device)
        part["max_length_q"] = part["max_length_k"] = longest
    return part


def _is_tensor(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == shape


def _trained_tokens(batch: Batch) -> int:
    """Labels that count; the first token of a row never does."""
    return int((batch["labels"][:, 1:] != -100).sum())


class HalvingTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, which says in which phase it is, and repeats a step that ran out of memory in smaller parts.

    A loss is a sum over trained tokens divided by their number in the whole step (`num_items_in_batch`), so the losses
    and gradients of parts add up to those of the batch. Nothing of a step that failed is kept: gradients are dropped,
    and its earlier batches are computed again. Losses that are no such sum, as that which balances the experts of a
    mixture, are averaged over the parts. Only a process on its own does this: in others, the rest would wait for it.
    """

    current_gradient_accumulation_steps: int  # transformers' own

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.watch = Watch()
        self._halvings = 0
        self._step: list[Batch] = []  # batches of the step under way, up to the current one
        self._logged: tuple[dict[str, int], int] = ({}, 0)
        super().__init__(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of the next step."""
        self._step = []
        self._logged = {name: len(values) for name, values in self._metrics["train"].items()}, self._total_train_tokens
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        self.watch.step = self.state.global_step + 1
        self._step.append(inputs)
        loss = self._attempt(model, [inputs], num_items_in_batch)
        while loss is None:
            self._halve()
            loss = self._attempt(model, self._step, num_items_in_batch)
        self.watch.phase = "optimiser"
        return loss

    def _attempt(self, model: torch.nn.Module, batches: Sequence[Batch], items: Any) -> torch.Tensor | None:
        """The loss of the last of these batches; None where memory ran out and smaller parts can be tried.

        The caller tries again, and not an `except` block: the error holds the frames, and these the tensors.
        """
        part: Batch = {}
        try:
            for batch in batches:
                parts = cut(batch, self._halvings, multiple=self.args.pad_to_multiple_of or 1)
                losses = []
                with self._as_one(batch, parts, items) as divisor:
                    for part in parts:
                        losses.append(super().training_step(model, part, divisor))
            return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        except RuntimeError as error:
            if not is_out_of_memory(error) or not self._may_halve(part):
                raise
        return None

    @contextmanager
    def _as_one(self, batch: Batch, parts: Sequence[Batch], items: Any) -> Iterator[Any]:
        """Let the parts count as one batch: what their losses are divided by, and one value of each in the log."""
        if len(parts) == 1:
            yield items
            return
        steps, logged = self.current_gradient_accumulation_steps, self._metrics["train"]
        if items is None:  # each batch is averaged on its own
            items = _trained_tokens(batch)
        else:  # divides only what balances experts
            self.current_gradient_accumulation_steps = steps * len(parts)
        try:
            yield items
        finally:
            self.current_gradient_accumulation_steps = steps
        weights = [_trained_tokens(part) for part in parts]
        for name, values in logged.items():
            if name != "num_tokens":  # a sum already
                weighted = zip(values[-len(parts) :], weights, strict=True)
                values[-len(parts) :] = [sum(value * weight for value, weight in weighted) / max(sum(weights), 1)]

    def _may_halve(self, part: Batch) -> bool:
        watch = self.watch
        if watch.recipe is None or watch.recipe.launch.on_oom == "stop":
            return False
        if self.args.world_size > 1:
            watch.obstacle = f"not halved, since {self.args.world_size} processes wait for one another in every step"
        elif self.accelerator.distributed_type != DistributedType.NO:
            watch.obstacle = "not halved, since the weights or the optimiser are sharded"
        elif row_count(part) == 1:
            watch.obstacle = ONE_ROW
        return not watch.obstacle

    def _halve(self) -> None:
        """Back to the beginning of the step, with twice as many parts."""
        self._halvings += 1
        self.watch.parts = 2**self._halvings
        self.watch.note(
            f"out of GPU memory {self.watch.place}: each batch ({row_count(self._step[-1])} rows in this one) is now "
            f"computed in {self.watch.parts} parts; the step is repeated, and the effective batch stays as it is"
        )
        self.model.zero_grad()
        clear_device_cache(garbage_collection=True)
        lengths, self._total_train_tokens = self._logged
        for name, values in self._metrics["train"].items():
            del values[lengths.get(name, 0) :]

    def compute_loss(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.model.training:
            return super().compute_loss(model, *args, **kwargs)
        self.watch.phase = "forward"
        loss = super().compute_loss(model, *args, **kwargs)
        self.watch.phase = "backward"
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.watch.during("evaluation"):
            return super().evaluate(*args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        with self.watch.during("save"):
            super().save_model(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.watch.during("save"):
            super()._save_checkpoint(*args, **kwargs)
