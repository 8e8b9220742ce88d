"""One answer at a time, as its tokens come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from recipe_kit import labels
from recipe_kit.chat.target import Chat, Which
from recipe_kit.errors import LabelError, ModelError
from recipe_kit.evaluation import generation

Message = dict[str, str]


@dataclass(frozen=True)
class Decoding:
    """How answers are made: greedily at temperature 0, else drawn with a seed."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42


class Answer(TypedDict):
    """One answer. `stopped` says that it ended by itself, `interrupted` that the user ended it."""

    text: str
    tokens: int
    stopped: bool
    seconds: float
    interrupted: bool


GREEDY = Decoding()


def reply(
    chat: Chat,
    messages: Sequence[Message],
    *,
    which: Which = "tuned",
    decoding: Decoding = GREEDY,
    write: Callable[[str], None] = lambda piece: None,
) -> Answer:
    """The next turn of a conversation. `write` gets its text as it comes, in whole characters.

    The pieces together are the answer's text. Ctrl-C ends the answer and keeps what there is of it: it is caught here,
    since `generate` runs in this very thread. Raises what `check_messages` and `Chat.model` raise.
    """
    ids = check_messages(chat, messages, which=which)
    room = generation.context_length(chat.model(which)) or len(ids) + decoding.max_new_tokens
    stop_ids = chat.stop_token_ids(which)
    stream = _Stream(chat.tokenizer, stop_ids, write)
    started, interrupted = time.monotonic(), False
    try:
        with chat.answering(which) as model:
            model.generate(
                input_ids=torch.tensor([ids], device=model.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
                max_new_tokens=min(decoding.max_new_tokens, room - len(ids)),
                eos_token_id=stop_ids,
                pad_token_id=chat.tokenizer.pad_token_id,
                streamer=stream,
                **_sampling(decoding, len(messages)),
            )
    except KeyboardInterrupt:
        interrupted = True
        stream.end()
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(f"the GPU's memory does not hold the model and {len(ids):,} tokens; try /reset") from error
    return {
        "text": chat.tokenizer.decode(stream.tokens, skip_special_tokens=True).strip(),
        "tokens": len(stream.tokens),
        "stopped": stream.stopped,
        "seconds": round(time.monotonic() - started, 3),
        "interrupted": interrupted,
    }


def check_messages(chat: Chat, messages: Sequence[Message], *, which: Which = "tuned") -> list[int]:
    """The token ids that an answer to these messages follows.

    Raises LabelError for text that could end its turn or open another, or that the template refuses, and ModelError
    when no room is left for an answer.
    """
    for message in messages:
        if message["role"] != "assistant":  # what a model wrote is left as it is
            _refuse_control_text(chat, message)
    ids = generation.prompt_ids(chat.tokenizer, messages)
    room = generation.context_length(chat.model(which))
    if room is not None and len(ids) >= room:
        raise ModelError(
            f"the conversation has {len(ids):,} tokens, and this model reads {room:,}, its answer included; "
            "start anew (/reset), or write less"
        )
    return ids


def check_trainable(chat: Chat, messages: Sequence[Message]) -> None:
    """Raises LabelError where a conversation cannot be trained on, such as for control text in an answer."""
    labels.encode({"messages": list(messages)}, chat.tokenizer)


class Pieces:
    """Tokens in, text out: whole characters as soon as they are certain, without white space at either end.

    A character may take several tokens, and some tokenizers drop a space at the start of what they decode. So each
    token is decoded with a few before it, and text that ends within a character waits for the rest. transformers'
    TextStreamer breaks the second rule after a line's end, and holds text without spaces back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._shown = 0  # the text of ids up to `_shown` is out; decoding starts a little before
        self._held = ""  # white space that may turn out to be the last
        self._begun = False

    def add(self, token: int) -> str:
        self._ids.append(token)
        return self._next(whole=True)

    def rest(self) -> str:
        """What is still held back once no more tokens come."""
        return self._next(whole=False)

    def _next(self, *, whole: bool) -> str:
        before, now = self._decode(self._ids[self._start : self._shown]), self._decode(self._ids[self._start :])
        if len(now) <= len(before) or (whole and now.endswith("\ufffd")):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        text = self._held + now[len(before) :]
        text = text if self._begun else text.lstrip()
        piece = text.rstrip()
        self._held = text[len(piece) :]
        self._begun = self._begun or bool(piece)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class _Stream(BaseStreamer):  # type: ignore[misc]
    """What `generate` tells of its tokens: the prompt first, then each new one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: list[int], write: Callable[[str], None]) -> None:
        self.tokens: list[int] = []
        self.stopped = False
        self._pieces, self._stop_ids, self._write = Pieces(tokenizer), stop_ids, write
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.stopped = self.stopped or token in self._stop_ids
            if self.stopped:
                return
            self.tokens.append(token)
            if piece := self._pieces.add(token):
                self._write(piece)

    def end(self) -> None:
        if piece := self._pieces.rest():
            self._write(piece)


def _sampling(decoding: Decoding, turn: int) -> dict[str, Any]:
    """Arguments of `generate`. The draws of a turn do not depend on what else was generated before it."""
    if not decoding.temperature:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    torch.manual_seed(decoding.seed + turn)
    return {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}


def _refuse_control_text(chat: Chat, message: Message) -> None:
    what = "the system prompt" if message["role"] == "system" else "the message"
    try:
        message["content"].encode()
    except UnicodeEncodeError as error:
        raise LabelError(f"{what} is not valid Unicode text (character {error.start + 1})") from error
    found = next((text for text in chat.control_texts if text in message["content"]), None)
    if found is not None:
        raise LabelError(
            f"{what} holds {found!r}, which this model reads as control text: with it, a message could end its turn "
            "or open another; write it another way"
        )
