"""Peak GPU memory of a training run, from recipe and config alone: no weights, no GPU.

Weights, adapter, gradients and optimiser states are counted exactly (`parameters.py`), what layers keep and need for
their backward pass by the formulas of `activations.py`, and the head by what TRL's fused one allocates. The run is
looked at in five moments; the largest is the peak.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
from transformers import PretrainedConfig

from recipe_kit.recipe import Recipe
from recipe_kit.speed import activations, parameters
from recipe_kit.speed.activations import Layer, Linear, Numbers
from recipe_kit.speed.parameters import Tensor

ERROR = 0.08  # relative, of `Estimate.peak` against what PyTorch reports
CONTEXT_BYTES = 600 * 2**20  # what CUDA and its libraries take of a card before the first tensor
FRAGMENTATION = 0.05  # of what comes and goes: gaps between blocks of PyTorch's memory
MODELS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "smollm3")

_TILE_TOKENS, _TILE_WORDS = 4096, 32768  # TRL's fused head (`trl/kernels/chunked_logprob.py`, 1.16)
_CUBLAS = 32 * 2**20  # workspace of a thread that multiplies matrices; forward and backward are two
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ROUTED = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_STATE_SPACE = ("mamba", "rwkv", "ssm", "zamba", "jamba", "recurrent")


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


@dataclass(frozen=True)
class Estimate:
    """Bytes at the moment of the peak, part by part; they add up to `peak`.

    `phases` are the totals of all moments looked at. `paged` bytes of optimiser states lie outside PyTorch's memory,
    on the card while there is room, and are in no other number.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    phases: dict[str, int]
    paged: int = 0

    @property
    def peak(self) -> int:
        """What `torch.cuda.max_memory_allocated()` shows."""
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def parts(self) -> dict[str, int]:
        names = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "workspace")
        return {name: getattr(self, name) for name in names}


def estimate(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    work: Work,
    *,
    checkpointing: bool,
    optim: str,
    fused_layers: bool,
    in_place_adapters: bool,
    attention: str,
    accumulates: bool | None = None,
    processes: int = 1,
) -> Estimate | None:
    """The peak of training one process of this recipe; None where `unsupported` has a reason.

    `precision` is that of the run (`modeling.choose_precision`), `attention` an implementation by its name.
    `in_place_adapters` says that linear layers are computed as in `projections.py`. `accumulates` says whether a step
    has several micro-batches, of which all but the first find gradients; None asks the recipe. Raises ModelError for
    an adapter that does not fit the model.
    """
    if unsupported(recipe, config):
        return None
    model = _model(recipe, config, precision)
    found = moments(
        recipe,
        config,
        precision,
        work,
        checkpointing=checkpointing,
        optim=optim,
        fused_layers=fused_layers,
        in_place_adapters=in_place_adapters,
        attention=attention,
        accumulates=accumulates,
    )
    buckets = model.trained_bytes if processes > 1 else 0  # DistributedDataParallel sends copies of the gradients
    paged = parameters.paged_bytes(optim, model.trained)
    fixed = Moment(gradients=buckets)
    totals = {
        "weights": model.weights,
        "adapter": 0 if recipe.method == "full" else model.trained_bytes,
        "optimizer": parameters.optimizer_bytes(optim, model.trained) - paged,
    }
    phases = {name: sum(totals.values()) + moment.bytes + fixed.bytes for name, moment in found.items()}
    peak = found[max(phases, key=lambda name: phases[name])]
    return Estimate(
        **totals,
        gradients=peak.gradients + fixed.gradients,
        activations=peak.activations,
        logits=peak.logits,
        workspace=peak.workspace,
        phases=phases,
        paged=paged,
    )


def moments(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    work: Work,
    *,
    checkpointing: bool,
    optim: str,
    fused_layers: bool,
    in_place_adapters: bool,
    attention: str,
    accumulates: bool | None = None,
    itemsize: int | None = None,
) -> dict[str, Moment]:
    """What comes and goes at each moment of a step, by its name; arguments as for `estimate`.

    `itemsize` is that of weights and adapters as the layers see them, where they are kept in another type: sharded
    ones are gathered in the computing type.
    """
    model = _model(recipe, config, precision)
    if itemsize is not None:
        trained = [replace(tensor, itemsize=itemsize) for tensor in model.trained]
        adapter = itemsize if model.adapter_itemsize else 0
        model = replace(model, trained=trained, itemsize=itemsize, adapter_itemsize=adapter)
    numbers = _numbers(recipe, model, precision, work, fused_layers, in_place_adapters, attention)
    if accumulates is None:
        accumulates = int(recipe.training.get("gradient_accumulation_steps", 1)) > 1
    return _moments(model, numbers, work, config, checkpointing, accumulates, optim)


