"""Attention that comes from elsewhere: which of it can be had on this machine, and why the rest cannot."""

from __future__ import annotations

import importlib

from transformers.utils import import_utils

from recipe_kit.errors import RecipeError, first_line
from recipe_kit.recipe import Recipe

FLASH = {"flash_attention_4": "FlashAttention-4", "flash_attention_3": "FlashAttention-3",
         "flash_attention_2": "FlashAttention-2"}  # fmt: skip
_IMPORTED_AS = {"flash_attention_4": "flash_attn.cute", "flash_attention_3": "flash_attn_interface",
                "flash_attention_2": "flash_attn"}  # fmt: skip
_ON_GPUS = (*FLASH, "flex_attention")
_AMPERE, _HOPPER = (8, 0), (9, 0)


def check(recipe: Recipe, capability: tuple[int, int] | None) -> None:
    """Raises RecipeError where the recipe names an attention that is `unusable` here."""
    name = str(recipe.model.attention)
    if reason := unusable(name, capability):
        raise RecipeError(f"model.attention: {name} cannot be used, {reason}; set it to auto")


def unusable(name: str, capability: tuple[int, int] | None) -> str | None:
    """Why an attention cannot be had, as half a sentence, or None. `capability` is that of the GPU, None on a CPU."""
    if name in _ON_GPUS and capability is None:
        return "it trains on a GPU, and this run is on a CPU"
    if name not in FLASH or capability is None:
        return None
    if capability < _AMPERE:
        return "this GPU is older than Ampere"
    if _is_installed(name):
        return _broken(name)
    # With the package `kernels`, transformers looks for one on the Hub.
    return None if import_utils.is_kernels_available() else f"{FLASH[name]} is not installed"


def installed_flash(capability: tuple[int, int], notes: list[str]) -> str | None:
    """The newest FlashAttention that is installed and made for GPUs of this capability, by transformers' name.

    One that cannot be imported, built for another PyTorch or without packages that it needs, is told in `notes` and
    not taken.
    """
    for name in FLASH:
        made_for = _AMPERE if name == "flash_attention_2" else _HOPPER
        if capability >= made_for and _is_installed(name):
            reason = _broken(name)
            if reason is None:
                return name
            notes.append(reason)
    return None


def _is_installed(name: str) -> bool:
    return bool(getattr(import_utils, f"is_flash_attn_{name[-1]}_available")())


def _broken(name: str) -> str | None:
    try:
        importlib.import_module(_IMPORTED_AS[name])
    except Exception as error:  # compiled code for another version fails in ways of its own
        return f"{FLASH[name]} is installed and cannot be imported ({first_line(error)})"
    return None
