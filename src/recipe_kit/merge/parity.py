"""The gate: a merged model is kept only if it computes what the adapter model computes.

Two things are compared. Every adapted layer, on the same inputs: a missing or wrongly scaled update shows there.
And the logits of the whole model on held-out rows, which a wrong base, a lost tie or a wrong configuration changes.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recipe_kit import modeling
from recipe_kit.errors import MergeError, ModelError, first_line
from recipe_kit.evaluation import inference
from recipe_kit.recipe import Recipe

ROWS, TOKENS = 16, 512  # of the held-out rows, and of each row
LOGIT_BYTES = 2**30  # of the adapter model's logits, which wait for the merged model's
CHUNK_BYTES = 2**27  # of logits that are compared at a time, in float64
PROBES = 8  # inputs of each adapted layer
REROUTED = 0.02  # of the positions of a model with experts: where two are near a tie, rounding may choose another one
LOST_KL = 0.05  # nats a position that an update too small for its type is known to cost at most
NEAR = 0.02  # nats: two tokens this close are as good as one another, and rounding may decide between them


@dataclass(frozen=True)
class Allowed:
    """How far a merged model may be from the adapter model."""

    mean_kl: float  # nats a position
    greedy_agreement: float  # share of positions with the same likeliest token, near ties left out
    layer_error: float = 1.0  # of the worst adapted layer, in roundings of its weights


# By the type of the weights and of the arithmetic. Measured with `benchmarks/merge.py parity` on SmolLM2-135M
# (bfloat16 base, LoRA r 16 on all linear layers after 20 steps, 1250 positions): mean KL, agreement, worst layer.
#
#     weights   arithmetic  honest rounding      without 1 of 210 layers   scaled by 0.95       without 1 of 30 blocks
#     float32   float32     1e-11  1.000  0.20   1e-5    1.000  6000       1e-3   0.986  2500   2e-3   0.970  9000
#     float16   float32     9e-7   0.999  0.46   1.3e-5  0.998  12         1e-3   0.986  4.8    2e-3   0.970  18
#     float16   float16     3e-5   0.998  0.46   4e-5    0.995  12         1e-3   0.986  4.8    2e-3   0.971  18
#     bfloat16  float32     6e-5   0.995  0.44   7e-5    0.995  1.5        1e-3   0.986  0.74   2e-3   0.970  2.2
#     bfloat16  bfloat16    2e-3   0.969  0.44   2e-3    0.967  1.5        3e-3   0.970  0.74   4e-3   0.950  2.2
#
# Tiny random models are below all of it when honest. Merged twice, with no update, or into another base: 0.3 nats or
# more, or a layer off by 12 or more.
_ALLOWED = {
    ("float32", "float32"): Allowed(1e-7, 0.995),
    ("float16", "float32"): Allowed(1e-5, 0.99),
    ("float16", "float16"): Allowed(2e-4, 0.98),
    ("bfloat16", "float32"): Allowed(5e-4, 0.97),
    ("bfloat16", "bfloat16"): Allowed(1e-2, 0.93),
}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # in configurations
_ROUNDING = {"float32": 2.0**-20, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative; float32 as sums round it


@dataclass(frozen=True)
class Seen:
    """What the adapter model made of the rows and the probes."""

    logits: list[torch.Tensor]  # (positions, vocabulary) of each row
    outputs: dict[str, torch.Tensor]  # by adapted layer, (probes, width)


def observe(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Seen:
    """What the gate compares of an adapter model; its logits are kept for at most LOGIT_BYTES of positions."""
    places = _positions(rows, model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        outputs = {
            path: _probe(layer, _inner(layer))
            for path, layer in model.get_base_model().named_modules()
            if _inner(layer) is not None
        }
    with torch.inference_mode(), inference(model):
        logits = [_logits(model, row, kept).cpu() for row, kept in zip(rows, places, strict=True)]
    return Seen(logits, outputs)


def compare(seen: Seen, model: PreTrainedModel, rows: Sequence[Sequence[int]], dtype: str) -> dict[str, Any]:
    """How far a merged model is from what was seen of the adapter model, and whether that is rounding alone.

    `greedy_agreement` is the plain share of equal tokens; `near_ties` counts the unequal ones that the adapter model
    finds as likely as its own.
    """
    arithmetic = str(model.dtype).removeprefix("torch.")
    allowed = _ALLOWED[dtype, arithmetic]
    places = _positions(rows, model.config.get_text_config().vocab_size)
    apart, gap, same, near, positions = [], 0.0, 0, 0, 0
    with torch.inference_mode():
        errors = {path: _error(model.get_submodule(path), wanted, dtype) for path, wanted in seen.outputs.items()}
    with torch.inference_mode(), inference(model):
        for row, kept, expected in zip(rows, places, seen.logits, strict=True):
            found = _logits(model, row, kept)
            for one, other in _chunks(expected.to(found.device), found):
                p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
                apart += (p.exp() * (p - q)).sum(-1).tolist()
                gap = max(gap, (one - other).abs().max().item())
                choice = other.argmax(-1)
                behind = p.amax(-1) - p.gather(-1, choice[:, None])[:, 0]
                same += int((one.argmax(-1) == choice).sum())
                near += int(((one.argmax(-1) != choice) & (behind <= NEAR)).sum())
            positions += len(kept)
    worst = max(errors, key=lambda path: errors[path], default=None)
    found_kl, agreement = _mean_kl(apart, model), (same + near) / positions
    layer_error = errors[worst] if worst is not None else 0.0
    return {
        "rows": len(rows),
        "positions": positions,
        "max_logit_gap": gap,
        "mean_kl": found_kl,
        "greedy_agreement": same / positions,
        "near_ties": near,
        "layers": len(errors),
        "worst_layer": worst,
        "layer_error": layer_error,
        "allowed": asdict(allowed),
        "ok": found_kl <= allowed.mean_kl
        and agreement >= allowed.greedy_agreement
        and layer_error <= allowed.layer_error,
        "compute_dtype": arithmetic,
    }


def _mean_kl(apart: list[float], model: PreTrainedModel) -> float:
    """The mean over positions; in a model with experts, without the REROUTED share of them that is furthest apart.

    Measured on a tiny Mixtral merged in float32: 3e-4 at the one position that went to another expert, 4e-15 at all
    others.
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in _EXPERTS) and all(map(math.isfinite, apart)):
        apart = sorted(apart)[: len(apart) - int(REROUTED * len(apart))]
    return max(sum(apart) / len(apart), 0.0)


