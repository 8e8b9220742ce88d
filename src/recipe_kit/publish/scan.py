"""Tokens and keys in bytes that are about to be published."""

from __future__ import annotations

import re
from collections.abc import Iterator

from recipe_kit.secrets import KINDS, blotted

OVERLAP = 4096  # bytes kept from one piece to the next, longer than anything looked for
SHORTEST = 12  # characters; nothing that is looked for is shorter

# Weights are gigabytes of bytes that are hardly ever twelve characters of text in a row. Such rows are looked for
# first, which is several times faster than looking for the beginning of each kind of secret.
_IS_TEXT = bytes(int(32 <= byte < 127) for byte in range(256))
_ROW = b"\1" * SHORTEST

_KINDS = tuple(
    (name, tuple(start.encode() for start in starts), re.compile(whole.encode())) for name, starts, whole in KINDS
)
_BEGINNINGS = re.compile(b"|".join(re.escape(start) for _, starts, _ in _KINDS for start in starts))


class Search:
    """Looks for secrets in a stream given piece by piece; `found` names each kind once, with the byte it starts at.

    What was found is never quoted. `tokens` are searched for as they are, whatever they look like.
    """

    def __init__(self, tokens: tuple[str, ...] = ()) -> None:
        self.found: dict[str, int] = {}
        self._tokens = [token.encode() for token in tokens if token]
        self._tail = b""
        self._start = 0  # of the tail in the stream

    def feed(self, piece: bytes) -> None:
        data = self._tail + piece
        for token in self._tokens:
            place = data.find(token)
            if place >= 0:
                self.found.setdefault("the token this push would use", self._start + place)
        for first, end in _rows(data):
            if not _BEGINNINGS.search(data, first, end):
                continue
            for name, starts, whole in _KINDS:
                if name not in self.found:
                    place = _place(data, starts, whole, first, end)
                    if place >= 0:
                        self.found[name] = self._start + place
        self._tail = data[-OVERLAP:]
        self._start += len(data) - len(self._tail)


def search(data: bytes, tokens: tuple[str, ...] = ()) -> dict[str, int]:
    """What kinds of secrets `data` holds, with the byte each starts at."""
    looking = Search(tokens)
    looking.feed(data)
    return looking.found


def in_one_line(text: str, tokens: tuple[str, ...] = ()) -> str:
    """The text in one line, without secrets and these tokens."""
    for token in tokens:
        text = text.replace(token, "hf_…") if token else text
    return " ".join(blotted(text).split())


def _rows(data: bytes) -> Iterator[tuple[int, int]]:
    """Where printable characters stand in a row: first, and one past the last."""
    marked = data.translate(_IS_TEXT)
    first = marked.find(_ROW)
    while first >= 0:
        end = marked.find(b"\0", first + SHORTEST)
        end = len(data) if end < 0 else end
        yield first, end
        first = marked.find(_ROW, end)


def _place(data: bytes, starts: tuple[bytes, ...], whole: re.Pattern[bytes], first: int, end: int) -> int:
    """Where the first match of `whole` between two places is; -1 when there is none."""
    for start in starts:
        place = data.find(start, first, end)
        while place >= 0:
            if whole.match(data, place):
                return place
            place = data.find(start, place + 1, end)
    return -1
