"""From the recipe's `data` section to counted, tokenised rows.

load -> select -> format -> split -> tokenise. Every row that does not arrive is counted under its reason. Which rows
are held out depends only on what a row says and on `data.split_seed`: not on the order of the file, on `data.system`,
on the rank, or on the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from recipe_kit import catalog, labels
from recipe_kit.errors import DataError, FormatError, LabelError, SkipRow
from recipe_kit.formatters import Example, Formatter, check_columns, check_options, format_row, get_formatter
from recipe_kit.recipe import DataSection, FormatterSpec, HeldOut, Source
from recipe_kit.suggest import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_READ_ERRORS = (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError)
_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


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

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "dropped": dict(self.dropped)}


@dataclass
class Split:
    """One prepared split: `rows` has `input_ids` and `labels`, `examples` the formatted rows behind them, in order."""

    name: str
    rows: datasets.Dataset
    examples: list[Example]
    counts: Counts
    content_sha256: str  # over the rows' own hashes, sorted: equal for equal rows in any order
    sources: list[dict[str, Any]]


def prepare(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, *, splits: Iterable[str] = ("train", "eval", "test")
) -> dict[str, Split]:
    """The wanted splits of a recipe, ready to train and evaluate on; a split the recipe does not name is left out.

    Raises DataError when rows cannot be found or read, when a row is bad and `data.bad_rows` is `error`, when a row is
    too long and `data.too_long` is `error`, or when a split ends up empty.
    """
    wanted = [name for name in splits if getattr(data, name) is not None]
    check_formatters(data, wanted)
    collected: dict[str, _Collected] = {}
    for name in wanted:
        if data.sources(name):
            collected[name] = _collect(name, data)
    held_out = {name: getattr(data, name) for name in ("eval", "test") if isinstance(getattr(data, name), HeldOut)}
    if held_out and {"train", *held_out} & set(wanted):  # each of the two depends on which rows went to the other
        train = collected.get("train") or _collect("train", data)
        for name, rule in held_out.items():
            part = _hold_out(train, rule, data.split_seed, name)
            if name in wanted:
                collected[name] = part
    return {name: _encode(name, collected[name], data, tokenizer) for name in wanted}


def check_formatters(data: DataSection, splits: Iterable[str] = ("train", "eval", "test")) -> None:
    """Every formatter the recipe names exists and takes the options it is given; no row is read."""
    for name in splits:
        for source in data.sources(name):
            spec = data.formatter_of(source)
            check_options(get_formatter(spec.name), spec.options)


def content_hash(example: Mapping[str, Any]) -> str:
    """32 hex digits that depend only on what a formatted row says."""
    text = json.dumps(example, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def load_source(source: Source) -> datasets.Dataset:
    """The rows of one source as they are stored, after `where` and `limit`."""
    rows = _load(source)
    for column, value in source.where.items():
        if column not in rows.column_names:
            raise DataError(
                f"{describe(source)}: data has no column {column!r} to select on; "
                f"its columns are {', '.join(rows.column_names)}{did_you_mean(column, rows.column_names)}"
            )
        rows = rows.select([index for index, cell in enumerate(rows[column]) if cell == value])
    if source.limit is not None:
        rows = rows.select(range(min(source.limit, len(rows))))
    if len(rows) == 0:
        raise DataError(f"{describe(source)}: no rows{' match `where`' if source.where else ''}; nothing to train on")
    return rows


def describe(source: Source) -> str:
    """A source in the words of the recipe, for messages: `samsum.jsonl (train)`."""
    where = source.id or source.path or f"sample:{source.sample}"
    return f"{where} ({', '.join(part for part in (source.config, source.split) if part)})"


@dataclass
class _Collected:
    """Formatted rows before tokenising. `places` says where each row came from, for messages."""

    examples: list[Example]
    hashes: list[str]
    places: list[str]
    counts: Counts
    sources: list[dict[str, Any]]

    def take(self, keep: list[bool]) -> None:
        columns: list[list[Any]] = [self.examples, self.hashes, self.places]
        for values in columns:
            values[:] = [value for value, kept in zip(values, keep, strict=True) if kept]


def _collect(name: str, data: DataSection) -> _Collected:
    collected = _Collected([], [], [], Counts(), [])
    for source in data.sources(name):
        settings = data.formatter_of(source)
        formatter = get_formatter(settings.name)
        rows = load_source(source)
        place = describe(source)
        try:
            check_columns(formatter, rows.column_names, settings.columns)
        except FormatError as error:
            raise DataError(f"{place}: {error}") from error
        before = len(collected.examples)
        for index, example in _format(rows, formatter, settings, data, place, collected.counts):
            digest = content_hash(example)
            copies = _copies(digest, source.weight, data.split_seed) if name == "train" else 1
            if not copies:
                collected.counts.dropped[f"left out by weight {source.weight:g}"] += 1
            for _ in range(copies):
                collected.examples.append(_with_system(example, data.system))
                collected.hashes.append(digest)
                collected.places.append(f"{place} row {index + 1}")
        collected.sources.append(
            {
                **source.model_dump(exclude_none=True, exclude_defaults=True),
                "split": source.split,
                "rows": len(collected.examples) - before,
                "resolved_revision": _hub_revision(source),
            }
        )
    return collected


def _format(
    rows: datasets.Dataset,
    formatter: Formatter,
    settings: FormatterSpec,
    data: DataSection,
    place: str,
    counts: Counts,
) -> Iterator[tuple[int, Example]]:
    for index, row in enumerate(rows):
        counts.read += 1
        try:
            example = format_row(formatter, row, settings.options, settings.columns)
        except SkipRow as reason:
            counts.dropped[str(reason)] += 1
            continue
        except FormatError as error:
            _bad_row(f"{place} row {index + 1}", error, data, counts)
            continue
        yield index, example


def _bad_row(place: str, error: FormatError | LabelError, data: DataSection, counts: Counts) -> None:
    if data.bad_rows == "error":
        raise DataError(f"{place}: {error}; correct the row, or set data.bad_rows: drop") from error
    counts.dropped[str(error)] += 1


def _with_system(example: Example, system: str | None) -> Example:
    """The chat with the recipe's system prompt before it, unless it brings its own."""
    key = "messages" if "messages" in example else "prompt"
    turns: list[Any] | None = example.get(key)  # type: ignore[assignment]
    if system is None or turns is None or (turns and turns[0]["role"] == "system"):
        return example
    return {**example, key: [{"role": "system", "content": system}, *turns]}  # type: ignore[return-value]


