"""A formatter for help pages: a `heading` that is a question, and its answer as a list of `paragraphs`."""

from __future__ import annotations

from recipe_kit.formatters import FormatError, PromptCompletionExample, Row, assistant, formatter, text_cell, user


@formatter(
    "faq",
    columns=["heading", "paragraphs"],
    example={"heading": "Can I pay by invoice?", "paragraphs": ["Yes, from the second order on.", "Choose Invoice."]},
)
def faq(row: Row, *, product: str | None = None) -> PromptCompletionExample:
    """One help page as a question and its answer, paragraphs set apart by an empty line.

    `product` is named before the question, for a model that answers for several. A page without text raises
    FormatError.
    """
    paragraphs = row["paragraphs"]
    if not isinstance(paragraphs, list) or not all(isinstance(paragraph, str) for paragraph in paragraphs):
        raise FormatError("column 'paragraphs' should hold a list of texts", column="paragraphs")
    if not any(paragraph.strip() for paragraph in paragraphs):
        raise FormatError("column 'paragraphs' is blank", column="paragraphs")
    question = text_cell(row, "heading")
    return {
        "prompt": [user(f"[{product}] {question}" if product else question)],
        "completion": [assistant("\n\n".join(paragraphs))],
    }
