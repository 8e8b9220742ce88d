"""What a decoder layer keeps for its backward pass, and what that pass needs beside it: bytes a token, by block.

The counts of plain layers are those of transformers 5.23 and PEFT 0.21 under autocast; `tests/test_memory_estimate.py`
holds them, and those of `projections.py`, against real layers: the storages that autograd saves, each once, and the
most that lives at a time. Those of fused layers are read off Liger's functions (0.8).

    block            plain                                                fused
    norm of n        4 n + 4, trained also its output                     the input itself, 4
    projections      trained: their input, once where it has the          -
                     computing type, else a copy each
      with LoRA      a copy of the input each where PEFT casts it,        in place: the input once
                     else the input once; r values each
    attention        q, k, v, output, one float32 a head; with a mask     -
                     keys and values of all heads, and the mask
    feed-forward     gate, activation, up, each of the inner width        gate and up
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROWWISE = 4  # bytes of a float32 number kept for each row of a norm or softmax
_MASK_ALIGNMENT = 16  # PyTorch's memory-efficient attention wants rows of masks so long


@dataclass(frozen=True)
class Linear:
    """A projection. `rank` is that of its adapter, 0 for none; `trained` is its own weight."""

    inputs: int
    outputs: int
    rank: int = 0
    trained: bool = False


@dataclass(frozen=True)
class Layer:
    """One decoder layer: attention and a gated feed-forward block, each behind a norm."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    heads: int
    kv_heads: int
    norms: int = 2  # of the hidden states; Gemma 3 has 4
    head_norms: bool = False  # queries and keys have one each: Qwen 3, Gemma 3
    gemma: bool = False  # its norms multiply in float32

    @property
    def hidden(self) -> int:
        return self.q.inputs

    @property
    def inner(self) -> int:
        return self.gate.outputs


@dataclass(frozen=True)
class Numbers:
    """Bytes of a value by its place, and which code computes.

    `compute` is that of matrix products, `stream` of the hidden states between blocks, `weights` of norms and whatever
    else is not quantised, `adapter` of LoRA's weights.
    """

    compute: int
    stream: int
    weights: int
    adapter: int
    autocast: bool
    trained: bool  # full fine-tuning: norms are trained too
    quantized: bool
    dropout: bool
    fused_layers: bool
    in_place: bool  # linear layers as in `speed/projections.py`
    attention: str
    masked: bool  # rows of different lengths in one batch, and attention that needs a mask for them
    grouped: bool  # the attention takes fewer heads of keys and values than of queries

    @property
    def low_rank(self) -> int:
        """Bytes of a value between LoRA's two matrices."""
        return self.compute if self.autocast or self.in_place else self.adapter

    def normed(self, *, gemma: bool) -> int:
        """Bytes of a value that a norm gives: Llama's multiplies by its weight in the wider of the two types."""
        return self.stream if self.fused_layers or gemma else max(self.stream, self.weights)


def norm(values: int, numbers: Numbers, *, itemsize: int, rows: int = 1, gemma: bool = False) -> int:
    """RMSNorm (Zhang & Sennrich, 2019, arXiv:1910.07467) of `rows` rows with `values` values in all, a token.

    Plain: a float32 copy of the input and the reciprocal root; for the gradient of its weight what it multiplies, in
    the input's type, and in float32 in Gemma's. Liger's keeps the input as it came.
    """
    if numbers.fused_layers:
        return itemsize * values + ROWWISE * rows
    multiplied = (4 if gemma else itemsize) * values if numbers.trained else 0
    return 4 * values + ROWWISE * rows + multiplied


def projections(linears: Sequence[Linear], numbers: Numbers, *, itemsize: int, held: bool = False) -> int:
    """What projections of one input keep of it. `itemsize` is the input's; `held` says that it is kept already."""
    values, compute = linears[0].inputs, numbers.compute
    trained = sum(linear.trained for linear in linears)
    adapted = sum(linear.rank > 0 for linear in linears)
    low_rank = numbers.low_rank * sum(linear.rank for linear in linears)
    if not trained and not adapted:
        return 0
    if numbers.in_place:  # the input once, in the computing type, and one mask where LoRA has dropout
        copies = 0 if held and itemsize == compute else 1
        return values * (compute * copies + (numbers.dropout and adapted > 0)) + low_rank
    if numbers.dropout and adapted:  # PEFT draws for each layer: what is left of the input, and a mask
        return values * adapted * (numbers.low_rank + 1) + low_rank
    # PEFT casts the input to the type of LoRA's weights, except before 4-bit layers under autocast; autocast casts
    # whatever has not the computing type, anew for each layer.
    cast = itemsize if trained or (numbers.quantized and numbers.autocast) else numbers.adapter
    wanted = compute if trained else numbers.low_rank
    copies = (0 if held else 1) if itemsize == cast == wanted else trained + adapted
    return values * wanted * copies + low_rank


def attention(layer: Layer, numbers: Numbers) -> int:
    """Queries, keys, values, output and the log-sum-exp of each head (FlashAttention-2, arXiv:2307.08691).

    `eager` keeps no output; its matrix of weights is in `mask`.
    """
    compute = numbers.compute
    keys = layer.k.outputs if numbers.grouped else layer.k.outputs * layer.heads // layer.kv_heads
    total = compute * (layer.q.outputs + 2 * keys)
    if numbers.attention != "eager":
        total += compute * layer.q.outputs + ROWWISE * layer.heads
    if layer.head_norms:
        total += norm(layer.q.outputs, numbers, itemsize=compute, rows=layer.heads, gemma=layer.gemma)
        total += norm(layer.k.outputs, numbers, itemsize=compute, rows=layer.kv_heads, gemma=layer.gemma)
    return total


