"""Weights, adapters and optimiser states, exact, from the config alone: the model is built on the meta device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft.tuners.lora.layer import LoraLayer
from transformers import PretrainedConfig, PreTrainedModel

from recipe_kit import modeling
from recipe_kit.errors import ModelError, first_line
from recipe_kit.recipe import Recipe

T = TypeVar("T")

# Optimiser -> the values it keeps for each trained one, and the bytes of each; None: the type of the trained weights.
# The 8-bit ones keep a float32 scale for each block of 256 values, and small tensors in 32 bits (bitsandbytes 0.50).
_STATES: dict[str, tuple[int, int | None]] = {
    "adamw_torch": (2, None), "adamw_torch_fused": (2, None), "stable_adamw": (2, None), "grokadamw": (3, None),
    "schedule_free_adamw": (2, None), "schedule_free_radam": (2, None), "schedule_free_sgd": (1, None),
    "adamw_torch_8bit": (2, 1), "adamw_torch_4bit": (2, 1),
    "adamw_8bit": (2, 1), "adamw_bnb_8bit": (2, 1), "paged_adamw_8bit": (2, 1), "paged_adamw_32bit": (2, 4),
    "lion_8bit": (1, 1), "lion_32bit": (1, 4), "paged_lion_8bit": (1, 1), "paged_lion_32bit": (1, 4),
    "ademamix": (3, 4), "ademamix_8bit": (3, 1), "paged_ademamix_32bit": (3, 4), "paged_ademamix_8bit": (3, 1),
    "rmsprop": (1, None), "rmsprop_bnb": (1, 4), "rmsprop_bnb_32bit": (1, 4), "rmsprop_bnb_8bit": (1, 1),
    "adagrad": (1, None), "sgd": (0, None), "lomo": (0, None), "adalomo": (0, None),
}  # fmt: skip
_ADAMW: tuple[int, int | None] = (2, None)
_BLOCK, _SMALL = 256, 4096
_PAGED_FROM = 100_000  # values of a tensor from which bitsandbytes 0.50 pages its states

_NF4_BLOCK, _NF4_OUTER_BLOCK = 64, 256  # values with one scale, and scales with one scale of their own
_NF4_CODE, _NF4_OUTER_CODE = 16 * 4, 256 * 4  # the tables of both, float32, held by each layer


def kept(look: Callable[[Recipe, PretrainedConfig, str], T]) -> Callable[[Recipe, PretrainedConfig, str], T]:
    """`look` with its last answer kept: a choice of settings asks many times about one model and adapter."""
    known: dict[tuple[str, ...], T] = {}

    @functools.wraps(look)
    def once(recipe: Recipe, config: PretrainedConfig, precision: str) -> T:
        sections = recipe.model_dump(include={"model", "method", "lora", "quantization"})
        key = (repr(sections), config.to_json_string(use_diff=False), precision)
        if key not in known:
            known.clear()
            known[key] = look(recipe, config, precision)
        return known[key]

    return once


@dataclass(frozen=True)
class Tensor:
    """The name, shape and value size of one saved or trained tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it, such as BF16
    itemsize: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.values * self.itemsize


def build(recipe: Recipe, config: PretrainedConfig, precision: str, tokens: int = 0) -> PreTrainedModel:
    """The base model on the meta device, with embeddings for `tokens` tokens where the recipe trains them.

    Raises ModelError for a config that is no causal language model's.
    """
    from transformers import AutoModelForCausalLM

    dtype = modeling.model_dtype(recipe, precision)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=recipe.model.trust_remote_code
            )
    except (ValueError, ImportError) as error:
        raise ModelError(f"model.id: {recipe.model.id} is no causal language model ({first_line(error)})") from error
    if tokens > model.get_input_embeddings().weight.shape[0] and recipe.trains_embeddings:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    return model


