"""Control text that a message must not hold: with it, a row of data could end its turn and open another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from recipe_kit.errors import LabelError
from recipe_kit.labels.spans import Turns, render, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What opens or ends a turn in templates that write it as ordinary text: <|user|>, [/INST], <</SYS>>, ### Human:
_MARKER = re.compile(r"<[|｜][^<>\s]+[|｜]>|</?[A-Za-z_]\w*>|\[/?[A-Z][A-Z_]+\]|<</?[A-Z]+>>|#{2,} ?\w+:")
_REASONING = re.compile(r"</?(?:think|thinking|reasoning)>")  # part of an answer that templates read on purpose
_NAME = "\ue000"


def control_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokenizer's control tokens, and the markers that its template writes around messages as ordinary text."""
    written = ""
    for opening in ([{"role": "system", "content": _NAME}], []):
        chat: Turns = [*opening, *({"role": role, "content": _NAME} for role in ("user", "assistant") * 2)]
        with suppress(
            LabelError
        ):  # a template without system prompts; or without a template, and then without markers
            written += render(chat, tokenizer) + render(chat[:-1], tokenizer, add_generation_prompt=True)
    markers = {marker for marker in _MARKER.findall(written) if not _REASONING.fullmatch(marker)}
    return tuple(sorted({*special_tokens(tokenizer), *markers}, key=len, reverse=True))


class ControlTexts:
    """Finds control texts in messages."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        texts = [text for text in control_texts(tokenizer) if text.strip()]
        self._openings = tuple({text[:2] for text in texts})  # looked for first: far quicker than the expression
        self._pattern = re.compile("|".join(map(re.escape, texts)))

    def refuse(self, messages: Sequence[dict[str, str]]) -> None:
        """Raises LabelError naming the first message that holds one."""
        for index, message in enumerate(messages):
            content = message["content"]
            if any(opening in content for opening in self._openings) and (found := self._pattern.search(content)):
                raise LabelError(
                    f"message {index + 1} ({message['role']}) holds {found[0]!r}, which this model reads as control "
                    "text: a row must not end a turn or open one"
                )
