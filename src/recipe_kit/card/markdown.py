"""Pieces of Markdown as the Hub shows it. Text of others is escaped: whatever it says, it must not become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from recipe_kit.card.page import parse

_MARKUP = re.compile(r"[\\`*\[\]~|$]|(?<!\w)_|_(?!\w)|^\s*[#>]", re.MULTILINE)  # `$` opens a formula on the Hub
_TAG = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_OPENING = re.compile(r"^(\s*)([-+=]|\d+[.)])(?=\s|$|-|=)", re.MULTILINE)


def plain(text: str) -> str:
    """Text that is shown as it is, on one line or several."""
    text = _TAG.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", text)
    text = _MARKUP.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", text)
    return _OPENING.sub(lambda found: f"{found[1]}{found[2][:-1]}\\{found[2][-1]}", text)


def cell(text: str) -> str:
    """Text of others in a table."""
    return plain(" ".join(text.split()))


def quoted(said: Iterable[tuple[str, str]]) -> str:
    """One quotation of (who, what they said), with line breaks and indentation as they are."""
    return "\n>\n".join(_said(who, text) for who, text in said)


def _said(who: str, text: str) -> str:
    lines = []
    for line in text.strip().splitlines() or ["*(nothing)*"]:
        indent = len(line) - len(line.lstrip())
        shown = plain(line.strip()) if text.strip() else line
        lines.append(f"{'&nbsp;' * min(indent, 8)}{shown}")
    start = f"> **{who}:** " if len(lines) == 1 else f"> **{who}:**  \n> "
    return (start + "  \n> ".join(lines)).replace("\n>   \n", "\n>\n").rstrip()


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of cells that are Markdown already; the columns in `numbers` are set to the right."""
    rule = ["---:" if place in numbers else "---" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A table of names and values; what has no value is left out."""
    rows = [(name, value) for name, value in pairs if value]
    return table(("", ""), rows) if rows else ""


def bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def words_of_author(text: str | None) -> str:
    """What the recipe's author says, as it is: Markdown is welcome there. A block of code left open is closed."""
    said = (text or "").strip()
    page = parse(said)
    fence = re.search(r"`{3,}|~{3,}", page.lines[page.unclosed - 1]) if page.unclosed else None
    return f"{said}\n{fence[0]}" if fence else said


def fenced(text: str, language: str) -> str:
    """A block of code, with a fence longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def code(text: str) -> str:
    """A word of code inside a sentence."""
    tick = "``" if "`" in text else "`"
    pad = " " if tick == "``" else ""
    return f"{tick}{pad}{text}{pad}{tick}"


def details(summary: str, inner: str) -> str:
    """A part that opens when asked for."""
    return f"<details>\n<summary>{summary}</summary>\n\n{inner}\n\n</details>" if inner else ""


def section(heading: str, *parts: str) -> str:
    """A heading with what stands under it; "" where there is nothing to stand under it."""
    filled = [part for part in parts if part]
    return "\n\n".join((f"## {heading}", *filled)) if filled else ""


def model_link(hub_id: str) -> str:
    return f"[{plain(hub_id)}](https://huggingface.co/{hub_id})"


def dataset_link(hub_id: str) -> str:
    return f"[{plain(hub_id)}](https://huggingface.co/datasets/{hub_id})"
