"""Memory of one GPU among several, for models of 1B to 70B parameters by method and strategy, as Markdown.

    python benchmarks/scaling_table.py

Counted from shapes alone (`recipe_kit.speed.sharding`): no weights, no GPU, half a minute. It says what is held when
nothing goes wrong; little of it was measured (README.md). `docs/scaling.md` holds what this prints.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from recipe_kit.recipe import Recipe, load_recipe
from recipe_kit.speed import sharding
from recipe_kit.speed.card import CARDS
from recipe_kit.speed.memory import card_needs
from recipe_kit.speed.moments import Work

# As their authors publish them.
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "3B": {"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
           "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    "7B": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False},
    "13B": {"vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 40, "tie_word_embeddings": False},
    "70B": {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": False},
}  # fmt: skip
METHODS = ("full", "lora", "qlora")
WORK = Work(rows=1, row_tokens=4096, tokens=4096, trained_tokens=2048, longest=2048)
COUNTS = (2, 4, 8)
CARD = CARDS["h100"]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STRATEGIES = {
    "one GPU": ("none", False, (1,)),
    "DDP": ("ddp", False, (2,)),
    "ZeRO-2": ("zero2", False, COUNTS),
    "ZeRO-3": ("zero3", False, COUNTS),
    "FSDP2": ("fsdp2", False, COUNTS),
    "FSDP2, offload": ("fsdp2", True, (8,)),
}
HEAD = "| model | method | one GPU | DDP | ZeRO-2 on 2, 4, 8 | ZeRO-3 on 2, 4, 8 | FSDP2 on 2, 4, 8 | FSDP2, offload |"


def table() -> str:
    """GiB that each GPU must have; what an 80 GB card has not is in brackets."""
    return "\n".join([HEAD, "|---" * (HEAD.count("|") - 1) + "|", *(row(size, m) for size in SHAPES for m in METHODS)])


def row(size: str, method: str) -> str:
    cells = [" ".join(_cell(size, method, *how) for how in _each(counts, strategy, offload))
             for strategy, offload, counts in STRATEGIES.values()]  # fmt: skip
    return f"| {size} | {method} | {' | '.join(cells)} |"


def needs(size: str, method: str, strategy: str, offload: bool, processes: int, **options: Any) -> int:
    """Bytes of one GPU, with CUDA's own share, for one packed row of 4,096 tokens a step."""
    from transformers import LlamaConfig

    full = method == "full"
    found = sharding.estimate(
        recipe(method),
        LlamaConfig(**SHAPES[size]),
        "float32" if full else "bfloat16",
        WORK,
        strategy=strategy,
        processes=processes,
        offload=offload,
        checkpointing=True,
        optim="adamw_torch_fused",
        fused_layers=True,
        in_place_adapters=strategy not in sharding.SHARDED,
        attention="torch_varlen",
        **({"accumulates": False} | options),
    )
    assert found is not None
    return card_needs(found)


def recipe(method: str) -> Recipe:
    """Full: float32 weights, 16-bit arithmetic. Adapters: r=16 on all projections of 16-bit or 4-bit weights."""
    base = load_recipe("llama32_1b_full" if method == "full" else "llama32_1b_lora")
    sections: dict[str, Any] = {"method": method, "training": {"bf16": True}}
    dtype = "float32" if method == "full" else "bfloat16"
    if method != "full":
        sections["lora"] = {"r": 16, "lora_dropout": 0.0, "target_modules": PROJECTIONS}
    if method == "qlora":
        sections["quantization"] = {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "bfloat16"}
    return base.model_copy(update={**sections, "model": base.model.model_copy(update={"dtype": dtype})})


def _each(counts: tuple[int, ...], strategy: str, offload: bool) -> list[tuple[str, bool, int]]:
    return [(strategy, offload, count) for count in counts]


def _cell(size: str, method: str, strategy: str, offload: bool, processes: int) -> str:
    found = needs(size, method, strategy, offload, processes)
    text = f"{found / 2**30:.0f}"
    return text if found <= CARD.memory_bytes else f"({text})"


if __name__ == "__main__":
    print(table())
