"""Where each token of a text starts.

Tokenizers say so when asked, at a fifth of their time. For a byte-level tokenizer without a normalizer it need not be
asked: the tokens' bytes laid one after another are the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

WORTH_IT = 50  # texts at a time: going through a vocabulary of 128,000 tokens takes as long as some hundred texts


class Places(Protocol):
    """The tokens of one text, and where they stand in it."""

    ids: list[int]

    def first_from(self, char: int) -> int:
        """Index of the first token that starts at or after a character; as many as there are tokens, if none does."""

    def between(self, token: int, char: int) -> str:
        """The text after a token, up to a character."""


class Tokeniser:
    """Tokenises many texts at a time, without adding anything to them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._lengths: list[int] | None = None
        self._asked = False

    def __call__(self, texts: list[str]) -> list[Places]:
        self._backend.no_truncation()  # a tokenizer may be published with either switched on
        self._backend.no_padding()
        if not self._asked and len(texts) >= WORTH_IT:
            self._lengths, self._asked = byte_lengths(self._tokenizer), True
        if self._lengths is None:
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
            return [_ByOffsets(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
        quick = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [self._by_bytes(text, encoding.ids) for text, encoding in zip(texts, quick, strict=True)]

    def _by_bytes(self, text: str, ids: list[int]) -> Places:
        assert self._lengths is not None
        ends = list(accumulate(map(self._lengths.__getitem__, ids)))
        size = len(text) if text.isascii() else len(text.encode())
        if ends[-1:] == [size]:
            return _ByBytes(text, ids, ends)
        # A control token that takes the white space beside it with it (Phi-3's): ask for this text after all.
        return _ByOffsets(text, self._backend.encode(text, add_special_tokens=False))


def byte_lengths(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """The number of bytes that each token id stands for; None if the tokenizer does not keep a text's bytes."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None or backend.pre_tokenizer is None:
        return None
    if b"ByteLevel" not in backend.pre_tokenizer.__getstate__():
        return None
    lengths = [0] * (max(tokenizer.get_vocab().values()) + 1)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = len(token)  # byte-level vocabularies write each byte as one character
    for index, added in tokenizer.added_tokens_decoder.items():
        lengths[index] = len(added.content.encode())
    return lengths


class _ByBytes:
    def __init__(self, text: str, ids: list[int], ends: list[int]) -> None:
        self.ids = ids
        self._text = text
        self._ends = ends  # in bytes

    def first_from(self, char: int) -> int:
        place = self._byte(char)
        return bisect_left(self._ends, place) + 1 if place else 0

    def between(self, token: int, char: int) -> str:
        start, end = self._ends[token], self._byte(char)
        return (
            self._text[start:end] if self._text.isascii() else self._text.encode()[start:end].decode(errors="replace")
        )

    def _byte(self, char: int) -> int:
        return char if self._text.isascii() else len(self._text[:char].encode())


class _ByOffsets:
    def __init__(self, text: str, encoding: Encoding) -> None:
        self.ids: list[int] = encoding.ids
        self._text = text
        self._offsets: Sequence[tuple[int, int]] = encoding.offsets

    def first_from(self, char: int) -> int:
        return bisect_left(self._offsets, char, key=lambda offset: offset[0])

    def between(self, token: int, char: int) -> str:
        return self._text[self._offsets[token][1] : char]
