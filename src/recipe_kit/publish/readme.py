"""The card and the notice that go with the weights: the card of the run folder where it fits, else a new one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from recipe_kit import card, run_dir
from recipe_kit.card.facts import Facts
from recipe_kit.errors import CardError

PATH = "README.md"
MOST_NAMES = 5  # names in an older card that it may have been written for

_QUOTED = re.compile(r"""["']([\w.-]+/[\w.-]+)["']""")


@dataclass(frozen=True)
class Readme:
    """The card as it would be published. `problems` are the lint's errors, `notes` what the user should know."""

    text: str
    notice: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    what: str
    repo_id: str | None
    is_new: bool  # to be written into the run folder before it is published

    def write(self, run: Path) -> None:
        """Write a new card into the run folder; one that says something else is kept beside it."""
        if self.is_new:
            card.write(run, what=self.what, repo_id=self.repo_id)


def readme(run: Path, facts: Facts) -> Readme:
    """The card for what is published under this name.

    A card that the kit wrote for something else is replaced. One that somebody has changed by hand is published as it
    is, or refused for what the lint finds: what was written by hand is not overwritten in passing.
    """
    fresh = card.render(run, what=facts.what, repo_id=facts.repo_id)
    path = run / run_dir.CARD
    kept = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    text, notes = fresh, []
    if kept is None:
        notes.append(f"{PATH} is written anew")
    elif kept != fresh and _is_generated(run, facts, kept):
        notes.append(f"{PATH} is written anew, for {facts.what} and {facts.repo_id or 'no repository yet'}")
    elif kept != fresh:
        text = kept
        notes.append(f"{PATH} differs from what `recipe-kit card` writes, and is published as it stands")
    findings = card.lint(text, run=run, what=facts.what, repo_id=facts.repo_id)
    remedy = "correct it" if text == fresh else f"correct it, or let `recipe-kit card {run}` write it anew"
    problems = tuple(f"{PATH}: {finding.message}; {remedy}" for finding in findings if finding.level == "error")
    return Readme(text, card.notice(run), problems, tuple(notes), facts.what, facts.repo_id, is_new=text != kept)


def _is_generated(run: Path, facts: Facts, text: str) -> bool:
    """Whether the kit wrote this card, for other weights of the run or under another name, which its code quotes."""
    quoted = [name for name in _QUOTED.findall(text) if name != facts.base_id]
    names = dict.fromkeys([None, facts.recipe.publish.repo_id, facts.repo_id, *quoted[:MOST_NAMES]])
    for what in ("adapter", "merged", "both"):
        for repo_id in names:
            try:
                if card.render(run, what=what, repo_id=repo_id) == text:
                    return True
            except CardError:  # this run has nothing of the kind
                break
    return False
