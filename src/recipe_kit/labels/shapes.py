"""What a template writes around the messages of a chat of one shape, learnt once and used for every such chat.

A shape is known by the roles of a chat and by where white space surrounds a message. A stand-in chat of the shape is
rendered with a name in place of each message's text, and its answers are found by the careful way of `spans.py`. A
real chat then needs one rendering: if it is the stand-in's text with the messages in place of the names, the answers
stand where the stand-in's do. If it is not, or if a message holds text that the template looks for, the chat goes the
careful way itself.
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


Outline = tuple[tuple[str, bool, bool], ...]  # of each message: its role, white space before its text, and after
_SPACE = "\u2003"  # white space for `trim` and `strip`, and for nothing that templates write


@dataclass(frozen=True)
class Shape:
    """What stands between the messages of chats of one outline.

    `pieces[i]` is written before message i, the last piece after all; `trims[i]` says whether white space before and
    after its text is left out; `answers[i]` says how many characters around the text of assistant message i are part
    of its turn: before it, and after it.
    """

    pieces: tuple[str, ...]
    trims: tuple[tuple[bool, bool], ...]
    answers: dict[int, tuple[int, int]]

    def spans(self, text: str, messages: Turns, trained: Sequence[int]) -> list[Span] | None:
        """Where the trained messages stand in `text`; None unless it is this shape with exactly these messages."""
        if not text.startswith(self.pieces[0]):
            return None
        place = len(self.pieces[0])
        spans: dict[int, Span] = {}
        for index, message in enumerate(messages):
            content, (left, right) = message["content"], self.trims[index]
            content = content.lstrip() if left else content
            content = content.rstrip() if right else content
            end = place + len(content)
            if not (text.startswith(content, place) and text.startswith(self.pieces[index + 1], end)):
                return None
            if index in self.answers:
                before, after = self.answers[index]
                spans[index] = (place - before, end + after)
            place = end + len(self.pieces[index + 1])
        return [spans[index] for index in trained] if place == len(text) else None


def outline(messages: Turns) -> Outline | None:
    """What a shape is known by; None for a chat with an empty message, which a template may treat in its own way."""
    texts = [message["content"] for message in messages]
    if not all(text.strip() for text in texts):
        return None
    return tuple((m["role"], t[0].isspace(), t[-1].isspace()) for m, t in zip(messages, texts, strict=True))


def tested_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that the template looks for in what it is given."""
    found = {match["text"] or match["argument"] for match in _TESTED.finditer(chat_template(tokenizer))}
    # A line break is what `strip` and `split` are given most often, and what nearly every message holds; a template
    # that changes something at line breaks gives another text than the shape's, and is noticed by that.
    return tuple(sorted(text for text in found if text.strip("\\nrt ")))


def learn(known_by: Outline, tokenizer: PreTrainedTokenizerBase) -> Shape | None:
    """The shape of chats with this outline; None when the template gives none that can be relied on."""
    names = [
        f"\ue000{index}\ue001" for index in range(len(known_by))
    ]  # private-use characters: no template reads them
    stand_in: Turns = [
        {"role": role, "content": f"{_SPACE * left}{name}{_SPACE * right}"}
        for name, (role, left, right) in zip(names, known_by, strict=True)
    ]
    answers = [index for index, (role, _, _) in enumerate(known_by) if role == "assistant"]
    try:
        text = render(stand_in, tokenizer)
        spans = find_spans(text, stand_in, answers, tokenizer)
    except LabelError:
        return None
    pieces, trims, places, rest = [], [], [], 0
    for name, (_, left, right) in zip(names, known_by, strict=True):
        start = text.find(name, rest)
        if start < 0 or text.count(name) != 1:
            return None
        end = start + len(name)
        kept_left, kept_right = text[start - 1 : start] == _SPACE, text[end : end + 1] == _SPACE
        start, end = start - kept_left, end + kept_right
        pieces.append(text[rest:start])
        trims.append((left and not kept_left, right and not kept_right))
        places.append((start, end))
        rest = end
    around = {
        index: (places[index][0] - start, end - places[index][1])
        for index, (start, end) in zip(answers, spans, strict=True)
    }
    return Shape((*pieces, text[rest:]), tuple(trims), around)
