"""Which attention and which fused layers a run uses: what is asked for, installed, and right for card and model."""

from __future__ import annotations

from transformers import PretrainedConfig

from recipe_kit import attention, varlen
from recipe_kit.errors import RecipeError
from recipe_kit.recipe import Recipe
from recipe_kit.speed import layers
from recipe_kit.speed.card import Card

KEEP_APART = (varlen.NAME, *attention.FLASH, "flex_attention")  # attention that does no work between packed rows


def choose_attention(
    recipe: Recipe,
    config: PretrainedConfig,
    card: Card | None,
    notes: list[str],
    *,
    half: bool = True,
    planned: bool = False,
) -> str:
    """The implementation by its name; `auto` where the choice is transformers'. `half`: computed in 16 bits.

    Raises RecipeError where `torch_varlen` is asked for and would compute something else than the model, or
    FlashAttention in 32 bits.
    """
    wanted = str(recipe.model.attention)
    if wanted == varlen.NAME and (wrong := varlen.not_by_interface(config)):
        raise RecipeError(f"model.attention: {varlen.NAME} cannot be used, {wrong}; set it to auto")
    if wanted in attention.FLASH and card is not None and not half:
        raise RecipeError(
            f"model.attention: {wanted} cannot be used, it computes in 16 bits and this run does not; set it to auto"
        )
    if wanted != "auto" or card is None:
        return wanted
    reason = varlen.unsupported(config)
    if reason is None and not card.varlen:
        reason = f"{card.name} is older than Ampere"
    if reason is None and not half:
        reason = "the kernel computes in 16 bits, and this run does not"
    if reason is not None:
        notes.append(f"attention is left to transformers: {reason}")
        return "auto"
    return (None if planned else attention.installed_flash(card.capability, notes)) or varlen.NAME


def choose_kernels(
    recipe: Recipe, config: PretrainedConfig, card: Card | None, notes: list[str], *, planned: bool = False
) -> str:
    """`liger`, `hub` or `none`. Raises RecipeError where Liger's layers are asked for and cannot be had."""
    wanted = recipe.model.kernels
    if card is None or wanted in ("none", "hub"):
        return "none" if card is None else wanted
    reason = layers.unsupported(str(config.model_type))
    if reason is None or (planned and not layers.is_installed()):
        return "liger"
    if wanted == "liger":
        raise RecipeError(f"model.kernels: {reason}; or set it to auto")
    notes.append(f"plain layers: {reason}")
    return "none"
