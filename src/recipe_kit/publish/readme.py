"""The card and the notice that go with the weights: the card of the run folder where it fits, else a new one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipe_kit import card, run_dir
from recipe_kit.card.facts import Facts

PATH = "README.md"


@dataclass(frozen=True)
class Readme:
    """The card as it would be published. `problems` are the lint's errors, `notes` what the user should know."""

    text: str
    notice: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    is_new: bool  # to be written into the run folder before it is published

    def write(self, run: Path) -> None:
        """Write a new card into the run folder."""
        if self.is_new:
            card.keep(run, self.text)


def readme(run: Path, facts: Facts) -> Readme:
    """The card for what is published under this name.

    A card that the kit wrote, for another name or before the recipe's words were changed, is replaced. One that
    somebody has changed by hand is published as it is, or refused for what the lint finds: what was written by hand
    is not overwritten in passing.
    """
    fresh = card.of(facts)
    path = run / run_dir.CARD
    kept = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    text, notes = fresh, []
    if kept is None:
        notes.append(f"{PATH} is written anew")
    elif kept != fresh and card.is_ours(run, kept):
        notes.append(f"{PATH} is written anew, for {facts.what} and {facts.repo_id or 'no repository yet'}")
    elif kept != fresh:
        text = kept
        notes.append(f"{PATH} differs from what `recipe-kit card` writes, and is published as it stands")
    findings = card.lint(text, run=run, what=facts.what, repo_id=facts.repo_id)
    remedy = "correct it" if text == fresh else f"correct it, or let `recipe-kit card {run}` write it anew"
    problems = tuple(f"{PATH}: {finding.message}; {remedy}" for finding in findings if finding.level == "error")
    return Readme(text, card.notice(facts), problems, tuple(notes), is_new=text != kept)
