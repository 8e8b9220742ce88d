"""What a base is after a round trip through 4 bits, as a QLoRA run saw it while it was trained."""

from __future__ import annotations

from dataclasses import dataclass

import bitsandbytes
import torch
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from recipe_kit import modeling
from recipe_kit.merge.layout import on_meta
from recipe_kit.recipe import Recipe


@dataclass(frozen=True)
class Quantised:
    """Which tensors of a model transformers holds in 4 bits, and how."""

    names: dict[str, bool]  # tensor -> whether it is turned before it is quantised
    config: BitsAndBytesConfig
    dtype: torch.dtype  # what the weights are loaded in before they are quantised

    def round_trip(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight that the 4-bit model computes with, in `dtype`; other tensors as they are."""
        if name not in self.names:
            return weight
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = weight.to(device, self.dtype)
        packed = bitsandbytes.nn.Params4bit(
            loaded.T.contiguous() if self.names[name] else loaded,
            requires_grad=False,
            compress_statistics=self.config.bnb_4bit_use_double_quant,
            quant_type=self.config.bnb_4bit_quant_type,
            quant_storage=self.config.bnb_4bit_quant_storage,
        ).to(device)
        seen: torch.Tensor = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state).cpu()
        return seen.T.contiguous() if self.names[name] else seen


def quantised(recipe: Recipe, config: PretrainedConfig, trained_in: str) -> Quantised:
    """What transformers quantises of a recipe's base, asked on the meta device. Raises ModelError without 4 bits."""
    modeling.check_quantization(recipe)
    settings = modeling.quantization_config(recipe, trained_in)
    model = on_meta(config, recipe.model.trust_remote_code)
    turned = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    AutoHfQuantizer.from_config(settings).preprocess_model(model=model, device_map={"": "cpu"})
    names = {
        f"{name}.weight": name in turned
        for name, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    return Quantised(names, settings, modeling.model_dtype(recipe, trained_in))
