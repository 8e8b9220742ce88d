"""Checkpoints that can be trusted: written beside, flushed, listed with their hashes, moved into place by one rename.

    checkpoints/
      checkpoint-200/       whole: `complete.json` names each file with its size and SHA-256
      .writing/             what is being written, or was when the process died
      .removing/            what is being removed

A folder without `complete.json`, or whose files are not those it names, is no checkpoint.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from recipe_kit import run_dir
from recipe_kit.errors import first_line

MANIFEST = run_dir.CHECKPOINT_COMPLETE
WRITING = ".writing"
REMOVING = ".removing"
SPARE_BYTES = 16 * 2**20  # left for the log and the records of the run
_AT_ONCE = 4  # files that are hashed at the same time
_NOT_WRITTEN = ("PytorchStreamWriter", "inline_container", "I/O error", "os error")  # in errors that are no OSError


def any_saved(run: Path) -> bool:
    """Whether some checkpoint of this run was written to its end; its files are not looked at."""
    return run_dir.has_checkpoint(run)


def newest(run: Path, report: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run, every byte of it read; a sentence is reported for each one left out."""
    for _, folder in reversed(_in_order(run / run_dir.CHECKPOINTS)):
        problem = fault(folder)
        if not problem:
            return folder
        report(f"{folder} is left out: {problem}")
    return None


def fault(folder: Path) -> str:
    """What is wrong with a checkpoint, by its own manifest; "" for a whole one."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(of["bytes"]), str(of["sha256"])) for name, of in told["files"].items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written to its end, or by another version"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({str(error) or type(error).__name__})"
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda name: _hash_of(folder / name), files))
    except OSError as error:
        return f"{error.filename or 'a file'} cannot be read ({error.strerror or error})"
    for (name, (_, expected)), sha256 in zip(files.items(), found, strict=True):
        if sha256 != expected:
            return f"{name} is not the file that was written (its SHA-256 is another)"
    return ""


def _hash_of(path: Path) -> str:
    state = path.stat()
    return _read_once(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _read_once(path: Path, size: int, changed_ns: int) -> str:
    """A file's SHA-256. A run that goes on asks for its checkpoint several times; large ones take a minute to read."""
    return run_dir.sha256(path)


def complete(folder: Path, step: int) -> None:
    """Flush every file of a folder to the disk and write the manifest that makes it a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        hashes = list(pool.map(_flushed_sha256, files))
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, hashes, strict=True)
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"schema_version": 1, "step": step, "files": listed}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _flush_folder(inside)


def flush(folder: Path) -> None:
    """Every file of a folder is on the disk afterwards, and not only in memory."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def size(folder: Path) -> int:
    """Bytes of all files in a folder; 0 for one that is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def move_into_place(written: Path, place: Path) -> None:
    """One rename, and on the disk. What was in that place goes first."""
    place.parent.mkdir(parents=True, exist_ok=True)
    remove(place)
    written.rename(place)
    _flush_folder(place.parent)
    with suppress(OSError):  # something else is being written there
        written.parent.rmdir()


def remove(folder: Path) -> None:
    """Remove a folder, if it is there: out of the way by one rename first, so that a half of it is never found."""
    aside = folder.parent / REMOVING / f"{folder.name}-{os.getpid()}"
    if not folder.is_dir():
        return
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):  # another machine's first process was quicker
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        aside.parent.rmdir()


def discard(written: Path) -> None:
    """Remove what was being written, and the folder for such things if it was the only one."""
    shutil.rmtree(written, ignore_errors=True)
    with suppress(OSError):
        written.parent.rmdir()


def rotate(folder: Path, step: int, keep: int | None, best: str | None) -> None:
    """Remove what the new checkpoint of `step` makes superfluous: all but the `keep` newest, and the best one stays.

    Checkpoints of later steps are those that were left out when the run went on from an earlier one.
    """
    found = _in_order(folder)
    for _, later in (entry for entry in found if entry[0] > step):
        remove(later)
    earlier = [path for at, path in found if at <= step]
    protected = {earlier[-1].name, Path(best).name if best else ""} if earlier else set()
    kept = max(keep or len(earlier), len({path.name for path in earlier} & protected))
    removable = [path for path in earlier if path.name not in protected]
    for path in removable[: max(0, len(earlier) - kept)]:
        remove(path)


def clear(run: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    for folder in (run, run / run_dir.CHECKPOINTS):
        for name in (WRITING, REMOVING):
            shutil.rmtree(folder / name, ignore_errors=True)


def last_bytes(folder: Path) -> int | None:
    """The size of the newest checkpoint by its manifest; None where there is none."""
    for _, path in reversed(_in_order(folder)):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            told = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            return sum(int(file["bytes"]) for file in told["files"].values())
    return None


def last_step(run: Path) -> int | None:
    """The step of the newest checkpoint that was written to its end; None where there is none."""
    steps = [step for step, path in _in_order(run / run_dir.CHECKPOINTS) if (path / MANIFEST).is_file()]
    return steps[-1] if steps else None


def shortage(folder: Path, needed: int) -> str:
    """Why so many bytes cannot be written to a folder; "" where they can."""
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    if needed + SPARE_BYTES <= free:
        return ""
    return f"{folder} has {gigabytes(free)} free and {gigabytes(needed + SPARE_BYTES)} are needed"


def gigabytes(count: float) -> str:
    """`14.2 GB`, or `3.1 MB` for less than a tenth of one."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def is_disk_error(error: BaseException) -> bool:
    """Whether a file could not be written, as Python, PyTorch, safetensors or checkpoints of shards say it."""
    if isinstance(error, OSError):
        return error.errno is not None
    shards = getattr(error, "failures", None)  # torch.distributed's CheckpointException: rank -> (error, traceback)
    if isinstance(shards, dict):
        return any(is_disk_error(one[0]) for one in shards.values())
    known = isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError"
    return known and any(words in str(error) for words in _NOT_WRITTEN)


def in_words(error: BaseException, folder: Path) -> str:
    """What the error says, and how much is free, for the middle of a sentence."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    return f"{said.rstrip('.')}; {gigabytes(free)} are free in {folder}"


def _in_order(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of everything named like a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    named = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return sorted((int(step), path) for step, path in named if step.isdigit())


def _flushed_sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return run_dir.sha256(path)


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is. Some network file systems cannot say so of folders."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)
