"""Attention that does no work between packed rows, from stock PyTorch: `torch_varlen`, for any transformers program.

    import recipe_kit.varlen
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="torch_varlen")

Rows packed into one sequence, with their boundaries in the batch (`cu_seq_lens_q`, as the padding-free collators of
TRL and transformers write them), go through `torch.nn.attention.varlen`, whose time grows with the sum of the squared
row lengths; transformers' own `sdpa` builds a mask of all tokens by all tokens for them. Whatever has no boundaries,
or needs what the kernel has not (padded batches, generation with a cache, float32, a CPU, masks that are neither
causal nor sliding), goes to transformers' `sdpa`, with the mask that `sdpa` would have got.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a build of PyTorch without it: everything goes to sdpa, and `unsupported` says so
    varlen_attn = None

NAME = "torch_varlen"
_LARGEST_HEAD = 256  # FlashAttention-2, which is inside
_HALF = (torch.bfloat16, torch.float16)
_LAYERS = {"full_attention", "sliding_attention"}
_ROWS_MEET = {"afmoe", "opt"}  # with any attention: they ask transformers for masks without saying where rows start
_ASKS = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass
class PackedMask:
    """What transformers knows of a packed batch's mask; the mask itself is built only where it is needed."""

    build: Callable[[], torch.Tensor | None]
    window: int | None  # of a sliding or chunked mask
    _built: torch.Tensor | None = field(default=None, repr=False)

    def dense(self) -> torch.Tensor | None:
        """The boolean mask, tokens by tokens, that `sdpa` would have got."""
        if self._built is None:
            self._built = self.build()
        return self._built


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **options: Any,
) -> torch.Tensor | PackedMask | None:
    """transformers' mask function for `torch_varlen`: sdpa's mask, put off for one row that holds packed ones."""

    def build() -> torch.Tensor | None:
        mask: torch.Tensor | None = sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=allow_is_causal_skip,
            use_vmap=use_vmap,
            **options,
        )
        return mask

    packed = batch_size == 1 and q_length == kv_length and attention_mask is None and not use_vmap
    if packed and not allow_is_causal_skip:
        return PackedMask(build, local_size)
    return build()


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | PackedMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: (batch, heads, tokens, head size) in, (batch, tokens, heads, head size) out.

    `cu_seq_lens_q` holds the places where rows start, and the end: int32, on the device of `query`.
    """
    starts = options.get("cu_seq_lens_q")
    dtype = _computing_dtype(query)
    fits = starts is not None and _fits(module, query, key, value, attention_mask, dropout, options)
    if varlen_attn is None or dtype is None or not fits:
        if isinstance(attention_mask, PackedMask):
            attention_mask = attention_mask.dense()
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found
    window = options.get("sliding_window")
    longest = int(options.get("max_length_q") or query.shape[2])
    # Fewer heads for keys and values than for queries are what the kernel has always taken; PyTorch 2.12 asks.
    more = {"enable_gqa": True} if _ASKS and key.shape[1] != query.shape[1] else {}
    # `squeeze` and not `[0]`, whose gradient would be copied into zeros.
    rows = [states.squeeze(0).transpose(0, 1).to(dtype) for states in (query, key, value)]
    # A window of W tokens counts the token itself; the kernel counts those before it.
    sides = (-1 if window is None else window - 1, 0)
    answer = varlen_attn(*rows, starts, starts, longest, longest, scale=scaling, window_size=sides, **more)
    return answer.unsqueeze(0), None


def unsupported(config: PretrainedConfig, device: torch.device | str | None = None) -> str | None:
    """Why packed rows of this model on this device would not go through the kernel, as half a sentence, or None."""
    reason = no_kernel(device)
    if reason is not None:
        return reason
    text = config.get_text_config()
    for key, what in (
        ("attn_logit_softcapping", "its attention caps logits"),
        ("attention_chunk_size", "its attention is chunked"),
        ("alibi", "its attention adds a bias by distance"),
    ):
        if getattr(text, key, None):
            return what
    if getattr(text, "attention_dropout", 0.0) or getattr(text, "attn_pdrop", 0.0):
        return "its attention has dropout"
    layers = set(getattr(text, "layer_types", None) or ())
    if not layers <= _LAYERS:
        return f"it has layers of another kind ({', '.join(sorted(layers - _LAYERS))})"
    if text.model_type in _ROWS_MEET:
        return f"packed rows of {text.model_type} models see each other in transformers"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "its code is not of transformers"
    if (reason := not_by_interface(config)) is not None:
        return reason
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if size > _LARGEST_HEAD or size % 8:
        return f"its heads have {size} values, and the kernel takes multiples of 8 up to {_LARGEST_HEAD}"
    return None


def not_by_interface(config: PretrainedConfig) -> str | None:
    """Why a model must not be loaded with `torch_varlen` at all, as half a sentence, or None.

    Its attention has to be called by way of transformers' interface; `sdpa`, to which the rest goes, has to do all
    that it does (gpt-oss's sinks it leaves out); and like FlashAttention, the kernel has no mask for a model to write
    into. A model that transformers does not know is not judged.
    """
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    model = known[0] if isinstance(known, tuple) else known
    if model is None or (model._supports_attention_backend and model._supports_sdpa and model._supports_flash_attn):
        return None
    return f"transformers has no interchangeable attention for {config.model_type} models"


def no_kernel(device: torch.device | str | None = None) -> str | None:
    """Why there is no such kernel on this device, whatever the model, as half a sentence, or None."""
    if varlen_attn is None:
        return f"PyTorch {torch.__version__} has no variable-length attention"
    if device is None:
        return None
    if torch.device(device).type != "cuda":
        return "there is no GPU"
    if torch.version.hip:
        return "the kernel was only looked at on NVIDIA cards"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    return None


def _computing_dtype(query: torch.Tensor) -> torch.dtype | None:
    """The type the kernel would compute in; None where it cannot. What rotary embeddings made float32 is cast back."""
    if not query.is_cuda or torch.cuda.get_device_capability(query.device) < (8, 0):
        return None
    dtype = query.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    return dtype if dtype in _HALF else None


def _fits(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | PackedMask | None,
    dropout: float,
    options: dict[str, Any],
) -> bool:
    """Whether the kernel can answer this call: one packed row, causal or sliding, nothing added to the logits."""
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    size = query.shape[-1]
    return (
        query.shape[0] == 1
        and query.shape[2] == key.shape[2]
        and causal
        and not dropout
        and not isinstance(mask, torch.Tensor)
        and (mask is None or mask.window == options.get("sliding_window"))
        and value.shape[-1] == size <= _LARGEST_HEAD
        and size % 8 == 0
        and all(options.get(name) is None for name in ("softcap", "s_aux", "position_bias", "cache"))
    )


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, packed_mask)
