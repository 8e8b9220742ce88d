"""The rows of a source as they are stored: from the Hub, a file, a folder, or the samples that ship."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from recipe_kit import catalog
from recipe_kit.errors import DataError
from recipe_kit.recipe import Source
from recipe_kit.suggest import did_you_mean

BATCH_ROWS = 1000

_READ_ERRORS = (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError)
_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def load_source(source: Source) -> datasets.Dataset:
    """The rows of one source, after `where` and `limit`, on disk. Raises DataError."""
    rows = _load(source)
    for column, value in source.where.items():
        _check_where(column, rows.column_names, source)
        cells = rows.select_columns([column]).iter(BATCH_ROWS)
        matches = (cell == value for batch in cells for cell in batch[column])
        rows = rows.select([index for index, match in enumerate(matches) if match])
    if source.limit is not None:
        rows = rows.select(range(min(source.limit, len(rows))))
    if len(rows) == 0:
        raise DataError(f"{describe(source)}: no rows{' match `where`' if source.where else ''}; nothing to train on")
    return rows


def batches(rows: datasets.Dataset, source: Source) -> Iterator[pa.Table]:
    """The rows in order, about a thousand at a time; what was given out before is not kept in memory.

    `datasets` maps its files into memory, and a pass over them leaves the whole file resident. Where the files hold
    exactly these rows they are read as streams instead.
    """
    files = [file["filename"] for file in rows.cache_files]
    part = (
        bool(source.where) or source.limit is not None or "[" in source.split
    )  # train[:10%] reads the whole file too
    if part or not files:
        yield from rows.with_format("arrow").iter(BATCH_ROWS)
        return
    for file in files:
        with pa.OSFile(file) as opened, pa.ipc.open_stream(opened) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])


def stream_source(source: Source) -> tuple[datasets.IterableDataset, list[str]]:
    """The rows of one source, read while they are used, and the names of their columns. Raises DataError."""
    try:
        rows = _open_stream(source)
        first = next(iter(rows), None)
    except _READ_ERRORS as error:
        raise DataError(f"{describe(source)}: cannot stream these rows: {_first_line(error)}") from error
    if first is None:
        raise DataError(f"{describe(source)}: no rows; nothing to train on")
    for column, value in source.where.items():
        _check_where(column, list(first), source)
        rows = rows.filter(lambda row, column=column, value=value: row[column] == value)
    return rows if source.limit is None else rows.take(source.limit), list(first)


def describe(source: Source) -> str:
    """A source in the words of the recipe, for messages: `samsum.jsonl (train)`."""
    where = source.id or source.path or f"sample:{source.sample}"
    return f"{where} ({', '.join(part for part in (source.config, source.split) if part)})"


def content_of(source: Source, rows: datasets.Dataset) -> str:
    """Changes when the rows of a source change: a hash of its files, or what `datasets` knows a Hub download by."""
    path = catalog.sample_path(source.sample, source.split) if source.sample else Path(source.path or "")
    if source.id is not None or not path.is_file():
        return str(rows._fingerprint)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _check_where(column: str, columns: list[str], source: Source) -> None:
    if column not in columns:
        raise DataError(
            f"{describe(source)}: data has no column {column!r} to select on; "
            f"its columns are {', '.join(columns)}{did_you_mean(column, columns)}"
        )


def _open_stream(source: Source) -> datasets.IterableDataset:
    if source.id is not None:
        return datasets.load_dataset(
            source.id, source.config, split=source.split, revision=source.revision, streaming=True
        )
    path = catalog.sample_path(source.sample, source.split) if source.sample else Path(source.path or "")
    if not path.is_file():
        return _read_path(path, source).to_iterable_dataset()  # folders, and the sentence for what is not there
    reader, options = _reader(path)
    return datasets.load_dataset(reader, data_files={"rows": str(path)}, split="rows", streaming=True, **options)


def _load(source: Source) -> datasets.Dataset:
    if source.sample is not None:
        return _read_file(catalog.sample_path(source.sample, source.split), source)
    if source.path is not None:
        return _read_path(Path(source.path), source)
    try:
        return datasets.load_dataset(source.id, source.config, split=source.split, revision=source.revision)
    except ValueError as error:  # unknown configuration or split; the library's sentence lists the known ones
        raise DataError(f"{describe(source)}: {_first_line(error)}") from error
    except _READ_ERRORS as error:
        raise DataError(
            f"{describe(source)}: cannot get this dataset from the Hub ({_first_line(error)}); check the id, the "
            "network and `hf auth login`, or name a local file in data: path"
        ) from error


def _read_path(path: Path, source: Source) -> datasets.Dataset:
    if path.is_file():
        return _read_file(path, source)
    if not path.is_dir():
        nearby = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file or folder{did_you_mean(path.name, nearby)}")
    try:
        if (path / "state.json").is_file():  # written by Dataset.save_to_disk
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path), source.config, split=source.split)
    except _READ_ERRORS as error:
        raise DataError(f"{describe(source)}: cannot read this folder as a dataset: {_first_line(error)}") from error


def _reader(path: Path) -> tuple[str, dict[str, Any]]:
    """Which of the library's readers a file is for, and its options."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot read {path.suffix or 'this kind of'} files; expected {', '.join(_READERS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; nothing to train on")
    return reader, {"delimiter": "\t"} if path.suffix.lower() == ".tsv" else {}


def _read_file(path: Path, source: Source) -> datasets.Dataset:
    reader, options = _reader(path)
    try:
        return datasets.load_dataset(reader, data_files={"rows": str(path)}, split="rows", **options)
    except _READ_ERRORS as error:
        if "corresponds to no data" in str(error):  # a ValueError of its own would be better: datasets 5.2 has none
            raise DataError(f"{path}: the file holds no rows; nothing to train on") from error
        reason = _broken_line(path) if path.suffix.lower() == ".jsonl" else ""
        raise DataError(f"{path}: cannot read this file as {reader}: {reason or _first_line(error)}") from error


def _broken_line(path: Path) -> str:
    """The first line that is not JSON; the library counts rows from 0, within a block of the file."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line.strip() or "null")
            except json.JSONDecodeError as error:
                return f"line {number}, column {error.colno}: {error.msg}"
    return ""


def recorded(source: Source) -> dict[str, Any]:
    """What `run.json` says of a source: its place in the words of the recipe, and the commit it was read at."""
    told = source.model_dump(exclude_none=True, exclude_defaults=True)
    return {**told, "split": source.split, "resolved_revision": _hub_revision(source)}


def _hub_revision(source: Source) -> str | None:
    """The commit a Hub dataset was read at, when the Hub can be asked; None otherwise."""
    if source.id is None:
        return None
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(source.id, revision=source.revision, timeout=10).sha
    except Exception:  # the client fails with the errors of whichever HTTP library it uses; the rows are here
        return None


def _first_line(error: BaseException) -> str:
    """What went wrong, shortly: `datasets` wraps the reason in a sentence that says only that there is one."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
