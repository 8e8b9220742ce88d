"""What a GPU is and can do: that of this process, and cards by name for planning elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Card:
    """A GPU. `varlen` and `flash` say whether variable-length attention and FlashAttention can run on it."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    bfloat16: bool
    varlen: bool
    flash: bool


def card() -> Card | None:
    """The GPU of this process, with the memory it may use; None where there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    share = torch.cuda.get_per_process_memory_fraction()
    return _card(properties.name, int(share * properties.total_memory), (properties.major, properties.minor))


def _card(name: str, memory_bytes: int, capability: tuple[int, int]) -> Card:
    modern = capability >= (8, 0)
    return Card(name, memory_bytes, capability, bfloat16=modern, varlen=modern, flash=modern)


# About the bytes that CUDA reports, which differ from what the name says; read off a card for the H100 only.
CARDS: dict[str, Card] = {
    "t4": _card("T4", 15_600_000_000, (7, 5)),
    "rtx-3060-12gb": _card("RTX 3060 12 GB", 12_500_000_000, (8, 6)),
    "rtx-3070": _card("RTX 3070", 8_300_000_000, (8, 6)),
    "rtx-4090": _card("RTX 4090", 25_200_000_000, (8, 9)),
    "a10": _card("A10", 23_600_000_000, (8, 6)),
    "l4": _card("L4", 23_600_000_000, (8, 9)),
    "a100-40gb": _card("A100 40 GB", 42_300_000_000, (8, 0)),
    "a100-80gb": _card("A100 80 GB", 84_900_000_000, (8, 0)),
    "h100": _card("H100", 85_000_000_000, (9, 0)),
}
