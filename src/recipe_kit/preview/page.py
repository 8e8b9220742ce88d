"""Rows as a page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from html import escape

from recipe_kit.preview.rows import Piece, Row, facts
from recipe_kit.preview.terminal import JOINERS, visible


def html(rows: Sequence[Row], *, title: str) -> str:
    """A whole page: no network, no text of a row that could act, light and dark, and readable without colours."""
    name = escape(visible(title))
    return _PAGE.format(
        policy=f"default-src 'none'; style-src {_source_of(_STYLE)}; script-src {_source_of(_SCRIPT)}",
        title=name,
        style=_STYLE,
        script=_SCRIPT,
        rows="\n".join(map(_section, rows)),
    )


def _section(row: Row) -> str:
    place = escape(visible(row.place))
    told = escape(" · ".join(facts(row)))
    runs = []
    for trained, run in itertools.groupby(row.pieces, key=lambda piece: piece.trained):
        text = "".join(map(_span, _drawn_together(run)))
        runs.append(f"<mark>{text}</mark>" if trained else text)
    return (
        f'<details open>\n<summary><h2>Row {row.number:,} of {row.of:,}</h2> <span dir="auto">{place}</span>\n'
        f"<p>{told}</p></summary>\n"
        f'<div class="tokens" role="group" aria-label="Tokens of row {row.number}" lang="" dir="auto" tabindex="0">'
        f"{''.join(runs)}</div>\n</details>"
    )


def _drawn_together(run: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, with a vowel sign, accent or joiner put to what carries it: alone it has no width to point at."""
    last: Piece | None = None
    for piece in run:
        if (
            last
            and not (last.control or piece.control)
            and (
                unicodedata.category(piece.text[:1] or " ") in ("Mn", "Mc", "Me")
                or JOINERS & {piece.text[:1], last.text[-1:]}
            )
        ):
            last = replace(last, text=last.text + piece.text, ids=last.ids + piece.ids)
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


def _span(piece: Piece) -> str:
    ids = " ".join(map(str, piece.ids))
    about = f"id {ids}" if len(piece.ids) == 1 else f"{len(piece.ids)} tokens: ids {ids}"
    about += ", trained" if piece.trained else ", context"
    about += ", control token" if piece.control else ""
    text = escape(visible(piece.text)).replace("\n", "<i></i>\n").replace("\t", '<i class="tab"></i>\t')
    return f'<span{" class=control" if piece.control else ""} title="{about}">{text}</span>'


def _source_of(text: str) -> str:
    """A content security policy's name for the one style or script that the page may use."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --context: #59636e; --shade: #eceff3;
  --trained: #0a4d1f; --trained-page: #dcf5e1; --trained-shade: #c6ecce; --line: #1a7f37; --control: #7d4a00;
  --rule: #d1d9e0; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --ink: #e6edf3; --context: #9aa4af; --shade: #1d2530; --trained: #b5f0c3;
    --trained-page: #10301a; --trained-shade: #174424; --line: #4ac26b; --control: #f0b45b; --rule: #30363d; } }
html { scroll-padding-bottom: 5rem; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; line-height: 1.25; }
h2 { display: inline; font-size: 1.05rem; }
details { border-top: 1px solid var(--rule); padding: .75rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary p { margin: .1rem 0 .5rem; color: var(--context); }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; line-height: 1.9;
  color: var(--context); text-align: start; }
.tokens span:nth-of-type(odd) { background: var(--shade); }
mark { color: var(--trained); background: var(--trained-page); text-decoration: underline 2px var(--line);
  text-underline-offset: .25em; text-decoration-skip-ink: none; }
.tokens mark span:nth-of-type(odd) { background: var(--trained-shade); }
mark::before, mark::after { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
mark::before { content: " [trained: "; }
mark::after { content: " end of trained] "; }
.control { color: var(--control); font: .85em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  outline: 1px dotted; outline-offset: -1px; }
i::before { content: "\\21B5"; font-style: normal; opacity: .45; }
i.tab::before { content: "\\2192"; }
.at { outline: 2px solid var(--ink); }
.tokens:focus-visible { outline: 2px solid var(--line); outline-offset: .4rem; }
output { position: fixed; inset: auto 0 0; padding: .5rem 1rem; background: var(--ink); color: var(--page);
  overflow-wrap: anywhere; }
output:empty { display: none; }
@media (forced-colors: active) { .tokens span { background: none !important; } }
@media print { @page { margin: 1.5cm; } body { max-width: none; padding: 0; } summary { break-after: avoid; }
  output, .help { display: none; } .at, .tokens:focus-visible { outline: none; }
  .tokens * { print-color-adjust: exact; } }
"""

# A token is told about on hover by its title; this tells it on a touch, and with the arrow keys.
_SCRIPT = """
const about = document.querySelector("output"); let at;
function tell(token) {
  if (!token) return;
  at?.classList.remove("at"); at = token; at.classList.add("at"); at.scrollIntoView({block: "nearest"});
  about.textContent = JSON.stringify(at.textContent) + " " + at.title;
}
document.addEventListener("click", event => tell(event.target.closest("[title]")));
document.addEventListener("keydown", event => {
  const row = event.target.closest(".tokens"), step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!row || !step) return;
  const tokens = [...row.querySelectorAll("[title]")];
  tell(tokens[tokens.indexOf(at) + step]); event.preventDefault();
});
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="tokens"><mark><span>Trained tokens</span></mark> are underlined, <span>context</span> is not.
<span class="control">Control tokens</span> are outlined; text that only looks like one is not.
<i></i> is a line break.</p>
<p class="help">Point at a token, or touch it, for its id.
With the keyboard: move to a row, then use the left and right arrows.</p>
{rows}
</main>
<output></output>
<script>{script}</script>
</body>
</html>
"""
