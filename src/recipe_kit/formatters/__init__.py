"""Formatters: pure functions that turn one row of a dataset into something to learn.

Usable on its own: this package needs the standard library only. `docs/formatters.md` is the guide.

    >>> from recipe_kit.formatters import get_formatter
    >>> get_formatter("support")({"instruction": "Where is my parcel?", "response": "Let me look."})["completion"]
    [{'role': 'assistant', 'content': 'Let me look.'}]
"""

from __future__ import annotations

from recipe_kit.errors import FormatError, SkipRow
from recipe_kit.formatters import chat, exchange, guanaco, plain  # noqa: F401 - importing registers the built-ins
from recipe_kit.formatters._declare import (
    REQUIRED,
    Formatter,
    FormatterInfo,
    Option,
    bind,
    check_columns,
    check_options,
    describe_formatter,
    format_row,
    formatter,
    formatter_names,
    get_formatter,
)
from recipe_kit.formatters._example import (
    Example,
    Message,
    MessagesExample,
    PromptCompletionExample,
    Row,
    TextExample,
    assistant,
    check_example,
    system,
    text_cell,
    user,
)

__all__ = [
    "REQUIRED",
    "Example",
    "FormatError",
    "Formatter",
    "FormatterInfo",
    "Message",
    "MessagesExample",
    "Option",
    "PromptCompletionExample",
    "Row",
    "SkipRow",
    "TextExample",
    "assistant",
    "bind",
    "check_columns",
    "check_example",
    "check_options",
    "describe_formatter",
    "format_row",
    "formatter",
    "formatter_names",
    "get_formatter",
    "system",
    "text_cell",
    "user",
]
