"""From a batch of stored rows to a table of tokens: what a worker does, and all it needs to know for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa

from recipe_kit import quality
from recipe_kit.errors import DataError, FormatError, LabelError, SkipRow
from recipe_kit.formatters import Example, Row
from recipe_kit.labels import IGNORED, Encoded, Labeller
from recipe_kit.recipe import DataSection

# One line for each row that its formatter took. A row that was left out later keeps its line, with the reason, so that
# which rows are held out does not depend on the tokenizer or on `max_length`.
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("turn_lengths", pa.list_(pa.int32())),  # trained tokens of each trained turn
        ("trained", pa.int32()),  # trained tokens
        ("truncated", pa.bool_()),
        ("dropped", pa.string()),  # why the row is not used; empty if it is
        ("row", pa.int64()),  # 0-based, in the source
        ("digest", pa.binary()),  # 16 bytes: what the formatted row says
        ("example", pa.large_string()),  # the conversation as JSON
    ]
)


@dataclass
class Tally:
    """What happened to rows on the way; adds up over batches."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # rows that no line is kept of, by reason
    merged_turns: int = 0  # rows in which turns were merged
    redacted: Counter[str] = field(default_factory=Counter)  # findings, by kind

    def add(self, other: Tally) -> None:
        self.read += other.read
        self.dropped += other.dropped
        self.merged_turns += other.merged_turns
        self.redacted += other.redacted


@dataclass
class Done:
    """One batch, ready. `error` is the first row that must not be, and the sentence about it."""

    table: pa.Table
    tally: Tally
    error: tuple[int, str] | None = None


@dataclass
class Work:
    """How the rows of one source become tokens."""

    format_one: Callable[[Row], Example]
    data: DataSection
    labeller: Labeller
    features: datasets.Features | None = None

    def on_table(self, table: pa.Table, first_row: int) -> Done:
        """The batch that starts at row `first_row` of the source."""
        info = datasets.DatasetInfo(features=self.features)
        columns = datasets.Dataset(datasets.table.InMemoryTable(table), info=info)[:]
        names = list(columns)
        rows = [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        return self.on_rows(rows, first_row)

    def on_rows(self, rows: list[dict[str, Any]], first_row: int) -> Done:
        tally, error = Tally(), None
        kept: list[tuple[int, bytes, Example, str]] = []
        for index, row in enumerate(rows, start=first_row):
            tally.read += 1
            try:
                example = self.format_one(row)
            except SkipRow as reason:
                tally.dropped[str(reason)] += 1
                continue
            except FormatError as problem:
                if self.data.bad_rows == "error":
                    error = (index, _as_bad_row(problem))
                    break
                tally.dropped[countable(problem)] += 1
                continue
            text = as_json(example)
            changed = self._changed(example, tally)
            kept.append((index, digest_of(text), changed, text if changed is example else as_json(changed)))
        lines: list[tuple[Any, ...]] = []
        encoded_rows = self.labeller.encode_batch([example for _, _, example, _ in kept])
        for (index, digest, _, text), encoded in zip(kept, encoded_rows, strict=True):
            if isinstance(encoded, LabelError) and self.data.bad_rows == "error":
                error = (index, _as_bad_row(encoded))
                break
            if self.data.too_long == "error" and isinstance(encoded, Encoded):
                length = len(encoded.input_ids)
                if length > self.data.max_length:
                    error = (
                        index,
                        f"{length} tokens, over data.max_length {self.data.max_length}; raise it, "
                        "or set data.too_long to drop or truncate",
                    )
                    break
            lines.append((*_fitted(encoded, self.data), index, digest, text))
        columns = list(zip(*lines, strict=True)) if lines else [()] * len(SCHEMA)
        arrays = [pa.array(values, type=kind.type) for values, kind in zip(columns, SCHEMA, strict=True)]
        return Done(pa.Table.from_arrays(arrays, schema=SCHEMA), tally, error)

    def _changed(self, example: Example, tally: Tally) -> Example:
        """The conversation as it is trained: turns merged, personal data out, the system prompt before it."""
        if self.data.role_order == "merge":
            example, merged = quality.merge_roles(example)
            tally.merged_turns += bool(merged)
        if self.data.redact:
            redacted, found = quality.redact(example, self.data.redact)
            if found:
                example, tally.redacted = redacted, tally.redacted + found
        return with_system(example, self.data.system)


def _fitted(
    encoded: Encoded | LabelError, data: DataSection
) -> tuple[list[int], list[int], list[int], int, bool, str]:
    """Token ids, labels, turn lengths, trained tokens, truncated, and why the row is left out, if it is."""
    if isinstance(encoded, LabelError):
        return [], [], [], 0, False, countable(encoded)
    ids, labels, turns = encoded.input_ids, encoded.labels, encoded.turn_lengths
    if len(ids) <= data.max_length:
        return ids, labels, turns, sum(turns), False, ""
    if data.too_long == "drop":
        return [], [], [], 0, False, f"longer than {data.max_length} tokens"
    ids, labels = ids[: data.max_length], labels[: data.max_length]
    trained = sum(label != IGNORED for label in labels)
    if all(label == IGNORED for label in labels[1:]):
        return [], [], [], 0, False, f"answer cut off whole at {data.max_length} tokens"
    return ids, labels, _cut(turns, trained), trained, True, ""


def _cut(turns: list[int], trained: int) -> list[int]:
    """The turn lengths, with what lies beyond the trained tokens that are left taken off."""
    left = []
    for length in turns:
        if trained <= 0:
            break
        left.append(min(length, trained))
        trained -= length
    return left


def as_json(example: Mapping[str, Any]) -> str:
    return json.dumps(example, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest_of(text: str) -> bytes:
    """16 bytes that depend only on what a formatted row says."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def with_system(example: Example, system: str | None) -> Example:
    """The chat with the recipe's system prompt before it, unless it brings its own."""
    key = "messages" if "messages" in example else "prompt"
    turns: list[Any] | None = example.get(key)  # type: ignore[assignment]
    if system is None or turns is None or (turns and turns[0]["role"] == "system"):
        return example
    return {**example, key: [{"role": "system", "content": system}, *turns]}  # type: ignore[return-value]


def countable(error: Exception) -> str:
    """The reason without what only this row holds: rows are counted by it, and it is written into `run.json`."""
    reason = re.sub(r"\bgot (?!None\b|True\b|False\b)(\w+) .*", r"got \1", str(error), flags=re.DOTALL)
    return re.sub(r"\bmessage \d+|\[\d+\]", lambda found: "a message" if found[0][0] == "m" else "[…]", reason)


def _as_bad_row(error: Exception) -> str:
    return f"{error}; correct the row, or set data.bad_rows: drop"


def raise_for(place: str, error: tuple[int, str]) -> None:
    raise DataError(f"{place} row {error[0] + 1}: {error[1]}")
