"""Proofs on what was counted: overlap of splits, answers cut off, tokens without an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipe_kit.proofs.verdict import Rows, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answers_whole(train: Rows, limit: float) -> Verdict:
    """Few rows, and with them their last answer, are cut off by `data.max_length`."""
    counts = train.counts
    gone = sum(number for reason, number in counts.dropped.items() if reason.startswith("answer cut off whole"))
    share = (counts.truncated + gone) / max(counts.kept + gone, 1)
    cut, rows = counts.truncated + gone, counts.kept + gone
    detail = f"{cut:,} of {rows:,} rows are cut off ({100 * share:.1f} %, limit {100 * limit:.1f} %)"
    remedy = "raise data.max_length, set data.too_long: drop, or raise proofs.max_cut_off_share"
    return Verdict("answers_whole", share <= limit, detail, "" if share <= limit else remedy)


def no_overlap(splits: dict[str, Any]) -> Verdict:
    """No row that is measured on is trained on."""
    import numpy as np

    train: Rows = splits["train"]
    found, first = [], ""
    for name in ("eval", "test"):
        if name not in splits:
            continue
        common, theirs, ours = np.intersect1d(splits[name].digests, train.digests, return_indices=True)
        if len(common):
            found.append(f"{len(common):,} of data.{name}")
            first = first or f", first {splits[name].place(int(theirs[0]))} = {train.place(int(ours[0]))}"
    held_out = [name for name in ("eval", "test") if name in splits]
    if found:
        return Verdict(
            "no_overlap", False, f"rows that are measured on and trained on: {' and '.join(found)}{first}",
            "take them out of one side, or hold rows out with data.eval: {fraction: 0.05}",
        )  # fmt: skip
    if not held_out:
        return Verdict("no_overlap", True, "no rows are held out")
    rows = " and ".join(f"{len(splits[name].digests):,} of data.{name}" for name in held_out)
    return Verdict("no_overlap", True, f"{rows}, none of them among the {len(train.digests):,} training rows")


def no_added_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None, *, trains_embeddings: bool) -> Verdict:
    """No token without an embedding of the base model, unless embeddings are trained and saved."""
    if vocab_size is None:
        return Verdict("no_added_tokens", None, "the model's configuration could not be read")
    added = len(tokenizer) - vocab_size
    if added <= 0:
        return Verdict("no_added_tokens", True, f"{len(tokenizer):,} tokens, {vocab_size:,} embeddings")
    counts = f"{len(tokenizer):,} tokens, {vocab_size:,} embeddings"
    detail = f"tokens of the tokenizer without an embedding in the model: {added:,} ({counts})"
    if trains_embeddings:
        return Verdict("no_added_tokens", True, f"{detail}; the embeddings are resized, trained and saved")
    return Verdict(
        "no_added_tokens", False, detail,
        "use the model's own tokenizer, or train and save them: lora: {modules_to_save: [embed_tokens, lm_head]}",
    )  # fmt: skip
