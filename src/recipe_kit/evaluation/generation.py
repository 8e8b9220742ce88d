"""Greedy answers to held-out prompts, the same way for base and tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def split_last_turn(example: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str] | None:
    """The chat up to its last answer, and that answer; None for plain text, which has no prompt."""
    if "text" in example:
        return None
    messages = [*example.get("prompt", []), *example.get("completion", []), *example.get("messages", [])]
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return [{"role": m["role"], "content": m["content"]} for m in messages[:last]], messages[last]["content"]


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trained: set[int]) -> list[int]:
    """Tokens that end an answer: the model's own, the tokenizer's, and those its training turns ended with."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ids = {tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or []), *trained}
    return sorted(index for index in ids if index is not None)


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[dict[str, Any]]],
    *,
    stop_ids: list[int],
    max_new_tokens: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """One greedy answer a prompt, in order: `text`, its length in `tokens`, and whether it `stopped` by itself.

    Prompts are batched by length and padded on the left, so that every answer starts right after its prompt.
    """
    texts = [tokenizer.apply_chat_template(list(p), tokenize=False, add_generation_prompt=True) for p in prompts]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    answers: list[dict[str, Any]] = [{}] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(encoded[index]) for index in batch)
        pads = [width - len(encoded[index]) for index in batch]
        ids = [[tokenizer.pad_token_id] * pad + encoded[index] for pad, index in zip(pads, batch, strict=True)]
        output = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=model.device),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_ids,
            pad_token_id=tokenizer.pad_token_id,
        )
        for index, row in zip(batch, output[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stop_ids), None)
            tokens = row if end is None else row[:end]
            text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            answers[index] = {"text": text, "tokens": len(tokens), "stopped": end is not None}
    return answers
