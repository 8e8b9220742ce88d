"""Rows that everybody trains on: token ids and labels with the length spread of real chats, from a seed."""

from __future__ import annotations

import hashlib
import math
import random
from array import array

SEED = 7
MEDIAN = 180
SPREAD = 0.7  # standard deviation of the logarithm of a length
SHORTEST = 32
LONGEST = 1024
TRAINED_SHARE = 0.3  # the end of a row: a summary, an answer
FIRST_ID = 4  # below are padding, begin, end and unknown

Row = dict[str, list[int]]


def lengths(count: int, *, median: int = MEDIAN, longest: int = LONGEST, seed: int = SEED) -> list[int]:
    """Log-normal numbers of tokens, cut to SHORTEST and `longest`."""
    generator = random.Random(seed)
    drawn = (math.exp(generator.gauss(math.log(median), SPREAD)) for _ in range(count))
    return [min(longest, max(min(SHORTEST, longest), round(length))) for length in drawn]


def rows(row_lengths: list[int], vocabulary: int, *, seed: int = SEED) -> list[Row]:
    """`input_ids` drawn evenly from the vocabulary, and `labels` with -100 on all but the last 30 % of each row."""
    generator = random.Random(seed)
    made = []
    for length in row_lengths:
        ids = generator.choices(range(FIRST_ID, vocabulary), k=length)
        context = length - max(1, math.floor(length * TRAINED_SHARE))
        made.append({"input_ids": ids, "labels": [-100] * context + ids[context:]})
    return made


def fingerprint(made: list[Row]) -> str:
    """The same for the same rows in the same order, on every machine."""
    digest = hashlib.sha256()
    for row in made:
        for name in ("input_ids", "labels"):
            digest.update(len(row[name]).to_bytes(8, "little"))
            digest.update(array("q", row[name]).tobytes())
    return digest.hexdigest()