def card_needs(estimate: Estimate) -> int:
    """Bytes a card must have: the peak, what CUDA takes for itself, and gaps. Paged states move out of the way."""
    moving = estimate.peak - estimate.weights - estimate.adapter - estimate.optimizer
    return estimate.peak + CONTEXT_BYTES + math.ceil(FRAGMENTATION * moving)


def unsupported(recipe: Recipe, config: PretrainedConfig) -> str | None:
    """Why nothing is estimated for this recipe, as half a sentence, or None."""
    kind = str(config.model_type)
    if config.is_encoder_decoder:
        return f"{kind} models have an encoder and a decoder, and only decoders are known"
    if any((getattr(config, key, None) or 0) > 1 for key in _ROUTED):
        return f"{kind} models are mixtures of experts, whose layers take what the tokens ask for"
    if any(name in kind for name in _STATE_SPACE):
        return f"{kind} models have state-space layers, which are not known"
    if kind not in MODELS:
        return f"the layers of {kind} models are not known; those of {', '.join(MODELS)} are"
    if recipe.method != "full" and (recipe.lora.get("use_dora") or recipe.lora.get("layer_replication")):
        return "lora: of its variants only plain LoRA and its scalings are known"
    training = recipe.training
    if training.get("label_smoothing_factor"):
        return "training.label_smoothing_factor: its loss makes all logits at once"
    if training.get("activation_offloading"):
        return "training.activation_offloading: what is moved off the card is not known"
    if (training.get("gradient_checkpointing_kwargs") or {}).get("selective"):
        return "training.gradient_checkpointing_kwargs: what selective checkpointing keeps is not known"
    if training.get("deepspeed") or training.get("fsdp"):
        return "weights shared between processes are not known"
    return None


@dataclass(frozen=True)
class _Model:
    """What the estimate needs to know of a model with its adapter."""

    weights: int  # bytes of the base
    trained: list[Tensor]
    layers: Counter[Layer]
    first: Layer
    hidden: int
    head_dim: int
    vocabulary: int
    itemsize: int  # of a base weight that is not quantised
    adapter_itemsize: int
    dropout: bool
    quantized: bool
    tied: bool
    trains_head: bool
    trains_embeddings: bool

    @property
    def trained_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.trained)

    @property
    def embedding_bytes(self) -> int:
        """Of a gradient of embeddings or head."""
        return self.vocabulary * self.hidden * (self.itemsize if self.adapter_itemsize == 0 else 4)


@parameters.kept
def _model(recipe: Recipe, config: PretrainedConfig, precision: str) -> _Model:
    base = parameters.build(recipe, config, precision)
    embeddings, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    tied = embeddings is head
    full = recipe.method == "full"
    whole = base if full else parameters.adapt(recipe, base)
    trained = [
        parameters.plain_tensor(name, value) if full else parameters.adapter_tensor(name, value, precision)
        for name, value in whole.named_parameters()
        if value.requires_grad
    ]
    names = [tensor.name for tensor in trained]
    adapters = [tensor for tensor in trained if ".lora_" in tensor.name]
    layers = [_layer(module, config, trained=full) for module in _decoder_layers(base)]
    dropouts = [float(getattr(part, "p", 0.0)) for m in parameters.adapters(whole).values()
                for part in m.lora_dropout.values()]  # fmt: skip
    return _Model(
        weights=parameters.base_bytes(recipe, whole),
        trained=trained,
        layers=Counter(layers),
        first=layers[0],
        hidden=layers[0].hidden,
        head_dim=layers[0].q.outputs // layers[0].heads,
        vocabulary=head.shape[0],
        itemsize=head.dtype.itemsize,
        adapter_itemsize=max((tensor.itemsize for tensor in adapters), default=0),
        dropout=any(dropouts),
        quantized=recipe.method == "qlora",
        tied=tied,
        trains_head=full or any("lm_head" in name for name in names),
        trains_embeddings=full or any("embed_tokens" in name for name in names),
    )


