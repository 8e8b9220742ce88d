"""Peak GPU memory of a training run, from recipe and config alone: no weights, no GPU.

Weights, adapter, gradients and optimiser states are counted exactly (`parameters.py`), what comes and goes in a step
at five moments (`moments.py`); the largest is the peak. This is of one process that holds all of it; of several that
share it, `sharding.py` tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack

from transformers import PretrainedConfig

from recipe_kit.recipe import Recipe
from recipe_kit.speed import parameters
from recipe_kit.speed.moments import Moment, StepOptions, Work, moments
from recipe_kit.speed.shape import shape_of

ERROR = 0.08  # relative, of `Estimate.peak` against what PyTorch reports
CONTEXT_BYTES = 600 * 2**20  # what CUDA and its libraries take of a card before the first tensor
FRAGMENTATION = 0.05  # of what comes and goes: gaps between blocks of PyTorch's memory
MODELS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "smollm3")

_ROUTED = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_STATE_SPACE = ("mamba", "rwkv", "ssm", "zamba", "jamba", "recurrent")


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
    def error(self) -> float:
        """Relative, of `peak`."""
        return ERROR

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
    processes: int = 1,
    **options: Unpack[StepOptions],
) -> Estimate | None:
    """The peak of training one process of this recipe; None where `unsupported` has a reason.

    `precision` is that of the run (`modeling.choose_precision`). Raises ModelError for an adapter that does not fit
    the model.
    """
    if unsupported(recipe, config):
        return None
    shape = shape_of(recipe, config, precision)
    found = moments(recipe, config, precision, work, **options)
    buckets = shape.trained_bytes if processes > 1 else 0  # DistributedDataParallel sends copies of the gradients
    paged = parameters.paged_bytes(options["optim"], shape.trained)
    fixed = Moment(gradients=buckets)
    totals = {
        "weights": shape.weights,
        "adapter": 0 if recipe.method == "full" else shape.trained_bytes,
        "optimizer": parameters.optimizer_bytes(options["optim"], shape.trained) - paged,
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