def mask(layer: Layer, numbers: Numbers, rows: int, row_tokens: int) -> int:
    """Bytes a layer keeps for a batch, not a token, of what has a value for each pair of tokens.

    sdpa turns the boolean mask into numbers anew in each layer. eager keeps its softmax in float32 and as it is used.
    """
    if numbers.attention == "eager":
        weights = 4 + (numbers.compute if numbers.compute != 4 else 0)
        return layer.heads * rows * row_tokens**2 * weights
    if not numbers.masked:
        return 0
    return numbers.compute * rows * row_tokens * math.ceil(row_tokens / _MASK_ALIGNMENT) * _MASK_ALIGNMENT


def feed_forward(layer: Layer, numbers: Numbers) -> int:
    """GLU with SiLU or GELU (Shazeer, 2020, arXiv:2002.05202): gate, its activation, up. Liger's recomputes one."""
    return (2 if numbers.fused_layers else 3) * numbers.compute * layer.inner


def kept(layer: Layer, numbers: Numbers, *, first: bool = False) -> int:
    """All that a layer keeps, bytes a token. `first` is a layer whose input needs no gradient: frozen embeddings."""
    stream, compute, normed = numbers.stream, numbers.compute, numbers.normed(gemma=layer.gemma)
    norms = layer.norms - (1 if first else 0)
    total = norms * norm(layer.hidden, numbers, itemsize=stream, gemma=layer.gemma)
    if layer.norms == 4 and stream != compute:  # two of them read what a projection gives, in the computing type
        total += 2 * (
            norm(layer.hidden, numbers, itemsize=compute, gemma=layer.gemma)
            - norm(layer.hidden, numbers, itemsize=stream, gemma=layer.gemma)
        )
    total += projections([layer.q, layer.k, layer.v], numbers, itemsize=normed)
    total += attention(layer, numbers)
    total += projections([layer.o], numbers, itemsize=compute, held=numbers.attention != "eager")
    total += projections([layer.gate, layer.up], numbers, itemsize=normed)
    total += feed_forward(layer, numbers)
    return total + projections([layer.down], numbers, itemsize=compute)


def shared_input(layer: Layer, numbers: Numbers) -> int:
    """Bytes a token of `kept` that are the layer's own input, which checkpointing keeps anyway."""
    itself = numbers.fused_layers or numbers.stream == 4  # plain norms keep a float32 copy of anything else
    return layer.hidden * numbers.stream if itself else 0


def passing(layer: Layer, numbers: Numbers) -> int:
    """Bytes a token beside what is kept, at the dearest moment of a layer's backward pass.

    It comes right at its start, in the feed-forward block, while all the layer keeps is still there: gradients of the
    inner width, and of the hidden states. What a moment has freed already counts against it.
    """
    compute, inner = numbers.compute, layer.inner
    freed = projections([layer.down], numbers, itemsize=compute) // inner * inner
    casts = 1 if numbers.normed(gemma=layer.gemma) == compute else 2
    hidden = layer.hidden * (numbers.stream + casts * compute)
    product = inner * _input_gradients(layer.down, numbers)
    gated = inner * compute * (1 if numbers.fused_layers else 3) - freed
    return max(hidden + max(product, gated), _casting(layer, numbers))


def _input_gradients(linear: Linear, numbers: Numbers) -> int:
    """Bytes for each input, at most, while the gradients of one projection's input are computed and added up."""
    compute = numbers.compute
    if not linear.rank:
        return compute
    if numbers.in_place:
        return compute * (3 if numbers.dropout else 1)
    if not _casts(numbers):
        return compute
    # The gradient goes back through PEFT's cast, and through dropout, once in each type, with the copy freed.
    return 2 * numbers.adapter - compute if numbers.dropout else numbers.adapter


def _casting(layer: Layer, numbers: Numbers) -> int:
    """Bytes a token while PEFT casts the input of the last projection, in the layer's forward pass."""
    if not layer.down.rank or numbers.in_place or not _casts(numbers):
        return 0
    return layer.inner * (numbers.compute + numbers.adapter) + 6 * layer.hidden * numbers.compute


def _casts(numbers: Numbers) -> bool:
    """Whether PEFT makes a copy of each layer's input in the type of LoRA's weights."""
    return numbers.adapter != numbers.compute and not (numbers.quantized and numbers.autocast)


def norm_passing(values: int, numbers: Numbers, *, itemsize: int) -> int:
    """Bytes a token beside what is kept, while a norm is differentiated: five float32 numbers a value.

    Liger's writes its gradient over the one it gets. What the gradient of its weight is made of is freed first.
    """
    if numbers.fused_layers:
        return itemsize * values
    return (itemsize + 20 - (itemsize if numbers.trained else 0)) * values


def attention_passing(layer: Layer, numbers: Numbers, rows: int, row_tokens: int, tokens: int) -> int:
    """Bytes of a batch beside what is kept, while attention is differentiated: the feed-forward block is free again.

    FlashAttention sums gradients of queries in float32; eager holds gradients of its weights in float32 and as used.
    """
    values = 2 * layer.q.outputs + 2 * layer.q.outputs  # gradients of queries, output; keys and values of all heads
    total = tokens * (numbers.compute * values + 4 * layer.q.outputs)
    if numbers.attention == "eager":
        total += layer.heads * rows * row_tokens**2 * (4 + 4 + numbers.compute)
    return total