def adapt(recipe: Recipe, model: PreTrainedModel) -> Any:
    """The PEFT model of a base on the meta device. Raises ModelError for an adapter that does not fit."""
    import peft

    config = modeling.lora_config(recipe)
    modeling.check_targets(model, config)
    config.init_lora_weights = True  # kinds that look at the weights give as many parameters, and need weights
    try:
        with torch.device("meta"):
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora: {first_line(error)}") from error


def adapter_tensor(name: str, value: torch.Tensor, precision: str) -> Tensor:
    """As `trainer.make_trainer` trains it, in float32 under every method; in bfloat16 whole layers keep their type."""
    tensor = plain_tensor(name, value)
    return tensor if precision == "bfloat16" else Tensor(name, tensor.shape, "F32", 4)


def plain_tensor(name: str, value: torch.Tensor) -> Tensor:
    spelling = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
    kind = str(value.dtype).removeprefix("torch.")
    return Tensor(name, tuple(value.shape), spelling.get(kind, kind), value.dtype.itemsize)


def base_bytes(recipe: Recipe, model: torch.nn.Module) -> int:
    """Bytes of the weights a run starts from, as the card holds them: for QLoRA the linear layers in 4 bits.

    `model` is the base, or the PEFT model around it; what an adapter adds does not count. The head, embeddings and
    norms are never quantised.
    """
    total = sum(buffer.numel() * buffer.dtype.itemsize for buffer in model.buffers())
    quantized = quantized_layers(recipe, model) if recipe.method == "qlora" else {}
    double = bool(recipe.quantization.get("bnb_4bit_use_double_quant", True))
    for name, parameter in model.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        if name.removesuffix(".weight") in quantized:
            total += nf4_bytes(parameter.numel(), double=double)
        else:
            total += parameter.numel() * parameter.dtype.itemsize
    return total


def quantized_layers(recipe: Recipe, model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers that transformers' bitsandbytes loader makes 4-bit ones: all but the head and named ones."""
    skipped = tuple(recipe.quantization.get("llm_int8_skip_modules") or ("lm_head",))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and ".lora_" not in name
        and not any(part in skipped for part in name.split("."))
    }


def nf4_bytes(values: int, *, double: bool) -> int:
    """Bytes of one linear layer's weight in 4 bits (Dettmers et al., 2023, arXiv:2305.14314, section 3).

    Two values a byte and a float32 scale for each 64 of them; with double quantisation the scales take a byte each and
    a float32 scale for each 256, and their mean is kept.
    """
    blocks = math.ceil(values / _NF4_BLOCK)
    total = math.ceil(values / 2) + _NF4_CODE
    if not double:
        return total + 4 * blocks
    return total + blocks + 4 * math.ceil(blocks / _NF4_OUTER_BLOCK) + _NF4_OUTER_CODE + 4


def optimizer_bytes(optim: str, trained: list[Tensor]) -> int:
    """Bytes of the optimiser's states, about: an optimiser we do not know is taken for AdamW."""
    return int(sum(_state_bytes(optim, tensor) for tensor in trained))


def paged_bytes(optim: str, trained: list[Tensor]) -> int:
    """Of those states the bytes that lie outside PyTorch's memory and move to the host when the card is full."""
    if not optim.startswith("paged_"):
        return 0
    return int(sum(_state_bytes(optim, tensor) for tensor in trained if tensor.values >= _PAGED_FROM))


def optimizer_is_known(optim: str) -> bool:
    return optim in _STATES or optim == "adafactor"


def _state_bytes(optim: str, tensor: Tensor) -> float:
    if optim == "adafactor":  # row and column means instead of a value for each weight
        return 4 * (sum(tensor.shape) if len(tensor.shape) > 1 else tensor.values)
    states, itemsize = _STATES.get(optim, _ADAMW)
    size = float(tensor.itemsize if itemsize is None else itemsize)
    if itemsize == 1:
        size = 4 if tensor.values < _SMALL else 1 + 4 / _BLOCK
    return states * tensor.values * size


def adapters(model: torch.nn.Module) -> dict[str, LoraLayer]:
    """A PEFT model's adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