def require(verdict: dict[str, Any], dtype: str) -> None:
    """Raises MergeError for a merged model that is not the adapter model. `dtype` is the type of its weights."""
    if verdict["ok"]:
        return
    allowed = verdict["allowed"]
    layers_hold = verdict["layers"] and verdict["layer_error"] <= allowed["layer_error"]
    then = "use the adapter as it is"
    if layers_hold and verdict["mean_kl"] <= LOST_KL and dtype != "float32":
        # Mostly an update smaller than the last place of the weights (seen with SmolLM2 after 2 steps: 0.005 nats in
        # bfloat16, 0.0001 in float16, while rounding the same weights another way moves it by 0.0001).
        wider = "float32" if dtype == "float16" else "float16 or float32"
        then = f"if the update is too small for {dtype}, merge with --dtype {wider}; else {then}"
    layer = f", {verdict['worst_layer']} is off by {verdict['layer_error']:.3g} roundings" if verdict["layers"] else ""
    raise MergeError(
        f"the merged model is not the adapter model: on {verdict['positions']} positions they are "
        f"{verdict['mean_kl']:.2g} nats apart ({allowed['mean_kl']:g} allowed) and agree on "
        f"{verdict['greedy_agreement']:.1%} of the tokens ({allowed['greedy_agreement']:.0%} needed){layer} "
        f"({allowed['layer_error']:g} allowed); nothing was kept: {then}"
    )


