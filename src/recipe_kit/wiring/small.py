"""A miniature of any causal language model: its architecture without its size."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from recipe_kit.errors import ModelError, first_line

VOCABULARY = 499  # prime, so that neighbouring control tokens and regular strides stay apart when ids are folded
_LARGEST_MINIATURE = 5_000_000  # parameters

# Sizes under the names that architectures have for them; each sets those it has.
_SMALL: dict[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,  # Gemma's, in place of the size of a head
    "intermediate_size": 64,
    # Mixtures of experts.
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "num_experts_per_tok": 2,
    # DeepSeek's compressed keys and values.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim"), 32),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    # Logits of a random model are otherwise alike whatever it reads, and a leak would be faint.
    "initializer_range": 0.1,
}


def miniature(
    config: PretrainedConfig, vocab_size: int = VOCABULARY, *, attention: str = "auto", seed: int = 0
) -> PreTrainedModel:
    """A small random model of the same architecture: float32, on the CPU, in evaluation mode, without dropout.

    One layer of each kind the model has, at least two, with heads of 16 and the ratio of query to key heads kept;
    sliding windows, soft caps, rotary scaling and tied embeddings stay. Any token id is welcome: the embedding takes
    it modulo `vocab_size`, so that a vocabulary of 128,256 costs nothing. Labels must be below `vocab_size`. Weights
    depend on `seed` alone. Raises ModelError when the architecture cannot be built small or has no such attention.
    """
    kind = type(config).__name__
    try:
        small = _shrunk(config, vocab_size)
        small._attn_implementation = None if attention == "auto" else attention
        architecture = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(small), None)
        if architecture is None:
            raise ModelError(f"no miniature of {kind}: transformers has no causal language model for it")
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in architecture(copy.deepcopy(small)).parameters())
        if size > _LARGEST_MINIATURE:
            raise ModelError(f"no miniature of {kind}: made small it still has {size:,} parameters")
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = architecture(small).float().eval()
    except (ImportError, ValueError, TypeError, RuntimeError, AttributeError, KeyError, AssertionError) as error:
        raise ModelError(f"no miniature of {kind}: {first_line(error)}") from error
    embedding = model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda module, inputs: (inputs[0] % vocab_size, *inputs[1:]))
    return model


def _shrunk(config: PretrainedConfig, vocab_size: int) -> PretrainedConfig:
    small = copy.deepcopy(config.get_text_config())
    layers = _kept_layers(small)
    for name, value in list(vars(small).items()):
        if isinstance(value, list) and len(value) == small.num_hidden_layers:
            setattr(small, name, [value[layer] for layer in layers])
        elif isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            setattr(small, name, 0.0)
    heads = int(getattr(small, "num_attention_heads", 4))
    ratio = max(1, heads // (getattr(small, "num_key_value_heads", None) or heads))
    key_heads = 2 if ratio <= 2 else 1
    values = {
        **_SMALL,
        "num_hidden_layers": len(layers),
        "num_key_value_heads": key_heads,
        "num_attention_heads": min(ratio, 8) * key_heads,
        "hidden_size": 16 * min(ratio, 8) * key_heads,
        "vocab_size": vocab_size,
    }
    for name, value in values.items():
        if hasattr(small, name):
            with suppress(AttributeError):  # Falcon derives the size of a head from the others
                setattr(small, name, value)
    _cut_rotary_factors(small)
    small.dtype = None
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    return small


def _kept_layers(config: PretrainedConfig) -> list[int]:
    """The first layer of each kind, and the first two at least."""
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    first = {kind: layer for layer, kind in reversed(list(enumerate(kinds)))}
    spare = (layer for layer in range(config.num_hidden_layers) if layer not in first.values())
    return sorted([*first.values(), *list(spare)[: max(0, 2 - len(first))]])


def _cut_rotary_factors(config: PretrainedConfig) -> None:
    """Phi-3 scales each rotary frequency by a factor of its own: as many as half a head, of which we keep 8."""
    rotary = getattr(config, "rope_parameters", None) or {}
    for scaling in (rotary, *(value for value in rotary.values() if isinstance(value, dict))):
        size = int(16 * scaling.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0) or 1.0))
        for name in ("short_factor", "long_factor"):
            if isinstance(scaling.get(name), list):
                scaling[name] = scaling[name][: size // 2]
