"""A model's weights in the pieces in which several GPUs hold and gather them, from the config alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from recipe_kit.recipe import Recipe
from recipe_kit.speed import parameters
from recipe_kit.speed.parameters import Tensor

PACKED = "4 bits"  # the type of two 4-bit values in a byte


@dataclass(frozen=True)
class Unit:
    """Weights that are gathered together: the embeddings, a layer, or what comes after the layers."""

    frozen: tuple[Tensor, ...] = ()
    trained: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.frozen + self.trained

    @property
    def trained_values(self) -> int:
        return sum(tensor.values for tensor in self.trained)


@dataclass(frozen=True)
class Model:
    """A model in the units in which FSDP2 gathers it. Tied embeddings are part of the `tail`.

    Weights in 4 bits are those of their packed storage. `whole` bytes are never divided: their scales, and buffers.
    """

    embeddings: Unit
    layers: tuple[Unit, ...]
    tail: Unit
    tied: bool
    whole: int

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.embeddings, *self.layers, self.tail)

    @property
    def trained(self) -> list[Tensor]:
        return [tensor for unit in self.units for tensor in unit.trained]

    @property
    def frozen(self) -> list[Tensor]:
        return [tensor for unit in self.units for tensor in unit.frozen]


@parameters.kept
def look(recipe: Recipe, config: PretrainedConfig, precision: str) -> Model:
    """The weights of a model with its adapter, cut into units as accelerate 1.15 does; the last one is kept."""
    base = parameters.build(recipe, config, precision)
    tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
    model = base if recipe.method == "full" else parameters.adapt(recipe, base)
    quantized = parameters.quantized_layers(recipe, model) if recipe.method == "qlora" else {}
    double = bool(recipe.quantization.get("bnb_4bit_use_double_quant", True))
    whole = sum(buffer.numel() * buffer.dtype.itemsize for buffer in model.buffers())
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for name, value in model.named_parameters():
        frozen, trained = found.setdefault(_unit_of(name, tied), ([], []))
        if recipe.method == "full":
            trained.append(parameters.plain_tensor(name, value))
        elif value.requires_grad:
            trained.append(parameters.adapter_tensor(name, value, precision))
        elif name.removesuffix(".weight") in quantized:
            packed = math.ceil(value.numel() / 2)
            frozen.append(Tensor(name, (packed,), PACKED, 1))
            whole += parameters.nf4_bytes(value.numel(), double=double) - packed
        else:
            frozen.append(parameters.plain_tensor(name, value))
    units = {name: Unit(tuple(frozen), tuple(trained)) for name, (frozen, trained) in found.items()}
    layers = tuple(unit for name, unit in units.items() if name not in ("embeddings", "tail"))
    return Model(units.get("embeddings", Unit()), layers, units["tail"], tied, whole)


def _unit_of(name: str, tied: bool) -> str:
    """`layers.3` for what belongs to a decoder layer, whatever PEFT put before it."""
    before, layer, after = name.partition(".layers.")
    if layer:
        return f"layers.{after.partition('.')[0]}"
    return "embeddings" if "embed_tokens" in before and not tied else "tail"
