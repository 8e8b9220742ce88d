"""Whether a card does what the licence of its base asks of the name and the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from recipe_kit.card.licences import Duties, begins_with
from recipe_kit.card.page import Page


def unmet(page: Page, duties: Duties, repo_id: str | None) -> Iterator[tuple[int, str]]:
    """Each duty that a card does not fulfil: line and sentence."""
    line = page.key_lines.get("license", 0)
    words = "\n".join(text for _, text in page.prose).replace("\\", "")
    prefix = duties.name_prefix
    for what, name in _names(page, repo_id) if prefix else ():
        if not begins_with(name, str(prefix)):
            yield line, f"{duties.license_name} asks for a name that begins with {prefix!r}: {what} is {name!r}"
    if duties.built_with and duties.built_with.casefold() not in words.casefold():
        yield line, f"{duties.license_name} asks for the words {duties.built_with!r}: show them near the top"
    if duties.notice and _plain(duties.notice) not in _plain(words):
        yield line, f"{duties.license_name} asks for its notice: add the line {duties.notice!r}"


def _names(page: Page, repo_id: str | None) -> Iterator[tuple[str, str]]:
    """The names a model is published under, as far as they can be known."""
    if repo_id:
        yield "the repository", repo_id.rpartition("/")[2]
    data: dict[str, Any] = page.data or {}
    if isinstance(data.get("model_name"), str):
        yield "model_name", data["model_name"]
    index = data.get("model-index")
    for entry in index if isinstance(index, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield "the name in model-index", entry["name"]
    if page.headings and page.headings[0].depth == 1:
        yield "the title", page.headings[0].text.replace("\\", "")


def _plain(text: str) -> str:
    return re.sub(r"[\s.]+", " ", text.replace("(c)", "©").replace("*", "")).strip().casefold()
