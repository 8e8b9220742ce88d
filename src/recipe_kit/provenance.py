"""Where a run comes from: everything `run.json` says before the first step."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

import recipe_kit
from recipe_kit import data, modeling, run_dir
from recipe_kit.formatters import get_formatter
from recipe_kit.local_models import local_folder
from recipe_kit.recipe import ModelSection, Recipe, recipe_digest
from recipe_kit.run_dir import RunInfo
from recipe_kit.secrets import blotted

_PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "tokenizers", "huggingface-hub",
    "liger-kernel",
)  # fmt: skip


def run_info(
    recipe: Recipe,
    splits: dict[str, data.Split],
    tokenizer: PreTrainedTokenizerBase,
    command: Sequence[str],
    processes: int,
    notes: list[str],
) -> RunInfo:
    """What is known before training: recipe, command (without tokens), versions, hardware and rows."""
    formatter = recipe.data.formatter
    return {
        "schema_version": 1,
        "recipe_kit_version": recipe_kit.__version__,
        "status": "running",
        "name": recipe.name,
        "method": recipe.method,
        "recipe_sha256": recipe_digest(recipe),
        "started_at": now(),
        "command": [blotted(word) for word in command],
        "git_commit": _git_commit(),
        "versions": versions(),
        "hardware": _hardware(recipe),
        "processes": processes,
        "seed": int(recipe.training.get("seed", 42)),
        "notes": notes,
        "model": {"id": recipe.model.id, "chat_template_sha256": modeling.template_hash(tokenizer)},
        "data": {
            "formatter": {"name": formatter.name, "source_sha256": _source_hash(get_formatter(formatter.name))},
            "splits": {
                split.name: {
                    "sources": split.sources,
                    **split.counts.as_dict(),
                    "content_sha256": split.content_sha256,
                    "order_sha256": hashlib.sha256(split.digests.tobytes()).hexdigest(),
                    "lengths": lengths(split),
                }
                for split in splits.values()
            },
        },
    }


def lengths(split: data.Split) -> dict[str, list[int]]:
    """Histograms over rows: `tokens` and `trained` count the rows between each of `edges` and the next."""
    batches = split.rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    tokens = np.concatenate([batch["input_ids"].combine_chunks().value_lengths().to_numpy() for batch in batches])
    trained = np.asarray(split.details.select_columns(["trained"]).with_format("numpy")["trained"][:])
    width = max(1, -(-int(tokens.max()) // 24))
    edges = np.arange(0, int(tokens.max()) + width + 1, width)
    return {
        "edges": edges.tolist(),
        "tokens": np.histogram(tokens, edges)[0].tolist(),
        "trained": np.histogram(trained, edges)[0].tolist(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that decide what a number is."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def base_license(model: ModelSection, revision: str | None) -> dict[str, str] | None:
    """`license`, and `license_name` and `license_link` where it is none of the Hub's list, from the base's own card.

    `revision` is the commit its weights were read at. None where the base has no card, names no licence, or cannot be
    asked.
    """
    from huggingface_hub import ModelCard, hf_hub_download

    folder = local_folder(model.id) or (Path(model.id) if Path(model.id).is_dir() else None)
    try:
        path = folder / "README.md" if folder else Path(hf_hub_download(model.id, "README.md", revision=revision))
        told = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # the client fails with the errors of whichever HTTP library it uses; a licence can be given
        return None
    found = {key: told[key] for key in ("license", "license_name", "license_link") if isinstance(told.get(key), str)}
    return found if "license" in found else None


def keep_license_texts(model: ModelSection, revision: str | None, folder: Path) -> None:
    """Copy a base model's licence, as its repository or folder holds it, into `folder`; nothing where it has none.

    Licences such as Llama's ask for a copy with everything that is made of the model.
    """
    from huggingface_hub import HfApi, hf_hub_download

    local = local_folder(model.id) or (Path(model.id) if Path(model.id).is_dir() else None)
    try:
        if local is not None:
            paths = [path for path in local.iterdir() if run_dir.LICENSE_TEXT.fullmatch(path.name)]
        else:
            files = HfApi().model_info(model.id, revision=revision, timeout=10).siblings or []
            names = [file.rfilename for file in files if run_dir.LICENSE_TEXT.fullmatch(file.rfilename)]
            paths = [Path(hf_hub_download(model.id, name, revision=revision)) for name in names]
    except Exception:  # as above: without a network there is no copy, and the card links to the text
        return
    for path in paths:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.name)


def _hardware(recipe: Recipe) -> dict[str, Any]:
    if modeling.uses_cpu(recipe):
        threads = torch.get_num_threads()  # in 16 bits another number of threads rounds another way
        return {"device": "cpu", "machine": platform.machine(), "cores": os.cpu_count(), "threads": threads}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def _git_commit() -> str | None:
    """The commit of the folder the run was started in, so that a recipe kept in git can be found again."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _source_hash(function: Any) -> str | None:
    try:
        return hashlib.sha256(inspect.getsource(inspect.unwrap(function)).encode()).hexdigest()
    except (OSError, TypeError):
        return None


def now() -> str:
    """The time of day with its offset, ISO 8601, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
