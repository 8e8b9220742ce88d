"""Rows that already hold a list of turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipe_kit.errors import FormatError
from recipe_kit.formatters._declare import formatter
from recipe_kit.formatters._example import Message, MessagesExample, Row, check_messages
from recipe_kit.options import shown

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}


@formatter(
    "messages",
    columns=["messages"],
    example={
        "messages": [
            {"role": "user", "content": "Is the pool open on Sunday?"},
            {"role": "assistant", "content": "Yes, from nine to five."},
        ]
    },
)
def messages(row: Row) -> MessagesExample:
    """Conversations in the OpenAI form: a `messages` list of `role` and `content`.

    Roles are system, user, assistant and tool. Content is text, or a list of `{"type": "text", "text": ...}` parts,
    which are joined with nothing between them; other parts raise FormatError. `train: false` on a message, or OpenAI's
    `weight: 0`, leaves it out of the loss. Tool calls raise FormatError. Other keys of a message, such as `name`, and
    other columns, such as `tools`, are not read. Text is kept exactly as it is.
    """
    return {"messages": read_messages(row.get("messages"), "messages", trained=True)}


@formatter(
    "sharegpt",
    columns=["conversations"],
    example={
        "conversations": [
            {"from": "system", "value": "You work at the lost property office."},
            {"from": "human", "value": "I left a red umbrella on tram 4."},
            {"from": "gpt", "value": "It was handed in this morning."},
        ]
    },
)
def sharegpt(row: Row) -> MessagesExample:
    """Conversations in the ShareGPT form: a `conversations` list of `from` and `value`.

    `human` and `user` become user; `gpt`, `assistant` and `model` become assistant; `system` stays. Any other `from`
    raises FormatError. `train: false` or `weight: 0` on a turn leaves it out of the loss; other keys are not read.
    Text is kept exactly as it is.
    """
    turns: list[Message] = []
    for index, turn in enumerate(_turns(row.get("conversations"), "conversations")):
        speaker, place = turn.get("from"), f"conversations[{index}]"
        if speaker is None and "role" in turn:
            raise FormatError(
                f"{place} has 'role' and not 'from': use the messages formatter with "
                "data.formatter.columns: {messages: conversations}",
                column="conversations",
            )
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise FormatError(
                f"{place}: from should be one of {', '.join(SHAREGPT_ROLES)}, got {shown(speaker)}",
                column="conversations",
            )
        turns.append(_message(SHAREGPT_ROLES[speaker], turn.get("value"), turn, place, "conversations"))
    return {"messages": check_messages(turns, "conversations", trained=True)}


def read_messages(value: object, column: str, *, trained: bool) -> list[Message]:
    """OpenAI messages in our form, checked. A None stands for an absent key: Arrow fills in what some rows lack."""
    read = [_read_message(turn, f"{column}[{index}]", column) for index, turn in enumerate(_turns(value, column))]
    return check_messages(read, column, trained=trained)


def _read_message(turn: Mapping[Any, Any], place: str, column: str) -> Message:
    if "role" not in turn and "from" in turn:
        raise FormatError(
            f"{place} has 'from' and not 'role': use the sharegpt formatter with "
            f"data.formatter.columns: {{conversations: {column}}}",
            column=column,
        )
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            raise FormatError(f"{place} holds {key}, which recipe-kit cannot train on yet", column=column)
    return _message(turn.get("role"), _content(turn.get("content"), place, column), turn, place, column)


def _message(role: Any, content: Any, turn: Mapping[Any, Any], place: str, column: str) -> Message:
    """A message that still has to be checked, with what the turn says about training on it."""
    message: Message = {"role": role, "content": content}
    train, weight = turn.get("train"), turn.get("weight")
    if weight not in (None, 0, 1):
        raise FormatError(f"{place}: weight should be 0 or 1, got {shown(weight)}", column=column)
    if train is not None:
        message["train"] = train
    elif weight == 0:
        message["train"] = False
    return message


def _content(content: object, place: str, column: str) -> Any:
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise FormatError(f"{place}: only text parts can be trained on, got {shown(kind)}", column=column)
    return "".join(part["text"] for part in content)


def _turns(value: object, column: str) -> Sequence[Mapping[Any, Any]]:
    if not isinstance(value, list | tuple):
        raise FormatError(f"column {column!r} should hold a list of turns, got {shown(value)}", column=column)
    for index, turn in enumerate(value):
        if not isinstance(turn, Mapping):
            raise FormatError(f"{column}[{index}] should be a mapping, got {shown(turn)}", column=column)
    return value
