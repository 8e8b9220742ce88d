"""Recipes are written into an empty working folder, so that messages name them shortly."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_text import BASE, Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file of the working folder, which is empty at first; `base.yaml` is `BASE` unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str = BASE, name: str = "base.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return Path(name)

    return write_file
