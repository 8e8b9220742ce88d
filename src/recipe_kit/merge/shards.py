"""Weights on disk: a base read one tensor at a time, merged weights written one shard at a time."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

from recipe_kit.errors import MergeError, ModelError, first_line
from recipe_kit.local_models import local_folder
from recipe_kit.recipe import ModelSection

# What is held in memory until it is written. A 7B model in 16 bits becomes seven files, which a Hub client moves side
# by side; files ten times as large would need as much more memory.
MAX_SHARD_BYTES = 2 * 10**9

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def find_base(model: ModelSection) -> dict[str, Path] | None:
    """The file each tensor of a base model is in, in the order of its files; None for weights in another format.

    Downloads what is not in the cache yet. Raises ModelError when the model cannot be had.
    """
    index = base_file(model, INDEX)
    if index is None:
        single = base_file(model, SINGLE)
        return None if single is None else dict.fromkeys(_names(single), single)
    try:
        names = dict.fromkeys(sorted(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"model.id: the index of {model.id} cannot be read ({error}); load the model anew") from error
    found: dict[str, Path] = {}
    for name in names:
        path = base_file(model, name)
        if path is None:
            raise ModelError(f"model.id: {model.id} has no {name}, which its index names; load the model anew")
        found |= dict.fromkeys(_names(path), path)
    return found


def base_file(model: ModelSection, name: str) -> Path | None:
    """A file of the base model, from its folder, the cache or the Hub; None where the model has no such file."""
    try:
        found = cached_file(
            str(local_folder(model.id) or model.id),
            name,
            revision=model.revision or "main",
            _raise_exceptions_for_missing_entries=False,
        )
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise ModelError(
            f"model.id: cannot load {model.id} ({first}); check the network, and for a gated model accept its licence "
            "on the Hub and run `hf auth login`"
        ) from error
    return None if found is None else Path(found)


def read(path: Path, name: str) -> torch.Tensor:
    """One tensor of a file. The file is opened for it alone: a map left open keeps every page that was read."""
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file, from its header alone. Raises SafetensorError for a damaged file."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers only; twenty times as fast as `isfinite(tensor).all()`."""
    return tensor.numel() == 0 or all(map(math.isfinite, map(float, torch.aminmax(tensor))))


def _names(path: Path) -> list[str]:
    """A file's tensors in the order they lie in it."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.offset_keys())
    except SafetensorError as error:
        raise ModelError(f"model.id: {path.name} of the base is damaged ({error}); load the model anew") from error


class Writer:
    """Collects tensors and writes them as `model.safetensors`, or as shards with an index once there is more."""

    def __init__(self, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self.folder, self.max_shard_bytes = folder, max_shard_bytes
        self.pending: dict[str, torch.Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.written: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self.pending and self.pending_bytes + tensor.nbytes > self.max_shard_bytes:
            self._flush()
        self.pending[name] = tensor.contiguous()
        self.pending_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, give the files their names, and write the index where there are several."""
        self._flush()
        count = len(self.written)
        if count == 1:
            self.written[0][0].rename(self.folder / SINGLE)
            return
        places: dict[str, str] = {}
        for number, (path, names) in enumerate(self.written, 1):
            final = self.folder / f"model-{number:05}-of-{count:05}.safetensors"
            path.rename(final)
            places |= dict.fromkeys(names, final.name)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(places.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        path = self.folder / f"shard-{len(self.written) + 1}"
        save_file(self.pending, path, metadata={"format": "pt"})
        self.written.append((path, list(self.pending)))
        self.total_bytes += self.pending_bytes
        self.pending, self.pending_bytes = {}, 0


def check_space(run: Path, needed_bytes: int) -> None:
    """Raises MergeError when the disk of a run has no room for what a merge will write."""
    free = shutil.disk_usage(run).free
    if needed_bytes > free:
        raise MergeError(
            f"{run}: merging needs {gigabytes(needed_bytes)} of disk, and {gigabytes(free)} are free; make room, or "
            "copy the run folder to a larger disk"
        )


@contextmanager
def disk_full_explained(run: Path) -> Iterator[None]:
    """A disk that fills up while merged weights are written, as one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or any(f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise MergeError(
                f"{run}: the disk is full, and nothing was kept of this merge; make room, or copy the run folder to a "
                "larger disk"
            ) from error
        raise


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
