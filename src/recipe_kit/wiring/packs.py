"""Whether rows packed into one sequence see each other: their logits together and alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import trl
from transformers import PreTrainedModel

from recipe_kit.proofs import Verdict
from recipe_kit.wiring.setup import FLOAT32_TOLERANCE, Row, Setup, folded, pairs, tail
from recipe_kit.wiring.small import miniature


def isolation(
    model: PreTrainedModel,
    trainer: trl.SFTTrainer,
    rows: Iterable[Mapping[str, Any]],
    tolerance: float | None = None,
) -> Verdict:
    """Verdict `packed_rows_isolated`: whether a row's logits are the same in a packed batch as alone.

    Four rows of at most 48 tokens are looked at, in evaluation mode and in the trainer's precision. `tolerance` is the
    largest gap of a logit that counts as equal. Without it the gap may be four times what merely padding a row does
    to its logits, or four times the rounding of the largest logit (in float16 eight times, in float32 1e-4 of it). As
    a control the rows are joined without boundaries: a model that hardly notices this cannot be judged (`ok=None`).

    Sharded weights are gathered in a forward pass: then every rank must call this, with the same rows.
    """
    name, options = "packed_rows_isolated", trainer.args
    if not (options.packing or options.padding_free):
        return Verdict(name, True, "rows are not packed")
    short = [tail(pair, 48) for pair in pairs(rows)[:4]]
    if len(short) < 2:
        return Verdict(name, None, "two rows are needed to see whether one sees the other")
    gaps = _gaps(model, trainer, short)
    allowed = tolerance if tolerance is not None else max(4 * gaps.padded, gaps.rounding * gaps.scale)
    seen = (
        f"{len(short)} packed rows: logits within {gaps.packed:.1e} of each row alone, {allowed:.1e} allowed "
        f"(padding moves them by {gaps.padded:.1e}, joining the rows without boundaries by {gaps.joined:.1e})"
    )
    if not gaps.packed <= allowed:  # nor when one of them is not a number
        return Verdict(
            name,
            False,
            f"packed rows see each other; {seen}",
            "set training.packing: false, or model.attention: sdpa or flash_attention_2 with packing_strategy: bfd",
        )
    if not gaps.joined > 2 * allowed:
        return Verdict(name, None, f"this model is too indifferent to its context to tell; {seen}")
    return Verdict(name, True, seen)


def packed_rows_isolated(setup: Setup) -> Verdict:
    """`isolation` of a miniature, with the recipe's attention where a CPU has it."""
    packed = setup.arguments.packing or setup.arguments.padding_free
    model = miniature(setup.config, attention=setup.attention if packed else "auto")
    rows = [folded(row) for row in setup.rows]
    trainer = setup.trainer(model, rows)
    return isolation(model, trainer, [{"input_ids": ids, "labels": labels} for ids, labels in rows])


@dataclass(frozen=True)
class _Gaps:
    """Largest distances of a logit from that of its row alone."""

    packed: float
    padded: float
    joined: float
    scale: float  # the largest logit
    rounding: float  # the share of it that arithmetic in this precision may move it by


def _gaps(model: PreTrainedModel, trainer: trl.SFTTrainer, rows: Sequence[Row]) -> _Gaps:
    weight = model.get_input_embeddings().weight
    lengths = [len(ids) for ids, _ in rows]

    def logits(inputs: Mapping[str, Any]) -> torch.Tensor:
        inputs = {name: value.to(weight.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        inputs.pop("labels", None)
        # With a cache the masks of transformers ignore the boundaries of rows; training switches it off, too.
        found: torch.Tensor = model(**inputs, use_cache=False).logits
        return found

    def gap(found: Iterable[torch.Tensor]) -> float:
        gaps = [(one.float() - other.float()).abs().max() for one, other in zip(found, alone, strict=True)]
        return float(torch.stack(gaps).max())

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            alone = [logits({"input_ids": torch.tensor([ids])})[0] for ids, _ in rows]
            padded = logits(_padded(rows))
            together = logits(trainer.data_collator(_packed(trainer, rows)))[0]
            joined = logits({"input_ids": torch.tensor([[token for ids, _ in rows for token in ids]])})[0]
            return _Gaps(
                packed=gap(_cut(together, lengths)),
                padded=gap(row[:length] for row, length in zip(padded, lengths, strict=True)),
                joined=gap(_cut(joined, lengths)),
                scale=max(float(row.abs().max()) for row in alone),
                rounding=max(FLOAT32_TOLERANCE, *map(_rounding, (weight.dtype, joined.dtype))),
            )
    finally:
        for module in training:
            module.training = True


def _rounding(dtype: torch.dtype) -> float:
    """On an H100, sdpa's kernels move the logits of a 135M model by up to 2.0 roundings of the largest one in bfloat16
    and 2.7 in float16; rows that see each other move them by about 90, and 750."""
    return (8 if dtype == torch.float16 else 4) * torch.finfo(dtype).eps


def _cut(joined: torch.Tensor, lengths: Sequence[int]) -> Iterator[torch.Tensor]:
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        yield joined[end - length : end]


def _packed(trainer: trl.SFTTrainer, rows: Sequence[Row]) -> list[dict[str, list[int]]]:
    """What the collator is given for these rows: a pack as `trl.pack_dataset` makes it, or a padding-free batch."""
    if not trainer.args.packing:
        return [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in rows]
    pack = {
        "input_ids": [token for ids, _ in rows for token in ids],
        "labels": [label for _, labels in rows for label in labels],
    }
    if trainer.args.packing_strategy != "wrapped":  # which knows no rows
        pack["seq_lengths"] = [len(ids) for ids, _ in rows]
    return [pack]


def _padded(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """The rows side by side, padded to eight tokens more than the longest."""
    width = max(len(ids) for ids, _ in rows) + 8
    return {
        "input_ids": torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
    }
