"""What a template writes around the messages of a chat of one shape, learnt once and used for every such chat.

A shape is the sequence of roles. A stand-in chat of the shape is rendered with a name in place of each message's text,
and its answers are found by the careful way of `spans.py`. A real chat then needs one rendering: if it is the
stand-in's text with the messages in place of the names, the answers stand where the stand-in's do. If it is not, or
if a message holds text that the template looks for, the chat goes the careful way itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recipe_kit.errors import LabelError
from recipe_kit.labels.spans import Span, Turns, chat_template, find_spans, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What templates test their messages for: `'</think>' in content`, `content.split('</think>')`, `startswith("...")`.
_TESTED = re.compile(
    r"""(?P<a>["'])(?P<text>(?:(?!(?P=a)).)+)(?P=a)\s+(?:not\s+)?in\s"""
    r"""|\.(?:split|rsplit|startswith|endswith|replace|find|count|strip|lstrip|rstrip)\(\s*"""
    r"""(?P<b>["'])(?P<argument>(?:(?!(?P=b)).)+)(?P=b)"""
)


@dataclass(frozen=True)
class Shape:
    """`pieces[i]` is written before message i, the last piece after all; `answers[i]` says how many characters around
    the text of assistant message i are part of its turn: before it, and after it."""

    pieces: tuple[str, ...]
    answers: dict[int, tuple[int, int]]

    def spans(self, text: str, messages: Turns, trained: Sequence[int]) -> list[Span] | None:
        """Where the trained messages stand in `text`; None unless it is this shape with exactly these messages."""
        place = len(self.pieces[0])
        if not text.startswith(self.pieces[0]):
            return None
        spans: dict[int, Span] = {}
        for index, message in enumerate(messages):
            piece, content = self.pieces[index + 1], message["content"]
            end = place + len(content)
            if not (text.startswith(content, place) and text.startswith(piece, end)):
                content = content.strip()  # most templates trim
                end = place + len(content)
                if not (content and text.startswith(content, place) and text.startswith(piece, end)):
                    return None
            if index in self.answers:
                before, after = self.answers[index]
                spans[index] = (place - before, end + after)
            place = end + len(piece)
        if place != len(text) or any(index not in spans for index in trained):
            return None
        return [spans[index] for index in trained]


def tested_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that the template looks for in what it is given."""
    found = {match["text"] or match["argument"] for match in _TESTED.finditer(chat_template(tokenizer))}
    # A line break is what `strip` and `split` are given most often, and what nearly every message holds; a template
    # that changes something at line breaks gives another text than the shape's, and is noticed by that.
    return tuple(sorted(text for text in found if text.strip("\\nrt ")))


def learn(roles: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Shape | None:
    """The shape of chats with these roles; None when the template gives none that can be relied on."""
    names = [f"\ue000{index}\ue001" for index in range(len(roles))]  # private-use characters: no template reads them
    stand_in: Turns = [{"role": role, "content": name} for role, name in zip(roles, names, strict=True)]
    answers = [index for index, role in enumerate(roles) if role == "assistant"]
    try:
        text = render(stand_in, tokenizer)
        spans = find_spans(text, stand_in, answers, tokenizer)
    except LabelError:
        return None
    pieces, places, rest = [], [], 0
    for name in names:
        place = text.find(name, rest)
        if place < 0 or text.count(name) != 1:
            return None
        pieces.append(text[rest:place])
        places.append(place)
        rest = place + len(name)
    around = {
        index: (places[index] - start, end - (places[index] + len(names[index])))
        for index, (start, end) in zip(answers, spans, strict=True)
    }
    return Shape((*pieces, text[rest:]), around)
