"""Liger's kernels for norms, SwiGLU and rotary embeddings, applied to one loaded model.

Liger replaces classes and functions of the model's module for the whole process. A run also builds models on the CPU,
where its kernels do not work, so what it replaces is put back: the loaded model keeps its own fused layers, and rotary
embeddings, which are a function of the module, choose by the device of what they are given.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from typing import Any

from transformers import PreTrainedModel

_ROTARY = "apply_rotary_pos_emb"


def is_installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def unsupported(model_type: str) -> str | None:
    """Why Liger's kernels cannot be used for this kind of model, as half a sentence, or None."""
    if not is_installed():
        return "liger-kernel is not installed; `pip install 'recipe-kit[kernels]'` makes steps faster and smaller"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"liger-kernel has no layers for {model_type} models"
    return None


def fuse_layers(model: PreTrainedModel) -> None:
    """Give the norms, feed-forward layers and rotary embeddings of a model on a GPU Liger's kernels.

    Liger's own loss stays off: TRL's trainer has a fused head, which scores trained tokens only.
    """
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    module = sys.modules[type(model).__module__]
    before = dict(vars(module))
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
    for name, value in before.items():
        fused = getattr(module, name)
        if fused is value:
            continue
        setattr(module, name, _by_device(fused, value) if name == _ROTARY else value)


def _by_device(fused: Any, plain: Any) -> Any:
    @functools.wraps(plain)
    def rotate(q: Any, *arguments: Any, **options: Any) -> Any:
        return (fused if q.is_cuda else plain)(q, *arguments, **options)

    return rotate
