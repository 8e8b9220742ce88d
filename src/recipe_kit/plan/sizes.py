"""Parameters, exact, from the config alone, and what they take on disk: the model is built on the meta device."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipe_kit.plan.shape import ParametersPart
from recipe_kit.recipe import Recipe
from recipe_kit.speed.parameters import Tensor, adapt, adapter_tensor, build, plain_tensor
from recipe_kit.speed.parameters import optimizer_bytes as optimizer_bytes
from recipe_kit.speed.parameters import optimizer_is_known as optimizer_is_known

if TYPE_CHECKING:
    import torch
    import trl
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Weights:
    """What a run trains."""

    part: ParametersPart
    trained: list[Tensor]


def count(recipe: Recipe, config: PretrainedConfig, precision: str, tokens: int = 0) -> Weights:
    """Exact parameter counts; tied embeddings count once. Raises ModelError for an adapter that does not fit.

    `tokens` is the size of the tokenizer, for a recipe that trains the embeddings of added tokens.
    """
    model = build(recipe, config, precision, tokens)
    base = sum(parameter.numel() for parameter in model.parameters())
    if recipe.method == "full":
        trained = [plain_tensor(name, parameter) for name, parameter in model.named_parameters()]
        saved = trained
        total = base
    else:
        adapted = adapt(recipe, model)
        trained = [adapter_tensor(n, p, precision) for n, p in adapted.named_parameters() if p.requires_grad]
        saved = [adapter_tensor(n, p, precision) for n, p in _adapter_state(adapted).items()]
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


def _adapter_state(adapted: Any) -> dict[str, torch.Tensor]:
    """The tensors of the adapter's file. PEFT's own choice about embeddings would ask the Hub; this is its rule."""
    import peft
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    targets = adapted.peft_config["default"].target_modules or ()
    embeddings = any(name in targets for name in EMBEDDING_LAYER_NAMES)
    state: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(adapted, save_embedding_layers=embeddings)
    return state
