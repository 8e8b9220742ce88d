"""Which tokens of a row are trained, for people: in the terminal, and as a page that needs nothing but itself.

A row is cut into pieces, one a token. A character that several tokens share (an emoji, say) makes them one piece.
The joined texts of the pieces are the decoded row, to the last space.
"""

from __future__ import annotations

import base64
import hashlib
import html as _html
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from recipe_kit.labels import IGNORED, special_tokens

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

Worst = Literal["longest", "least-trained", "truncated"]


@dataclass(frozen=True)
class Piece:
    """The smallest stretch of a row that is whole characters: one token, or the few that share a character."""

    text: str
    ids: tuple[int, ...]
    trained: bool  # of several tokens: whether any is
    control: bool = False  # a control token, as opposed to text that only looks like one


@dataclass(frozen=True)
class Row:
    """One prepared row, with what its heading says."""

    number: int  # 1-based, among the prepared rows of its split
    of: int  # prepared rows of the split
    place: str  # where the row stands in the data
    pieces: list[Piece]
    tokens: int
    trained_tokens: int
    turn_lengths: list[int]  # trained tokens of each trained turn
    truncated: bool

    @property
    def trained_share(self) -> float:
        return self.trained_tokens / self.tokens if self.tokens else 0.0


def pieces(input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The row piece by piece; the joined texts are exactly what the tokenizer decodes the row to."""
    control = set(special_tokens(tokenizer).values())
    found, start = [], 0
    for text, count in _split_text(list(input_ids), tokenizer):
        ids = tuple(input_ids[start : start + count])
        trained = any(label != IGNORED for label in labels[start : start + count])
        found.append(Piece(text, ids, trained, control=count == 1 and ids[0] in control))
        start += count
    return found


def preview_row(
    input_ids: Sequence[int],
    labels: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    number: int,
    of: int,
    place: str,
    turn_lengths: Sequence[int],
    truncated: bool,
) -> Row:
    """One prepared row, ready to be shown."""
    return Row(
        number=number,
        of=of,
        place=place,
        pieces=pieces(input_ids, labels, tokenizer),
        tokens=len(input_ids),
        trained_tokens=sum(label != IGNORED for label in labels),
        turn_lengths=list(turn_lengths),
        truncated=truncated,
    )


def worst_rows(rows: datasets.Dataset, details: datasets.Dataset, worst: Worst, count: int) -> list[int]:
    """Indices of up to `count` rows, worst first: most tokens, fewest trained tokens, or cut off with fewest left.

    `rows` has `input_ids`, `details` has `trained` and `truncated` of the same rows. Only numbers are held in memory,
    one a row. Rows that are equally bad keep their order.
    """
    import numpy

    if worst == "longest":
        batches = rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
        keys = -numpy.concatenate([batch["input_ids"].combine_chunks().value_lengths() for batch in batches])
    else:
        keys = details.with_format("numpy")["trained"][:]
    order = numpy.argsort(keys, kind="stable")
    if worst == "truncated":
        order = order[details.with_format("numpy")["truncated"][:][order]]
    return [int(index) for index in order[:count]]


# The terminal

_FAINT, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_STYLES = {  # by (trained, control)
    (True, False): "\x1b[1;32m",
    (True, True): "\x1b[1;7;32m",
    (False, False): _FAINT,
    (False, True): "\x1b[36m",
}
_BRACKETS = str.maketrans({bracket: f"<U+{ord(bracket):04X}>" for bracket in "⟦⟧⟪⟫"})
_MARKS = {"\n": "↵", "\t": "→"}
_DRAWN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
_JOINERS = frozenset("\u200c\u200d")  # Devanagari and emoji need them


def terminal(row: Row, *, colour: bool) -> str:
    """The row as text: trained tokens bold green, the rest dim, control tokens apart from text that looks like them.

    Without colour, trained stretches stand between ⟦ and ⟧, and control tokens between ⟪ and ⟫. A line break is ↵ and
    a line break. Nothing in the data reaches the terminal as a command to it.
    """
    return f"{_BOLD}{heading(row)}{_PLAIN}\n{_coloured(row)}" if colour else f"{heading(row)}\n{_bracketed(row)}"


def legend(*, colour: bool) -> str:
    """One line that says how `terminal` marks what."""
    if not colour:
        return "⟦trained⟧ context ⟪control token⟫ ↵ line break"
    styles = {
        "trained": _STYLES[True, False],
        "trained control token": _STYLES[True, True],
        "context": _STYLES[False, False],
        "context control token": _STYLES[False, True],
        "↵ line break": _FAINT,
    }
    return "  ".join(f"{style}{name}{_PLAIN}" for name, style in styles.items())


def heading(row: Row) -> str:
    """Number, place, tokens, trained tokens and their share, turns."""
    parts = [f"row {row.number:,} of {row.of:,}", visible(row.place), *_facts(row)]
    return " · ".join(parts)


def visible(text: str) -> str:
    """The text with each character that leaves no ink written as `<U+001B>`, which no terminal and no page acts on.

    Spaces, line breaks, tabs and the joiners inside of words and emoji stay as they are.
    """
    return text if text.isprintable() else "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character in _MARKS or character in _JOINERS or character in _DRAWN:
        return character
    inkless = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return f"<U+{ord(character):04X}>" if inkless else character


def _coloured(row: Row) -> str:
    """Styles end before a line break and start anew after it, as pagers forget them there."""
    written = []
    for kind, run in itertools.groupby(row.pieces, key=lambda piece: (piece.trained, piece.control)):
        for part in re.split(r"([\n\t])", visible("".join(piece.text for piece in run))):
            if part in _MARKS:
                written.append(f"{_FAINT}{_MARKS[part]}{_PLAIN}{part}")
            elif part:
                written.append(f"{_STYLES[kind]}{part}{_PLAIN}")
    return "".join(written)


def _bracketed(row: Row) -> str:
    written = []
    for trained, run in itertools.groupby(row.pieces, key=lambda piece: piece.trained):
        texts = [(visible(piece.text).translate(_BRACKETS), piece.control) for piece in run]
        text = "".join(f"⟪{text}⟫" if control else text for text, control in texts)
        text = re.sub(r"[\n\t]", lambda found: _MARKS[found[0]] + found[0], text)
        written.append(f"⟦{text}⟧" if trained else text)
    return "".join(written)


def _facts(row: Row) -> list[str]:
    turns, lengths = len(row.turn_lengths), row.turn_lengths
    trained_turns = f"{turns or 'no'} trained turn{'s' if turns > 1 else ''}"
    if turns > 6:
        trained_turns += f" ({min(lengths)} to {max(lengths)} tokens each)"
    elif turns > 1:
        trained_turns += f" ({' + '.join(map(str, lengths))})"
    return [
        f"{row.tokens:,} token{'' if row.tokens == 1 else 's'}",
        f"{row.trained_tokens:,} trained ({100 * row.trained_share:.1f} %)",
        trained_turns,
        *(["cut off at the end"] if row.truncated else []),
    ]


# The page


def html(rows: Sequence[Row], *, title: str) -> str:
    """A whole page: no network, no text of a row that could act, light and dark, and readable without colours."""
    name = _html.escape(visible(title))
    return _PAGE.format(
        policy=f"default-src 'none'; style-src {_source_of(_STYLE)}; script-src {_source_of(_SCRIPT)}",
        title=name,
        style=_STYLE,
        script=_SCRIPT,
        rows="\n".join(map(_section, rows)),
    )


def _section(row: Row) -> str:
    place = _html.escape(visible(row.place))
    facts = _html.escape(" · ".join(_facts(row)))
    runs = []
    for trained, run in itertools.groupby(row.pieces, key=lambda piece: piece.trained):
        text = "".join(map(_span, _drawn_together(run)))
        runs.append(f"<mark>{text}</mark>" if trained else text)
    return (
        f'<details open>\n<summary><h2>Row {row.number:,} of {row.of:,}</h2> <span dir="auto">{place}</span>\n'
        f"<p>{facts}</p></summary>\n"
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
                or _JOINERS & {piece.text[:1], last.text[-1:]}
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
    text = _html.escape(visible(piece.text)).replace("\n", "<i></i>\n").replace("\t", '<i class="tab"></i>\t')
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


# Decoding


def _split_text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, int]]:
    """Each piece's text and number of tokens.

    Decoding token by token is right where the texts add up. Where they do not, some token holds part of a character:
    the stretch is halved at a place where both halves decode on their own, until one such character is left. That
    needs no knowledge of the tokenizer's kind and is exact for any.
    """
    if not ids:
        return iter(())
    decode = _decoder(tokenizer)
    singles = {token: decode([token], False) for token in set(ids[1:])}
    return _halved(ids, decode(ids, True), True, decode, singles)


def _halved(
    ids: list[int], text: str, first: bool, decode: Callable[[list[int], bool], str], singles: dict[int, str]
) -> Iterator[tuple[str, int]]:
    texts = [decode(ids[:1], True) if first else singles[ids[0]], *(singles[token] for token in ids[1:])]
    if "".join(texts) == text:
        yield from ((part, 1) for part in texts)
        return
    middle = len(ids) // 2
    for cut in sorted(range(1, len(ids)), key=lambda place: abs(place - middle)):
        left = decode(ids[:cut], first)
        right = decode(ids[cut:], False) if text.startswith(left) else ""
        if left + right == text:
            yield from _halved(ids[:cut], left, first, decode, singles)
            yield from _halved(ids[cut:], right, False, decode, singles)
            return
    yield text, len(ids)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int], bool], str]:
    """Decodes part of a row. SentencePiece drops a space at the start, so all but the first part follow a letter."""
    options: dict[str, Any] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    letter = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before = str(tokenizer.decode(letter, **options))

    def decode(ids: list[int], first: bool) -> str:
        if first:
            return str(tokenizer.decode(ids, **options))
        return str(tokenizer.decode([*letter, *ids], **options)).removeprefix(before)

    return decode