def arithmetic(recipe: Recipe, parameters: int, dtype: str) -> str:
    """The type both models are computed in: float32, or `dtype` on a GPU that does not hold so much.

    In float32 only the rounding of the weights is between two models; in 16 bits that of every step is.
    """
    if modeling.uses_cpu(recipe) or torch.cuda.mem_get_info()[0] > 5 * parameters + 2 * LOGIT_BYTES:
        return "float32"
    return dtype


def load_merged(folder: Path, recipe: Recipe, arithmetic: str) -> PreTrainedModel:
    """A merged folder as anybody loads it. Raises ModelError, also for weights that would be made up or left out."""
    model: PreTrainedModel
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=getattr(torch, arithmetic),
            device_map=None if modeling.uses_cpu(recipe) else {"": 0},
            trust_remote_code=recipe.model.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the merged weights cannot be loaded ({first_line(error)})") from error
    if wrong := sorted({*told["missing_keys"], *told["unexpected_keys"]}):
        raise ModelError(f"the merged weights are not those of the model: {wrong[0]} ({len(wrong)} in all)")
    return model.eval()


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _positions(rows: Sequence[Sequence[int]], vocabulary: int) -> list[list[int]]:
    """The positions of each row that are compared: all, or as many as fit, evenly spread."""
    share = min(1.0, LOGIT_BYTES / (4 * vocabulary * max(1, sum(map(len, rows)))))
    counts = [max(1, int(share * len(row))) for row in rows]
    return [[place * len(row) // count for place in range(count)] for row, count in zip(rows, counts, strict=True)]


def _logits(model: PreTrainedModel, row: Sequence[int], places: Sequence[int]) -> torch.Tensor:
    ids = torch.tensor([list(row)], device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, list(places)].float()


def _chunks(one: torch.Tensor, other: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    step = max(1, CHUNK_BYTES // (8 * one.shape[-1]))
    for start in range(0, len(one), step):
        yield one[start : start + step], other[start : start + step]


def _inner(layer: nn.Module) -> Any:
    """The linear layer or embedding in one of PEFT's wrappers; None for anything else."""
    found: Any = None
    if isinstance(layer, ModulesToSaveWrapper | TrainableTokensWrapper):
        found = layer.original_module
    elif isinstance(layer, BaseTunerLayer) and not isinstance(layer, TrainableTokensLayer):  # those are in a wrapper
        found = layer.get_base_layer()
    return found if isinstance(found, nn.Linear | nn.Embedding | Conv1D) else None


def _probe(layer: Any, inner: Any) -> torch.Tensor:
    """What a layer makes of PROBES fixed inputs, computed in float32: signs, which no type rounds, or token ids."""
    weight: torch.Tensor = inner.weight
    if weight.dtype != torch.float32:
        layer = copy.deepcopy(layer).float()
    if isinstance(inner, nn.Embedding):
        count = min(64 * PROBES, weight.shape[0])
        output = layer(torch.arange(count, device=weight.device) * weight.shape[0] // count)
    else:
        width = weight.shape[0] if isinstance(inner, Conv1D) else weight.shape[1]
        signs = torch.randint(0, 2, (PROBES, width), generator=torch.Generator().manual_seed(width)) * 2 - 1
        output = layer(signs.to(weight.device, torch.float32))
    answers: torch.Tensor = output.float().cpu()
    return answers


def _error(layer: Any, wanted: torch.Tensor, dtype: str) -> float:
    """How far a merged layer's answers are from the adapted one's, in roundings of its weights to `dtype`.

    Rounding each weight w by at most u |w| moves the answer to a row of signs by u ||w|| or less, in the mean square.
    """
    found, weight = _probe(layer, layer), layer.weight
    is_embedding = isinstance(layer, nn.Embedding)
    norm = wanted.norm().item() if is_embedding else weight.float().norm().item() * PROBES**0.5
    count = wanted.numel() if is_embedding else weight.numel() * PROBES
    least = 2.0**-25 if dtype == "float16" else 0.0  # half the distance of the smallest float16 numbers
    return float((found - wanted).norm().item() / max(_ROUNDING[dtype] * norm, least * count**0.5, 1e-30))
