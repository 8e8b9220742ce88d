"""A prepared row cut into pieces, one a token, with what is trained of it.

A character that several tokens share (an emoji, say) makes them one piece. The joined texts of the pieces are the
decoded row, to the last space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from recipe_kit.labels import IGNORED, special_tokens

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

Worst = Literal["longest", "least-trained", "truncated"]


@dataclass(frozen=True)
class Piece:
    """The smallest stretch of a row that is whole characters: one token, or the few that share a character."""

    text: str
    ids: tuple[int, ...]
    trained: bool  # of several tokens: whether any is
    control: bool = False  # a control token, as opposed to text that only looks like one


@dataclass(frozen=True)
class Row:
    """One prepared row, with what its heading says."""

    number: int  # 1-based, among the prepared rows of its split
    of: int  # prepared rows of the split
    place: str  # where the row stands in the data
    pieces: list[Piece]
    tokens: int
    trained_tokens: int
    turn_lengths: list[int]  # trained tokens of each trained turn
    truncated: bool

    @property
    def trained_share(self) -> float:
        return self.trained_tokens / self.tokens if self.tokens else 0.0


def pieces(input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The row piece by piece; the joined texts are exactly what the tokenizer decodes the row to."""
    control = set(special_tokens(tokenizer).values())
    found, start = [], 0
    for text, count in _split_text(list(input_ids), tokenizer):
        ids = tuple(input_ids[start : start + count])
        trained = any(label != IGNORED for label in labels[start : start + count])
        found.append(Piece(text, ids, trained, control=count == 1 and ids[0] in control))
        start += count
    return found


def preview_row(
    input_ids: Sequence[int],
    labels: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    number: int,
    of: int,
    place: str,
    turn_lengths: Sequence[int],
    truncated: bool,
) -> Row:
    """One prepared row, ready to be shown."""
    return Row(
        number=number,
        of=of,
        place=place,
        pieces=pieces(input_ids, labels, tokenizer),
        tokens=len(input_ids),
        trained_tokens=sum(label != IGNORED for label in labels),
        turn_lengths=list(turn_lengths),
        truncated=truncated,
    )


def worst_rows(rows: datasets.Dataset, details: datasets.Dataset, worst: Worst, count: int) -> list[int]:
    """Indices of up to `count` rows, worst first: most tokens, fewest trained tokens, or cut off with fewest left.

    `rows` has `input_ids`, `details` has `trained` and `truncated` of the same rows. Only numbers are held in memory,
    one a row. Rows that are equally bad keep their order.
    """
    import numpy

    if worst == "longest":
        batches = rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
        keys = -numpy.concatenate([batch["input_ids"].combine_chunks().value_lengths() for batch in batches])
    else:
        keys = details.with_format("numpy")["trained"][:]
    order = numpy.argsort(keys, kind="stable")
    if worst == "truncated":
        order = order[details.with_format("numpy")["truncated"][:][order]]
    return [int(index) for index in order[:count]]


def facts(row: Row) -> list[str]:
    """Tokens, trained tokens and their share, turns, and whether the row was cut off."""
    turns, lengths = len(row.turn_lengths), row.turn_lengths
    trained_turns = f"{turns or 'no'} trained turn{'s' if turns > 1 else ''}"
    if turns > 6:
        trained_turns += f" ({min(lengths)} to {max(lengths)} tokens each)"
    elif turns > 1:
        trained_turns += f" ({' + '.join(map(str, lengths))})"
    return [
        f"{row.tokens:,} token{'' if row.tokens == 1 else 's'}",
        f"{row.trained_tokens:,} trained ({100 * row.trained_share:.1f} %)",
        trained_turns,
        *(["cut off at the end"] if row.truncated else []),
    ]


def _split_text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, int]]:
    """Each piece's text and number of tokens.

    Decoding token by token is right where the texts add up. Where they do not, some token holds part of a character:
    the stretch is halved at a place where both halves decode on their own, until one such character is left. That
    needs no knowledge of the tokenizer's kind and is exact for any.
    """
    if not ids:
        return iter(())
    decode = _decoder(tokenizer)
    singles = {token: decode([token], False) for token in set(ids[1:])}
    return _halved(ids, decode(ids, True), True, decode, singles)


def _halved(
    ids: list[int], text: str, first: bool, decode: Callable[[list[int], bool], str], singles: dict[int, str]
) -> Iterator[tuple[str, int]]:
    texts = [decode(ids[:1], True) if first else singles[ids[0]], *(singles[token] for token in ids[1:])]
    if "".join(texts) == text:
        yield from ((part, 1) for part in texts)
        return
    middle = len(ids) // 2
    for cut in sorted(range(1, len(ids)), key=lambda place: abs(place - middle)):
        left = decode(ids[:cut], first)
        right = decode(ids[cut:], False) if text.startswith(left) else ""
        if left + right == text:
            yield from _halved(ids[:cut], left, first, decode, singles)
            yield from _halved(ids[cut:], right, False, decode, singles)
            return
    yield text, len(ids)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int], bool], str]:
    """Decodes part of a row. SentencePiece drops a space at the start, so all but the first part follow a letter."""
    options: dict[str, Any] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    letter = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before = str(tokenizer.decode(letter, **options))

    def decode(ids: list[int], first: bool) -> str:
        if first:
            return str(tokenizer.decode(ids, **options))
        return str(tokenizer.decode([*letter, *ids], **options)).removeprefix(before)

    return decode
