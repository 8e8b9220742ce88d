"""Answers of both models side by side, and a held-out row's tokens with the trained ones marked, as HTML."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from recipe_kit import run_dir
from recipe_kit.page import escape
from recipe_kit.report import words
from recipe_kit.report.files import Json

MOST_SHOWN = 40  # prompts; the others can be read in samples.jsonl
_MOST_CHARACTERS = 8_000  # of one text


def held_out(samples: Sequence[Json]) -> list[Json]:
    """The held-out prompts; lines of older runs, which name no kind, are all held out."""
    return [line for line in samples if line.get("kind", "held_out") == "held_out"]


def fixed(samples: Sequence[Json]) -> list[Json]:
    """The prompts that the recipe names."""
    return [line for line in samples if line.get("kind") == "prompt"]


def side_by_side(samples: Sequence[Json], what: str) -> str:
    """One article a prompt. `what` names them in headings: `Held-out prompt`."""
    articles = [_article(line, f"{what} {number}") for number, line in enumerate(samples[:MOST_SHOWN], start=1)]
    if len(samples) > MOST_SHOWN:
        more = len(samples) - MOST_SHOWN
        articles.append(f"<p>{more:,} more are in <code>{run_dir.SAMPLES}</code>.</p>")
    return "\n".join(articles)


def _article(line: Json, heading: str) -> str:
    messages = [message for message in line["prompt"] if isinstance(message, Mapping)]
    asked = "\n".join(
        f'<dt>{escape(str(message.get("role", "")))}</dt><dd lang="" dir="auto">{_text(message.get("content"))}</dd>'
        for message in messages
    )
    boxes = "\n".join(_answer(which, line[which]) for which in ("base", "tuned"))
    if line.get("reference") is not None:
        boxes += f"\n{_box('reference', 'Reference', 'what stands in the data', line['reference'])}"
    tokens = _tokens(line["pieces"], heading) if isinstance(line.get("pieces"), list) else ""
    return (
        f'<article>\n<h3>{escape(heading)}</h3>\n<dl class="asked">\n{asked}\n</dl>\n'
        f'<div class="answers">\n{boxes}\n</div>\n{tokens}\n</article>'
    )


def _answer(which: str, answer: Json) -> str:
    tokens = words.counted(answer.get("tokens"), "token")
    stopped = answer.get("stopped")
    ending = "ended by itself" if stopped is True else "cut off" if stopped is False else ""
    return _box(which, f"{which.capitalize()} model", ", ".join(filter(None, (tokens, ending))), answer.get("text"))


def _box(kind: str, name: str, remark: str, text: Any) -> str:
    return (
        f'<div class="answer {kind}"><h4>{name} <span class=faint>{escape(remark)}</span></h4>'
        f'<p lang="" dir="auto">{_text(text)}</p></div>'
    )


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        return "<span class=faint>(nothing)</span>"
    if len(text) > _MOST_CHARACTERS:
        left_out = len(text) - _MOST_CHARACTERS
        return f"{escape(text[:_MOST_CHARACTERS])}<span class=faint>… ({left_out:,} more characters)</span>"
    return escape(text)


def _tokens(pieces: Sequence[Any], heading: str) -> str:
    """The whole row as the model reads it. Trained stretches are bold, underlined, coloured and announced."""
    shown, room = [], _MOST_CHARACTERS
    for piece in pieces:
        if not (isinstance(piece, list) and len(piece) == 3 and isinstance(piece[0], str)):
            return ""
        if room > 0:
            shown.append((piece[0], bool(piece[1]), bool(piece[2])))
        room -= len(piece[0])
    runs = []
    for trained, run in itertools.groupby(shown, key=lambda piece: piece[1]):
        text = "".join(
            f"<span class=control>{_row_text(text)}</span>" if control else _row_text(text) for text, _, control in run
        )
        runs.append(f"<mark>{text}</mark>" if trained else text)
    cut = "<p class=faint>The end of this long row is left out here.</p>" if room < 0 else ""
    return (
        "<details><summary>The row this prompt comes from, token by token</summary>\n"
        f'<div class="tokens" role="group" aria-label="Tokens of {escape(heading)}" lang="" dir="auto" tabindex="0">'
        f"{''.join(runs)}</div>{cut}</details>"
    )


def _row_text(text: str) -> str:
    return escape(text).replace("\n", "<i></i>\n")


LEGEND = (
    '<p class="tokens"><mark>Trained tokens</mark> are bold and underlined, context is not. '
    "<span class=control>Control tokens</span> are outlined, <i></i> is a line break.</p>"
)
STYLE = """
.asked { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .9rem; margin: .5rem 0; }
.asked dt { color: var(--faint); }
.asked dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 46rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .75rem; }
.answer { background: var(--shade); padding: .6rem .9rem; border-block-start: 3px solid var(--rule); min-width: 0; }
.answer.tuned { border-color: var(--series-1); }
.answer h4 { margin: 0 0 .3rem; font-size: 1rem; }
.answer h4 span { font-weight: 400; font-size: .875rem; margin-inline-start: .35rem; }
.answer p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; line-height: 1.9;
  color: var(--faint); text-align: start; max-width: 60rem; }
mark { color: var(--better); background: none; font-weight: 600; text-decoration: underline 2px;
  text-underline-offset: .25em; text-decoration-skip-ink: none; }
mark::before, mark::after { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
mark::before { content: " [trained: "; }
mark::after { content: " end of trained] "; }
.control { font: .85em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; outline: 1px dotted;
  outline-offset: -1px; }
i::before { content: "\\21B5"; font-style: normal; opacity: .6; }
article { margin: 0 0 2rem; }
@media print { .answers { grid-template-columns: 1fr 1fr; } .answer { break-inside: avoid; border: 1px solid #888; } }
"""
