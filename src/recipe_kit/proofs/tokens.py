"""Proofs on the token ids as they lie on disk: all rows, or very many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from recipe_kit.labels import IGNORED, special_tokens
from recipe_kit.proofs.verdict import Rows, Verdict, found, spread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMN_ROWS = 20_000  # rows whose token ids are looked at; more are represented by as many, evenly spread


def column_proofs(train: Rows, tokenizer: PreTrainedTokenizerBase, *, whole: bool) -> list[Verdict]:
    """`answers_trained`, `end_of_turn_trained` and `padding_not_trained`, in one pass over the token ids.

    A trained turn is a stretch of trained tokens; its last one has to be a control token. With `whole`, all tokens of
    a row are trained, and one of its last three has to be: templates write white space after it.
    """
    import numpy as np

    stop_ids = np.array(sorted(special_tokens(tokenizer).values()))
    untrained, unended, padded, turns, cut, looked_at = [], [], [], 0, 0, 0
    ends: Counter[int] = Counter()
    for number, ids, labels, lengths, truncated in _columns(train):
        looked_at += len(lengths)
        starts = np.cumsum(lengths) - lengths
        row_of = np.repeat(np.arange(len(lengths)), lengths)
        trained = labels != IGNORED
        counted = trained.copy()
        counted[starts] = False  # nothing stands before the first token of a row to predict it from
        untrained += [number(i) for i in np.flatnonzero(np.add.reduceat(counted, starts) == 0)]
        untrained += [number(i) for i in row_of[trained & (labels != ids)]]
        padded += [number(i) for i in row_of[trained & (labels == tokenizer.pad_token_id)]]
        if whole:
            last = starts + lengths - 1
            tails = np.stack([ids[np.maximum(last - back, starts)] for back in range(3)])
            unended += [number(i) for i in np.flatnonzero(~np.isin(tails, stop_ids).any(axis=0) & ~truncated)]
            turns += len(lengths)
            continue
        row_ends = np.zeros(len(ids), dtype=bool)
        row_ends[starts + lengths - 1] = True
        turn_ends = np.flatnonzero(trained & (row_ends | ~np.append(trained[1:], False)))
        excused = row_ends[turn_ends] & truncated[row_of[turn_ends]]  # cut at max_length, and so is the turn
        ended = np.isin(ids[turn_ends], stop_ids)
        unended += [number(i) for i in row_of[turn_ends[~ended & ~excused]]]
        ends.update(ids[turn_ends[ended]].tolist())
        turns, cut = turns + len(turn_ends), cut + int((excused & ~ended).sum())
    named = "".join(
        f", {tokenizer.convert_ids_to_tokens(token)} ends {count:,}" for token, count in ends.most_common(3)
    )
    of_turns = f"{turns:,} trained turns{named}{f'; {cut:,} are cut short' if cut else ''}"
    seen = f"{looked_at:,} of {len(train.rows):,} rows looked at"
    return [
        found("answers_trained", untrained, train, f"every row has a trained token; {seen}",
              "rows without a proper trained token",
              "raise data.max_length, or correct these rows"),
        found("end_of_turn_trained", unended, train, of_turns,
              "rows with a trained turn that no end-of-turn token closes",
              "use a chat template that writes the end-of-turn token after each answer"),
        found("padding_not_trained", padded, train, f"{tokenizer.pad_token} is never trained; {seen}",
              f"rows with the padding token {tokenizer.pad_token} trained",
              "set model.pad_token to a token that no answer holds"),
    ]  # fmt: skip


def _columns(train: Rows) -> Iterator[tuple[Callable[[Any], int], Any, Any, Any, Any]]:
    """Per batch: how to name its rows, token ids, labels, row lengths, and which rows are truncated."""
    import numpy as np

    chosen = spread(len(train.rows), COLUMN_ROWS)
    for start in range(0, len(chosen), 1000):
        part = chosen[start : start + 1000]
        rows = train.rows.select(part).with_format("arrow")[:]
        ids, labels = (rows[name].combine_chunks() for name in ("input_ids", "labels"))
        yield (
            partial(_at, part),
            ids.flatten().to_numpy(),
            labels.flatten().to_numpy(),
            ids.value_lengths().to_numpy(),
            np.array(train.details.select(part)["truncated"], dtype=bool),
        )


def _at(part: list[int], index: Any) -> int:
    return part[int(index)]
