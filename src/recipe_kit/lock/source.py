"""Where a lock is read from: a run folder, a published folder, or a repository on the Hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_kit import run_dir
from recipe_kit.errors import RunError, first_line
from recipe_kit.lock import foreign
from recipe_kit.lock.public import FOLDER, weights_sha256
from recipe_kit.lock.recipes import pinned, require_files
from recipe_kit.recipe import Recipe, load_recipe, recipe_digest
from recipe_kit.run_dir import Metrics, RunInfo

_FILES = (run_dir.RECIPE, run_dir.RUN, run_dir.METRICS)  # a stranger's folder of that name may hold anything
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
    notes: tuple[str, ...] = ()  # what a foreign recipe asks for and is not done unasked; that one's own was changed

    def require_files(self) -> None:
        """Raises RunError when a local file or folder is not here, with the `--set` that would give it."""
        require_files(self.recipe, self.info, folder=self.folder if self.foreign else None)


def source_of(target: str | Path, overrides: Iterable[str] = ()) -> Locked:
    """The lock of a run folder, of a folder made by `push --to-folder`, or of `OWNER/NAME[@REVISION]` on the Hub.

    Raises RunError when it cannot be found, reached or read, was not published by recipe-kit, or is a stranger's
    recipe that would run code or read files that the overrides do not name.
    """
    folder, origin, published = _find(str(target))
    overrides = tuple(overrides)
    info = run_dir.read(folder)
    metrics = run_dir.read_metrics(folder) if (folder / run_dir.METRICS).is_file() else None
    is_foreign = published or "lock" in info
    if is_foreign:
        foreign.require_record(info, metrics, origin)
        _require_unchanged(folder / run_dir.RECIPE, info["lock"], origin)
    plain = pinned(folder / run_dir.RECIPE, info)
    recipe = pinned(folder / run_dir.RECIPE, info, overrides) if overrides else plain
    notes: tuple[str, ...] = ()
    if is_foreign:
        foreign.require_no_places(plain, folder, origin)
        foreign.refuse_code(recipe, overrides, origin)
        recipe, notes = foreign.without_services(recipe, overrides)
        plain, _ = foreign.without_services(plain, ())
    elif info.get("recipe_sha256") not in (None, recipe_digest(load_recipe(folder / run_dir.RECIPE))):
        notes = (f"its {run_dir.RECIPE} was changed after the run; unless that was card or publish, undo it",)
    if changed := info.get("changed_on_resume"):
        steps = ", ".join(str(entry.get("step")) for entry in changed)
        again = "what is trained again has the last ones from its first step"
        notes += (f"recipe, rows or packages changed at step {steps}; {again}",)
    weights = info["lock"]["weights"] if is_foreign else weights_sha256(folder, info["method"])
    return Locked(recipe, plain, info, metrics, origin, is_foreign, folder, weights, notes)


def _require_unchanged(recipe: Path, record: dict[str, Any], origin: str) -> None:
    found = hashlib.sha256(recipe.read_bytes()).hexdigest()
    if found != record.get("published_recipe_sha256"):
        raise RunError(
            f"{origin}: {FOLDER}/{run_dir.RECIPE} is not the file that was published ({found[:12]} instead of "
            f"{str(record.get('published_recipe_sha256'))[:12]}); get it again, and change values with --set"
        )


def _find(target: str) -> tuple[Path, str, bool]:
    """The folder with the record that a target means, a name that finds the same one again, and whether it was
    published."""
    path = Path(target).expanduser()
    if (path / FOLDER / run_dir.RUN).is_file():
        return (path / FOLDER).resolve(), str(path.resolve()), True
    found = _HUB_ID.fullmatch(target)
    if found is None or path.exists() or (path.parent.is_dir() and "@" not in target):
        run = run_dir.find(path)
        return run, str(run), False
    folder = _download(found["repo"], found["revision"])
    return folder, f"{found['repo']}@{folder.parent.name}", True


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
        snapshot = snapshot_download(repo, revision=revision, allow_patterns=[f"{FOLDER}/{name}" for name in _FILES])
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
        raise RunError(
            f"{repo}: no run folder here, and the Hub cannot be reached ({first_line(error.__cause__ or error)}); "
            "check the network, or download the repository and give its folder"
        ) from error
    folder = Path(snapshot) / FOLDER
    if not (folder / run_dir.RUN).is_file() or not (folder / run_dir.RECIPE).is_file():
        raise RunError(
            f"{repo}: not published by recipe-kit (no {FOLDER}/{run_dir.RUN} in it), so it does not say how it was "
            "trained; give a repository that `recipe-kit push` made"
        )
    return folder
