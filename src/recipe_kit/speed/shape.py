"""What the estimate of memory needs to know of a model with its adapter, from the config alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from recipe_kit.recipe import Recipe
from recipe_kit.speed import parameters
from recipe_kit.speed.activations import Layer, Linear
from recipe_kit.speed.parameters import Tensor

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """Layers, weights and what is trained. Sizes of values are those in which weights are kept."""

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
def shape_of(recipe: Recipe, config: PretrainedConfig, precision: str) -> Shape:
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
    return Shape(
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
