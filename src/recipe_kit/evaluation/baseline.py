"""What the base model scored, kept: it is the same for every run on the same rows with the same settings."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipe_kit import run_dir
from recipe_kit.errors import RunError
from recipe_kit.local_models import cache_root

FORM = 2  # raised when what is kept, or how it is measured, changes
DAYS = 30  # results that nothing has read for so long go


def key(facts: dict[str, Any]) -> str:
    """A name that stands for facts: model and revision, rows, settings, versions, device."""
    return hashlib.sha256(json.dumps([FORM, facts], sort_keys=True, default=str).encode()).hexdigest()


def load(name: str) -> dict[str, Any] | None:
    """The results kept under `name`; None when there are none, or they cannot be read."""
    path = _path(name)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        path.touch()
    except (OSError, ValueError):
        return None
    return found


def keep(name: str, results: dict[str, Any]) -> None:
    """Keep results under `name`, and let go of old ones. A cache that cannot be written is not an error."""
    path = _path(name)
    with suppress(OSError, RunError):
        path.parent.mkdir(parents=True, exist_ok=True)
        run_dir.write_text(path, json.dumps(results))
        for other in path.parent.glob("*.json"):
            if other.stat().st_mtime < time.time() - DAYS * 86400:
                other.unlink(missing_ok=True)


def _path(name: str) -> Path:
    return cache_root() / "base-results" / f"{name[:32]}.json"