def _decoder_layers(base: torch.nn.Module) -> list[torch.nn.Module]:
    return list(base.get_submodule("model.layers").children())


def _layer(module: torch.nn.Module, config: PretrainedConfig, *, trained: bool) -> Layer:
    """A decoder layer as its modules say, adapters included."""
    text = config.get_text_config()
    found: dict[str, Linear] = {}
    adapters = parameters.adapters(module)
    for name, part in module.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf not in _PROJECTIONS:
            continue
        adapter = adapters.get(name)
        rank = max(adapter.r.values(), default=0) if adapter is not None else 0
        weight = (adapter.get_base_layer() if adapter is not None else part).weight
        found[leaf.removesuffix("_proj")] = Linear(int(weight.shape[1]), int(weight.shape[0]), int(rank), trained)
    norms = [name for name, _ in module.named_modules() if name.endswith("layernorm")]
    return Layer(
        **found,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads or text.num_attention_heads,
        norms=len(norms),
        head_norms=hasattr(module.self_attn, "q_norm"),
        gemma=str(config.model_type).startswith("gemma"),
    )


def computing_itemsize(recipe: Recipe, precision: str) -> tuple[int, bool]:
    """Bytes of a value in matrix products, and whether autocast makes them so, as `arguments.py` decides."""
    half = precision == "float16" or bool(recipe.training.get("fp16"))
    autocast = half or bool(recipe.training.get("bf16", precision == "bfloat16"))
    return (2 if autocast or precision != "float32" else 4), autocast


def _numbers(
    recipe: Recipe,
    model: _Model,
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
        stream=compute if narrowed else model.itemsize,
        weights=model.itemsize,
        adapter=model.adapter_itemsize,
        autocast=autocast,
        trained=recipe.method == "full",
        quantized=model.quantized,
        dropout=model.dropout,
        fused_layers=fused_layers,
        in_place=in_place,
        attention="sdpa" if attention == "auto" else attention,
        masked=masked,
        grouped=grouped,
    )


def _is_uneven(work: Work) -> bool:
    """Whether attention without boundaries needs a mask: rows beside each other, or several in one."""
    return work.rows > 1 or work.longest < work.row_tokens


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


def _moments(
    model: _Model,
    numbers: Numbers,
    work: Work,
    config: PretrainedConfig,
    checkpointing: bool,
    accumulates: bool,
    optim: str,
) -> dict[str, Moment]:
    """The moments at which a step can be largest."""
    stream, hidden = numbers.stream * work.tokens * model.hidden, model.hidden
    held = model.trained_bytes if accumulates else 0
    copies = _autocast_copies(model, numbers)
    final = activations.norm(hidden, numbers, itemsize=numbers.stream, gemma=model.first.gemma) * work.tokens
    shared = _inputs(model, numbers, work, config)
    layers = sum(_kept(model, layer, numbers, work) * count for layer, count in model.layers.items())
    if checkpointing:
        kept = sum(model.layers.values()) * stream
    else:
        kept = layers
        if not model.trains_embeddings:  # nothing before the first layer's adapter needs a gradient
            kept -= _kept(model, model.first, numbers, work) - _kept(model, model.first, numbers, work, first=True)
    head_forward, head_backward, head_gradient = _head(model, numbers, work)
    forward = Moment(held, kept + shared + final, head_forward, _CUBLAS + copies + _dense(model, numbers, False))
    in_backward = 2 * _CUBLAS + (0 if checkpointing else copies)
    head = Moment(held, kept + shared + final, head_backward, in_backward)
    embeddings = model.embedding_bytes
    moments = {"forward": forward, "head": head}
    after_head = held + (head_gradient if model.trains_head else 0)
    passing = activations.norm_passing(hidden, numbers, itemsize=numbers.stream) * work.tokens
    candidates = [Moment(after_head, kept + shared + final, 0, in_backward + passing)]
    for layer in model.layers:
        again = 0
        if checkpointing:
            again = _kept(model, layer, numbers, work) - activations.shared_input(layer, numbers) * work.tokens
            again += copies // sum(model.layers.values())
        needed = activations.passing(layer, numbers) * work.tokens + _dense(model, numbers, checkpointing)
        candidates.append(Moment(after_head, kept + shared + again, 0, in_backward + needed))
        free = activations.feed_forward(layer, numbers) * work.tokens
        needed = activations.attention_passing(layer, numbers, work.rows, work.row_tokens, work.tokens)
        candidates.append(
            Moment(after_head, kept + shared + again - free, 0, in_backward + needed + _dense(model, numbers, False))
        )
    moments["backward"] = max(candidates, key=lambda moment: moment.bytes)
    # At the end: the embeddings' gradient is dense, and is added to the head's, or to the one that was there.
    more = embeddings if model.trains_embeddings and (model.tied or accumulates) else 0
    more += embeddings if model.tied and model.trains_head and accumulates else 0
    moments["end of backward"] = Moment(model.trained_bytes + more, shared + 2 * stream, 0, 2 * _CUBLAS)
    roots = model.trained_bytes if optim == "adamw_torch" else 0  # square roots of all second moments at once
    moments["optimizer"] = Moment(model.trained_bytes, 0, 0, 2 * _CUBLAS + roots)
    return moments


