"""Worker: how fast this card multiplies matrices, 8192 by 8192 in bfloat16: what no training can exceed.

A card that has rested is faster for a moment than it can be for minutes: its power is limited. The products go on for
three seconds; `tflops` is the median of the last two, `burst_tflops` that of the first tenth of a second.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import worker

SIZE, PRODUCTS, SECONDS, LAST, BURST = 8192, 10, 3.0, 2.0, 0.1


def prepare(job: worker.Job) -> None:
    import torch  # noqa: F401


def act(job: worker.Job) -> dict[str, Any]:
    import torch

    device = job["device"]
    size, dtype = (SIZE, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    found: list[tuple[float, float]] = []  # seconds since the beginning, TFLOP/s
    torch.mm(a, b, out=out)  # chooses its kernel
    wait()
    began = now = time.perf_counter()
    while now - began < (SECONDS if device == "cuda" else 0.2):
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)
        wait()
        started, now = now, time.perf_counter()
        found.append((now - began, PRODUCTS * 2 * size**3 / (now - started) / 1e12))
    last = [speed for at, speed in found if at > found[-1][0] - LAST]
    burst = [speed for at, speed in found if at < BURST] or [found[0][1]]
    result: dict[str, Any] = {
        "tflops": statistics.median(last),
        "burst_tflops": statistics.median(burst),
        "size": size,
        "dtype": str(dtype)[6:],
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        result |= {"card": properties.name, "memory_bytes": properties.total_memory}
    return result | {"versions": worker.versions()}


if __name__ == "__main__":
    worker.serve(prepare, act)
