"""What this machine can do, asked of the libraries themselves. Nothing leaves the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "note", "missing"]

_NEEDED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "huggingface-hub")
_OPTIONAL = {"liger-kernel": "kernels", "deepspeed": "deepspeed", "wandb": "wandb", "gguf": "demo"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `missing` means training cannot work; `note` is worth knowing."""

    what: str
    status: Status
    detail: str


def examine() -> list[Finding]:
    """All findings, packages first."""
    return [Finding("python", "ok", platform.python_version()), *_packages(), *_device(), *_disk(), _token()]


def _packages() -> list[Finding]:
    findings = []
    for name in _NEEDED:
        version = _version(name)
        findings.append(Finding(name, "ok" if version else "missing", version or f"pip install {name}"))
    for name, extra in _OPTIONAL.items():
        version = _version(name)
        findings.append(Finding(name, "ok" if version else "note", version or f"pip install 'recipe-kit[{extra}]'"))
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> list[Finding]:
    if _version("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        cores = os.cpu_count()
        return [
            Finding("gpu", "note", f"none that torch {torch.__version__} can use: training runs on {cores} CPU cores")
        ]
    findings = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        findings.append(Finding("gpu", "ok", f"{gpu.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    findings.append(
        Finding("bfloat16", "ok" if bf16 else "note", "yes" if bf16 else "no: recipes run in float16 on this card")
    )
    return [*findings, _attention(), *_four_bit()]


def _attention() -> Finding:
    """How packed rows are kept apart on this card, whatever the model."""
    from recipe_kit.attention import FLASH, installed_flash
    from recipe_kit.varlen import NAME, no_kernel

    reason = no_kernel("cuda")
    if reason is not None:
        return Finding("packed rows", "note", f"attention needs a mask between them, and batches are padded: {reason}")
    import torch

    notes: list[str] = []
    name = installed_flash(torch.cuda.get_device_capability(), notes)
    told = "; ".join([f"kept apart by {FLASH[name] if name else NAME}", *notes])
    return Finding("packed rows", "note" if notes else "ok", told)


def _four_bit() -> list[Finding]:
    if _version("bitsandbytes") is None:
        return []
    import bitsandbytes

    devices = sorted(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    return [Finding("4-bit weights", "ok", f"on {', '.join(devices)}")]


def _disk() -> list[Finding]:
    from recipe_kit.local_models import cache_root

    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    findings = []
    for what, folder in (
        ("disk for runs", Path.cwd()),
        ("disk for models", hub),
        ("disk for demo models", cache_root()),
    ):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        writable = os.access(existing, os.W_OK)
        detail = f"{free / 2**30:.0f} GiB free at {folder}" + ("" if writable else ", not writable")
        findings.append(Finding(what, "ok" if writable and free > 10 * 2**30 else "note", detail))
    return findings


def _token() -> Finding:
    from huggingface_hub import get_token

    if get_token():
        return Finding("Hub token", "ok", "found (not shown, not sent)")
    return Finding("Hub token", "note", "none: needed for gated models and for publishing; `hf auth login`")
