"""What a chat template writes around each message, found by rendering chats of marker words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

Message = dict[str, str]  # role, content
Render = Callable[[Sequence[Message], bool], str | None]  # messages, with generation prompt; None: refused


class Inexpressible(Exception):  # noqa: N818 - an answer, not a failure: says why, as the end of a sentence
    """A template that is no sequence of turns, each the same wherever it stands."""


@dataclass(frozen=True)
class Turns:
    """The texts before and after each role's message.

    `opening` stands before all else, unless the chat begins with a system message that is a turn of its own. What
    follows an assistant's message is left out when it is the last: then the model is to go on with it.
    """

    opening: str
    system: tuple[str, str] | None  # None: the template takes no system message
    folded: bool  # the system message stands inside the first user turn, before its message
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str  # what asks for an answer, after a last user message


def take_apart(render: Render) -> Turns:
    """The turns of a template. Raises Inexpressible when it does not write each turn the same way."""
    first, to_assistant, to_user, again, and_again, end = _around(render, ["user", "assistant"] * 2 + ["user"], True)
    if (to_assistant, to_user) != (again, and_again):
        raise Inexpressible("the chat template writes a later turn differently from an earlier one")
    unanswered = _around(render, ["user"], False)[-1]
    answered = _around(render, ["user", "assistant"], False)[-1]
    user_after = _common_start(to_assistant, end, unanswered)
    assistant_after = _common_start(to_user, answered)
    later = to_user[len(assistant_after) :]
    user_before = _common_end(first, later)
    opening = first.removesuffix(user_before)
    # A later turn may open with more than the first, such as a BOS where the tokenizer itself adds the first one.
    assistant_after += later.removesuffix(user_before)
    system, folded = _system(render, opening, user_before, [to_assistant, to_user, end])
    return Turns(
        opening=opening,
        system=system,
        folded=folded,
        user=(user_before, user_after),
        assistant=(to_assistant[len(user_after) :], assistant_after),
        answer=end[len(user_after) :],
    )


def _system(render: Render, opening: str, user_before: str, rest: list[str]) -> tuple[tuple[str, str] | None, bool]:
    """The texts around a system message, and whether it stands inside the first user turn."""
    roles = ["system", "user", "assistant", "user"]
    if render(_chat(roles), True) is None:
        return None, False
    before, after, *others = _around(render, roles, True)
    if others != rest:
        raise Inexpressible("the chat template writes later turns differently after a system message")
    if user_before and after.endswith(user_before):
        return (before, after.removesuffix(user_before)), False
    if before.startswith(opening + user_before):
        return (before.removeprefix(opening + user_before), after), True
    raise Inexpressible("the chat template puts a system message neither before the first turn nor inside it")


def _around(render: Render, roles: list[str], answer: bool) -> list[str]:
    """The texts before, between and after the messages of a chat of these roles: one more than messages."""
    chat = _chat(roles)
    text = render(chat, answer)
    if text is None:
        raise Inexpressible(f"the chat template refuses a chat of {', '.join(roles)}")
    pieces = []
    for message in chat:
        before, found, text = text.partition(message["content"])
        if not found or message["content"] in text:
            raise Inexpressible(f"the chat template does not write the {message['role']} message exactly once")
        pieces.append(before)
    return [*pieces, text]


def _chat(roles: list[str]) -> list[Message]:
    return [{"role": role, "content": f"q{role}{number}q"} for number, role in enumerate(roles)]


def _common_start(*texts: str) -> str:
    same = takewhile(lambda letters: len({*letters}) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _common_end(*texts: str) -> str:
    return _common_start(*(text[::-1] for text in texts))[::-1]
