"""What a formatter returns, and the checks that make it safe to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict, cast

from recipe_kit.errors import FormatError
from recipe_kit.options import shown

Row: TypeAlias = Mapping[str, Any]


class Message(TypedDict):
    """One turn. `train: False` leaves an assistant turn out of the loss."""

    role: str
    content: str
    train: NotRequired[bool]


class MessagesExample(TypedDict):
    """A conversation; which turns are learned is decided by `data.train_on` and each turn's `train`."""

    messages: list[Message]


class PromptCompletionExample(TypedDict):
    """A prompt to read and the completion to learn."""

    prompt: list[Message]
    completion: list[Message]


class TextExample(TypedDict):
    """Plain text, learned whole, without a chat template."""

    text: str


Example: TypeAlias = MessagesExample | PromptCompletionExample | TextExample

ROLES = ("system", "user", "assistant", "tool")


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def text_cell(row: Row, column: str) -> str:
    """The text in one column, exactly as it is; FormatError naming the column when it is missing, blank or no text."""
    if column not in row:
        raise FormatError(f"column {column!r} is missing", column=column)
    value = row[column]
    if not isinstance(value, str):
        raise FormatError(f"column {column!r} should hold text, got {shown(value)}", column=column)
    if not value.strip():
        raise FormatError(f"column {column!r} is blank", column=column)
    _check_unicode(value, f"column {column!r}", column)
    return value


def check_example(example: object) -> Example:
    """The same example, once its shape, roles and types are right and it holds something to learn.

    Raises FormatError whose sentence and `column` name the part at fault (`messages`, `prompt`, `completion`, `text`).
    """
    keys = sorted(map(str, example)) if isinstance(example, Mapping) else None
    match keys:
        case ["messages"]:
            check_messages(cast(Row, example)["messages"], "messages", trained=True)
        case ["completion", "prompt"]:
            check_messages(cast(Row, example)["prompt"], "prompt", trained=False)
            check_messages(cast(Row, example)["completion"], "completion", trained=True)
        case ["text"]:
            text_cell(cast(Row, example), "text")
        case _:
            got = f"keys {', '.join(map(repr, keys)) or 'none'}" if keys is not None else shown(example)
            raise FormatError(
                "a formatter returns {'messages': ...}, {'prompt': ..., 'completion': ...} or {'text': ...}, "
                f"with no other key; got {got}"
            )
    return cast(Example, example)


def check_messages(messages: object, column: str, *, trained: bool) -> list[Message]:
    """The same messages, each with a known role and text; `trained` asks for an assistant message to learn from."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise FormatError(f"column {column!r} should hold a list of messages, got {shown(messages)}", column=column)
    if not messages:
        raise FormatError(f"column {column!r} holds no messages", column=column)
    for index, message in enumerate(messages):
        _check_message(message, f"{column}[{index}]", column)
    learned = (m for m in messages if m["role"] == "assistant" and m["content"].strip() and m.get("train", True))
    if trained and not any(learned):
        raise FormatError(f"column {column!r} has no assistant message with text to learn from", column=column)
    return cast(list[Message], messages)


def _check_message(message: object, place: str, column: str) -> None:
    if not isinstance(message, Mapping):
        raise FormatError(
            f"{place} should be a message with 'role' and 'content', got {shown(message)}", column=column
        )
    unknown = [key for key in message if key not in ("role", "content", "train")]
    if unknown:
        raise FormatError(
            f"{place} has key {shown(unknown[0])}; a message has 'role', 'content', 'train'", column=column
        )
    if message.get("role") not in ROLES:
        raise FormatError(
            f"{place}: role should be one of {', '.join(ROLES)}, got {shown(message.get('role'))}", column=column
        )
    if not isinstance(message.get("content"), str):
        raise FormatError(f"{place}: content should be text, got {shown(message.get('content'))}", column=column)
    if not isinstance(message.get("train", True), bool):
        raise FormatError(f"{place}: train should be true or false, got {shown(message['train'])}", column=column)
    _check_unicode(message["content"], place, column)


def _check_unicode(text: str, place: str, column: str) -> None:
    # A JSON file may hold half of a \ud83d\ude00 pair. Python reads it, tokenizers and Parquet stop on it much later.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{place} holds half of a surrogate pair at character {error.start}: not valid Unicode text", column=column
        ) from error
