"""The list of its files that a push leaves in the repository, so that a later one knows which were its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from recipe_kit.publish.files import File

PATH = "recipe-kit/files.json"


def written(what: str, files: Iterable[File]) -> bytes:
    """The list of these files; it cannot list itself."""
    listed = {file.path: {"size": file.size, "sha256": file.sha256, "git_sha1": file.git_sha1} for file in files}
    return json.dumps({"what": what, "files": dict(sorted(listed.items()))}, indent=2).encode() + b"\n"


def read(data: bytes) -> dict[str, frozenset[str]]:
    """Both names of each file's bytes, by path; {} for somebody's own file of that name."""
    try:
        told: Any = json.loads(data)
        listed: Mapping[str, Any] = told["files"]
        return {path: frozenset((entry["sha256"], entry["git_sha1"])) for path, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
