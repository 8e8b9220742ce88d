"""Names for things that other packages may add: a built-in, a plugin's entry point, or `module:attr`.

Nothing is imported before it is asked for by name, and a name that two packages claim is an error for those who ask
for that name only.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from recipe_kit import __version__
from recipe_kit.errors import RegistryError
from recipe_kit.suggest import did_you_mean

T = TypeVar("T")
Decorated = TypeVar("Decorated")


@dataclass(frozen=True)
class PluginTarget:
    """What an entry point leads to, and the package it came with."""

    package: str  # name and version
    path: str  # `module:attr`


class Registry(Generic[T]):
    """Objects by name. `kind` is the word used in messages, such as `formatter`.

    A name leads to an object, to a `module:attr` string, or to an entry point of `entry_point_group`. Entry points are
    looked up once, on first need; make a new Registry, or a `copy`, to see packages installed since.
    """

    def __init__(self, kind: str, entry_point_group: str) -> None:
        self.kind = kind
        self.entry_point_group = entry_point_group
        self._registered: dict[str, T | str] = {}
        self._plugins: dict[str, list[PluginTarget]] | None = None
        self._lock = threading.Lock()  # guards the two tables; never held during an import, which may register names

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """Decorator that adds the decorated object under `name` and returns it unchanged."""

        def decorate(target: Decorated) -> Decorated:
            self.add(name, cast(T, target))
            return target

        return decorate

    def add(self, name: str, target: T | str) -> None:
        """Let `name` lead to an object or a `module:attr` string.

        Adding the same target again changes nothing, except that a newer definition of the same `module:attr` (a
        notebook cell run twice) takes the place of the older one. Raises RegistryError for another target.
        """
        if ":" in name:
            raise RegistryError(f"a {self.kind} name has no colon, got {name!r}: a colon means 'module:attr'")
        with self._lock:
            taken = self._registered.get(name)
            if taken is None or (_same_target(taken, target) and not isinstance(target, str)):
                self._registered[name] = target
        if taken is None or _same_target(taken, target):
            return
        # The module of a plugin that collides may hold other formatters: only those who ask for this name are told.
        if not any(_same_target(plugin, target) for plugin in self._scan().get(name, [])):
            raise self._collision(name, [taken, target])

    def get(self, name: str) -> T:
        """The object behind a registered name, an entry-point name or `module:attr`; imported now if need be.

        Raises RegistryError when the name is unknown, claimed by two parties, or cannot be imported.
        """
        claims = self._claims(name)
        if not self._agree(claims):
            raise self._collision(name, claims)
        return self._load(claims[-1])

    def names(self) -> list[str]:
        """Every registered name and entry-point name, sorted. Imports none of them."""
        return sorted({*self._registered, *self._scan()})

    def origin(self, name: str) -> str:
        """Where the object comes from: `package NAME VERSION (module:attr)`, or `file:line` outside a package."""
        claims = self._claims(name)
        shown = claims[-1:] if self._agree(claims) else claims
        return " and ".join(_origin(self._load(claim) if isinstance(claim, str) else claim) for claim in shown)

    def copy(self) -> Registry[T]:
        """A registry with the same registered names that looks for entry points anew."""
        other = Registry[T](self.kind, self.entry_point_group)
        with self._lock:
            other._registered = dict(self._registered)
        return other

    def _claims(self, name: str) -> list[T | str | PluginTarget]:
        """All that `name` may mean, each target once; an entry point comes after what its import registered."""
        if ":" in name:
            return [name]
        claims: list[T | str | PluginTarget] = [self._registered[name]] if name in self._registered else []
        for plugin in self._scan().get(name, []):
            claims = [*(claim for claim in claims if not _same_target(claim, plugin)), plugin]
        if not claims:
            raise self._unknown(name)
        return claims

    def _agree(self, claims: list[T | str | PluginTarget]) -> bool:
        """Whether all claims lead to one object, as when a package exports what it defines elsewhere."""
        if len(claims) == 1:
            return True
        try:
            first, *others = [self._load(claim) for claim in claims]
        except RegistryError:
            return False
        return all(other is first for other in others)

    def _scan(self) -> dict[str, list[PluginTarget]]:
        with self._lock:
            if self._plugins is None:
                from importlib.metadata import entry_points  # 20 ms, which those who only register never pay

                self._plugins = {}
                for found in entry_points(group=self.entry_point_group):
                    package = f"{found.dist.name} {found.dist.version}" if found.dist else "unknown"
                    plugin = PluginTarget(package, f"{found.module}:{found.attr}")
                    self._plugins.setdefault(found.name, []).append(plugin)
            return self._plugins

    def _load(self, target: T | str | PluginTarget) -> T:
        if not isinstance(target, str | PluginTarget):
            return target
        module_name, _, attribute = _path(target).partition(":")
        if not module_name or not attribute:
            raise RegistryError(f"a {self.kind} is written 'module:attr', got {_path(target)!r}")
        try:
            value: Any = importlib.import_module(module_name)
        except Exception as error:
            hint = ""
            if isinstance(error, ModuleNotFoundError) and module_name.split(".")[0] == error.name:
                hint = ". Is its folder on PYTHONPATH, or its package installed?"
            raise RegistryError(
                f"the import of the {self.kind} {_origin(target)} failed: {type(error).__name__}: {error}{hint}"
            ) from error
        for part in attribute.split("."):
            if not hasattr(value, part):
                raise RegistryError(
                    f"the import of the {self.kind} {_origin(target)} failed: module {module_name} has no {part!r}"
                    + did_you_mean(part, dir(value))
                )
            value = getattr(value, part)
        return cast(T, value)

    def _collision(self, name: str, claims: Sequence[object]) -> RegistryError:
        return RegistryError(
            f"{self.kind} {name!r} is claimed by {' and by '.join(map(_origin, claims))}. Rename one of them, "
            "uninstall one of them, or name the one you mean as 'module:attr'."
        )

    def _unknown(self, name: str) -> RegistryError:
        # A decorator run in a notebook or script is not run again in the processes that train.
        return RegistryError(
            f"unknown {self.kind} {name!r}{did_you_mean(name, self.names()) or '.'} "
            f"Known: {', '.join(self.names()) or 'none'}. Training starts fresh processes, so a {self.kind} of your "
            f"own is found as an entry point of the group {self.entry_point_group!r} or as 'module:attr'."
        )


def _path(target: object) -> str:
    """`module:attr` of a target, whatever its form."""
    if isinstance(target, str):
        return target
    if isinstance(target, PluginTarget):
        return target.path
    return f"{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', '')}"


def _same_target(one: object, other: object) -> bool:
    # `<lambda>` and `<locals>` are shared by functions that have nothing to do with each other.
    return one is other or (_path(one) == _path(other) and "<" not in _path(one))


def _origin(target: object) -> str:
    path = _path(target)
    if isinstance(target, PluginTarget):
        return f"package {target.package} ({path})"
    if path.startswith("recipe_kit."):
        return f"package recipe-kit {__version__} ({path})"
    code = getattr(target, "__code__", None)
    if code is None:
        return path
    file = Path(code.co_filename)
    # A run folder records this line: a path below the working folder is written without the rest of the machine.
    return f"{file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}:{code.co_firstlineno}"
