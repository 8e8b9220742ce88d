"""Where merged weights are made and put: beside their final place, and there only when they are right."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from recipe_kit import run_dir
from recipe_kit.errors import MergeError, ModelError, RunError
from recipe_kit.evaluation import generation
from recipe_kit.merge import shards
from recipe_kit.merge.layout import Layout
from recipe_kit.recipe import ModelSection

_PART, _LOCK = ".merged.part-", ".merge.lock"


@contextmanager
def part_folder(run: Path) -> Iterator[Path]:
    """A folder of this merge in the run folder, gone afterwards whatever happens.

    What killed merges left is removed first. A run is merged by one process at a time; raises MergeError for a second.
    """
    lock = FileLock(run / _LOCK, timeout=0)  # ends with its process, where the id of a killed one may be given anew
    try:
        lock.acquire()
    except Timeout as error:
        raise MergeError(f"{run}: another process is merging this run; wait for it, or stop it") from error
    folder = None
    try:
        for leftover in run.glob(f"{_PART}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=run, prefix=_PART))
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        (run / _LOCK).unlink(missing_ok=True)
        lock.release()


def keep(merged: Path, run: Path, record: dict[str, Any]) -> None:
    """Put a checked folder and its record in the place of the run's `merged/` and what `run.json` says of it.

    Wherever this is cut off: a `merged/` that is there is the one that `run.json` tells of.
    """
    final, old = run / run_dir.MERGED, merged.parent / "old"
    _move_away(run, old)
    try:
        run_dir.update(run, merge=record)
    except RunError:  # a full disk; what was there before is as good as it was
        if old.exists():
            old.rename(final)
        raise
    merged.rename(final)


def discard_if_stale(run: Path, adapter_sha256: str, part: Path) -> None:
    """Remove older merged weights of another adapter than the run has now: they say nothing of this one."""
    info = run_dir.read(run)
    if info.get("merge", {}).get("adapter_sha256") == adapter_sha256:
        return
    _move_away(run, part / "stale")
    if "merge" in info:
        del info["merge"]
        run_dir.write_json(run / run_dir.RUN, info)


def _move_away(run: Path, place: Path) -> None:
    """Take `merged/` out of the run folder in one step, and the GGUF files that were made of it before."""
    shutil.rmtree(run / run_dir.GGUF, ignore_errors=True)
    if (run / run_dir.MERGED).exists():
        (run / run_dir.MERGED).rename(place)


def add_companions(
    folder: Path,
    model: ModelSection,
    layout: Layout,
    adapter: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str,
    untied: bool,
) -> str | None:
    """Write what stands beside the weights: configuration, generation settings, tokenizer and template.

    Returns a note where the generation settings are not the base's own.
    """
    _write_config(folder, layout.config, type(layout.model).__name__, dtype, untied)
    for path in sorted(adapter.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".model") and not path.name.startswith("adapter_"):
            shutil.copyfile(path, folder / path.name)
    note = _write_generation_config(folder, model, layout, tokenizer)
    for path in folder.iterdir():
        shutil.copymode(adapter.parent / run_dir.RUN, path)  # safetensors lets nobody else read what it writes
    return note


def _write_config(folder: Path, config: PretrainedConfig, architecture: str, dtype: str, untied: bool) -> None:
    """The base's configuration with what merging changed. It names no folder of this machine."""
    path = folder / "config.json"
    config.save_pretrained(folder)
    told = json.loads(path.read_text(encoding="utf-8"))
    for name in ("_name_or_path", "quantization_config", "torch_dtype"):
        told.pop(name, None)
    told["dtype"] = dtype
    told["architectures"] = told.get("architectures") or [architecture]
    for part in (told, told.get("text_config")):
        if untied and isinstance(part, dict) and (part is told or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    run_dir.write_json(path, told)


def _write_generation_config(
    folder: Path, model: ModelSection, layout: Layout, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """The base's generation settings, with the tokens that end an answer of this run among those that stop it."""
    path = shards.base_file(model, "generation_config.json")
    own = _settings(path) if path is not None else {}
    before = own.get("eos_token_id")
    known = {before} if isinstance(before, int) else set(before or [])
    if path is not None and layout.model.generation_config is not None:
        layout.model.generation_config.eos_token_id = before
    stops = generation.stop_token_ids(layout.model, tokenizer)
    added = [index for index in stops if index not in known]
    if added:
        own["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    if own.get("pad_token_id") is None:
        own["pad_token_id"] = tokenizer.pad_token_id
    run_dir.write_json(folder / "generation_config.json", own)
    if not added or path is None:
        return None
    names = ", ".join(tokenizer.convert_ids_to_tokens(added))
    return f"generation_config.json also stops at {names}, which ends the answers of this run"


def _settings(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"model.id: {path} cannot be read ({error}); load the model anew") from error
