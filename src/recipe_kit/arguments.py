"""TRL's configuration of a recipe, and whether the method can work here: known before a row is read."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
import trl

from recipe_kit import modeling, run_dir
from recipe_kit.errors import RecipeError, first_line
from recipe_kit.gathering import split_models
from recipe_kit.recipe import Recipe
from recipe_kit.topology import here

# Workers end with their epoch. At the end of the process PyTorch 2.11 waits for kept ones that fill pinned memory,
# five seconds each, before it tells them to end; 2.13 tells them first.
_LOADER: dict[str, Any] = {
    "dataloader_num_workers": 2,
    "dataloader_prefetch_factor": 2,
    # Batches lie in pinned memory: their way to the GPU need not wait for all that it has yet to compute.
    "accelerator_config": {"non_blocking": True},
}
# What `auto` stands for until rows and model are known, and `speed.choose` can decide: what needs least memory.
_UNTIL_CHOSEN = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "optim": "adamw_torch"}


def training_arguments(recipe: Recipe, precision: str, chosen: Mapping[str, Any] | None = None) -> trl.SFTConfig:
    """TRL's configuration of the recipe's `training` section, with what the kit decides. Raises RecipeError.

    `chosen` are options that take the place of the recipe's (`speed.choose.Choice.training`). The output folder is set
    when there is one.
    """
    on_cpu = modeling.uses_cpu(recipe)
    values: dict[str, Any] = {
        "report_to": ["tensorboard"],
        "save_total_limit": 2,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not a number is logged as what it is, not as 0
        # Batches are made while the GPU computes, and not between its steps.
        **({} if on_cpu or recipe.data.streaming else _LOADER),
        **copy.deepcopy(recipe.training),  # transformers writes into what it is given
        **{key: least for key, least in _UNTIL_CHOSEN.items() if recipe.training.get(key) == "auto"},
        **(chosen or {}),
        "max_length": recipe.data.max_length,
        "output_dir": run_dir.CHECKPOINTS,
        "use_cpu": on_cpu,
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        "trust_remote_code": recipe.model.trust_remote_code,
    }
    has_bfloat16 = on_cpu or torch.cuda.is_bf16_supported(including_emulation=False)
    values["fp16"] = bool(values.get("fp16", precision == "float16")) or (
        bool(values.get("bf16")) and not has_bfloat16
    )
    values["fp16"] = values["fp16"] and not on_cpu
    values["bf16"] = bool(values.get("bf16", precision == "bfloat16")) and not values["fp16"]
    if here().strategy == "none" and "activation_checkpointing_kwargs" not in values:
        # Without hooks on every tensor that is kept: 3 % of a 7B model's step. Several processes take the usual form.
        values.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": True})
    try:
        arguments = trl.SFTConfig(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"training: {first_line(error)}") from error
    if here().strategy == "fsdp2":
        _send_each_batch(arguments)
    split_models(None)  # the one that is trained will be, and no other
    if recipe.data.streaming and arguments.max_steps <= 0:
        raise RecipeError("data.streaming: an epoch of a stream has no known length; set training.max_steps")
    return arguments


def _send_each_batch(arguments: trl.SFTConfig) -> None:
    """Gradients are shared out after each micro-batch, unless the recipe says otherwise.

    transformers waits for the last one of a step, and until then FSDP2 sums those of all weights on each GPU.
    """
    config = arguments.accelerator_config
    config.gradient_accumulation_kwargs = {"sync_each_batch": True, **(config.gradient_accumulation_kwargs or {})}


def for_trainer(arguments: trl.SFTConfig) -> trl.SFTConfig:
    """The arguments as SFTTrainer takes them.

    It refuses `max_length` for rows joined without packing, and ours are cut to that length when they are prepared.
    """
    if not arguments.padding_free or arguments.packing:
        return arguments
    changed = copy.copy(arguments)
    changed.max_length = None
    return changed


def check_method(recipe: Recipe) -> None:
    """Raises ModelError or RecipeError when the method cannot work on this machine; loads no model."""
    if recipe.method == "qlora":
        modeling.check_quantization(recipe)
    if recipe.method != "full":
        modeling.lora_config(recipe)
    if recipe.model.kernels == "hub" and not modeling.uses_cpu(recipe):
        modeling.check_kernels()
    if recipe.training.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise RecipeError(
            "training.use_liger_kernel: the package liger-kernel is not installed; "
            "`pip install 'recipe-kit[kernels]'`, or set it to false"
        )
    if str(recipe.training.get("optim", "")).startswith("paged_") and modeling.uses_cpu(recipe):
        raise RecipeError("training.optim: paged optimisers need a GPU; use adamw_torch on a CPU")
