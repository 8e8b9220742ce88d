"""What is wrong with a card: what the Hub would refuse, what a reader would stumble over, what must not be public.

Any card can be looked at. With the folder of its run, what it says is compared with the run's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipe_kit.card import lint_licence, lint_metadata, lint_run
from recipe_kit.card.licences import duties_of
from recipe_kit.card.page import Page, parse
from recipe_kit.card.private import LOCAL_PATH
from recipe_kit.secrets import found_in

# Words of a template in the place of one. A model may well write TODO lists, or ask for your username.
_PLACEHOLDER = re.compile(
    r"\[?\bmore information needed\b\]?|\blorem ipsum\b|\[INSERT[^\]]*\]|<!--"
    r"|(?-i:(?:(?<=^)\W*|(?<=[:|\[(])\s*)\b(?:TODO|FIXME|TBD)\b(?=\W*$|[:\])|])|\b(?:TODO|FIXME|TBD)(?=:))"
    r"|\{\{ ?(?:[a-z_]+ ?\||card_data|model_).*?\}\}|\byour[-_](?:user_?name|repo)\b|<your (?:user ?name|repo)",
    re.IGNORECASE,
)
_PLACEHOLDER_IN_CODE = re.compile(
    r"\{\{ ?\w+ ?\| ?default|\byour[-_]user_?name(?=/)"
    r"|(?<=[\"'/])(?:your[-_](?:user_?name|repo(?:_?id)?)\b|<your[ _-])",
    re.IGNORECASE,
)
_SETTINGS = ("yaml", "yml", "jinja", "jinja2")  # of a run: what they hold was trained with, and is nobody's template
_SAID = {
    "intended use": re.compile(r"\buses?\b|\busage\b|\bpurpose\b|\bapplication", re.IGNORECASE),
    "limitations": re.compile(r"\blimit|\bbias|\brisk|\bcaveat|out.of.scope", re.IGNORECASE),
}


@dataclass(frozen=True)
class Finding:
    """One thing about a card. `line` is 0 where it is about the card as a whole."""

    level: Literal["error", "warning"]
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {f'line {self.line}: ' if self.line else ''}{self.message}"


def lint(text: str, *, run: Path | None = None, what: str | None = None, repo_id: str | None = None) -> list[Finding]:
    """What is wrong with a card, errors first, each with what to do about it.

    With `run`, the card is compared with that run's files; `what` says what is published of it, and by default it is
    what the card's own metadata says. `repo_id` is the name it is published under. Raises RunError for a folder that
    is no finished run.
    """
    page = parse(text)
    found = [*_errors(page, repo_id), *_private(page), *_warnings(page)]
    if run is not None:
        found += [Finding(*entry) for entry in lint_run.compare(page, text, run, what, repo_id)]
    return sorted(dict.fromkeys(found), key=lambda finding: (finding.level != "error", finding.line))


def _errors(page: Page, repo_id: str | None) -> Iterator[Finding]:
    if page.error:
        yield Finding("error", *page.error)
    if page.data is not None:
        yield from (Finding(*entry) for entry in lint_metadata.check(page))
        unmet = lint_licence.unmet(page, duties_of(page.data), repo_id)
        yield from (Finding("error", line, message) for line, message in unmet)
    for number, line in page.prose:
        if placeholder := _PLACEHOLDER.search(line):
            found = placeholder[0].strip()
            yield Finding("error", number, f"{found!r} is text of a template: say what is so, or take it out")
    for block in page.code:
        for number, line in enumerate(block.text.split("\n"), start=block.line):
            if block.language not in _SETTINGS and (placeholder := _PLACEHOLDER_IN_CODE.search(line)):
                yield Finding("error", number, f"{placeholder[0]!r} is text of a template: write the real name")
    for heading in page.headings:
        if heading.is_empty or not heading.text:
            yield Finding(
                "error", heading.line, f"nothing stands under the heading {heading.text!r}: fill it, or take it out"
            )
    yield from (_compiled(block.text, block.line) for block in page.code if _is_bad_python(block.language, block.text))
    if page.unclosed:
        yield Finding("error", page.unclosed, "this code block is not closed, and all that follows is shown as code")


def _private(page: Page) -> Iterator[Finding]:
    """Paths and secrets, wherever they stand. What was found is not repeated where it is a secret."""
    for number, line in enumerate(page.lines, start=1):
        if path := LOCAL_PATH.search(line):
            yield Finding(
                "error", number, f"{path[0]} is a path of somebody's machine: name the file or the Hub id alone"
            )
        for _, kind in found_in(line):
            yield Finding("error", number, f"this looks like {kind}: take it out, and revoke it if it was ever public")


def _is_bad_python(language: str, text: str) -> bool:
    return (
        language in ("python", "py", "python3")
        and not text.lstrip().startswith(">>>")
        and _syntax_error(text) is not None
    )


def _syntax_error(text: str) -> SyntaxError | None:
    import ast
    import textwrap
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings, which is their author's business
        try:
            ast.parse(textwrap.dedent(text))
        except SyntaxError as error:
            return error
        except ValueError as error:  # null bytes
            return SyntaxError(str(error))
    return None


def _compiled(text: str, line: int) -> Finding:
    error = _syntax_error(text)
    assert error is not None
    return Finding("error", line + (error.lineno or 1) - 1, f"this Python does not compile ({error.msg}): correct it")


def _warnings(page: Page) -> Iterator[Finding]:
    data = page.data or {}
    wanted = {
        "license": "no licence: nobody knows what they may do with it",
        "language": "no language: the Hub cannot find it by one",
        "library_name": "no library_name: the Hub guesses no library, and shows no code to load it",
        "pipeline_tag": "no pipeline_tag: the Hub cannot file it under a task",
        "base_model": "no base_model: the Hub cannot show what it was made from",
        "datasets": "no datasets: the Hub cannot show what it learnt from",
        "model-index": "no scores in the metadata (model-index)",
    }
    for key, message in wanted.items():
        if page.data is not None and not data.get(key):
            yield Finding("warning", 0, message)
    titles = [heading.text for heading in page.headings]
    for what, pattern in _SAID.items():
        if not any(pattern.search(title) for title in titles):
            yield Finding("warning", 0, f"no section about {what}")
    if not page.code:
        yield Finding("warning", 0, "no code that shows how to use it")
