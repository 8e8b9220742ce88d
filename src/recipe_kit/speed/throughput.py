"""How fast a run will be: from what was measured on a card, from another card's published speed, or by trying here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback

from recipe_kit import modeling
from recipe_kit.recipe import Recipe
from recipe_kit.speed import parameters

Source = Literal["measured", "scaled", "calibrated"]


@dataclass(frozen=True)
class Measured:
    """What was measured on one card. `ceiling` is of a large bf16 matrix product, in FLOP/s.

    `share` is the part of it that training reaches, by method, in work counted as `flops` counts it; `checkpointed`
    the same with gradient checkpointing. A decoder layer takes at least `launch` seconds for a micro-batch, and
    `adapter_launch` for each of its adapters, however few tokens there are: Python, and the launches of kernels.
    """

    name: str
    ceiling: float
    share: dict[str, float]
    checkpointed: dict[str, float]
    launch: float
    adapter_launch: float


# Against the ceiling that the card sustains: 92,161 (LoRA, benchmarks/results/speed_h100_xformers.json), 91,821
# (QLoRA) and 76,349 (full) tokens/s of the Llama-3.2-1B shape in micro-batches of 32,700 tokens, three in ten trained;
# checkpointed, 24,722 (QLoRA) of the Llama-3.2-3B shape in 12,200. Later rounds were within 4 % (speed_h100.json).
# LoRA and full fine-tuning with checkpointing were not measured: they are taken to do as QLoRA does, and as without.
# Launches are from small steps of 7B and 1.1B shapes, where the host decides; they differed by a third from sitting
# to sitting.
MEASURED: dict[str, Measured] = {
    "h100": Measured(
        name="NVIDIA H100",
        ceiling=687e12,
        share={"lora": 0.564, "qlora": 0.562, "full": 0.701},
        checkpointed={"lora": 0.65, "qlora": 0.65, "full": 0.70},
        launch=0.0045,
        adapter_launch=0.001,
    )
}

# Dense 16-bit matrix products with sums in float32, in FLOP/s, as NVIDIA publishes them. A card that was not measured
# is taken to reach as much of its number as the measured one does.
PUBLISHED: dict[str, float] = {
    "t4": 65e12, "rtx-3060-12gb": 25.5e12, "rtx-3070": 40.6e12, "rtx-4090": 165.2e12, "a10": 125e12, "l4": 121e12,
    "a100-40gb": 312e12, "a100-80gb": 312e12, "h100": 989.4e12, "h200": 989.4e12,
}  # fmt: skip
_REFERENCE = "h100"


@dataclass(frozen=True)
class Load:
    """What a micro-batch is on average: all tokens that are computed, padding included, and the trained ones."""

    tokens: float
    useful_tokens: float
    trained_tokens: float


@dataclass(frozen=True)
class Speed:
    """Of one process. `tokens_per_second` counts no padding; `where` says in words where the numbers come from."""

    tokens_per_second: float
    seconds_per_micro_batch: float
    source: Source
    where: str


@dataclass(frozen=True)
class Calibration:
    """A few real steps on this machine: `seconds_per_step` is the median of `steps`, the warm-up left out."""

    card: str
    seconds_per_step: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    steps: int


def flops(recipe: Recipe, config: PretrainedConfig, precision: str, load: Load, *, checkpointing: bool) -> float:
    """Floating-point operations of training on one micro-batch, attention's own products left out.

    2 N forward and 2 N for the gradients of activations, N the weights of the layers; as much again for the gradients
    of trained weights (full fine-tuning), and for what checkpointing computes twice. The head counts for trained
    tokens alone (Kaplan et al., 2020, arXiv:2001.08361, section 2.1).
    """
    layers, head = _matrices(recipe, config, precision)
    passes = 2 + 2 + (2 if recipe.method == "full" else 0) + (2 if checkpointing else 0)
    return passes * (layers * load.tokens + head * load.trained_tokens)


def predict(
    recipe: Recipe, config: PretrainedConfig, precision: str, load: Load, card: str, *, checkpointing: bool
) -> Speed | None:
    """The speed on a card by its name of `CARDS`; None where nothing is known of that card."""
    known = _known(card)
    if known is None or load.tokens <= 0:
        return None
    measured, factor, source, where = known
    share = (measured.checkpointed if checkpointing else measured.share)[recipe.method]
    work = flops(recipe, config, precision, load, checkpointing=checkpointing)
    layers = config.get_text_config().num_hidden_layers
    launches = measured.launch * layers + measured.adapter_launch * _adapters(recipe, config, precision)
    launches *= 4 / 3 if checkpointing else 1
    seconds = max(work / (measured.ceiling * factor * share), launches)
    return Speed(load.useful_tokens / seconds, seconds, source, where)


def known_card(name: str) -> str | None:
    """The name in the tables of a card that calls itself, say, `NVIDIA H100 80GB HBM3`."""
    words = name.lower().replace(" ", "-")
    return next((card for card in sorted(PUBLISHED, key=len, reverse=True) if _is_called(card, words)), None)


def _is_called(card: str, words: str) -> bool:
    return f"-{card}-" in f"-{words}-" or all(part in words.split("-") for part in card.split("-"))


def _known(card: str) -> tuple[Measured, float, Source, str] | None:
    if card in MEASURED:
        return MEASURED[card], 1.0, "measured", f"measured on {MEASURED[card].name}"
    if card in PUBLISHED:
        reference = MEASURED[_REFERENCE]
        factor = PUBLISHED[card] / PUBLISHED[_REFERENCE]
        where = f"not measured on {card}: scaled from {reference.name} by published speed, {factor:.2g} of it"
        return reference, factor, "scaled", where
    return None


def _matrices(recipe: Recipe, config: PretrainedConfig, precision: str) -> tuple[int, int]:
    """Values of the layers' weight matrices, and of the head's."""
    model = parameters.build(recipe, config, precision)
    head = model.get_output_embeddings().weight
    layers = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.weight is not head
    )
    return layers, head.numel()


def _adapters(recipe: Recipe, config: PretrainedConfig, precision: str) -> int:
    if recipe.method == "full":
        return 0
    return len(parameters.adapters(parameters.adapt(recipe, parameters.build(recipe, config, precision))))


def calibrate(make_trainer: Callable[[], Any], *, steps: int = 6, warm_up: int = 3) -> Calibration:
    """Run `warm_up` and then `steps` optimiser steps of a trainer and measure the latter; its weights change.

    `make_trainer` gives a TRL trainer with the model on its device and enough rows for the steps. Nothing is saved,
    evaluated or logged.
    """
    trainer = make_trainer()
    arguments = trainer.args
    arguments.max_steps = warm_up + steps
    arguments.save_strategy = arguments.eval_strategy = arguments.logging_strategy = "no"
    clock = _Clock(trainer)
    trainer.add_callback(clock)
    on_gpu = torch.cuda.is_available() and not arguments.use_cpu
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    measured = list(zip(clock.ends[warm_up - 1 :], clock.ends[warm_up:], strict=False))
    seconds = sorted(after[0] - before[0] for before, after in measured)
    tokens = measured[-1][1][1] - measured[0][0][1]
    return Calibration(
        card=torch.cuda.get_device_name() if on_gpu else "CPU",
        seconds_per_step=seconds[len(seconds) // 2],
        tokens_per_second=tokens / (measured[-1][1][0] - measured[0][0][0]),
        peak_memory_bytes=int(torch.cuda.max_memory_allocated()) if on_gpu else None,
        steps=len(measured),
    )


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each step ends, and the tokens so far, padding left out."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), float(self.trainer._total_train_tokens)))


def random_model(recipe: Recipe, config: PretrainedConfig, precision: str) -> PreTrainedModel:
    """A model of this config with random weights, on this process's device, in 4 bits for QLoRA: nothing is loaded."""
    device = torch.device("cpu") if modeling.uses_cpu(recipe) else torch.device("cuda")
    model = parameters.build(recipe, config, precision)
    if recipe.method == "qlora":
        _quantize(recipe, model, precision, device)
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and value.is_meta:
                module._parameters[name] = torch.nn.Parameter(_random(value, device), requires_grad=True)
    rotary = model.model.rotary_emb  # the buffers of a model made on the meta device hold nothing
    model.model.rotary_emb = type(rotary)(config=config).to(device)
    model.tie_weights()
    return model


