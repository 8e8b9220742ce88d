"""Layers of a recipe laid over each other, with the origin of every value.

Mappings merge key by key; lists and single values replace; null clears. Three things merge as one piece, because half
of an old value with half of a new one means nothing: the place rows come from, a formatter, and what belongs to one
model only.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recipe_kit.errors import Problem, RecipeError
from recipe_kit.recipe.data_section import HELD_OUT_KEYS, SOURCE_KEYS
from recipe_kit.recipe.schema import FILE_KEYS
from recipe_kit.recipe.yaml_source import Keys, dotted, read_value

# Set for one model, they are wrong for another.
_OF_ONE_MODEL = {
    "model": ("revision", "chat_template", "chat_template_kwargs", "pad_token", "trust_remote_code"),
    "card": ("base_model", "license", "license_name", "license_link"),
}
_ROWS = ("train", "eval", "test")


@dataclass(frozen=True)
class Origin:
    """Which layer a value comes from, and where to look."""

    kind: Literal["default", "extends", "file", "profile", "set"]
    where: str = ""
    file: str = ""
    line: int = 0

    def problem(self, message: str, keys: Keys) -> Problem:
        """A problem with the value of this origin."""
        if self.kind == "set":
            return Problem(f"{message} (from `{self.where}`)", key=dotted(keys))
        return Problem(message, key=dotted(keys), file=self.file, line=self.line)


@dataclass
class Layer:
    """Part of a recipe: values, and the origin of every key and list item in them."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, Origin] = field(default_factory=dict)

    def origin(self, keys: Keys) -> Origin:
        """Where a key was set, or else the nearest one around it."""
        for end in range(len(keys), -1, -1):
            if keys[:end] in self.origins:
                return self.origins[keys[:end]]
        return Origin("default")


def merge(base: Layer, over: Layer) -> Layer:
    """`over` laid over `base`; neither is changed."""
    result = Layer(copy.deepcopy(base.data), dict(base.origins))
    _forget_other_model(result, over.data)
    _merge(result, result.data, over, over.data, ())
    return result


def _merge(result: Layer, base: dict[str, Any], over: Layer, data: dict[str, Any], keys: Keys) -> None:
    for key, value in data.items():
        here = (*keys, key)
        below = base.get(key)
        if _is_formatter(here) and isinstance(below, str):
            below = base[key] = {"name": below}
            result.origins[(*here, "name")] = result.origin(here)
        if isinstance(below, dict) and isinstance(value, dict) and not _replaces(here, below, value):
            if here in over.origins:
                result.origins[here] = over.origins[here]
            _merge(result, below, over, value, here)
            continue
        forget(result.origins, here)
        base[key] = copy.deepcopy(value)
        result.origins.update({path: origin for path, origin in over.origins.items() if path[: len(here)] == here})


def forget(origins: dict[Keys, Origin], keys: Keys) -> None:
    """Drop the origins of a key and all below it."""
    for path in [path for path in origins if path[: len(keys)] == keys]:
        del origins[path]


def _replaces(keys: Keys, below: dict[str, Any], value: dict[str, Any]) -> bool:
    """Whether a mapping takes the place of the one below it as a whole."""
    if len(keys) == 2 and keys[0] == "data" and keys[1] in _ROWS:
        return any(value.get(key) is not None for key in (*SOURCE_KEYS, *HELD_OUT_KEYS))
    if _is_formatter(keys):
        return "name" in value and value["name"] != below.get("name")
    return False


def _is_formatter(keys: Keys) -> bool:
    return keys[0] == "data" and keys[-1] == "formatter" and len(keys) <= 4


def _forget_other_model(result: Layer, over: Mapping[str, Any]) -> None:
    model, new = result.data.get("model"), over.get("model")
    if not isinstance(model, dict) or not isinstance(new, dict) or new.get("id") in (None, model.get("id")):
        return
    for section, keys in _OF_ONE_MODEL.items():
        below, above = result.data.get(section), over.get(section)
        if not isinstance(below, dict):
            continue
        for key in keys:
            if key in below and not (isinstance(above, dict) and key in above):
                del below[key]
                forget(result.origins, (section, key))


def set_layer(overrides: tuple[str, ...]) -> tuple[Layer, list[Problem]]:
    """All `--set key=value` as one layer; a later one wins over an earlier one."""
    layer, problems = Layer(), []
    for text in overrides:
        where = f"--set {text}"
        key, equals, written = text.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals or not all(keys):
            example = "--set training.learning_rate=1e-4"
            problems.append(Problem(f"expected key=value, such as `{example}`", key=where))
            continue
        if keys[0] in FILE_KEYS:
            problems.append(Problem(f"`{keys[0]}` is read from the file only; it cannot be set here", key=where))
            continue
        try:
            value = read_value(written)
        except RecipeError as error:
            message = f"{error.problems[0].message}; quote the value if it is text"
            problems.append(Problem(message, key=where))
            continue
        _put(layer, keys, value, Origin("set", where))
    layer.data = with_absolute_paths(layer.data, Path.cwd())
    return layer, problems


def _put(layer: Layer, keys: tuple[str, ...], value: Any, origin: Origin) -> None:
    place = layer.data
    for depth, key in enumerate(keys[:-1], start=1):
        if not isinstance(place.get(key), dict):
            place[key] = {}
        layer.origins[keys[:depth]] = origin
        place = place[key]
    place[keys[-1]] = value
    forget(layer.origins, keys)
    layer.origins[keys] = origin
    for path, _ in walk(value):
        layer.origins[(*keys, *path)] = origin


def walk(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every key and list item inside a value, with its path; the value itself is not among them."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*keys, key), child
        yield from walk(child, (*keys, key))


def leaves(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Single values with their paths; a list of plain values counts as one, and so does an empty mapping."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, (*keys, key))
    elif isinstance(value, list) and any(isinstance(child, dict) for child in value):
        for index, child in enumerate(value):
            yield from leaves(child, (*keys, index))
    else:
        yield keys, value


def with_absolute_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy whose relative local paths start from `folder`, the one of the file that wrote them.

    Rows (`path`) are always a file; `model.id`, `model.chat_template` and `launch.accelerate_config` are when they
    look it.
    """
    data = copy.deepcopy(data)
    _resolve_at(data.get("model"), "id", folder, starts=("./", "../", "~/"))
    _resolve_at(data.get("model"), "chat_template", folder, ends=(".jinja", ".j2"))
    _resolve_at(data.get("launch"), "accelerate_config", folder, ends=(".yaml", ".yml"))
    rows = data.get("data")
    for name in _ROWS if isinstance(rows, dict) else ():
        sources = rows.get(name) if isinstance(rows, dict) else None
        for source in sources if isinstance(sources, list) else [sources]:
            _resolve_at(source, "path", folder)
    return data


def _resolve_at(
    section: Any, key: str, folder: Path, starts: tuple[str, ...] = ("",), ends: tuple[str, ...] = ("",)
) -> None:
    text = section.get(key) if isinstance(section, dict) else None
    if isinstance(text, str) and text and not _elsewhere(text) and text.startswith(starts) and text.endswith(ends):
        # Symbolic links stay: in a cache they carry the suffix that says how to read the file.
        section[key] = os.path.normpath(folder.absolute() / Path(text).expanduser())


def _elsewhere(text: str) -> bool:
    """Whether a text is an address or a whole template rather than a local path."""
    return "://" in text or "\n" in text
