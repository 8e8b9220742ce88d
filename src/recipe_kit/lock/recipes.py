"""The recipe of a run, with every revision that was resolved when it was trained."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from recipe_kit import run_dir
from recipe_kit.errors import RunError
from recipe_kit.recipe import Recipe, Source, load_recipe
from recipe_kit.recipe.yaml_source import read_value
from recipe_kit.run_dir import RunInfo

SPLITS = ("train", "eval", "test")
_PATH_KEY = re.compile(r"data\.(train|eval|test)(?:\.(\d+))?\.path")


def recipe_of(run: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a run: base model and Hub data sets at the commits that the run recorded."""
    return pinned(run / run_dir.RECIPE, run_dir.read(run), overrides)


def pinned(file: Path, info: RunInfo, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in `file` with the commits of `info`, and `overrides` laid over it.

    A branch becomes the commit it stood for. What an override changes to another model or data set is not pinned.
    `data.train.path=FILE` (`data.train.0.path` in a list), and `model.id=FOLDER` where the base was a folder, say only
    where something has moved to: everything else of that source or model stays as it was.
    """
    plain = load_recipe(file)
    moves, others = _moves(plain, overrides)
    recipe = load_recipe(file, overrides=others) if others else plain
    recipe = _pin_sources(_pin_model(recipe, plain, info), plain, info)
    for key, place in moves.items():
        recipe = _move(recipe, key, place)
    return recipe


def require_files(recipe: Recipe, info: RunInfo, *, folder: Path | None = None) -> None:
    """Raises RunError when a file or folder the recipe names is not here, with the `--set` that would give it.

    `folder` is where a published record lies: only names of files are published, and none of them is there.
    """
    missing = []
    for split in SPLITS:
        recorded = info["data"].get("splits", {}).get(split, {})
        for key, source in sources_by_key(recipe, split):
            if source.path is None or (Path(source.path).exists() and Path(source.path).parent != folder):
                continue
            name = Path(source.path).name
            told = f" (of {recorded['kept']} rows, content {recorded['content_sha256'][:12]})" if recorded else ""
            missing.append(
                f"data.{split}: the local file {name}{told} is not here; give it with --set {key}.path=FOLDER/{name}"
            )
    if is_local_model(recipe.model.id) and not Path(recipe.model.id).is_dir():
        on_hub = recipe.card.base_model or "FOLDER"
        missing.append(
            f"model.id: the local folder {Path(recipe.model.id).name} is not here; "
            f"give the same base with --set model.id={on_hub}"
        )
    if missing:
        raise RunError("\n".join(missing))


def sources_by_key(recipe: Recipe, split: str) -> Iterator[tuple[str, Source]]:
    """The sources of a split by the key that `--set` knows them by."""
    sources = recipe.data.sources(split)
    for index, source in enumerate(sources):
        yield f"data.{split}" if len(sources) == 1 else f"data.{split}.{index}", source


def is_local_model(model_id: str) -> bool:
    """Whether a model's id is the path or name of a folder, here or where it was trained."""
    if model_id.startswith(("package:", "tiny:")):
        return False
    return "/" not in model_id or model_id.startswith(("/", ".", "~")) or Path(model_id).is_dir()


def _moves(plain: Recipe, overrides: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Overrides that say where a local file or folder is now, by their keys; and all others."""
    moves, others = {}, []
    for text in overrides:
        key, equals, written = text.partition("=")
        key = key.strip()
        source = _source_at(plain, key)
        was_local = is_local_model(plain.model.id) if key == "model.id" else bool(source and source.path)
        if equals and was_local:
            moves[key] = str(read_value(written))
        else:
            others.append(text)
    return moves, others


def _source_at(recipe: Recipe, key: str) -> Source | None:
    found = _PATH_KEY.fullmatch(key)
    sources = recipe.data.sources(found[1]) if found else ()
    if not found or (found[2] is None) != (len(sources) == 1):
        return None
    index = int(found[2] or 0)
    return sources[index] if index < len(sources) else None


def _move(recipe: Recipe, key: str, place: str) -> Recipe:
    path = os.path.normpath(Path.cwd() / Path(place).expanduser())
    if key == "model.id":
        found = path if Path(path).is_dir() else place  # the same base may be on the Hub now
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"id": found})})
    found_key = _PATH_KEY.fullmatch(key)
    assert found_key
    sources = list(recipe.data.sources(found_key[1]))
    index = int(found_key[2] or 0)
    sources[index] = sources[index].model_copy(update={"path": path})
    return _with_sources(recipe, found_key[1], sources)


def _pin_model(recipe: Recipe, plain: Recipe, info: RunInfo) -> Recipe:
    commit = info["model"].get("revision")
    changed = (recipe.model.id, recipe.model.revision) != (plain.model.id, plain.model.revision)
    if commit is None or changed:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": commit})})


def _pin_sources(recipe: Recipe, plain: Recipe, info: RunInfo) -> Recipe:
    for split in SPLITS:
        sources, before = recipe.data.sources(split), plain.data.sources(split)
        recorded = info["data"].get("splits", {}).get(split, {}).get("sources", [])
        if sources and len(sources) == len(before) == len(recorded):
            commits = [told.get("resolved_revision") for told in recorded]
            recipe = _with_sources(recipe, split, [_pin(*each) for each in zip(sources, before, commits, strict=True)])
    return recipe


def _pin(source: Source, before: Source, commit: str | None) -> Source:
    same = source.id is not None and (source.id, source.revision) == (before.id, before.revision)
    return source.model_copy(update={"revision": commit}) if same and commit else source


def _with_sources(recipe: Recipe, split: str, sources: list[Source]) -> Recipe:
    rows = tuple(sources) if split == "train" else sources[0]
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={split: rows})})
