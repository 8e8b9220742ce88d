"""Rows that hold one question and one answer, whatever their columns call them.

Each becomes a prompt and a completion, so the loss is on the answer. Text is kept exactly as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from recipe_kit.errors import FormatError, SkipRow
from recipe_kit.formatters import _example
from recipe_kit.formatters._declare import formatter
from recipe_kit.formatters._example import (
    Message,
    PromptCompletionExample,
    Row,
    assistant,
    text_cell,
    user,
)
from recipe_kit.formatters.chat import read_messages
from recipe_kit.options import shown


@formatter(
    "alpaca",
    columns=["instruction", "output"],
    optional_columns=["input"],
    example={
        "instruction": "Name the colour in this sentence.",
        "input": "The gate was painted green last spring.",
        "output": "Green.",
    },
)
def alpaca(row: Row, *, separator: str = "\n\n", system: str | None = None) -> PromptCompletionExample:
    """Instructions in the Alpaca form: `instruction`, an `input` that may be blank or absent, and `output`.

    The user turn is the instruction, followed by `separator` and the input when there is one. `system` adds a system
    turn. A blank instruction or output raises FormatError.
    """
    prompt = text_cell(row, "instruction")
    context = row.get("input")
    if context is not None and not isinstance(context, str):
        raise FormatError(f"column 'input' should hold text, got {shown(context)}", column="input")
    if context and context.strip():
        prompt += separator + text_cell(row, "input")
    return _exchange(prompt, text_cell(row, "output"), system)


@formatter(
    "prompt_completion",
    columns=["prompt", "completion"],
    example={"prompt": "Plural of 'ox'?", "completion": "Oxen."},
)
def prompt_completion(row: Row, *, system: str | None = None) -> PromptCompletionExample:
    """A `prompt` and a `completion`, each as text or as a list of messages.

    Text becomes one user turn and one assistant turn. Lists of messages are read as the messages formatter reads them.
    `system` adds a system turn in front of the prompt. A blank text, an empty list, or a completion without an
    assistant message raises FormatError.
    """
    prompt, completion = row.get("prompt"), row.get("completion")
    return {
        "prompt": _opening(system)
        + (
            read_messages(prompt, "prompt", trained=False)
            if isinstance(prompt, list | tuple)
            else [user(text_cell(row, "prompt"))]
        ),
        "completion": read_messages(completion, "completion", trained=True)
        if isinstance(completion, list | tuple)
        else [assistant(text_cell(row, "completion"))],
    }


@formatter(
    "question_answer",
    columns=["question", "response"],
    example={"question": "Kal ka weather kaisa hai?", "response": "Kal halki baarish ho sakti hai."},
)
def question_answer(
    row: Row,
    *,
    system: str | None = None,
    error_markers: Sequence[str] = ("ERROR:", "No API keys available"),
) -> PromptCompletionExample:
    """A `question` and its `response`, leaving out responses that are a data service's error message.

    A response is an error message when it begins with a marker that ends in a colon, or contains any other marker,
    capitals or not. So an answer that speaks of an error is kept, and one that begins "Error:" is not; set
    `error_markers: []` to keep all. Rows left out are counted as skipped. `system` adds a system turn. A blank
    question or response raises FormatError.
    """
    question, response = text_cell(row, "question"), text_cell(row, "response")
    lowered = response.lstrip().lower()
    for marker in error_markers:
        wanted = marker.lower()
        if lowered.startswith(wanted) or (not wanted.endswith(":") and wanted in lowered):
            raise SkipRow(f"response is an error message ({marker!r})", column="response")
    return _exchange(question, response, system)


@formatter(
    "support",
    columns=["instruction", "response"],
    example={
        "instruction": "how do i change the name on my ticket",
        "response": "Open {{My Bookings}}, choose the ticket and press Edit name.",
    },
)
def support(row: Row, *, system: str | None = None) -> PromptCompletionExample:
    """A customer's `instruction` and the agent's `response`.

    `{{placeholders}}` are kept, so the model learns to write them and the caller fills them in. `system` adds a system
    turn. A blank instruction or response raises FormatError.
    """
    return _exchange(text_cell(row, "instruction"), text_cell(row, "response"), system)


@formatter(
    "dialogue_summary",
    columns=["dialogue", "summary"],
    example={
        "dialogue": "Ines: Did you water the basil?\nTomek: Twice. It still looks sad.",
        "summary": "Tomek watered the basil twice, but it looks sad.",
    },
)
def dialogue_summary(row: Row, *, instruction: str = "Summarise the dialogue.") -> PromptCompletionExample:
    """A `dialogue` to read, under an `instruction`, and the `summary` to learn.

    The prompt is the instruction, an empty line and the dialogue. A blank dialogue or summary raises FormatError.
    """
    return _exchange(f"{instruction}\n\n{text_cell(row, 'dialogue')}", text_cell(row, "summary"), None)


def _exchange(prompt: str, answer: str, system: str | None) -> PromptCompletionExample:
    return {"prompt": [*_opening(system), user(prompt)], "completion": [assistant(answer)]}


def _opening(system: str | None) -> list[Message]:
    return [_example.system(system)] if system else []
