"""The architectures that are measured, as plain numbers: models of these shapes get random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Llama-style decoder; field names are those of transformers' LlamaConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_theta: float = 10_000.0

    @property
    def parameters(self) -> int:
        """All weights; embeddings that also serve as the head count once."""
        size = self.hidden_size // self.num_attention_heads
        attention = 2 * self.hidden_size * size * (self.num_attention_heads + self.num_key_value_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        tables = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return tables + self.num_hidden_layers * layer + self.hidden_size

    def config(self, **more: Any) -> Any:
        """transformers' configuration of this shape.

        No token pads: its embedding would be made of zeros, and should rows begin with that token (the tiny tokenizer
        numbers its first one 0), RMSNorm multiplies the gradient of that zero by a thousand, twice a layer. After 14
        layers of the 7B shape it is no number any more.
        """
        from transformers import LlamaConfig

        fields = {name: value for name, value in vars(self).items() if name != "rope_theta"}
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return LlamaConfig(
            **fields, rope_parameters=rope, pad_token_id=None, bos_token_id=1, eos_token_id=2, use_cache=False, **more
        )


SHAPES = {
    "smollm2-135m": Shape(49_152, 576, 1_536, 30, 9, 3, True, 8_192, 100_000.0),
    "llama-3.2-1b": Shape(128_256, 2_048, 8_192, 16, 32, 8, True, 131_072, 500_000.0),
    "llama-3.2-3b": Shape(128_256, 3_072, 8_192, 28, 24, 8, True, 131_072, 500_000.0),
    "tinyllama-1.1b": Shape(32_000, 2_048, 5_632, 22, 32, 4, False, 2_048),
    "llama-2-7b": Shape(32_000, 4_096, 11_008, 32, 32, 32, False, 4_096),
    "tiny": Shape(512, 64, 128, 2, 4, 2, True, 32_768),  # for a look at the machinery, on a CPU
}
TITLES = {
    "smollm2-135m": "SmolLM2-135M",
    "llama-3.2-1b": "Llama-3.2-1B",
    "llama-3.2-3b": "Llama-3.2-3B",
    "tinyllama-1.1b": "TinyLlama-1.1B",
    "llama-2-7b": "Llama-2-7B",
    "tiny": "Tiny",
}
