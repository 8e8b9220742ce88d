"""What a run writes and downloads, and whether it fits where it goes. Weights are exact, the rest is an estimate."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from recipe_kit.plan import sizes
from recipe_kit.plan.access import is_on_hub
from recipe_kit.plan.shape import DiskPart, DiskUse
from recipe_kit.recipe import Recipe

if TYPE_CHECKING:
    import trl

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                 "pytorch_model.bin.index.json")  # fmt: skip
_SMALL_FILES = (".json", ".txt", ".model", ".jinja")
_STATE_BYTES = 64 * 1024  # scheduler, random states and the trainer's own notes in a checkpoint
_LOG_BYTES = 2 * 2**20  # log, curves, samples


def run_uses(
    recipe: Recipe,
    weights: sizes.Weights,
    arguments: trl.SFTConfig,
    steps: int,
    epochs: float | None,
    tokenizer_bytes: int,
) -> list[DiskUse]:
    """What the run folder holds at its fullest."""
    saved = weights.part["saved_bytes"] + tokenizer_bytes
    what = "model" if recipe.method == "full" else "adapter"
    uses = [_use(f"{what} and tokenizer", saved), _use("log, curves, samples", _LOG_BYTES, estimated=True)]
    kept = sizes.checkpoints_kept(arguments, steps, epochs)
    if kept:
        optim = str(getattr(arguments.optim, "value", arguments.optim))
        state = 0 if arguments.save_only_model else sizes.optimizer_bytes(optim, weights.trained) + _STATE_BYTES
        guess = "" if sizes.optimizer_is_known(optim) else f", {optim} taken for AdamW"
        with_state = "without" if arguments.save_only_model else "with"
        words = f"{kept} checkpoint{'s' if kept > 1 else ''} {with_state} optimiser state{guess}"
        uses.insert(0, _use(words, kept * (saved + state), estimated=True))
    return uses


def download_uses(recipe: Recipe, base_parameters: int, files: list[tuple[str, int]] | None) -> list[DiskUse]:
    """What has to come from the Hub before training; [] when nothing does. `files` are those the Hub lists."""
    if not is_on_hub(recipe.model):
        return []
    model = recipe.model
    if files is not None:
        missing = [
            (name, size) for name, size in wanted_files(files) if not _is_cached(model.id, name, model.revision)
        ]
        return [_use(f"{model.id}, {len(missing)} files", sum(size for _, size in missing))] if missing else []
    if any(_is_cached(model.id, name, model.revision) for name in _WEIGHT_FILES):
        return []
    return [_use(f"{model.id}, at 2 bytes a parameter", 2 * base_parameters, estimated=True)]


def wanted_files(files: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Of a repository's files those that transformers loads: safetensors before pickles, and no folder below."""
    top = [(name, size) for name, size in files if "/" not in name]
    safe = [(name, size) for name, size in top if name.endswith(".safetensors")]
    weights = safe or [
        (name, size) for name, size in top if name.startswith("pytorch_model") and name.endswith(".bin")
    ]
    return weights + [(name, size) for name, size in top if name.endswith(_SMALL_FILES)]


def has_weights(recipe: Recipe) -> bool:
    """Whether a model's folder holds weights; True for one that is not a folder of the user's."""
    folder = Path(recipe.model.id)
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def parts(runs_dir: Path, run: list[DiskUse], downloads: list[DiskUse]) -> list[DiskPart]:
    """Needs against free space. Where both folders lie on one file system, its needs are added up."""
    if not downloads:
        return [_part(runs_dir, run)]
    cache = _hub_cache()
    if _device(runs_dir) == _device(cache):
        return [_part(runs_dir, [*run, *downloads])]
    return [_part(runs_dir, run), _part(cache, downloads)]


def _part(folder: Path, uses: list[DiskUse]) -> DiskPart:
    existing = _existing(folder)
    return {
        "folder": str(folder),
        "free_bytes": shutil.disk_usage(existing).free,
        "needed_bytes": sum(use["bytes"] for use in uses),
        "uses": uses,
        "writable": existing.is_dir() and os.access(existing, os.W_OK),
    }


def _use(what: str, size: int, *, estimated: bool = False) -> DiskUse:
    return {"what": what, "bytes": size, "estimated": estimated}


def _is_cached(repo: str, file: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, file, revision=revision), str)


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _existing(folder: Path) -> Path:
    full = folder.absolute()
    return next(place for place in (full, *full.parents) if place.exists())


def _device(folder: Path) -> int:
    return _existing(folder).stat().st_dev
