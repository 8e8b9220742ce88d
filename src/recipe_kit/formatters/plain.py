"""Plain text, for continued pre-training."""

from __future__ import annotations

from recipe_kit.formatters._declare import formatter
from recipe_kit.formatters._example import Row, TextExample, text_cell


@formatter("text", columns=["text"], example={"text": "Rye dough is sticky. Wet your hands before shaping it."})
def text(row: Row) -> TextExample:
    """Plain text, learned whole: no roles, no chat template, every token in the loss.

    The text is kept exactly as it is. A blank text raises FormatError.
    """
    return {"text": text_cell(row, "text")}
