"""Rows that nearly repeat one another: MinHash signatures of their words, compared through an LSH index.

datasketch does the work and is imported here only, inside the function that makes signatures; the `quality` extra
installs it. Signatures use a fixed seed: the same rows and the same datasketch give the same report on every machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipe_kit.quality.report import MAX_EXAMPLES, NearDuplicates, NearOverlap, Pair
from recipe_kit.quality.text import tokens

PERMUTATIONS = 128  # the estimate of a Jaccard of 0.8 has a standard error of 0.035
SEED = 1
SHINGLE_WORDS = 3
MISSING = "`pip install 'recipe-kit[quality]'`"

Sign = Callable[[Sequence[str]], Any]


def signer() -> Sign | None:
    """A function that gives the signature of some texts, None for texts without a word; None without datasketch.

    The set compared is that of three words in a row, without case and punctuation.
    """
    try:
        from datasketch import LeanMinHash, MinHash
    except ImportError:
        return None
    sketch = MinHash(num_perm=PERMUTATIONS, seed=SEED)

    def sign(texts: Sequence[str]) -> Any:
        words = tokens("\n".join(texts))
        if not words:
            return None
        starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
        sketch.clear()
        sketch.update_batch({" ".join(words[at : at + SHINGLE_WORDS]).encode("utf-8", "replace") for at in starts})
        return LeanMinHash(sketch)

    return sign


@dataclass
class Sample:
    """Signatures of at most `limit` rows of one split, evenly spread: those whose content has the lowest hashes.

    So the choice depends neither on the order of the rows nor on how many there are, and needs one pass. A signature
    takes about 0.7 KB; the index built over them later, about 6 KB a row.
    """

    limit: int | None
    _heap: list[tuple[int, int, Any]] = field(default_factory=list)

    def wants(self, digest: int) -> bool:
        return self.limit is None or len(self._heap) < self.limit or (self.limit > 0 and -self._heap[0][0] > digest)

    def add(self, digest: int, row: int, signature: Any) -> None:
        if self.limit is None or len(self._heap) < self.limit:
            heapq.heappush(self._heap, (-digest, row, signature))
        else:
            heapq.heapreplace(self._heap, (-digest, row, signature))

    def signatures(self) -> dict[int, Any]:
        """Row number to signature, in the order of the rows."""
        return {row: signature for _, row, signature in sorted(self._heap, key=lambda entry: entry[1])}


def near_duplicates(signatures: Mapping[int, Any], threshold: float) -> NearDuplicates:
    """Groups of rows that nearly repeat the first row of their group.

    Only first rows enter the index, so that a thousand rows from one template cost a thousand comparisons, not a
    million. A row is near when its estimated Jaccard with a first row is at least the threshold.
    """
    index, first_rows = _index(threshold), dict[int, Any]()
    groups: dict[int, int] = {}
    pairs: list[Pair] = []
    for row, signature in signatures.items():
        similar = [(signature.jaccard(first_rows[first]), -first) for first in index.query(signature)]
        jaccard, first = max(similar, default=(0.0, 0))
        if similar and jaccard >= threshold:
            groups[-first] = groups.get(-first, 0) + 1
            if len(pairs) < MAX_EXAMPLES:
                pairs.append({"row": row, "other": -first, "jaccard": round(float(jaccard), 2)})
        else:
            index.insert(row, signature)
            first_rows[row] = signature
    return {"examined": len(signatures), "groups": len(groups), "rows": sum(groups.values()), "pairs": pairs}


def near_overlap(train: Mapping[int, Any], evaluation: Mapping[int, Any], threshold: float) -> NearOverlap:
    """Evaluation rows that nearly repeat a training row; a row leaves the index once it is found."""
    index = _index(threshold)
    for row, signature in evaluation.items():
        index.insert(row, signature)
    found: dict[int, Pair] = {}
    for train_row, signature in train.items():
        for row in index.query(signature):
            jaccard = signature.jaccard(evaluation[row])
            if jaccard >= threshold:
                found[row] = {"row": row, "other": train_row, "jaccard": round(float(jaccard), 2)}
                index.remove(row)
    pairs = [found[row] for row in sorted(found)[:MAX_EXAMPLES]]
    return {"examined": len(evaluation), "train_examined": len(train), "rows": len(found), "pairs": pairs}


def _index(threshold: float) -> Any:
    from datasketch import MinHashLSH

    # Candidates are checked, so a false one costs a comparison and a missed one is lost: recall weighs more.
    return MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.05, 0.95))
