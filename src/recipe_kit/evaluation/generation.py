"""Greedy answers, the same way for base and tuned model, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit import labels
from recipe_kit.errors import LabelError

CPU_BATCH, LARGEST_BATCH = 8, 128
MEMORY_SHARE = 0.4  # of what a GPU has free, for the keys and values of a batch

Answer = dict[str, Any]  # text, tokens: its length, stopped: whether it ended by itself


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the model's own, the tokenizer's, and the one its template writes after an answer."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ids = {tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or []), *_turn_end(tokenizer)}
    return sorted(index for index in ids if index is not None)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The control token that the template writes after an answer; empty where there is none."""
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    try:
        trained = [label for label in labels.encode(chat, tokenizer).labels if label != labels.IGNORED]
    except LabelError:  # without a template, or with one that cannot be learnt from
        return set()
    return {*trained[-1:]} & {*labels.special_tokens(tokenizer).values()}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The token ids of a chat that an answer is to follow. Raises LabelError when the template refuses the chat."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates refuse in their own words, as jinja errors of several kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LabelError(f"the chat template refuses these messages: {reason}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def context_length(model: PreTrainedModel) -> int | None:
    """How many tokens the model can read and write in all; None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: list[int],
    max_new_tokens: int,
    batch_size: int | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> list[Answer | None]:
    """One greedy answer a prompt, in order: the likeliest token each time, whatever the model's own generation
    configuration says of penalties and beams. None for a prompt that leaves the answer no room in the model's context.

    Prompts, given as token ids, are batched by length, longest first, and padded on the left, so that every answer
    starts right after its prompt. In float32 an answer does not depend on the batch it is in; in 16 bits rounding
    does, and now and then a token with it. `batch_size` None chooses by memory; a batch that does not fit is halved.
    """
    room = context_length(model)
    fits = [i for i, ids in enumerate(prompts) if room is None or len(ids) + max_new_tokens <= room]
    order = sorted(fits, key=lambda index: (-len(prompts[index]), index))
    answers: list[Answer | None] = [None] * len(prompts)
    start = 0
    size = batch_size or 0
    while start < len(order):
        size = batch_size or size or largest_batch(model, len(prompts[order[start]]) + max_new_tokens)
        batch = order[start : start + size]
        try:
            with _plain_greedy(model):
                tokens = _generate(model, [prompts[index] for index in batch], stop_ids, max_new_tokens, tokenizer)
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            size = batch_size = len(batch) // 2
            continue
        for index, row in zip(batch, tokens, strict=True):
            end = next((place for place, token in enumerate(row) if token in stop_ids), None)
            kept = row if end is None else row[:end]
            text = tokenizer.decode(kept, skip_special_tokens=True).strip()
            answers[index] = {"text": text, "tokens": len(kept), "stopped": end is not None}
        start += len(batch)
        on_rows(len(batch))
    return answers


def largest_batch(model: PreTrainedModel, tokens: int) -> int:
    """Rows of so many tokens whose keys and values fit into a share of the GPU's free memory."""
    if model.device.type != "cuda":
        return CPU_BATCH
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * heads * head_size
    passing = 4 * (config.hidden_size + (getattr(config, "intermediate_size", None) or 4 * config.hidden_size))
    width = 4 if next(model.parameters()).dtype == torch.float32 else 2
    free = torch.cuda.mem_get_info(model.device)[0]
    return max(1, min(LARGEST_BATCH, int(MEMORY_SHARE * free / (tokens * (kept + passing) * width))))


@contextmanager
def _plain_greedy(model: PreTrainedModel) -> Iterator[None]:
    """Without what a model's own configuration adds (penalties, beams, forced tokens), for base and tuned alike.

    `generate` fills what it is not told from the model's configuration, so that is set aside.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    stop_ids: list[int],
    max_new_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
) -> list[list[int]]:
    """The new token ids of each prompt, up to and beyond the token that ends it."""
    width = max(len(ids) for ids in prompts)
    pads = [width - len(ids) for ids in prompts]
    padded = [[tokenizer.pad_token_id] * pad + list(ids) for pad, ids in zip(pads, prompts, strict=True)]
    output = model.generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=model.device),
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows: list[list[int]] = output[:, width:].tolist()
    return rows
