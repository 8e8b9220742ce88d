"""How rows become batches and batches become optimiser steps, as TRL and transformers will count them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from recipe_kit.data.lengths import Lengths
from recipe_kit.plan.shape import BatchesPart, PackedPart, StepsPart

if TYPE_CHECKING:
    import datasets
    import trl

_HINT_ROWS = 20_000  # what packing would give is told from this many rows
_PACKED_AT_ONCE = 1_000  # rows that TRL packs among themselves: the batch size of `Dataset.map`


def batches_part(lengths: Lengths, arguments: trl.SFTConfig) -> BatchesPart:
    """Rows an epoch has once TRL has packed them, and how much of its batches is padding.

    With packing on, TRL's own `pack_dataset` runs on rows of these lengths. With packing off the padding is what the
    trainer's kind of sampling gives with the recipe's seed: near to the run's, and not its very order.
    """
    max_length = int(arguments.max_length)
    if arguments.packing:
        packed = packed_lengths(lengths, arguments)
        joined = arguments.packing_strategy in ("bfd", "bfd_split")  # batches are one long row each, without padding
        return {
            "rows": len(packed),
            "padding_share": 0.0 if joined else padding_share(packed, arguments),
            "packed": _packed_part(packed, max_length, arguments),
            "packed_instead": None,
        }
    some = lengths
    if len(lengths) > _HINT_ROWS:
        some = np.random.default_rng(arguments.seed).choice(lengths, _HINT_ROWS, replace=False)
    instead = _packed_part(packed_lengths(some, arguments), max_length, arguments)
    if len(some) < len(lengths):
        instead["rows"] = math.ceil(instead["rows"] * len(lengths) / len(some))
        instead["estimated"] = True
    padding = 0.0 if arguments.padding_free else padding_share(lengths[sampling_order(lengths, arguments)], arguments)
    return {"rows": len(lengths), "padding_share": padding, "packed": None, "packed_instead": instead}


def packed_lengths(lengths: Lengths, arguments: trl.SFTConfig) -> Lengths:
    """Tokens of each row that TRL packs from rows of these lengths, in the pieces in which the trainer packs them.

    Only lengths go in, so a million rows take the memory of no token.
    """
    from trl import pack_dataset

    from recipe_kit.plan.rows import row_lengths

    rows = _rows_of(lengths)
    if arguments.shuffle_dataset:
        rows = rows.shuffle(seed=arguments.seed, keep_in_memory=True)
    processes = min(arguments.dataset_num_proc or 1, max(len(rows), 1))
    shards = [rows.shard(processes, index, contiguous=True) for index in range(processes)]
    options = {"keep_in_memory": True, "batch_size": _PACKED_AT_ONCE}
    with _no_bars():
        packed = [pack_dataset(shard, arguments.max_length, arguments.packing_strategy, options) for shard in shards]
    return np.concatenate([row_lengths(shard) for shard in packed])


def padding_share(lengths: Lengths, arguments: trl.SFTConfig) -> float:
    """Share of padding in batches of `per_device_train_batch_size` rows taken in this order."""
    if not len(lengths):
        return 0.0
    size = int(arguments.per_device_train_batch_size)
    short = -len(lengths) % size
    batches = np.concatenate([lengths, np.zeros(short, np.int64)]).reshape(-1, size)
    multiple = arguments.pad_to_multiple_of or 1
    widths = -(-batches.max(axis=1) // multiple) * multiple
    slots = int(widths.sum()) * size - (int(widths[-1]) * short if short else 0)
    return 1 - int(lengths.sum()) / max(slots, 1)


def steps_part(
    rows: int, tokens: tuple[int, int], arguments: trl.SFTConfig, processes: int, *, streamed: bool = False
) -> StepsPart:
    """Optimiser steps of an epoch and of the run over `rows` rows with `tokens`, all and trained ones, in them.

    Counts as `Trainer.set_initial_training_values` of transformers 5.23 does, over the batches that accelerate's
    `BatchSamplerShard` deals to the first process. Rows that are `streamed` are some of many: an epoch has no end.
    """
    size, accumulation = int(arguments.per_device_train_batch_size), int(arguments.gradient_accumulation_steps)
    effective = size * accumulation * processes
    per_epoch = None if streamed else steps_per_epoch(rows, size, accumulation, processes, arguments)
    if arguments.max_steps > 0:
        steps = int(arguments.max_steps)
        epochs = steps / per_epoch if per_epoch else None
    else:
        steps = math.ceil(arguments.num_train_epochs * (per_epoch or 0))
        epochs = float(arguments.num_train_epochs)
    steps_of_rows = per_epoch or max(rows / effective, 1)
    return {
        "rows_per_device": size,
        "accumulation": accumulation,
        "processes": processes,
        "effective_batch_size": effective,
        "steps_per_epoch": per_epoch,
        "steps": steps,
        "epochs": epochs,
        "tokens_per_step": round(tokens[0] / steps_of_rows),
        "trained_tokens_per_step": round(tokens[1] / steps_of_rows),
    }


def steps_per_epoch(rows: int, size: int, accumulation: int, processes: int, arguments: trl.SFTConfig) -> int:
    """Optimiser steps of one pass over the rows; 0 where `dataloader_drop_last` leaves no batch."""
    drop_last = bool(arguments.dataloader_drop_last)
    batches = rows // size if drop_last else math.ceil(rows / size)
    dealt = batches // processes if drop_last else math.ceil(batches / processes)
    return math.ceil(dealt / accumulation)


def _packed_part(packed: Lengths, max_length: int, arguments: trl.SFTConfig) -> PackedPart:
    filled = float(packed.sum()) / max(len(packed) * max_length, 1)
    strategy = str(arguments.packing_strategy)
    return {"strategy": strategy, "rows": len(packed), "filled_share": filled, "estimated": False}


def sampling_order(lengths: Lengths, arguments: trl.SFTConfig) -> Lengths:
    """An order in which the trainer's kind of sampler could deal the rows."""
    strategy = str(arguments.train_sampling_strategy)
    if strategy == "group_by_length":
        import torch
        from transformers.trainer_pt_utils import LengthGroupedSampler

        sampler = LengthGroupedSampler(
            int(arguments.per_device_train_batch_size) * int(arguments.gradient_accumulation_steps),
            lengths=lengths.tolist(),
            generator=torch.Generator().manual_seed(int(arguments.seed)),
        )
        return np.fromiter(sampler, np.int64, len(lengths))
    if strategy == "sequential" and not arguments.shuffle_dataset:
        return np.arange(len(lengths), dtype=np.int64)
    return np.random.default_rng(arguments.seed).permutation(len(lengths))


@contextmanager
def _no_bars() -> Iterator[None]:
    """Packing lengths takes a moment; a bar for it would only flash by."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _rows_of(lengths: Lengths) -> datasets.Dataset:
    """Rows of nothing with these lengths: an Arrow list of nulls stores its offsets only."""
    import datasets
    import pyarrow as pa

    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.nulls(int(offsets[-1])))
    return datasets.Dataset(pa.table({"input_ids": column}))