def _unit_interval(digest: str, seed: int) -> float:
    """A number in [0, 1) that a row's content and the seed decide."""
    mixed = hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=8).digest()
    return int.from_bytes(mixed, "big") / 2**64


def _copies(digest: str, weight: float | None, seed: int) -> int:
    """How often a row of a source of this weight stands in one epoch: 0.5 keeps half the rows, 2 shows each twice."""
    if weight is None:
        return 1
    whole = int(weight)
    return whole + (_unit_interval(digest, seed + 1) < weight - whole)


def _hold_out(train: _Collected, rule: HeldOut, seed: int, name: str) -> _Collected:
    """Move the rows that `rule` chooses out of `train`. Rows with equal content always go together."""
    places = {digest: _unit_interval(digest, seed) for digest in set(train.hashes)}
    ranked = sorted(places, key=places.__getitem__)
    if rule.rows is not None:
        chosen = set(ranked[: rule.rows])
    else:
        assert rule.fraction is not None
        chosen = {digest for digest in ranked if places[digest] < rule.fraction} or set(ranked[:1])
    if len(chosen) >= len(ranked):
        raise DataError(
            f"data.{name}: holding out {len(chosen)} of {len(ranked)} different rows leaves none to train on; "
            "hold out fewer, or name a separate source"
        )
    out = [digest in chosen for digest in train.hashes]
    part = _Collected(list(train.examples), list(train.hashes), list(train.places), Counts(), train.sources)
    part.take(out)
    train.take([not moved for moved in out])
    first = {digest: index for index, digest in reversed(list(enumerate(part.hashes)))}
    part.take([first[digest] == index for index, digest in enumerate(part.hashes)])  # a repeated row is measured once
    part.counts.read = len(part.examples)
    train.counts.held_out += sum(out)
    return part


def _encode(name: str, collected: _Collected, data: DataSection, tokenizer: PreTrainedTokenizerBase) -> Split:
    counts = collected.counts
    input_ids, label_rows, kept, digests = [], [], [], []
    for example, digest, place in zip(collected.examples, collected.hashes, collected.places, strict=True):
        try:
            encoded = labels.encode(example, tokenizer, train_on=data.train_on)
        except LabelError as error:
            _bad_row(place, error, data, counts)
            continue
        ids, targets = encoded.input_ids, encoded.labels
        if len(ids) > data.max_length:
            if data.too_long == "error":
                raise DataError(
                    f"{place}: {len(ids)} tokens, over data.max_length {data.max_length}; raise it, "
                    "or set data.too_long to drop or truncate"
                )
            if data.too_long == "drop":
                counts.dropped[f"longer than {data.max_length} tokens"] += 1
                continue
            ids, targets = ids[: data.max_length], targets[: data.max_length]
            if all(target == labels.IGNORED for target in targets[1:]):
                counts.dropped[f"answer cut off whole at {data.max_length} tokens"] += 1
                continue
            counts.truncated += 1
        input_ids.append(ids)
        label_rows.append(targets)
        kept.append(example)
        digests.append(digest)
        counts.tokens += len(ids)
        counts.trained_tokens += sum(target != labels.IGNORED for target in targets)
    counts.kept = len(kept)
    if not kept:
        reasons = "; ".join(f"{number} × {reason}" for reason, number in counts.dropped.most_common(3))
        raise DataError(f"data.{name}: none of {counts.read} rows is left ({reasons or 'the source is empty'})")
    rows = datasets.Dataset.from_dict({"input_ids": input_ids, "labels": label_rows})
    content = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return Split(name, rows, kept, counts, content, collected.sources)


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


def _read_file(path: Path, source: Source) -> datasets.Dataset:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot read {path.suffix or 'this kind of'} files; expected {', '.join(_READERS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; nothing to train on")
    options = {"delimiter": "\t"} if path.suffix.lower() == ".tsv" else {}
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


def _hub_revision(source: Source) -> str | None:
    """The commit a Hub dataset was read at, when the Hub can be asked; None otherwise."""
    if source.id is None:
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(source.id, revision=source.revision, timeout=10).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return None


def _first_line(error: BaseException) -> str:
    """What went wrong, shortly: `datasets` wraps the reason in a sentence that says only that there is one."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
