"""From a recipe file to a checked `Recipe`, and back to text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recipe_kit import catalog
from recipe_kit.errors import Problem, RecipeError
from recipe_kit.recipe.checks import check, normalise
from recipe_kit.recipe.overlay import Layer, Origin, leaves, merge, set_layer, walk, with_absolute_paths
from recipe_kit.recipe.schema import FILE_KEYS, Recipe
from recipe_kit.recipe.yaml_source import CORE_SCALARS, Document, Keys, dotted, read_document
from recipe_kit.suggest import did_you_mean

ABSENT = "(not set)"


@dataclass(frozen=True)
class Resolved:
    """A recipe with the origin of each of its values."""

    recipe: Recipe
    data: dict[str, Any]
    origins: dict[str, Origin]
    source: str
    profiles: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A value two recipes disagree about; `ABSENT` stands for one that is not there."""

    key: str
    left: Any
    right: Any


@dataclass(frozen=True)
class _File:
    document: Document
    folder: Path

    @property
    def profiles(self) -> dict[str, Any]:
        profiles = self.document.data.get("profiles")
        return profiles if isinstance(profiles, dict) else {}


def load_recipe(source: str | Path, *, profiles: Sequence[str] = (), overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the shipped one of that name.

    `profiles` are laid over it in order, then `overrides`, each a `key=value`. Raises RecipeError with every problem
    found.
    """
    return resolve(source, profiles=profiles, overrides=overrides).recipe


def resolve(source: str | Path, *, profiles: Sequence[str] = (), overrides: Sequence[str] = ()) -> Resolved:
    """Like `load_recipe`, and says where each value came from."""
    chain = _read_chain(source)
    resolved, problems = _resolve(chain, tuple(profiles), tuple(overrides))
    problems = _in_file_order(problems, chain)
    if resolved is None or problems:
        raise RecipeError(problems)
    return resolved


def check_profiles(source: str | Path) -> dict[str, Recipe]:
    """The recipe by itself, under the name "", and under each of its profiles. Raises RecipeError for all of them."""
    chain = _read_chain(source)
    found, problems = {}, []
    names = dict.fromkeys(name for file in chain for name in file.profiles)
    for name in ("", *names):
        resolved, more = _resolve(chain, (name,) if name else (), ())
        problems += more
        if resolved:
            found[name] = resolved.recipe
    if problems:
        raise RecipeError(_in_file_order(problems, chain))
    return found


def to_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every default written out."""
    data: dict[str, Any] = recipe.model_dump()
    return data


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, which loads to an equal one."""
    return yaml.dump(to_data(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe. Comments, key order and the file it came from make no difference."""
    text = json.dumps(to_data(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def diff_recipes(a: Recipe, b: Recipe) -> list[Difference]:
    """Values that differ between two resolved recipes, in the order of the first."""
    left, right = flatten(a), flatten(b)
    keys = [*left, *(key for key in right if key not in left)]
    pairs = [Difference(key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in keys]
    return [pair for pair in pairs if pair.left != pair.right]


def flatten(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values under dotted keys, in the order of the schema."""
    return {dotted(keys): value for keys, value in leaves(to_data(recipe)) if value != {}}


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else, and never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Unicode line breaks outside double quotes come back as plain ones.
    style = '"' if set(text) & set("\x85\u2028\u2029") else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _tag, _pattern, _first in CORE_SCALARS:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


# --- finding and reading files ----------------------------------------------------------------------------------


def _read_chain(source: str | Path) -> list[_File]:
    """The file and its parents, the file itself first."""
    found = _find(str(source), Path())
    if isinstance(found, str):
        raise RecipeError([Problem(found, file=str(source))])
    path: Path | None = found
    chain: list[_File] = []
    seen: list[Path] = []
    problems: list[Problem] = []
    while path:
        seen.append(path.resolve())
        try:
            document = read_document(path, _display(path))
        except RecipeError as error:
            raise RecipeError([*problems, *error.problems]) from error
        if not isinstance(document.data.get("profiles"), dict | None):
            message = "expected a mapping of profile names to the keys they override"
            line = document.lines[("profiles",)]
            document.problems.append(Problem(message, key="profiles", file=document.file, line=line))
        chain.append(_File(document, path.parent))
        problems += document.problems
        path = _parent(document, path.parent, seen, problems)
    return chain


def _parent(document: Document, folder: Path, seen: list[Path], problems: list[Problem]) -> Path | None:
    name = document.data.get("extends")
    if name is None:
        return None
    message: str | None = None
    parent: Path | str | None = None
    if not isinstance(name, str):
        message = "expected a path or the name of a recipe that ships"
    else:
        parent = _find(name, folder)
        if isinstance(parent, str):
            message = parent
        elif parent.resolve() in seen:
            message = f"{name!r} leads back to this recipe; one of them must stand alone"
    if message:
        line = document.lines.get(("extends",), 0)
        raise RecipeError([*problems, Problem(message, key="extends", file=document.file, line=line)])
    return parent if isinstance(parent, Path) else None


def _find(name: str, folder: Path) -> Path | str:
    """The file a name stands for, or a sentence saying why there is none."""
    path = folder / Path(name).expanduser()
    if path.is_file():
        return path
    if name in catalog.recipe_names():
        return catalog.recipe_path(name)
    if path.is_dir():
        return "is a folder; give a recipe file in it"
    shipped = catalog.recipe_names()
    beside = [str(Path(name).parent / found.name) for found in sorted(path.parent.glob("*.y*ml"))]
    guess = did_you_mean(name, [*shipped, *beside]) or "."
    return f"no such file, and no recipe of that name ships{guess} Shipped: {', '.join(shipped) or 'none'}"


def _display(path: Path) -> str:
    """How messages name a file: from the current folder when it lies below it."""
    full = path.resolve()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(path)


# --- laying it all together -------------------------------------------------------------------------------------


def _resolve(
    chain: list[_File], profiles: tuple[str, ...], overrides: tuple[str, ...]
) -> tuple[Resolved | None, list[Problem]]:
    problems = [problem for file in chain for problem in file.document.problems]
    merged = Layer()
    for file in reversed(chain):
        merged = merge(merged, _file_layer(file, "file" if file is chain[0] else "extends"))
    for name in profiles:
        layers, more = _profile_layers(chain, name)
        problems += more
        for layer in layers:
            merged = merge(merged, layer)
    layer, more = set_layer(overrides)
    problems += more
    merged = normalise(merge(merged, layer))
    root = chain[0].document.file
    merged.origins[()] = Origin("file", root, root, 1)
    recipe, more = check(merged)
    problems += more
    if recipe is None:
        return None, problems
    data = to_data(recipe)
    origins = {dotted(keys): merged.origins.get(keys, Origin("default")) for keys, _ in leaves(data)}
    return Resolved(recipe, data, origins, root, profiles), problems


def _file_layer(file: _File, kind: Any) -> Layer:
    body = {key: value for key, value in file.document.data.items() if key not in FILE_KEYS}
    return _layer(file, body, (), kind)


def _layer(file: _File, body: dict[str, Any], prefix: Keys, kind: Any) -> Layer:
    origins = {}
    for keys, _ in walk(body):
        line = file.document.lines.get(prefix + keys, 0)
        place = f"{file.document.file}:{line}"
        where = f"profile {prefix[1]} ({place})" if prefix else place
        origins[keys] = Origin(kind, where, file.document.file, line)
    return Layer(with_absolute_paths(body, file.folder), origins)


def _profile_layers(chain: list[_File], name: str) -> tuple[list[Layer], list[Problem]]:
    """A profile, the parents' part of it first."""
    layers, problems = [], []
    for file in reversed(chain):
        if name not in file.profiles:
            continue
        body = file.profiles[name]
        if body is None:
            body = {}
        line = file.document.lines.get(("profiles", name), 0)
        if not isinstance(body, dict):
            message = "expected a mapping of the keys to override"
            problems.append(Problem(message, key=f"profiles.{name}", file=file.document.file, line=line))
            body = {}
        for key in FILE_KEYS.keys() & body.keys():
            line = file.document.lines.get(("profiles", name, key), line)
            message = "belongs at the top level of the file, not in a profile"
            problems.append(Problem(message, key=f"profiles.{name}.{key}", file=file.document.file, line=line))
        kept = {key: value for key, value in body.items() if key not in FILE_KEYS}
        layers.append(_layer(file, kept, ("profiles", name), "profile"))
    if not layers:
        names = list(dict.fromkeys(name for file in chain for name in file.profiles))
        message = catalog.unknown_name(f"profile in {chain[0].document.file}", name, names)
        problems.append(Problem(message, key=f"--profile {name}"))
    return layers, problems


def _in_file_order(problems: list[Problem], chain: list[_File]) -> list[Problem]:
    order = {file.document.file: index for index, file in enumerate(chain)}
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda problem: (order.get(problem.file, len(order)), problem.line))
