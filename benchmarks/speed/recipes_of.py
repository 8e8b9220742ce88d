"""A benchmark's work as a recipe, so that recipe-kit trains it the way it trains any recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import rows as made_rows
from shapes import SHAPES
from works import Work

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from trl import SFTConfig

    from recipe_kit.recipe import Recipe
    from recipe_kit.speed.choose import Choice

Auto = Literal["auto"]


def recipe_of(
    work: Work,
    *,
    rows: int | Auto = "auto",
    accumulation: int | None = None,
    packing: bool = True,
    checkpointing: bool | Auto | None = None,
    optim: str = "adamw_torch_fused",
    dtype: str | None = None,
    attention: str = "auto",
    steps: int = 1,
    device: str = "cuda",
    folder: str | Path = ".",
    **training: Any,
) -> Recipe:
    """The recipe of a work. `rows` and `accumulation` are those of TRL, or as the kit reads them if `rows` is auto.

    Without `accumulation` a step has the rows of the work, or packs as long as its longest row that hold as many
    tokens. Without `checkpointing` it is as the work has it. `dtype` is that of the weights, by default float32 for
    full fine-tuning (under bfloat16 autocast) and bfloat16 for the rest. Model and data are named and never read: the
    model is made of random weights, and the rows are token ids.
    """
    from recipe_kit.recipe import Recipe

    on_cpu = device == "cpu"
    dtype = "float32" if on_cpu else dtype or ("float32" if work.method == "full" else "bfloat16")
    each = 1 if rows == "auto" else rows
    values = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation or max(1, rows_per_step(work, packing=packing) // each),
        "packing": packing,
        "gradient_checkpointing": work.checkpointing if checkpointing is None else checkpointing,
        "optim": optim,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "bf16": not on_cpu,
        "use_cpu": on_cpu,
        "seed": made_rows.SEED,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
    }
    fields: dict[str, Any] = {
        "name": work.name.replace(".", "_"),
        "model": {"id": str(folder), "dtype": dtype, "attention": attention},
        "method": work.method,
        "data": {"train": {"path": str(folder)}, "formatter": "chat", "max_length": work.longest_row},
        "training": values | training,
    }
    if work.method != "full":
        fields["lora"] = {
            "r": work.rank,
            "lora_alpha": work.alpha,
            "lora_dropout": 0.0,
            "target_modules": list(work.targets),
        }
    if work.method == "qlora":  # as `worker.random_model` makes it
        fields["quantization"] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return Recipe.model_validate(fields)


def rows_per_step(work: Work, *, packing: bool) -> int:
    """Rows of a step; packed, those as long as the longest row that hold as many tokens."""
    return max(1, round(work.tokens_per_step / work.longest_row)) if packing else work.rows_per_step


def settle(
    recipe: Recipe,
    config: PretrainedConfig,
    lengths: list[int],
    *,
    folder: str | Path,
    trained_share: float = made_rows.TRAINED_SHARE,
) -> tuple[str, Choice, SFTConfig]:
    """Precision, choice and TRL's arguments of a recipe on this machine, decided as a run of it decides them."""
    import numpy as np

    from recipe_kit import modeling
    from recipe_kit.arguments import training_arguments
    from recipe_kit.speed.card import card
    from recipe_kit.speed.choose import choose

    precision = modeling.choose_precision(recipe, [])
    here = None if modeling.uses_cpu(recipe) else card()
    first = training_arguments(recipe, precision)
    choice = choose(recipe, config, precision, first, np.asarray(lengths, np.int64), trained_share, here)
    arguments = training_arguments(recipe, precision, choice.training)
    arguments.output_dir = str(folder)
    return precision, choice, arguments


def attention_of(choice: Choice) -> str:
    """The implementation for `worker.random_model`: transformers' own choice is sdpa."""
    return "sdpa" if choice.attention == "auto" else choice.attention


def config_of(work: Work) -> Any:
    """transformers' configuration of the work's shape."""
    return SHAPES[work.shape].config()
