"""The adapter of a run: opened, and checked for everything that its own files can tell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from safetensors import SafetensorError

from recipe_kit import run_dir
from recipe_kit.errors import MergeError, first_line
from recipe_kit.local_models import local_folder
from recipe_kit.merge import shards
from recipe_kit.recipe import Recipe
from recipe_kit.run_dir import RunInfo

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Ways to start an adapter that take their part out of the base weights: the saved adapter belongs to what was left.
# PEFT takes it out again when it loads such an adapter, from the weights as they were loaded for training.
_CHANGES_BASE = ("pissa", "olora")


@dataclass(frozen=True)
class Adapter:
    folder: Path
    config: peft.LoraConfig
    shapes: dict[str, tuple[int, ...]]  # of each tensor in its file
    sha256: str

    @property
    def changes_base(self) -> bool:
        """Whether attaching this adapter changes the weights beneath it."""
        return str(self.config.init_lora_weights).lower().startswith(_CHANGES_BASE)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in float32 as PEFT holds it."""
        return shards.read(self.folder / WEIGHTS, name).float()


def open_adapter(folder: Path, recipe: Recipe, info: RunInfo) -> Adapter:
    """The adapter in `folder`, which has to belong to the recipe's base. Reads every tensor; raises MergeError."""
    if not folder.is_dir():
        raise MergeError(f"{folder}: no such folder; what this run learnt is gone")
    config = _config(folder)
    _check_base(folder, recipe, info)
    _check_settings(folder, config, recipe)
    _check_kind(folder, config, recipe)
    try:
        found = shards.shapes(folder / WEIGHTS)
        for name in found:
            if not shards.is_finite(shards.read(folder / WEIGHTS, name)):
                raise MergeError(f"{folder / WEIGHTS}: {name} holds numbers that are not finite; train again")
    except (OSError, SafetensorError) as error:
        raise MergeError(
            f"{folder / WEIGHTS}: cannot be read ({first_line(error)}); the adapter is damaged, restore it or train "
            "again"
        ) from error
    return Adapter(folder, config, found, run_dir.sha256(folder / WEIGHTS))


def _config(folder: Path) -> peft.LoraConfig:
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MergeError(f"{folder / CONFIG}: cannot be read ({first_line(error)}); the adapter is damaged") from error
    if not isinstance(config, peft.LoraConfig):
        raise MergeError(f"{folder / CONFIG}: expected a LoRA adapter, got {config.peft_type}; only LoRA is merged")
    return config


def _check_base(folder: Path, recipe: Recipe, info: RunInfo) -> None:
    """The base that the adapter names is the recipe's; a local one may lie elsewhere now, under the same name."""
    told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    named, commit = told.get("base_model_name_or_path"), told.get("revision")
    local = local_folder(recipe.model.id)
    expected = str(local or recipe.model.id)
    is_local = local is not None or Path(expected).is_dir()
    same = Path(str(named)).name == Path(expected).name if is_local else named == expected
    if named and not same:
        raise MergeError(
            f"{folder / CONFIG}: the adapter was trained on {Path(str(named)).name if is_local else named}, and the "
            f"recipe's model is {recipe.model.id}; restore the adapter of this run"
        )
    recorded = info["model"].get("revision")
    if commit and recorded and commit != recorded:
        raise MergeError(
            f"{folder / CONFIG}: the adapter was trained on commit {commit[:12]} of its base, and run.json records "
            f"{recorded[:12]}; restore the adapter of this run"
        )


def _check_settings(folder: Path, config: peft.LoraConfig, recipe: Recipe) -> None:
    """What no tensor of the adapter shows, and decides what they come to."""
    for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
        if key in recipe.lora and getattr(config, key) != recipe.lora[key]:
            raise MergeError(
                f"{folder / CONFIG}: {key} is {getattr(config, key)}, and this run was trained with "
                f"{recipe.lora[key]}; restore the adapter of this run"
            )


def _check_kind(folder: Path, config: peft.LoraConfig, recipe: Recipe) -> None:
    """Refuses what no merged weights can be: what happens on some tokens only, or starts where nobody knows."""
    start = str(config.init_lora_weights).lower()
    if config.layer_replication:
        raise MergeError(
            f"{folder / CONFIG}: layer_replication lets several layers share one base weight, each with an adapter of "
            "its own, which merged weights cannot hold; use the adapter as it is"
        )
    if config.alora_invocation_tokens:
        raise MergeError(
            f"{folder / CONFIG}: this adapter works from its invocation tokens on, which merged weights cannot; use "
            "the adapter as it is"
        )
    if "_niter_" in start or start.startswith(("corda", "loftq")):
        raise MergeError(
            f"{folder / CONFIG}: init_lora_weights: {config.init_lora_weights} took a part out of the base that "
            "cannot be computed again; use the adapter as it is, or train again with init_lora_weights: pissa"
        )
    if recipe.method == "qlora" and start.startswith(_CHANGES_BASE):
        raise MergeError(
            f"{folder / CONFIG}: init_lora_weights: {config.init_lora_weights} changed the 4-bit base this adapter "
            "belongs to, and no 16-bit base is the same; use the adapter as it is, or train with method: lora"
        )
