"""Conversations written into one text with turn markers."""

from __future__ import annotations

import re

from recipe_kit.errors import FormatError, SkipRow
from recipe_kit.formatters._declare import formatter
from recipe_kit.formatters._example import (
    Message,
    MessagesExample,
    Row,
    assistant,
    check_messages,
    system,
    text_cell,
    user,
)

# Four hashes are a heading of somebody's answer, not a marker; but one of them may end a word, as in C#.
_HASH_MARKER = re.compile(r"(?:(?<!#)|(?<=[^\s#]#))### (Human|Assistant):")
# [INST] opens a turn at the start and after </s> or <s> only, so that a question may speak of [INST].
_INST_MARKER = re.compile(r"(?:\A|</s>\s*(?:<s>\s*)?|<s>\s*)\[INST\]")
_SYSTEM_BLOCK = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


@formatter(
    "guanaco",
    columns=["text"],
    example={"text": "### Human: Is a tomato a fruit?### Assistant: Botanically, yes.### Human: And in the kitchen?"},
)
def guanaco(row: Row) -> MessagesExample:
    """Conversations in one `text` column, marked `### Human:` and `### Assistant:`, or `[INST]` and `[/INST]`.

    The text begins with `### Human:` or with `[INST]`, which may follow `<s>`; that decides the form. In the first
    form a marker counts wherever it stands, with or without a line break before it: `### Human:` quoted inside an
    answer cannot be told from a turn. In the second, `[INST]` opens a turn at the start and after `</s>` or `<s>`, the
    first `[/INST]` closes the question, and a `<<SYS>>` block in the first question becomes a system turn.

    White space around a turn and `<s>` and `</s>` at its ends are removed; all inside it is kept. Last turns without
    an answer are dropped; a row where none is left raises SkipRow. Any other text, an empty turn in the middle, or
    two turns of the same speaker in a row raises FormatError.
    """
    text = text_cell(row, "text").strip().removeprefix("<s>").lstrip()
    if text.startswith("### Human:"):
        turns = _hash_turns(text)
    elif text.startswith("[INST]"):
        turns = _inst_turns(text)
    else:
        raise _unfit("begins with neither '### Human:' nor '[INST]'")
    while turns and not (turns[-1]["role"] == "assistant" and turns[-1]["content"]):
        turns.pop()
    if not turns:
        raise SkipRow("no turn is answered", column="text")
    _check_order(turns)
    return {"messages": check_messages(turns, "text", trained=True)}


def _hash_turns(text: str) -> list[Message]:
    _, *pieces = _HASH_MARKER.split(text)  # role, content, role, content, ...
    make = {"Human": user, "Assistant": assistant}
    return [make[role](_trim(content)) for role, content in zip(pieces[::2], pieces[1::2], strict=True)]


def _inst_turns(text: str) -> list[Message]:
    turns: list[Message] = []
    _, *pieces = _INST_MARKER.split(text)
    for piece in pieces:
        question, closed, answer = piece.partition("[/INST]")
        if not closed:
            raise _unfit("has '[INST]' without '[/INST]'")
        if "[/INST]" in answer.partition("[INST]")[2]:
            raise _unfit("opens a turn with '[INST]' inside an answer; '</s>' should stand before it")
        block = _SYSTEM_BLOCK.match(question) if not turns else None
        if block:
            question = question[block.end() :]
            turns += [system(block[1].strip())] if block[1].strip() else []
        turns += [user(_trim(question)), assistant(_trim(answer))]
    return turns


def _trim(turn: str) -> str:
    return turn.strip().removeprefix("<s>").removesuffix("</s>").strip()


def _check_order(turns: list[Message]) -> None:
    expected = "user"
    for number, turn in enumerate((turn for turn in turns if turn["role"] != "system"), start=1):
        if turn["role"] != expected:
            raise _unfit(f"has two {turn['role']} turns in a row (turn {number})")
        if not turn["content"]:
            raise _unfit(f"has an empty {turn['role']} turn (turn {number})")
        expected = "assistant" if expected == "user" else "user"


def _unfit(fact: str) -> FormatError:
    return FormatError(f"column 'text' {fact}", column="text")
