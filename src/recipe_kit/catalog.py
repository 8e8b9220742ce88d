"""What ships with the kit, by name: recipes, launch topologies and sample rows.

The only module that knows where they lie. In a checkout recipes and topologies stand at the top of the repository,
where people look for them; an installed wheel carries them inside the package.
"""

from __future__ import annotations

from pathlib import Path

from recipe_kit.errors import DataError, LaunchError, RecipeError
from recipe_kit.suggest import nearest

_PACKAGE = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml")


def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parents[1] / name


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """A sentence for a name that is not there: the nearest one, then all of them."""
    near = nearest(name, known)
    guess = f"did you mean {near}? " if near else ""
    return f"no {kind} named {name!r}; {guess}There are: {', '.join(known) or 'none'}"


def recipe_names() -> list[str]:
    """Names of the recipes that ship, sorted."""
    return _stems(_folder("recipes"))


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe. Raises RecipeError, naming the nearest one, when there is none of that name."""
    if name not in recipe_names():
        raise RecipeError(unknown_name("shipped recipe", name, recipe_names()))
    return _folder("recipes") / f"{name}.yaml"


def accelerate_config_names() -> list[str]:
    """Names of the launch topologies that ship, sorted."""
    return _stems(_folder("accelerate_configs"))


def accelerate_config_path(name_or_path: str | Path) -> Path:
    """The file of a launch topology: one that ships, by name, or your own, by path. Raises LaunchError."""
    path = Path(name_or_path)
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        if not path.is_file():
            raise LaunchError(f"no accelerate config at {path}; give a file, or one of {_listed_configs()}")
        return path
    if path.name not in accelerate_config_names():
        raise LaunchError(unknown_name("accelerate config", path.name, accelerate_config_names()))
    return _folder("accelerate_configs") / f"{path.name}.yaml"


def _listed_configs() -> str:
    return ", ".join(accelerate_config_names()) or "none"


def _samples() -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for path in sorted((_PACKAGE / "samples").glob("*.*.jsonl")):
        name, _, split = path.stem.rpartition(".")
        found.setdefault(name, {})[split] = path
    return found


def sample_names() -> list[str]:
    """Names of the sample data sets that ship, sorted."""
    return sorted(_samples())


def sample_splits(name: str) -> list[str]:
    """Splits of a shipped sample, sorted. Raises DataError when there is no such sample."""
    samples = _samples()
    if name not in samples:
        raise DataError(unknown_name("shipped sample", name, sorted(samples)))
    return sorted(samples[name])


def sample_path(name: str, split: str = "train") -> Path:
    """The JSONL file with the rows of one split of a shipped sample. Raises DataError."""
    splits = sample_splits(name)
    if split not in splits:
        raise DataError(unknown_name(f"split of the sample {name}", split, splits))
    return _samples()[name][split]
