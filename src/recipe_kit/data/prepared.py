"""Rows of a source, formatted and tokenised once, and kept on disk until something that matters changes.

Whoever comes first prepares, with all cores; other processes wait for a file lock and then read the same files. So
ranks may start together: none waits inside a collective call, which would time out. A folder is written under another
name and renamed when it is complete; an interrupted preparation leaves nothing that looks finished.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import inspect
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa

import recipe_kit
from recipe_kit.data.sources import BATCH_ROWS, batches, content_of, describe, load_source, recorded
from recipe_kit.data.work import SCHEMA, Done, Tally, Work, raise_for
from recipe_kit.errors import DataError, FormatError
from recipe_kit.formatters import bind, check_columns, get_formatter
from recipe_kit.labels import Labeller
from recipe_kit.local_models import cache_root
from recipe_kit.recipe import DataSection, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Report = Callable[[str], None]
ROWS, FACTS = "rows.arrow", "facts.json"
UNUSED_SECONDS = 30 * 24 * 3600
IN_PROCESS_ROWS = 4 * BATCH_ROWS  # below this, starting workers costs more than it saves
_PACKAGES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")
_OWN_SOURCES = ("data", "formatters", "labels", "quality*")


@dataclass
class Prepared:
    """One source: a line for every row its formatter took, in order, and what became of the others."""

    lines: datasets.Dataset
    tally: Tally
    source: dict[str, Any]
    place: str


def prepare_source(
    source: Source,
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    workers: int | None = None,
    report: Report = lambda text: None,
) -> Prepared:
    """The rows of one source as token ids and labels, from the cache when nothing that matters has changed.

    `workers` processes tokenise; by default one for each core. Raises DataError for rows that cannot be read, and for
    the first row that must not be, in the order of the source.
    """
    settings = data.formatter_of(source)
    formatter = get_formatter(settings.name)
    place = describe(source)
    rows = load_source(source)
    try:
        check_columns(formatter, rows.column_names, settings.columns)
        format_one = bind(formatter, settings.options, settings.columns)
    except FormatError as error:
        raise DataError(f"{place}: {error}") from error
    work = Work(format_one, data, Labeller(tokenizer, train_on=data.train_on), rows.features)
    key = cache_key(source, rows, data, tokenizer)
    root = cache_root() / "prepared"

    def write(folder: Path) -> None:
        report(f"preparing {len(rows):,} rows of {place}")
        _write(folder, rows, source, work, workers)

    folder = _once(root, key, write, report)
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    tally = Tally(facts["read"], Counter(facts["dropped"]), facts["merged_turns"], Counter(facts["redacted"]))
    return Prepared(datasets.Dataset.from_file(str(folder / ROWS)), tally, recorded(source), place)


def cache_key(
    source: Source, rows: datasets.Dataset, data: DataSection, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Changes with anything that the prepared rows depend on; None when a formatter's source cannot be read.

    The rows' content, the formatter's whole file with its options and columns, template, tokenizer, the part of the
    recipe's data section that rows depend on, package versions, and this package's own code. What a formatter imports
    from other files of its own is not seen.
    """
    settings = data.formatter_of(source)
    try:
        function = inspect.unwrap(get_formatter(settings.name))
        code = Path(inspect.getsourcefile(function) or "").read_bytes()
        captured = repr(sorted(inspect.getclosurevars(function).nonlocals.items()))
    except (OSError, TypeError):
        return None
    ingredients = {
        "rows": content_of(source, rows),
        "where": repr(source.where),
        "limit": source.limit,
        "formatter": [settings.name, repr(settings.options), repr(settings.columns), _sha(code), captured],
        "template": str(tokenizer.chat_template),
        "tokenizer": [_sha(tokenizer.backend_tokenizer.to_str().encode()), repr(tokenizer.special_tokens_map)],
        "data": {
            name: getattr(data, name)
            for name in ("train_on", "system", "max_length", "too_long", "bad_rows", "redact", "role_order")
        },
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "kit": _own_code(),
    }
    return _sha(json.dumps(ingredients, sort_keys=True).encode())[:32]


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _once(root: Path, key: str | None, write: Callable[[Path], None], report: Report) -> Path:
    """The folder `root/key`, written by whichever process comes first."""
    target = root / (key or f"unsaved-{os.getpid()}-{len(_UNSAVED)}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (target / FACTS).is_file():
            with _locked(target, report):
                if not (target / FACTS).is_file():
                    _forget_unused(root)
                    _build(target, write)
        os.utime(target)  # says when it was last of use
    except OSError as error:
        raise DataError(
            f"cannot write prepared rows below {root}: {error.strerror or error}; free some space there, or set "
            "RECIPE_KIT_CACHE to a folder you can write to"
        ) from error
    if key is None:
        _UNSAVED.append(tempfile.TemporaryDirectory(dir=root, prefix="unsaved-"))
        kept = Path(_UNSAVED[-1].name) / "rows"
        target.rename(kept)
        return kept
    return target


def _forget_unused(root: Path) -> None:
    """Prepared rows that nothing has read for a month go when others are written; they can be made again."""
    for facts in root.glob(f"*/{FACTS}"):
        if time.time() - facts.parent.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(facts.parent, ignore_errors=True)
            facts.parent.with_name(f"{facts.parent.name}.lock").unlink(missing_ok=True)


def _build(target: Path, write: Callable[[Path], None]) -> None:
    for leftover in target.parent.glob(f"{target.name}.part-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.part-") as part:
        finished = Path(part) / "rows"
        finished.mkdir()
        write(finished)
        finished.rename(target)


@contextmanager
def _locked(target: Path, report: Report) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=2)
    except Timeout:
        report("waiting for another process that prepares the same rows")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


