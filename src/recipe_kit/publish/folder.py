"""What a push would send, as a folder: to look at, or to publish some other way. Needs no network and no token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from recipe_kit.errors import PublishError
from recipe_kit.publish import manifest
from recipe_kit.publish.files import File


def check(folder: Path) -> None:
    """Raises PublishError for a folder that holds anything but an earlier export."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise PublishError(f"{folder}: not a folder; choose another with --to-folder")
    if not folder.exists():
        return
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    listed = folder / manifest.PATH
    known = {*manifest.read(listed.read_bytes()), manifest.PATH} if listed.is_file() else set()
    if strange := sorted(there - known):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise PublishError(f"{folder}: holds files of somebody else ({strange[0]}{more}); choose an empty folder")


def write(files: Iterable[File], folder: Path) -> None:
    """Write the files into a new folder, or in place of an earlier export; it appears when it is complete."""
    check(folder)
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
    part = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    try:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for file in files:
            path = part / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file.content, bytes):
                path.write_bytes(file.content)
            else:
                shutil.copyfile(file.content, path)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise PublishError(f"cannot write {folder}: {error.strerror or error}; choose another --to-folder") from error
