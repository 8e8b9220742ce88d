"""A few answers of both models as they were measured: not chosen, and none with personal data in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipe_kit import quality
from recipe_kit.card.facts import Facts
from recipe_kit.card.markdown import quoted
from recipe_kit.card.private import is_private
from recipe_kit.report import words
from recipe_kit.report.files import Json, section

_LONGEST = 1_500  # characters of one text


def answers(facts: Facts) -> list[str]:
    """The sample answers, the recipe's fixed prompts first; empty where there are none, or none is wanted."""
    wanted = facts.recipe.card.samples
    lines = facts.record.samples if wanted else []
    fixed_first = sorted(lines, key=lambda line: line.get("kind", "held_out") != "prompt")
    shown = [line for line in fixed_first if not _is_personal(line, facts)]
    left_out = len(lines) - len(shown)
    note = ""
    if left_out:
        verb = "is left out: it holds" if left_out == 1 else "are left out: they hold"
        note = f"{words.counted(left_out, 'sample')} {verb} what looks like personal or private data."
    if not shown:
        return [note] if note else []
    parts = [f"{_kind(line)}\n\n{quoted(_said(line, facts))}" for line in shown[:wanted]]
    intro = "Greedy answers of both models as they were measured, in that order; none was picked."
    return [f"{intro} {note}".strip(), *parts]


def _kind(line: Json) -> str:
    return "A prompt of the recipe:" if line.get("kind") == "prompt" else "A held-out row:"


def _said(line: Json, facts: Facts) -> Iterator[tuple[str, str]]:
    """Who said what: the conversation without the system prompt that all share, both answers, and the reference."""
    for turn in line["prompt"]:
        if section(turn).get("content") != facts.recipe.data.system:
            yield str(section(turn).get("role", "")).capitalize(), _short(section(turn).get("content"))
    for which, name in (("base", "Base model"), ("tuned", "Tuned model")):
        answer = section(line, which)
        cut = (
            f" (cut off after {words.counted(answer.get('tokens'), 'token')})"
            if answer.get("stopped") is False
            else ""
        )
        yield name + cut, _short(answer.get("text"))
    if line.get("reference") is not None:
        yield "Reference", _short(line["reference"])


def _short(text: Any) -> str:
    told = text if isinstance(text, str) else ""
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]} … ({len(told) - _LONGEST:,} more characters)"


def _is_personal(line: Json, facts: Facts) -> bool:
    """Whether a sample holds an address, a number, a path or a secret that is nobody's business."""
    texts = [section(turn).get("content") for turn in line["prompt"]]
    texts += [section(line, which).get("text") for which in ("base", "tuned")] + [line.get("reference")]
    told = [text for text in texts if isinstance(text, str) and text != facts.recipe.data.system]
    return any(is_private(text) or quality.find_personal(text) for text in told)