_UNSAVED: list[tempfile.TemporaryDirectory[str]] = []  # folders that go when this process ends


def _write(folder: Path, rows: datasets.Dataset, source: Source, work: Work, workers: int | None) -> None:
    tally = Tally()
    tables = _numbered(batches(rows, source))
    count = min(workers or available_cores(), max(1, len(rows) // BATCH_ROWS))
    parallel = count > 1 and len(rows) > IN_PROCESS_ROWS and "fork" in multiprocessing.get_all_start_methods()
    bar = datasets.utils.tqdm(total=len(rows), unit="row", unit_scale=True, desc="preparing", mininterval=1)
    with bar, pa.OSFile(str(folder / ROWS), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for done in _in_workers(work, tables, count) if parallel else (work.on_table(*pair) for pair in tables):
            if done.error is not None:
                raise_for(describe(source), done.error)
            writer.write_table(done.table)
            tally.add(done.tally)
            bar.update(done.tally.read)
    facts = {
        "read": tally.read,
        "dropped": tally.dropped,
        "merged_turns": tally.merged_turns,
        "redacted": tally.redacted,
    }
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")  # last: a folder with it is complete


def _numbered(tables: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, int]]:
    first_row = 0
    for table in tables:
        yield table, first_row
        first_row += table.num_rows


_WORK: Work | None = None  # what forked workers find in their memory: nothing has to be sent to them


def _on_table(table: pa.Table, first_row: int) -> Done:
    assert _WORK is not None
    return _WORK.on_table(table, first_row)


def _in_workers(work: Work, tables: Iterator[tuple[pa.Table, int]], workers: int) -> Iterator[Done]:
    """Results in the order of the rows; only a few batches are on the way at any time."""
    global _WORK
    _WORK = work
    try:
        context = multiprocessing.get_context("fork")
        # What was there before the fork is not looked through at each garbage collection: 40 µs a row, measured.
        with _quiet_fork(), ProcessPoolExecutor(workers, mp_context=context, initializer=gc.freeze) as pool:
            waiting: deque[Future[Done]] = deque()
            try:
                for table, first_row in tables:
                    waiting.append(pool.submit(_on_table, table, first_row))
                    if len(waiting) > 2 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        _WORK = None


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Workers tokenise with one thread each, and nobody is warned that this process has threads of its own."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _own_code() -> str:
    root = Path(recipe_kit.__file__).parent
    files = sorted(file for part in _OWN_SOURCES for found in root.glob(part) for file in _python_files(found))
    return _sha(b"".join(file.read_bytes() for file in files))


def _python_files(path: Path) -> list[Path]:
    return [path] if path.suffix == ".py" else sorted(path.glob("*.py"))


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
