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

    With `whole`, all tokens of a row are trained, and its last control token has to stand within its last three.
    """
    import numpy as np

    stop_ids = np.array(sorted(special_tokens(tokenizer).values()))
    untrained, unended, padded, turns, cut, looked_at = [], [], [], 0, 0, 0
    ends: Counter[int] = Counter()
    for number, ids, labels, lengths, turn_lengths, truncated in _columns(train):
        looked_at += len(lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        trained = labels != IGNORED
        counted = trained.copy()
        counted[starts[:-1]] = False  # nothing stands before the first token of a row to predict it from
        untrained += [number(i) for i in np.flatnonzero(np.add.reduceat(counted, starts[:-1]) == 0)]
        padded += [
            number(i)
            for i in np.unique(
                np.repeat(np.arange(len(lengths)), lengths)[trained & (labels == tokenizer.pad_token_id)]
            )
        ]
        if whole:
            tails = np.stack([ids[np.maximum(starts[1:] - back, starts[:-1])] for back in (1, 2, 3)])
            unended += [number(i) for i in np.flatnonzero(~np.isin(tails, stop_ids).any(axis=0) & ~truncated)]
            turns += len(lengths)
            continue
        per_row = np.array([len(row) for row in turn_lengths])
        last_tokens = ids[trained][np.cumsum(np.concatenate([np.array(row) for row in turn_lengths])) - 1]
        row_of = np.repeat(np.arange(len(lengths)), per_row)
        is_last = np.append(np.diff(row_of) > 0, True)
        excused = is_last & truncated[row_of]  # a row that was cut to max_length ends where it was cut
        cut += int(excused.sum())
        turns += len(last_tokens)
        ended = np.isin(last_tokens, stop_ids)
        unended += [number(i) for i in np.unique(row_of[~ended & ~excused])]
        ends.update(last_tokens[ended].tolist())
    named = ", ".join(
        f"{tokenizer.convert_ids_to_tokens(token)} ends {count:,}" for token, count in ends.most_common(3)
    )
    of_turns = f"{turns:,} trained turns{f', {named}' if named else ''}{f'; {cut:,} are cut short' if cut else ''}"
    seen = f"{looked_at:,} of {len(train.rows):,} rows looked at"
    return [
        found("answers_trained", untrained, train, f"every row has a trained token; {seen}",
                 "rows without a trained token", "raise data.max_length, or correct these rows"),
        found("end_of_turn_trained", unended, train, of_turns, "trained turns that no end-of-turn token closes",
                 "use a chat template that writes the end-of-turn token after each answer"),
        found("padding_not_trained", padded, train, f"{tokenizer.pad_token} is never trained; {seen}",
                 f"rows that train the padding token {tokenizer.pad_token}",
                 "set model.pad_token to a token that no answer holds"),
    ]  # fmt: skip


def _columns(train: Rows) -> Iterator[tuple[Callable[[Any], int], Any, Any, Any, Any, Any]]:
    """Per batch: how to name its rows, token ids, labels, row lengths, turn lengths, and which are truncated."""
    import numpy as np

    chosen = spread(len(train.rows), COLUMN_ROWS)
    for start in range(0, len(chosen), 1000):
        part = chosen[start : start + 1000]
        rows = train.rows.select(part).with_format("arrow")[:]
        details = train.details.select(part).select_columns(["turn_lengths", "truncated"])[:]
        ids, labels = (rows[name].combine_chunks() for name in ("input_ids", "labels"))
        yield (
            partial(_at, part),
            ids.flatten().to_numpy(),
            labels.flatten().to_numpy(),
            ids.value_lengths().to_numpy(),
            details["turn_lengths"],
            np.array(details["truncated"], dtype=bool),
        )


def _at(part: list[int], index: Any) -> int:
    return part[int(index)]
