"""From the recipe's `data` section to counted, tokenised rows.

load -> select -> format -> tokenise -> split. Every row that does not arrive is counted under its reason. Which rows
are held out depends only on what a row says and on `data.split_seed`: not on the order of the file, on `data.system`,
on the tokenizer, on the rank, or on the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import datasets
import numpy as np
import pyarrow.compute as pc

from recipe_kit.data import stream
from recipe_kit.data.prepared import Prepared, prepare_source
from recipe_kit.data.sources import describe as describe
from recipe_kit.data.sources import load_source as load_source
from recipe_kit.data.work import Work, as_json, digest_of, raise_for
from recipe_kit.errors import DataError, FormatError
from recipe_kit.formatters import Example, bind, check_columns, check_options, get_formatter
from recipe_kit.labels import Labeller
from recipe_kit.recipe import DataSection, FormatterSpec, HeldOut

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

DETAILS = ["example", "turn_lengths", "trained", "truncated", "row"]


@dataclass
class Counts:
    """What became of the rows of one split. `dropped` maps each reason to a number of rows."""

    read: int = 0
    kept: int = 0
    held_out: int = 0  # moved to another split
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    trained_tokens: int = 0
    merged_turns: int = 0  # rows in which neighbouring turns of one role were made one
    redacted: Counter[str] = field(default_factory=Counter)  # personal data replaced, findings by kind

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "dropped": dict(self.dropped), "redacted": dict(self.redacted)}


class Examples(Sequence[Example]):
    """The formatted rows of a split, read from disk when they are asked for."""

    def __init__(self, texts: datasets.Dataset) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        found = self._texts[index]["example"]
        return json.loads(found) if isinstance(index, int) else [json.loads(text) for text in found]

    def __iter__(self) -> Iterator[Example]:
        for batch in self._texts.iter(1000):
            yield from map(json.loads, batch["example"])


@dataclass
class Split:
    """One prepared split, on disk.

    `rows` has `input_ids` and `labels`. `details` tells of the same rows, in the same order: `example` (the
    conversation as JSON), `turn_lengths` (trained tokens of each trained turn), `trained` (their sum), `truncated`,
    and `row` (0-based, in its source). `digests` holds 16 bytes a row that depend on what its formatter returned.
    """

    name: str
    rows: datasets.Dataset
    details: datasets.Dataset
    counts: Counts
    content_sha256: str  # over the rows' own hashes, sorted: equal for equal rows in any order
    sources: list[dict[str, Any]]
    digests: NDArray[np.void]
    places: list[str]  # of each source
    source_of: NDArray[np.int8]  # which source a row is from

    @property
    def examples(self) -> Examples:
        return Examples(self.details.select_columns(["example"]))

    def place(self, index: int) -> str:
        """Where a row was read, for messages: `samsum.jsonl (train) row 17`."""
        return f"{self.places[self.source_of[index]]} row {self.details[index]['row'] + 1}"


def prepare(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    splits: Iterable[str] = ("train", "eval", "test"),
    workers: int | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Split]:
    """The wanted splits of a recipe, ready to train and evaluate on; a split the recipe does not name is left out.

    Rows that were prepared before come from the cache. With `data.streaming`, the first rows stand for all training
    rows: `stream_rows` gives those to train on. Raises DataError when rows cannot be found or read, when a row is bad
    and `data.bad_rows` is `error`, when a row is too long and `data.too_long` is `error`, or when a split ends up
    empty.
    """
    wanted = [name for name in splits if getattr(data, name) is not None]
    check_formatters(data, wanted)

    if data.streaming:
        stream.check(data)

    def collect(name: str) -> _Lines:
        sources = data.sources(name)
        if data.streaming and name == "train":
            return _Lines.of(
                [stream.sample(s, data, tokenizer) for s in sources], [None] * len(sources), data.split_seed
            )
        return _Lines.of(
            [prepare_source(source, data, tokenizer, workers=workers, report=report) for source in sources],
            [source.weight if name == "train" else None for source in sources],
            data.split_seed,
        )

    collected = {name: collect(name) for name in wanted if data.sources(name)}
    held_out = {name: getattr(data, name) for name in ("eval", "test") if isinstance(getattr(data, name), HeldOut)}
    if held_out and {"train", *held_out} & set(wanted):  # each of the two depends on which rows went to the other
        train = collected.get("train") or collect("train")
        for name, rule in held_out.items():
            part = train.hold_out(rule, data.split_seed, name)
            if name in wanted:
                collected[name] = part
    return {name: collected[name].split(name) for name in wanted}


def label_rows(
    rows: Iterable[Mapping[str, Any]],
    formatter: str | FormatterSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "train",
    **settings: Any,
) -> Split:
    """Rows you have in memory as a split, for a training script of your own.

    `formatter` is a name, or a specification with options and columns; `settings` are those of a recipe's `data`
    section (`max_length`, `train_on`, `too_long`, `bad_rows`, `system`, ...). Raises DataError like `prepare`.
    """
    data = DataSection.model_validate({"train": {"path": "rows"}, "formatter": formatter, **settings})
    check_formatters(data, ["train"])
    function = get_formatter(data.formatter.name)
    work = Work(
        bind(function, data.formatter.options, data.formatter.columns),
        data,
        Labeller(tokenizer, train_on=data.train_on),
    )
    given = [dict(row) for row in rows]
    if given:
        try:
            check_columns(function, given[0], data.formatter.columns)
        except FormatError as error:
            raise DataError(f"{name}: {error}") from error
    done = work.on_rows(given, 0)
    if done.error is not None:
        raise_for(name, done.error)
    lines = datasets.Dataset(datasets.table.InMemoryTable(done.table))
    return _Lines.of([Prepared(lines, done.tally, {}, name)], [None], data.split_seed).split(name)


def stream_rows(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Split], counts: Counter[str]
) -> datasets.IterableDataset:
    """The training rows of a recipe with `data.streaming`, without those of the other splits; see `stream.rows`."""
    others = [split.digests for name, split in splits.items() if name != "train"]
    measured_on = frozenset(digest.tobytes() for digests in others for digest in digests)
    return stream.rows(data, tokenizer, measured_on=measured_on, counts=counts)


def check_formatters(data: DataSection, splits: Iterable[str] = ("train", "eval", "test")) -> None:
    """Every formatter the recipe names exists and takes the options it is given; no row is read."""
    for name in splits:
        for source in data.sources(name):
            spec = data.formatter_of(source)
            check_options(get_formatter(spec.name), spec.options)


def content_hash(example: Mapping[str, Any]) -> str:
    """32 hex digits that depend only on what a formatted row says."""
    return digest_of(as_json(example)).hex()


def content_sha256(digests: NDArray[np.void]) -> str:
    """One hash over many rows, the same in any order."""
    whole = hashlib.sha256()
    ordered = np.sort(digests.view([("high", ">u8"), ("low", ">u8")]))
    for start in range(0, len(ordered), 1 << 16):
        whole.update(ordered[start : start + (1 << 16)].tobytes().hex().encode())
    return whole.hexdigest()


@dataclass
class _Lines:
    """The lines of one split's sources laid one after another, and which of them are used, in what order."""

    parts: list[Prepared]
    chosen: NDArray[np.int64]
    digests: NDArray[np.void]  # of every line, chosen or not
    counts: Counts

    @classmethod
    def of(cls, parts: list[Prepared], weights: list[float | None], seed: int) -> _Lines:
        counts = Counts()
        for part in parts:
            counts.read += part.tally.read
            counts.dropped += part.tally.dropped
            counts.merged_turns += part.tally.merged_turns
            counts.redacted += part.tally.redacted
        digests = [_digests(part.lines) for part in parts]
        chosen, first = [], 0
        for own, weight in zip(digests, weights, strict=True):
            copies = _copies(own, weight, seed)
            if weight is not None and (left_out := int((copies == 0).sum())):
                counts.dropped[f"left out by weight {weight:g}"] += left_out
            chosen.append(first + np.repeat(np.arange(len(own)), copies))
            first += len(own)
        return cls(parts, np.concatenate(chosen), np.concatenate(digests), counts)

    def hold_out(self, rule: HeldOut, seed: int, name: str) -> _Lines:
        """Move the rows that `rule` chooses out of these. Rows with equal content always go together."""
        digests = self.digests[self.chosen]
        different, first, which = np.unique(digests, return_index=True, return_inverse=True)
        places = _unit_interval(different, seed)
        if rule.rows is not None:
            out = np.zeros(len(different), dtype=bool)
            out[np.argsort(places, kind="stable")[: rule.rows]] = True
        else:
            assert rule.fraction is not None
            out = places < rule.fraction
            if len(different) and not out.any():
                out[np.argmin(places)] = True
        if out.sum() >= len(different):
            raise DataError(
                f"data.{name}: holding out {out.sum()} of {len(different)} different rows leaves none to train on; "
                "hold out fewer, or name a separate source"
            )
        moved = out[which]
        part = self.chosen[np.sort(first[out])]  # a repeated row is measured once
        self.chosen = self.chosen[~moved]
        self.counts.held_out += int(moved.sum())
        return _Lines(self.parts, part, self.digests, Counts(read=len(part)))

    def split(self, name: str) -> Split:
        """The rows that are used, counted; raises DataError when there are none."""
        lines = datasets.concatenate_datasets([part.lines for part in self.parts])
        table, counts = lines.data, self.counts
        flags = (pc.not_equal(chunk, "").to_numpy(False) for chunk in table["dropped"].chunks)
        dropped = np.concatenate([np.empty(0, dtype=bool), *flags])  # no chunk at all: no row got this far
        for reason in pc.value_counts(table["dropped"].take(self.chosen[dropped[self.chosen]])):
            counts.dropped[str(reason["values"])] += reason["counts"].as_py()
        used = self.chosen[~dropped[self.chosen]]
        counts.kept = len(used)
        if not len(used):
            reasons = "; ".join(f"{number} × {reason}" for reason, number in counts.dropped.most_common(3))
            raise DataError(f"data.{name}: none of {counts.read} rows is left ({reasons or 'the source is empty'})")
        counts.tokens = int(pc.list_value_length(table["input_ids"]).to_numpy()[used].sum())
        counts.trained_tokens = int(table["trained"].to_numpy()[used].sum())
        counts.truncated = int(table["truncated"].to_numpy()[used].sum())
        ends = np.cumsum([len(part.lines) for part in self.parts])
        source_of = np.searchsorted(ends, used, side="right").astype(np.int8)
        rows = lines if len(used) == len(lines) and (np.diff(used) == 1).all() else lines.select(used)
        return Split(
            name,
            rows.select_columns(["input_ids", "labels"]),
            rows.select_columns(DETAILS),
            counts,
            content_sha256(self.digests[used]),
            [{**part.source, "rows": int((source_of == n).sum())} for n, part in enumerate(self.parts)],
            self.digests[used],
            [part.place for part in self.parts],
            source_of,
        )


def _digests(lines: datasets.Dataset) -> NDArray[np.void]:
    """The digest column as an array of 16 bytes a row."""
    chunks = lines.data["digest"].chunks
    values = [np.frombuffer(chunk.buffers()[2] or b"", dtype="V16")[: len(chunk)] for chunk in chunks]
    return np.concatenate(values) if values else np.empty(0, dtype="V16")


def _unit_interval(digests: NDArray[np.void], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each row that its content and the seed decide."""
    mixed = (
        hashlib.blake2b(f"{seed}:{digest.tobytes().hex()}".encode(), digest_size=8).digest() for digest in digests
    )
    return np.fromiter((int.from_bytes(number, "big") / 2**64 for number in mixed), np.float64, len(digests))


def _copies(digests: NDArray[np.void], weight: float | None, seed: int) -> NDArray[np.int64]:
    """How often a row of a source of this weight stands in one epoch: 0.5 keeps half the rows, 2 shows each twice."""
    if weight is None:
        return np.ones(len(digests), dtype=np.int64)
    whole = int(weight)
    return whole + (_unit_interval(digests, seed + 1) < weight - whole)
