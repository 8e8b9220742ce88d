"""The best setting as a recipe that extends the one that was swept and holds only what differs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recipe_kit import run_dir
from recipe_kit.errors import RecipeError
from recipe_kit.recipe import Recipe, dump_recipe, load_recipe, to_data

# Merged as one piece in a recipe, so written as one piece.
_WHOLE = (("data", "train"), ("data", "eval"), ("data", "test"), ("data", "formatter"))
# Inherited with a model only as long as the model is inherited.
_OF_ONE_MODEL = ("revision", "chat_template", "chat_template_kwargs", "pad_token", "trust_remote_code")


def default_path(source: str, name: str) -> Path:
    """Beside the recipe; for one that ships, in the current folder."""
    path = Path(source).expanduser()
    return (path.parent if path.is_file() else Path()) / f"{name}-best.yaml"


def check_path(path: Path, memory: Path) -> None:
    """Raises RecipeError when the file exists or its folder does not: before anything is trained.

    The file that this sweep wrote, and nobody changed since, may be there: `memory` knows its SHA-256.
    """
    if path.exists() and not (path.is_file() and written(memory) == run_dir.sha256(path)):
        raise RecipeError(f"{path} exists already; choose another file with --out, or remove it first")
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"cannot write {path}: there is no folder {path.parent}; choose another file with --out")
    if not os.access(path.absolute().parent, os.W_OK):
        raise RecipeError(f"cannot write {path}: the folder is read-only; choose another file with --out")


def written(memory: Path) -> str | None:
    """SHA-256 of the recipe that a sweep has written, from its memory; None where it wrote none."""
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))["best_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def write(path: Path, source: str, wanted: Recipe, *, comments: Sequence[str], memory: Path) -> None:
    """Write `wanted` as a child of the recipe `source`, and in the sweep's `memory` that this file is its own.
    Raises RecipeError when the file appeared in the meantime.

    The file is read again before it gets its name. Should the child not give back what is wanted, every value is
    written out instead.
    """
    check_path(path, memory)
    head = "".join(f"# {line}\n" for line in comments)
    text = head + dump_recipe(wanted)
    try:
        parent = load_recipe(source)
    except RecipeError:  # complete under a profile only
        pass
    else:
        body = {"extends": _parent(source, path), **_changes(to_data(parent), to_data(wanted))}
        child = head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
        text = child if _gives(child, path, wanted) else text
    run_dir.write_text(path, text)
    if memory.is_file():
        known = json.loads(memory.read_text(encoding="utf-8"))
        run_dir.write_json(memory, {**known, "best_sha256": run_dir.sha256(path)})


def _parent(source: str, path: Path) -> str:
    given = Path(source).expanduser()
    if not given.is_file():
        return source
    relative = Path(os.path.relpath(given.absolute(), path.absolute().parent)).as_posix()
    return relative if "/" in relative else f"./{relative}"


def _gives(text: str, path: Path, wanted: Recipe) -> bool:
    """Whether this text, at this place, is a recipe equal to `wanted`."""
    with tempfile.NamedTemporaryFile(
        "w", suffix=".yaml", prefix=".", dir=path.absolute().parent, encoding="utf-8"
    ) as f:
        f.write(text)
        f.flush()
        try:
            return load_recipe(f.name) == wanted
        except RecipeError:
            return False


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Nested values of `new` that `old` has not; null takes back a key."""
    other_model = keys == ("model",) and new.get("id") != old.get("id")
    found: dict[str, Any] = {}
    for key in dict.fromkeys([*old, *new]):
        mine, theirs = new.get(key), old.get(key)
        if other_model and key in _OF_ONE_MODEL:
            if mine:  # what is not written goes with the other model
                found[key] = mine
        elif mine == theirs and (key in new) == (key in old):
            continue
        elif isinstance(mine, dict) and isinstance(theirs, dict) and (*keys, key) not in _WHOLE:
            found[key] = _changes(theirs, mine, (*keys, key))
        else:
            found[key] = mine
    return found
