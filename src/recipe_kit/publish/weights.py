"""Whether weights on disk are what the run says they are: whole, finite, and merged from this adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe_kit import run_dir
from recipe_kit.run_dir import RunInfo

LONGEST_HEADER = 100_000_000  # bytes; what the safetensors library allows

# Numbers whose exponent bits are all set are infinite or not numbers: width in bytes, mask.
_EXPONENT = {"F64": (8, 0x7FF0 << 48), "F32": (4, 0x7F80 << 16), "BF16": (2, 0x7F80), "F16": (2, 0x7C00)}


def header(path: Path) -> dict[str, Any] | str:
    """The header of a safetensors file, tensors by name; or what is wrong with the file, as the end of a sentence."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
            return "is no safetensors file, or only part of one"
        try:
            tensors = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "has a damaged header"
    if 8 + length + max(ends, default=0) != size:
        return f"should have {8 + length + max(ends, default=0):,} bytes and has {size:,}"
    tensors.pop("__metadata__", None)
    return dict(tensors)


def not_finite(path: Path) -> str | None:
    """The first tensor of a whole safetensors file that holds an infinite number or none at all; None when all are
    finite. Reads one tensor at a time."""
    import numpy as np

    tensors = header(path)
    assert isinstance(tensors, dict)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name, entry in tensors.items():
            if entry["dtype"] not in _EXPONENT:
                continue
            width, mask = _EXPONENT[entry["dtype"]]
            first, last = entry["data_offsets"]
            file.seek(start + first)
            bits = np.frombuffer(file.read(last - first), f"<u{width}")
            if bool(np.any((bits & bits.dtype.type(mask)) == mask)):
                return str(name)
    return None


def indexed(index: Path) -> set[str]:
    """The weight files an index names; none for an index that cannot be read."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return set()


def merge_problems(run: Path, info: RunInfo, hashes: Mapping[str, str], adapter_sha256: str | None) -> list[str]:
    """Why `merged/` must not be published, a sentence each: no passing parity, or files that are not of this merge.

    `hashes` are the sha256 of the files in `merged/`, by name; `adapter_sha256` that of the adapter's weights now.
    """
    again = f"run `recipe-kit merge {run}` again"
    record = info.get("merge")
    if record is None:
        return [
            f"{run / run_dir.MERGED}: {run_dir.RUN} has no record of this merge, so nobody knows what it is; {again}"
        ]
    if (record.get("parity") or {}).get("ok") is not True:
        return [f"{run / run_dir.MERGED}: the merged model was not shown to equal the adapter model; {again}"]
    if adapter_sha256 != record.get("adapter_sha256"):
        return [f"{run / run_dir.MERGED}: merged from another adapter than {run / run_dir.ADAPTER} holds now; {again}"]
    recorded: dict[str, str] = record.get("files", {})
    weights = {name for name in (*recorded, *hashes) if name.endswith(".safetensors")}
    changed = sorted(name for name in {*recorded, *weights} if recorded.get(name) != hashes.get(name))
    if not changed:
        return []
    return [f"{run / run_dir.MERGED}: {', '.join(changed)} changed since the merge was checked; {again}"]
