"""Whether trained weights are still numbers. Once one is not, every later step makes more of them, and none fewer."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def ruined(named: Iterable[tuple[str, torch.nn.Parameter]]) -> str:
    """The name of the first trained weight of which this process holds a value that is infinite or no number, or "".

    Of weights in shares only the own one is looked at. One pass over them, and one wait for the GPU.
    """
    trained = [(name, _share(parameter)) for name, parameter in named if parameter.requires_grad]
    held = [(name, share) for name, share in trained if share.numel()]
    if not held:
        return ""
    # A value that is no number makes the sum one; in float32, which 16-bit numbers do not overflow.
    sums = torch.stack([share.sum(dtype=torch.float32).to(held[0][1].device) for _, share in held])
    whole = torch.isfinite(sums).tolist()
    return next((name for (name, _), good in zip(held, whole, strict=True) if not good), "")


def _share(parameter: torch.nn.Parameter) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    value = parameter.detach()
    if isinstance(value, DTensor):  # FSDP2
        share: torch.Tensor = value.to_local()
        return share
    return getattr(parameter, "ds_tensor", value)  # ZeRO-3
