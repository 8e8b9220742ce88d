"""Parameters, exact, from the config alone, and what they take on disk: the model is built on the meta device."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipe_kit import modeling
from recipe_kit.errors import ModelError, first_line
from recipe_kit.plan.shape import ParametersPart
from recipe_kit.recipe import Recipe

if TYPE_CHECKING:
    import torch
    import trl
    from transformers import PretrainedConfig, PreTrainedModel

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


@dataclass(frozen=True)
class Weights:
    """What a run trains."""

    part: ParametersPart
    trained: list[Tensor]


def count(recipe: Recipe, config: PretrainedConfig, precision: str, tokens: int = 0) -> Weights:
    """Exact parameter counts; tied embeddings count once. Raises ModelError for an adapter that does not fit.

    `tokens` is the size of the tokenizer, for a recipe that trains the embeddings of added tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = modeling.model_dtype(recipe, precision)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=recipe.model.trust_remote_code
            )
    except (ValueError, ImportError) as error:
        raise ModelError(f"model.id: {recipe.model.id} is no causal language model ({first_line(error)})") from error
    if tokens > model.get_input_embeddings().weight.shape[0] and recipe.trains_embeddings:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    base = sum(parameter.numel() for parameter in model.parameters())
    if recipe.method == "full":
        trained = [_tensor(name, parameter) for name, parameter in model.named_parameters()]
        saved = trained
        total = base
    else:
        adapted = _with_adapter(recipe, model)
        trained = [_adapter_tensor(n, p, recipe, precision) for n, p in adapted.named_parameters() if p.requires_grad]
        saved = [_adapter_tensor(n, p, recipe, precision) for n, p in _adapter_state(adapted).items()]
        total = sum(parameter.numel() for parameter in adapted.parameters())
    trainable = sum(tensor.values for tensor in trained)
    part: ParametersPart = {
        "base": base,
        "total": total,
        "trainable": trainable,
        "share": trainable / total,
        "saved_bytes": safetensors_bytes(saved),
    }
    return Weights(part, trained)


def safetensors_bytes(tensors: list[Tensor]) -> int:
    """Bytes of a safetensors file of these tensors: its header is JSON, padded to a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (-tensor.itemsize, tensor.name)):
        start, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"))
    return 8 + math.ceil(len(text.encode()) / 8) * 8 + end


def optimizer_bytes(optim: str, trained: list[Tensor]) -> int:
    """Bytes of `optimizer.pt`, about: an optimiser we do not know is taken for AdamW."""
    if optim == "adafactor":  # row and column means instead of a value for each weight
        return sum(4 * (sum(t.shape) if len(t.shape) > 1 else t.values) for t in trained)
    states, itemsize = _STATES.get(optim, _ADAMW)
    total = 0.0
    for tensor in trained:
        size = float(tensor.itemsize if itemsize is None else itemsize)
        if itemsize == 1:
            size = 4 if tensor.values < _SMALL else 1 + 4 / _BLOCK
        total += states * tensor.values * size
    return int(total)


def optimizer_is_known(optim: str) -> bool:
    return optim in _STATES or optim == "adafactor"


def checkpoints_kept(arguments: trl.SFTConfig, steps: int, epochs: float | None) -> int:
    """Checkpoints that lie on disk at the worst moment: the newest is written before the oldest goes."""
    strategy = str(getattr(arguments.save_strategy, "value", arguments.save_strategy))
    if strategy == "no" or steps == 0:
        return 0
    if strategy == "epoch":
        written = math.ceil(epochs or 1)
    elif strategy == "best":
        written = steps
    else:
        every = arguments.save_steps
        every = math.ceil(every * steps) if every < 1 else int(every)
        written = math.ceil(steps / every)  # the last step is always saved
    if not arguments.save_total_limit:
        return written
    limit = int(arguments.save_total_limit)
    if arguments.load_best_model_at_end and limit == 1:
        limit = 2  # the best one and the last one
    return min(written, limit + 1)


def _with_adapter(recipe: Recipe, model: PreTrainedModel) -> Any:
    import peft
    import torch

    config = modeling.lora_config(recipe)
    modeling.check_targets(model, config)
    config.init_lora_weights = True  # kinds that look at the weights give as many parameters, and need weights
    try:
        with torch.device("meta"):
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora: {first_line(error)}") from error


def _adapter_state(adapted: Any) -> dict[str, torch.Tensor]:
    """The tensors of the adapter's file. PEFT's own choice about embeddings would ask the Hub; this is its rule."""
    import peft
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    targets = adapted.peft_config["default"].target_modules or ()
    embeddings = any(name in targets for name in EMBEDDING_LAYER_NAMES)
    state: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(adapted, save_embedding_layers=embeddings)
    return state


def _adapter_tensor(name: str, value: torch.Tensor, recipe: Recipe, precision: str) -> Tensor:
    """TRL makes the adapter of a 4-bit model bfloat16, DoRA's magnitudes apart; our trainer undoes it elsewhere."""
    tensor = _tensor(name, value)
    if precision != "bfloat16":
        return Tensor(name, tensor.shape, "F32", 4)
    if recipe.method == "qlora" and "lora_magnitude_vector" not in name:
        return Tensor(name, tensor.shape, "BF16", 2)
    return tensor


def _tensor(name: str, value: torch.Tensor) -> Tensor:
    spelling = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
    kind = str(value.dtype).removeprefix("torch.")
    return Tensor(name, tuple(value.shape), spelling.get(kind, kind), value.dtype.itemsize)
