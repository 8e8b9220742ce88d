"""Training rows read, formatted and tokenised while training goes on, for data larger than the disk.

What cannot be known without reading everything is not known: counts are of the first rows only, nothing can be held
out of the stream, and an epoch has no length. Rows that are measured on are left out of the stream as they come by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import datasets

from recipe_kit.data.prepared import Prepared
from recipe_kit.data.sources import BATCH_ROWS, describe, recorded, stream_source
from recipe_kit.data.work import Done, Work, raise_for
from recipe_kit.errors import DataError, FormatError
from recipe_kit.formatters import bind, check_columns, get_formatter
from recipe_kit.labels import Labeller
from recipe_kit.recipe import DataSection, HeldOut, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_ROWS = 1000  # of each source: what proofs, plan and preview look at
SHUFFLE_ROWS = 4096  # rows are shuffled among so many that follow one another

_FEATURES = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in ("input_ids", "labels")})


def check(data: DataSection) -> None:
    """Raises DataError for what a stream cannot do."""
    for name in ("eval", "test"):
        if isinstance(getattr(data, name), HeldOut):
            raise DataError(
                f"data.{name}: rows cannot be held out of a stream; name a source of their own, or set "
                "data.streaming: false"
            )
    if any(source.weight is not None for source in data.train):
        raise DataError("data.train: a stream shows every row once; leave out `weight`, or set data.streaming: false")


def sample(source: Source, data: DataSection, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """The first rows of a stream, as if they were all. Raises DataError."""
    done = next(_batches(source, data, tokenizer, SAMPLE_ROWS), None)
    if done is None:
        raise DataError(f"{describe(source)}: no rows{' match `where`' if source.where else ''}; nothing to train on")
    lines = datasets.Dataset(datasets.table.InMemoryTable(done.table))
    return Prepared(lines, done.tally, recorded(source), describe(source))


def rows(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, *, measured_on: frozenset[bytes], counts: Counter[str]
) -> datasets.IterableDataset:
    """All training rows as `input_ids` and `labels`, source after source, shuffled among a few thousand.

    Rows whose digest is in `measured_on` are left out. `counts` goes up with every row: `read`, `kept`, and one entry
    for each reason to leave a row out; it is that of the last pass over the stream, in the process that reads it.
    """

    def generate() -> Iterator[dict[str, Any]]:
        counts.clear()  # trainers look at the first row before they begin
        for source in data.train:
            for done in _batches(source, data, tokenizer, BATCH_ROWS):
                counts["read"] += done.tally.read
                counts.update(done.tally.dropped)
                for line in done.table.select(["input_ids", "labels", "digest", "dropped"]).to_pylist():
                    reason = line["dropped"] or ("a row that is measured on" if line["digest"] in measured_on else "")
                    counts[reason or "kept"] += 1
                    if not reason:
                        yield {"input_ids": line["input_ids"], "labels": line["labels"]}

    stream = datasets.IterableDataset.from_generator(generate, features=_FEATURES)
    return stream.shuffle(seed=data.split_seed, buffer_size=SHUFFLE_ROWS)


def _batches(source: Source, data: DataSection, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[Done]:
    settings = data.formatter_of(source)
    formatter = get_formatter(settings.name)
    stored, columns = stream_source(source)
    try:
        check_columns(formatter, columns, settings.columns)
        format_one = bind(formatter, settings.options, settings.columns)
    except FormatError as error:
        raise DataError(f"{describe(source)}: {error}") from error
    work = Work(format_one, data, Labeller(tokenizer, train_on=data.train_on))
    remaining, first_row = iter(stored), 0
    while batch := list(islice(remaining, size)):
        done = work.on_rows(batch, first_row)
        if done.error is not None:
            raise_for(describe(source), done.error)
        first_row += len(batch)
        yield done
