"""The model card of a run, made of the files in its folder alone, and a lint for any card.

`facts` reads the folder, `metadata` and `body` say what is in it, `lint` looks for what the Hub would refuse and what
a reader would miss. No number is there without a measurement behind it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from recipe_kit import run_dir
from recipe_kit.card import facts as _facts
from recipe_kit.card.body import body
from recipe_kit.card.facts import Facts, What
from recipe_kit.card.licences import Duties, begins_with, duties
from recipe_kit.card.lint import Finding, lint
from recipe_kit.card.metadata import block, metadata

__all__ = [
    "Duties",
    "Finding",
    "What",
    "Written",
    "begins_with",
    "duties",
    "is_ours",
    "keep",
    "lint",
    "notice",
    "of",
    "render",
    "write",
]

EARLIER = "README.earlier.md"


@dataclass(frozen=True)
class Written:
    """A card on disk: what it lacks, with the recipe key that would supply it, and what the lint says of it."""

    path: Path
    missing: list[str]
    findings: list[Finding]
    earlier: Path | None = None  # where a card that somebody had changed is kept


def render(run: str | Path, *, what: str | None, repo_id: str | None = None) -> str:
    """The card of a finished run, metadata and text.

    `what` is adapter, merged or both, as the recipe says where it is None; for a run that trained all weights it is
    merged. Raises RunError or RecipeError for a folder that is no finished run, CardError for what it cannot publish.
    """
    return of(_facts.read(run, what=what, repo_id=repo_id))


def of(facts: Facts) -> str:
    """The card of these facts, metadata and text."""
    return f"{block(metadata(facts))}\n{body(facts)}"


def write(run: str | Path, *, what: str | None = None, repo_id: str | None = None) -> Written:
    """Write the card into the run folder. A card there that somebody has changed is kept beside it."""
    facts = _facts.read(run, what=what, repo_id=repo_id)
    text = of(facts)
    path, earlier = keep(facts.run, text)
    return Written(path, missing(facts), lint(text, run=facts.run, what=facts.what, repo_id=repo_id), earlier)


def keep(run: Path, text: str) -> tuple[Path, Path | None]:
    """Write a card of ours into the run folder, noted as ours: where it is, and where a changed one is kept."""
    path, earlier = run / run_dir.CARD, None
    run_dir.check_changeable(run)
    if path.is_file():
        there = path.read_text(encoding="utf-8", errors="replace")
        if there != text and not is_ours(run, there):
            earlier = path.replace(path.with_name(EARLIER))
    run_dir.write_text(path, text)
    run_dir.update(run, card_sha256=_digest(text))
    return path, earlier


def is_ours(run: Path, text: str) -> bool:
    """Whether the kit wrote this card of the run and nobody changed it since; what it is made of may have changed."""
    return run_dir.read(run).get("card_sha256") == _digest(text)


def missing(facts: Facts) -> list[str]:
    """What the card does not say, each with what would supply it."""
    card = facts.recipe.card
    license_ = "licence, which the base's card does not tell: card.license"
    if "llama" in (facts.base_id or "").casefold():
        license_ += " (those of Llama ask for a name, a line and a notice on the card)"
    needs_merge = facts.what != "adapter" and not facts.is_full and not facts.merge
    wanted = [
        (not facts.license, license_),
        (not facts.languages, "language of the data: card.language"),
        (not card.intended_use, "what it is for: card.intended_use"),
        (not card.out_of_scope, "what it is not for: card.out_of_scope"),
        (not card.limitations, "what it should not be trusted with: card.limitations"),
        (not card.data, "where the rows come from, and their licence: card.data"),
        (not card.developed_by, "who made it: card.developed_by"),
        (not card.contact, "where to ask: card.contact"),
        (not card.citation, "how to cite it: card.citation"),
        (facts.base_id is None, "Hub id of the base model: card.base_model"),
        (facts.repo_id is None, "repository, for the code that loads it: publish.repo_id, or --repo-id"),
        (facts.metrics is None, f"scores: recipe-kit eval {facts.run}"),
        (needs_merge, f"merged weights: recipe-kit merge {facts.run}"),
    ]  # fmt: skip
    return [text for lacks, text in wanted if lacks]


def notice(facts: Facts) -> str | None:
    """The text of the NOTICE file that the base's licence asks for beside the weights; None where it asks for none."""
    asked = facts.duties
    if asked.notice is None:
        return None
    base = facts.base_id or facts.base_name
    lines = [asked.notice, "", f"{facts.title} was made from {base} by fine-tuning; its weights were changed."]
    lines += [f"{asked.license_name}: {asked.link}"] if asked.link else []
    lines += [f"Uses that it rules out: {asked.policy}"] if asked.policy else []
    return "\n".join(lines) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