def _kept(model: _Model, layer: Layer, numbers: Numbers, work: Work, *, first: bool = False) -> int:
    """Bytes that one layer keeps of a micro-batch."""
    return activations.kept(layer, numbers, first=first) * work.tokens + activations.mask(
        layer, numbers, work.rows, work.row_tokens
    )


def _inputs(model: _Model, numbers: Numbers, work: Work, config: PretrainedConfig) -> int:
    """Ids, labels and positions, sines and cosines, and the masks that all layers share."""
    positions = work.tokens if work.rows == 1 else work.row_tokens
    rotary = 2 * model.head_dim * numbers.stream * positions
    total = 3 * 8 * work.tokens + rotary
    if numbers.masked:
        kinds = len(set(getattr(config.get_text_config(), "layer_types", None) or ("full_attention",)))
        each = numbers.stream if numbers.attention == "eager" else 1
        total += kinds * each * work.rows * work.row_tokens**2
    return total


def _autocast_copies(model: _Model, numbers: Numbers) -> int:
    """Bytes of trained weights that autocast has cast for this pass, once each."""
    if numbers.in_place or not numbers.autocast:
        return 0
    cast = (t for t in model.trained if ".layers." in t.name and len(t.shape) == 2 and t.itemsize != numbers.compute)
    return sum(numbers.compute * tensor.values for tensor in cast)


def _dense(model: _Model, numbers: Numbers, kept: bool) -> int:
    """Bytes of 4-bit weights made dense: the largest, or where `kept` those of a layer that is computed again."""
    if not model.quantized:
        return 0
    largest = 0
    for layer in model.layers:
        sizes = [part.inputs * part.outputs for part in _linears(layer)]
        largest = max(largest, sum(sizes) if kept and numbers.in_place else max(sizes))
    return numbers.compute * largest


def _linears(layer: Layer) -> list[Linear]:
    return [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down]


def _head(model: _Model, numbers: Numbers, work: Work) -> tuple[int, int, int]:
    """Bytes that TRL's fused head takes in forward and in backward, and those of its weight's gradient afterwards.

    It scores trained tokens only, in tiles of 4096 of them by 32768 words, and sums gradients in float32.
    """
    tokens, words, hidden = work.trained_tokens, model.vocabulary, model.hidden
    normed = numbers.normed(gemma=model.first.gemma)
    chosen = normed * tokens * hidden
    tile = numbers.compute * min(tokens, _TILE_TOKENS) * min(words, _TILE_WORDS)
    if numbers.weights != numbers.compute:  # cast piece by piece
        tile += numbers.compute * hidden * (min(words, _TILE_WORDS) + min(tokens, _TILE_TOKENS))
    everything = normed * work.tokens * hidden
    weight = 4 * words * hidden if model.trains_head else 0
    forward = everything + chosen + tile
    scoring = chosen + tile + 4 * tokens * hidden + weight
    scattering = chosen + 2 * everything + weight
    return forward, max(scoring, scattering), model.embedding_bytes
