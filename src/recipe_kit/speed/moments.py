"""What comes and goes in a step of training, at the five moments at which memory can be largest.

What layers keep and need for their backward pass follows the formulas of `activations.py`, and the head what TRL's
fused one allocates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict, Unpack

from transformers import PretrainedConfig

from recipe_kit.recipe import Recipe
from recipe_kit.speed import activations
from recipe_kit.speed.activations import Layer, Linear, Numbers
from recipe_kit.speed.shape import Shape, shape_of

_TILE_TOKENS, _TILE_WORDS = 4096, 32768  # TRL's fused head (`trl/kernels/chunked_logprob.py`, 1.16)
_CUBLAS = 32 * 2**20  # workspace of a thread that multiplies matrices; forward and backward are two


@dataclass(frozen=True)
class Work:
    """One micro-batch on one device, at its largest.

    `tokens` are all that go through the layers, padding included: `rows` rows of `row_tokens`. Rows that are packed or
    joined without padding are one row; `longest` is the longest of those in it.
    """

    rows: int
    row_tokens: int
    tokens: int
    trained_tokens: int
    longest: int


class StepOptions(TypedDict):
    """How a step is computed.

    `attention` is an implementation by its name. `in_place_adapters` says that linear layers are computed as in
    `projections.py`. `accumulates` says whether a step has several micro-batches, of which all but the first find
    gradients; without it the recipe says so.
    """

    checkpointing: bool
    optim: str
    fused_layers: bool
    in_place_adapters: bool
    attention: str
    accumulates: NotRequired[bool]


def accumulates(recipe: Recipe, options: StepOptions) -> bool:
    """Whether a step has several micro-batches."""
    return options.get("accumulates", int(recipe.training.get("gradient_accumulation_steps", 1)) > 1)


@dataclass(frozen=True)
class Moment:
    """Bytes beside weights, adapter and optimiser states."""

    gradients: int = 0
    activations: int = 0
    logits: int = 0
    workspace: int = 0

    @property
    def bytes(self) -> int:
        return self.gradients + self.activations + self.logits + self.workspace


def moments(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    work: Work,
    *,
    itemsize: int | None = None,
    **options: Unpack[StepOptions],
) -> dict[str, Moment]:
    """What comes and goes at each moment of a step, by its name; arguments as for `memory.estimate`.

    `itemsize` is that of weights and adapters as the layers see them, where they are kept in another type: sharded
    ones are gathered in the computing type.
    """
    shape = shape_of(recipe, config, precision)
    if itemsize is not None:
        trained = [replace(tensor, itemsize=itemsize) for tensor in shape.trained]
        adapter = itemsize if shape.adapter_itemsize else 0
        shape = replace(shape, trained=trained, itemsize=itemsize, adapter_itemsize=adapter)
    numbers = _numbers(
        recipe, shape, precision, work, options["fused_layers"], options["in_place_adapters"], options["attention"]
    )
    return _moments(
        shape, numbers, work, config, options["checkpointing"], accumulates(recipe, options), options["optim"]
    )


def computing_itemsize(recipe: Recipe, precision: str) -> tuple[int, bool]:
    """Bytes of a value in matrix products, and whether autocast makes them so, as `arguments.py` decides."""
    half = precision == "float16" or bool(recipe.training.get("fp16"))
    autocast = half or bool(recipe.training.get("bf16", precision == "bfloat16"))
    return (2 if autocast or precision != "float32" else 4), autocast


def _numbers(
    recipe: Recipe,
    shape: Shape,
    precision: str,
    work: Work,
    fused_layers: bool,
    in_place: bool,
    attention: str,
) -> Numbers:
    compute, autocast = computing_itemsize(recipe, precision)
    in_float16 = precision == "float16" or bool(recipe.training.get("fp16"))
    narrowed = in_place and autocast and not in_float16  # by `projections.stream_in_16_bits`
    dense = attention in ("sdpa", "eager", "auto")
    masked = work.rows > 1 if attention == "torch_varlen" else dense and _is_uneven(work)
    grouped = not masked and attention != "eager"  # transformers repeats keys and values for masks
    return Numbers(
        compute=compute,
        stream=compute if narrowed else shape.itemsize,
        weights=shape.itemsize,
        adapter=shape.adapter_itemsize,
        autocast=autocast,
        trained=recipe.method == "full",
        quantized=shape.quantized,
        dropout=shape.dropout,
        fused_layers=fused_layers,
        in_place=in_place,
        attention="sdpa" if attention == "auto" else attention,
        masked=masked,
        grouped=grouped,
    )


def _is_uneven(work: Work) -> bool:
    """Whether attention without boundaries needs a mask: rows beside each other, or several in one."""
    return work.rows > 1 or work.longest < work.row_tokens


def _moments(
    shape: Shape,
    numbers: Numbers,
    work: Work,
    config: PretrainedConfig,
    checkpointing: bool,
    accumulates: bool,
    optim: str,
) -> dict[str, Moment]:
    """The moments at which a step can be largest."""
    stream, hidden = numbers.stream * work.tokens * shape.hidden, shape.hidden
    held = shape.trained_bytes if accumulates else 0
    copies = _autocast_copies(shape, numbers)
    final = activations.norm(hidden, numbers, itemsize=numbers.stream, gemma=shape.first.gemma) * work.tokens
    shared = _inputs(shape, numbers, work, config)
    layers = sum(_kept(shape, layer, numbers, work) * count for layer, count in shape.layers.items())
    if checkpointing:
        kept = sum(shape.layers.values()) * stream
    else:
        kept = layers
        if not shape.trains_embeddings:  # nothing before the first layer's adapter needs a gradient
            kept -= _kept(shape, shape.first, numbers, work) - _kept(shape, shape.first, numbers, work, first=True)
    head_forward, head_backward, head_gradient = _head(shape, numbers, work)
    forward = Moment(held, kept + shared + final, head_forward, _CUBLAS + copies + _dense(shape, numbers, False))
    in_backward = 2 * _CUBLAS + (0 if checkpointing else copies)
    head = Moment(held, kept + shared + final, head_backward, in_backward)
    embeddings = shape.embedding_bytes
    moments = {"forward": forward, "head": head}
    after_head = held + (head_gradient if shape.trains_head else 0)
    passing = activations.norm_passing(hidden, numbers, itemsize=numbers.stream) * work.tokens
    candidates = [Moment(after_head, kept + shared + final, 0, in_backward + passing)]
    for layer in shape.layers:
        again = 0
        if checkpointing:
            again = _kept(shape, layer, numbers, work) - activations.shared_input(layer, numbers) * work.tokens
            again += copies // sum(shape.layers.values())
        needed = activations.passing(layer, numbers) * work.tokens + _dense(shape, numbers, checkpointing)
        candidates.append(Moment(after_head, kept + shared + again, 0, in_backward + needed))
        free = activations.feed_forward(layer, numbers) * work.tokens
        needed = activations.attention_passing(layer, numbers, work.rows, work.row_tokens, work.tokens)
        candidates.append(
            Moment(after_head, kept + shared + again - free, 0, in_backward + needed + _dense(shape, numbers, False))
        )
    moments["backward"] = max(candidates, key=lambda moment: moment.bytes)
    # At the end: the embeddings' gradient is dense, and is added to the head's, or to the one that was there.
    more = embeddings if shape.trains_embeddings and (shape.tied or accumulates) else 0
    more += embeddings if shape.tied and shape.trains_head and accumulates else 0
    moments["end of backward"] = Moment(shape.trained_bytes + more, shared + 2 * stream, 0, 2 * _CUBLAS)
    roots = shape.trained_bytes if optim == "adamw_torch" else 0  # square roots of all second moments at once
    moments["optimizer"] = Moment(shape.trained_bytes, 0, 0, 2 * _CUBLAS + roots)
    return moments


def _kept(shape: Shape, layer: Layer, numbers: Numbers, work: Work, *, first: bool = False) -> int:
    """Bytes that one layer keeps of a micro-batch."""
    return activations.kept(layer, numbers, first=first) * work.tokens + activations.mask(
        layer, numbers, work.rows, work.row_tokens
    )


def _inputs(shape: Shape, numbers: Numbers, work: Work, config: PretrainedConfig) -> int:
    """Ids, labels and positions, sines and cosines, and the masks that all layers share."""
    positions = work.tokens if work.rows == 1 else work.row_tokens
    rotary = 2 * shape.head_dim * numbers.stream * positions
    total = 3 * 8 * work.tokens + rotary
    if numbers.masked:
        kinds = len(set(getattr(config.get_text_config(), "layer_types", None) or ("full_attention",)))
        each = numbers.stream if numbers.attention == "eager" else 1
        total += kinds * each * work.rows * work.row_tokens**2
    return total


def _autocast_copies(shape: Shape, numbers: Numbers) -> int:
    """Bytes of trained weights that autocast has cast for this pass, once each."""
    if numbers.in_place or not numbers.autocast:
        return 0
    cast = (t for t in shape.trained if ".layers." in t.name and len(t.shape) == 2 and t.itemsize != numbers.compute)
    return sum(numbers.compute * tensor.values for tensor in cast)


def _dense(shape: Shape, numbers: Numbers, kept: bool) -> int:
    """Bytes of 4-bit weights made dense: the largest, or where `kept` those of a layer that is computed again."""
    if not shape.quantized:
        return 0
    largest = 0
    for layer in shape.layers:
        sizes = [part.inputs * part.outputs for part in _linears(layer)]
        largest = max(largest, sum(sizes) if kept and numbers.in_place else max(sizes))
    return numbers.compute * largest


def _linears(layer: Layer) -> list[Linear]:
    return [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down]


def _head(shape: Shape, numbers: Numbers, work: Work) -> tuple[int, int, int]:
    """Bytes that TRL's fused head takes in forward and in backward, and those of its weight's gradient afterwards.

    It scores trained tokens only, in tiles of 4096 of them by 32768 words, and sums gradients in float32.
    """
    tokens, words, hidden = work.trained_tokens, shape.vocabulary, shape.hidden
    normed = numbers.normed(gemma=shape.first.gemma)
    chosen = normed * tokens * hidden
    tile = numbers.compute * min(tokens, _TILE_TOKENS) * min(words, _TILE_WORDS)
    if numbers.weights != numbers.compute:  # cast piece by piece
        tile += numbers.compute * hidden * (min(words, _TILE_WORDS) + min(tokens, _TILE_TOKENS))
    everything = normed * work.tokens * hidden
    weight = 4 * words * hidden if shape.trains_head else 0
    forward = everything + chosen + tile
    scoring = chosen + tile + 4 * tokens * hidden + weight
    scattering = chosen + 2 * everything + weight
    return forward, max(scoring, scattering), shape.embedding_bytes
