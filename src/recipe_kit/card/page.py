"""A card taken apart: metadata with the lines of its keys, headings, code blocks, and which lines are what."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

_OPENS = re.compile(r"\A(?:\ufeff)?\s*---[ \t]*\n")
_CLOSES = re.compile(r"^---[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^\s{0,3}(?:>\s?)*\s*(`{3,}|~{3,})\s*([\w+-]*)")
_HEADING = re.compile(r"^\s{0,3}(#{1,6})(?:\s+(.*?))?\s*#*\s*$")


@dataclass(frozen=True)
class Heading:
    line: int
    depth: int
    text: str
    is_empty: bool  # nothing but other headings of the same depth or above, or the end, comes after it


@dataclass(frozen=True)
class Code:
    """A fenced block. `line` is that of its first line of code."""

    line: int
    language: str
    text: str


@dataclass
class Page:
    """A card. Lines are counted from 1, over the whole file."""

    lines: list[str]
    data: dict[str, Any] | None = None  # None: no metadata, or none that can be read
    error: tuple[int, str] | None = None  # where and why the metadata cannot be read
    key_lines: dict[str, int] = field(default_factory=dict)
    first_body_line: int = 1
    headings: list[Heading] = field(default_factory=list)
    code: list[Code] = field(default_factory=list)
    in_code: set[int] = field(default_factory=set)
    unclosed: int = 0  # line of a fence that nothing closes

    @property
    def prose(self) -> list[tuple[int, str]]:
        """Lines of the body that are the card's own words: no code, no quotation."""
        return [
            (number, line)
            for number, line in enumerate(self.lines, start=1)
            if number >= self.first_body_line and number not in self.in_code and not line.lstrip().startswith(">")
        ]


def parse(text: str) -> Page:
    """Take a card apart; never raises."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    page = Page(text.split("\n"))
    _metadata(text, page)
    _body(page)
    return page


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, as the Hub does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key is no word", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _metadata(text: str, page: Page) -> None:
    opening = _OPENS.match(text)
    closing = _CLOSES.search(text, opening.end()) if opening else None
    if opening is None or closing is None:
        page.error = (1, "it has no metadata: begin it with a block of YAML between two lines of ---")
        return
    before = text[: opening.end()].count("\n")
    page.first_body_line = text[: closing.end()].count("\n") + 2
    block = text[opening.end() : closing.start()]
    try:
        node = yaml.compose(block, Loader=yaml.SafeLoader)
        data = yaml.load(block, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "is no YAML"
        page.error = (before + (mark.line + 1 if mark else 1), f"the metadata cannot be read: {reason}")
        return
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        page.error = (before + 1, "the metadata is no mapping: write `key: value` lines")
        return
    page.data = data
    page.key_lines = {str(key.value): before + key.start_mark.line + 1 for key, _ in node.value}


def _body(page: Page) -> None:
    found: list[tuple[int, int, str]] = []
    filled: set[int] = set()  # lines that say something
    fence, opened, language = "", 0, ""
    for number, line in enumerate(page.lines, start=1):
        if number < page.first_body_line:
            continue
        mark = _FENCE.match(line)
        if fence:
            page.in_code.add(number)
            filled.add(number)
            closes = mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not mark[2]
            if closes:
                page.code.append(Code(opened + 1, language, "\n".join(page.lines[opened : number - 1])))
                fence = ""
        elif mark:
            fence, opened, language = mark[1], number, mark[2].lower()
            page.in_code.add(number)
        elif heading := _HEADING.match(line):
            found.append((number, len(heading[1]), (heading[2] or "").strip()))
        elif re.sub(r"<!--.*?-->|</?\w[^>]*>", "", line).strip():
            filled.add(number)
    page.unclosed = opened if fence else 0
    for place, (number, depth, words) in enumerate(found):
        end = next((n for n, d, _ in found[place + 1 :] if d <= depth), len(page.lines) + 1)
        page.headings.append(Heading(number, depth, words, not any(number < n < end for n in filled)))
