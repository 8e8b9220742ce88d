"""Where a lock is read from: a run folder, a published folder, or a repository on the Hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_kit import run_dir
from recipe_kit.errors import RunError
from recipe_kit.lock.public import FOLDER, weights_sha256
from recipe_kit.lock.recipes import pinned, require_files
from recipe_kit.recipe import Recipe
from recipe_kit.run_dir import Metrics, RunInfo

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Locked:
    """All that is needed to train a run again, and to tell whether the same came of it."""

    recipe: Recipe  # pinned, with the caller's overrides
    as_recorded: Recipe  # pinned, without them
    info: RunInfo
    metrics: Metrics | None
    origin: str  # finds the same again: an absolute path, or OWNER/NAME@COMMIT
    foreign: bool  # read from a published record, which somebody else may have written
    folder: Path  # that its files were read from
    weights: dict[str, str]  # sha256 of the weights' files by name; {} where they are gone
    notes: tuple[str, ...] = ()  # what a foreign recipe asks for and is not done unasked

    def require_files(self) -> None:
        """Raises RunError when a local file or folder is not here, with the `--set` that would give it."""
        require_files(self.recipe, self.info, folder=self.folder if self.foreign else None)


def source_of(target: str | Path, overrides: Iterable[str] = ()) -> Locked:
    """The lock of a run folder, of a folder made by `push --to-folder`, or of `OWNER/NAME[@REVISION]` on the Hub.

    Raises RunError when it cannot be found, reached or read, was not published by recipe-kit, or is a stranger's
    recipe that would run a model's own code.
    """
    folder, origin = _find(str(target))
    overrides = tuple(overrides)
    info = run_dir.read(folder)
    record: dict[str, Any] | None = info.get("lock")
    foreign = record is not None
    if record is not None:
        _require_unchanged(folder / run_dir.RECIPE, record, origin)
    plain = pinned(folder / run_dir.RECIPE, info)
    recipe = pinned(folder / run_dir.RECIPE, info, overrides) if overrides else plain
    notes: tuple[str, ...] = ()
    if foreign:
        recipe, notes = _only_what_is_asked(recipe, overrides, origin)
        plain, _ = _only_what_is_asked(plain, ("model.trust_remote_code=asked",), origin)
    metrics = run_dir.read_metrics(folder) if (folder / run_dir.METRICS).is_file() else None
    weights = record.get("weights", {}) if record is not None else weights_sha256(folder, info["method"])
    return Locked(recipe, plain, info, metrics, origin, foreign, folder, weights, notes)


def _require_unchanged(recipe: Path, record: dict[str, Any], origin: str) -> None:
    found = hashlib.sha256(recipe.read_bytes()).hexdigest()
    if found != record.get("published_recipe_sha256"):
        raise RunError(
            f"{origin}: {FOLDER}/{run_dir.RECIPE} is not the file that was published ({found[:12]} instead of "
            f"{str(record.get('published_recipe_sha256'))[:12]}); get it again, and change values with --set"
        )


def _only_what_is_asked(recipe: Recipe, overrides: tuple[str, ...], origin: str) -> tuple[Recipe, tuple[str, ...]]:
    """A published recipe without what would run code or send rows elsewhere, and a sentence for what was dropped.

    A judge is asked with a key from an environment variable that the recipe names, at an address that it names: a
    stranger's recipe could have any secret sent anywhere. Raises RunError for a model that brings its own code.
    """
    if recipe.model.trust_remote_code and not _asks(overrides, "model.trust_remote_code"):
        raise RunError(
            f"{origin}: its recipe runs Python code that comes with {recipe.model.id}; read that code, then repeat "
            "with --set model.trust_remote_code=true"
        )
    notes = []
    if recipe.evaluation.judge is not None and not _asks(overrides, "evaluation.judge"):
        notes.append("the judge is not asked again: --set evaluation.judge.url=... would")
        recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"judge": None})})
    loggers = recipe.training.get("report_to", [])
    kept = [name for name in ([loggers] if isinstance(loggers, str) else loggers or []) if name == "tensorboard"]
    if loggers not in (kept, "tensorboard", "none", None) and not _asks(overrides, "training.report_to"):
        notes.append(f"nothing is sent to {loggers}: --set training.report_to=... would")
        recipe = recipe.model_copy(update={"training": recipe.training | {"report_to": kept}})
    return recipe, tuple(notes)


def _asks(overrides: tuple[str, ...], key: str) -> bool:
    return any(text.partition("=")[0].strip().startswith(key) for text in overrides)


def _find(target: str) -> tuple[Path, str]:
    """The folder with the record that a target means, and a name that finds the same one again."""
    path = Path(target).expanduser()
    if (path / FOLDER / run_dir.RUN).is_file():
        return (path / FOLDER).resolve(), str(path.resolve())
    found = _HUB_ID.fullmatch(target)
    if found is None or path.exists() or (path.parent.is_dir() and "@" not in target):
        run = run_dir.find(path)
        return run, str(run)
    folder = _download(found["repo"], found["revision"])
    return folder, f"{found['repo']}@{folder.parent.name}"


def _download(repo: str, revision: str | None) -> Path:
    """The folder with the record of a Hub repository, in the cache of the Hub's client. Raises RunError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    http_error: type[Any] = HfHubHTTPError.__mro__[1]  # of the client's HTTP library, not the same one in 1.x and 2.x
    try:
        snapshot = snapshot_download(repo, revision=revision, allow_patterns=[f"{FOLDER}/*"])
    except RevisionNotFoundError as error:
        raise RunError(f"{repo}: it has no revision {revision!r}; leave it out for the newest") from error
    except GatedRepoError as error:
        raise RunError(
            f"{repo}: access has to be granted; ask for it on the repository's page and `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise RunError(
            f"{repo}: no run folder here, and no such repository on the Hub that you may read; check the name, and "
            "for a private one `hf auth login`"
        ) from error
    except (http_error, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status == 401:
            raise RunError(f"{repo}: the Hub refuses your token; log in again with `hf auth login`") from error
        first = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise RunError(
            f"{repo}: no run folder here, and the Hub cannot be reached ({first[0].rstrip('.')}); check the network, "
            "or download the repository and give its folder"
        ) from error
    folder = Path(snapshot) / FOLDER
    if not (folder / run_dir.RUN).is_file() or not (folder / run_dir.RECIPE).is_file():
        raise RunError(
            f"{repo}: not published by recipe-kit (no {FOLDER}/{run_dir.RUN} in it), so it does not say how it was "
            "trained; give a repository that `recipe-kit push` made"
        )
    return folder
