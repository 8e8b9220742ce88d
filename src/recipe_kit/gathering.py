"""Weights that processes have shared out, put together again on the first of them as ordinary tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations import deepspeed as switch


def gather(model: torch.nn.Module, dtype: Callable[[str], torch.dtype], device: torch.device) -> dict[str, Any]:
    """The trained weights of a model by their names, each in the type that `dtype` gives; empty but on the first rank.

    Every rank must call it. Under DeepSpeed the values are those of the optimiser, in float32: the model's own are
    rounded to 16 bits. One tensor at a time is whole on the GPU, and all of them in the first process's memory.
    """
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    found: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole = _whole(parameter, device)
            if first:
                found[name] = whole.to("cpu", dtype(name)).contiguous()
            del whole
    return found


def split_models(plugin: Any) -> None:
    """From here on transformers splits models among the processes if `plugin`, accelerate's for DeepSpeed, says so.

    It would from the moment TRL's configuration is made, and also those that are only looked at. None: it does not.
    """
    switch.unset_hf_deepspeed_config()
    if plugin is not None:
        switch.set_hf_deepspeed_config(plugin.dschf)


@contextmanager
def whole_models() -> Iterator[None]:
    """Models that are made in here are whole, and made without the other processes."""
    found = switch._hf_deepspeed_config_weak_ref
    switch.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        switch._hf_deepspeed_config_weak_ref = found


def parameter_count(parameter: torch.Tensor) -> int:
    """Numbers in a parameter, of which ZeRO-3 may have left a process none."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _plain(value: Any) -> torch.Tensor:
    whole: torch.Tensor = value.full_tensor()
    return whole


def _whole(parameter: torch.Tensor, device: torch.device) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    value = parameter.detach()
    if isinstance(value, DTensor):
        return _plain(value.to(device))
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        precise: torch.Tensor | None = safe_get_full_fp32_param(parameter)
        if precise is not None:
            return precise.detach()
    return value
