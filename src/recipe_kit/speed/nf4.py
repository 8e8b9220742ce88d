"""4-bit weights of bitsandbytes made dense by one kernel, where bitsandbytes takes three for doubly quantised ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_VALUES = 4096  # made by one program of the kernel; a multiple of every block size


def is_4bit(layer: Any) -> bool:
    return type(layer.weight).__name__ == "Params4bit"


def dense(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight of shape (outputs, inputs) in `dtype`; the layer's own tensor where it is dense already."""
    weight = layer.weight
    if not is_4bit(layer):
        whole: torch.Tensor = weight.detach().to(dtype)
        return whole
    state = weight.quant_state
    if weight.is_cuda and _VALUES % state.blocksize == 0 and (kernel := _kernel()) is not None:
        # Bytes, also where `bnb_4bit_quant_storage` has them kept as numbers of another type.
        return _by_triton(kernel, weight.data.view(torch.uint8), state, dtype)
    from bitsandbytes.functional import dequantize_4bit

    made: torch.Tensor = dequantize_4bit(weight.data, state).to(dtype)
    return made


def _by_triton(kernel: Any, packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    made = torch.empty(state.shape, dtype=dtype, device=packed.device)
    count = made.numel()
    second = state.state2 if state.nested else None
    kernel[((count + _VALUES - 1) // _VALUES,)](
        packed,
        state.code,
        state.absmax,
        second.code if second else state.code,
        second.absmax if second else state.absmax,
        state.offset if second else state.absmax,
        made,
        count,
        BLOCK=state.blocksize,
        OUTER=second.blocksize if second else 1,
        NESTED=second is not None,
        VALUES=_VALUES,
        num_warps=8,
        enable_fp_fusion=False,  # absmax is rounded where bitsandbytes rounds it: the values are the same bits
    )
    return made


@cache
def _kernel() -> Any:
    """The kernel, or None without Triton."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def make_dense(  # type: ignore[no-untyped-def]
        packed,
        code,
        absmax,
        outer_code,
        outer_absmax,
        offset,
        made,
        count,
        BLOCK: tl.constexpr,
        OUTER: tl.constexpr,
        NESTED: tl.constexpr,
        VALUES: tl.constexpr,
    ):
        # A byte holds two values, the first in its upper half. Value = code[index] * absmax of its block, in float32;
        # doubly quantised, the absmax itself is outer_code[index] * outer_absmax + offset.
        start = tl.program_id(0).to(tl.int64)
        place = start * (VALUES // 2) + tl.arange(0, VALUES // 2)
        inside = place * 2 < count
        pair = tl.load(packed + place, mask=inside, other=0).to(tl.int32)
        block = place * 2 // BLOCK
        if NESTED:
            index = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
            largest = tl.load(outer_code + index) * tl.load(outer_absmax + block // OUTER, mask=inside, other=0.0)
            largest += tl.load(offset)
        else:
            largest = tl.load(absmax + block, mask=inside, other=0.0)
        first = tl.load(code + (pair >> 4)) * largest
        second = tl.load(code + (pair & 15)) * largest
        both = tl.interleave(first, second).to(made.dtype.element_ty)
        target = start * VALUES + tl.arange(0, VALUES)
        tl.store(made + target, both, mask=target < count)

    return make_dense