def _random(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    made = torch.empty(value.shape, dtype=value.dtype, device=device)
    return made.normal_(0, 0.02) if value.dim() > 1 else made.fill_(1.0)


def _quantize(recipe: Recipe, model: PreTrainedModel, precision: str, device: torch.device) -> None:
    """Put 4-bit layers with random weights in the places that transformers would, one at a time."""
    import bitsandbytes
    from transformers.quantizers import AutoHfQuantizer

    wanted = modeling.quantization_config(recipe, precision)
    for name, layer in parameters.quantized_layers(recipe, model).items():
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=wanted.bnb_4bit_compute_dtype,
            compress_statistics=wanted.bnb_4bit_use_double_quant,
            quant_type=wanted.bnb_4bit_quant_type,
            device="meta",
        )
        made.weight = bitsandbytes.nn.Params4bit(
            _random(layer.weight, device),
            requires_grad=False,
            compress_statistics=wanted.bnb_4bit_use_double_quant,
            quant_type=wanted.bnb_4bit_quant_type,
            module=made,
        ).to(device)
        if layer.bias is not None:
            made.bias = torch.nn.Parameter(torch.zeros(layer.out_features, dtype=layer.weight.dtype, device=device))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.hf_quantizer = AutoHfQuantizer.from_config(wanted, pre_quantized=False)
    model.config.quantization_config = wanted
