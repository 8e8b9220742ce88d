"""The shell of our HTML pages: one file that opens without network or script, in light and dark, and prints.

Text of a file goes through `escape`. A page may use these classes: `scroll` (with `tabindex="0"`, what may be wider
than a phone), `number`, `faint`, `note`, `better`, `worse`; and these variables, which follow light and dark: `--ink`,
`--faint`, `--page`, `--shade`, `--rule`, `--link`, `--better`, `--worse`, `--series-1` to `--series-4`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+−±<≤~]? ?[0-9]")
_BRACKETS = re.compile(r"[(\[][^()\[\]]{1,24}[)\]]")  # an interval, which is not broken over two lines
_LONG = 40  # characters; a column with such a cell is given room on a phone
_LONG_HEAD = 16  # characters; such a heading would be a tower over a column of short cells
_ABSENT = frozenset({"", "-", "–", "—"})
_KEPT = frozenset("\n\t\u200c\u200d")  # Devanagari and emoji need the joiners


def generator(kind: str) -> str:
    """The line that tells our pages from other files, and those of one kind (`report`, `compare`) from another."""
    return f'<meta name="generator" content="recipe-kit {kind}">'


def page(title: str, sections: Sequence[tuple[str, str]], *, kind: str, lead: str = "", style: str = "") -> str:
    """A whole document: `lead` stands under the title; each section is a heading (text) and what it holds (HTML).

    `kind` is the command that writes it. `lead` is HTML too, and `style` is CSS of this page alone. Both, and the
    sections, are put in as they are.
    """
    names = _names([heading for heading, _ in sections])
    links = "".join(
        f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, (heading, _) in zip(names, sections, strict=True)
    )
    parts = "\n".join(
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(heading)}</h2>\n{inner}\n</section>'
        for name, (heading, inner) in zip(names, sections, strict=True)
    )
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n' if len(sections) > 1 else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Nothing of a file can act or call home, even if a text got through unescaped.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{generator(kind)}\n<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#content">Skip to the content</a>\n<header>\n<h1>{escape(title)}</h1>\n{lead}\n'
        f'</header>\n{contents}<main id="content" tabindex="-1">\n{parts}\n</main>\n</body>\n</html>\n'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str) -> str:
    """A table of texts, which are escaped. The first cell of a row is its header; columns of numbers align right.

    Scrolls sideways where the page is narrow, also by keyboard.
    """
    columns = list(zip(*rows, strict=True))
    numeric = _numeric(columns) or [False] * len(header)
    long = [any(len(text) > _LONG for text in column) for column in columns] or [False] * len(header)
    kinds = zip(numeric, long, strict=True)
    classes = [" class=number" if is_number else " class=long" if is_long else "" for is_number, is_long in kinds]
    head = "".join(
        f"<th scope=col{c}>{f'<div class=roomy>{escape(text)}</div>' if len(text) > _LONG_HEAD else escape(text)}</th>"
        for c, text in zip(classes, header, strict=True)
    )
    body = "\n".join(
        f"<tr><th scope=row>{escape(row[0])}</th>"
        + "".join(f"<td{c}>{_cell(text, c)}</td>" for c, text in zip(classes[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table></div>"
    )


def _cell(text: str, kind: str) -> str:
    return _BRACKETS.sub(r"<span class=whole>\g<0></span>", escape(text)) if "number" in kind else escape(text)


def escape(text: str) -> str:
    """Text for HTML and its attributes. A character that leaves no ink is written as `<U+001B>` (so is one that
    would turn the direction of what follows); line breaks, tabs and the joiners inside of words stay."""
    if not text.isprintable():
        text = "".join(map(_visible, text))
    return html.escape(text)


def _visible(character: str) -> str:
    inkless = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return f"<U+{ord(character):04X}>" if inkless and character not in _KEPT else character


def _numeric(columns: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers; one without any value goes with those beside it."""
    known = [[text for text in column if text not in _ABSENT] for column in columns]
    sure = [index > 0 and bool(texts) and all(map(_NUMBER.match, texts)) for index, texts in enumerate(known)]
    return [is_number or (index > 0 and not known[index] and any(sure)) for index, is_number in enumerate(sure)]


def _names(headings: Sequence[str]) -> list[str]:
    """An id for each heading, made of its words; a number is added where two would be the same."""
    names: list[str] = []
    for heading in headings:
        plain = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        name, number = f"at-{plain}", 2
        while name in names:
            name, number = f"at-{plain}-{number}", number + 1
        names.append(name)
    return names


_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --faint: #59636e; --shade: #f3f5f7; --rule: #d1d9e0;
  --link: #0a58b9; --better: #0a5d24; --worse: #a40e26; --series-1: #0a58b9; --series-2: #b1470a; --series-3: #0f7b5a;
  --series-4: #8a3ea6; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --ink: #e6edf3; --faint: #9aa4af; --shade: #171d26; --rule: #343c46; --link: #79b8ff;
    --better: #6bd68a; --worse: #ff8f86; --series-1: #6cb0ff; --series-2: #ffa65c; --series-3: #4cd3a5;
    --series-4: #d79cf0; } }
@media print { :root { color-scheme: light; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; overflow-wrap: break-word; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem) 4rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 .75rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
h1, h2, h3 { break-after: avoid; text-wrap: balance; }
p, li { max-width: 46rem; }
a { color: var(--link); text-underline-offset: .15em; }
.skip { position: absolute; left: -100vw; }
.skip:focus { position: static; display: inline-block; padding: .5rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: 1rem 0 0; padding: 0; }
nav a { display: inline-block; padding: .25rem 0; }
.scroll { overflow-x: auto; max-width: 100%; }
@media screen { .scroll { /* a shadow at each edge behind which there is more, covered where there is not */
  background: linear-gradient(to right, var(--page) 1.5rem, transparent 3rem) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--page) 1.5rem, transparent 3rem) right / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--rule), transparent) left / 1rem 100% no-repeat scroll,
    linear-gradient(to left, var(--rule), transparent) right / 1rem 100% no-repeat scroll; } }
table { border-collapse: collapse; margin: .75rem 0 1.25rem; font-variant-numeric: tabular-nums; }
caption { text-align: start; color: var(--faint); padding-bottom: .35rem; position: sticky; left: 0;
  max-width: min(46rem, 92vw); }
th, td { text-align: start; vertical-align: top; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--rule); }
tbody th { font-weight: 600; min-width: 6rem; }
.long { min-width: 15rem; overflow-wrap: anywhere; }
tr { break-inside: avoid; }
.number { text-align: end; white-space: nowrap; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
thead .number { white-space: normal; }
.roomy { min-width: 6.5rem; }
.whole { white-space: nowrap; }
@media screen and (max-width: 40rem) {
  th, td { padding: .25rem .6rem .25rem 0; font-size: .85rem; line-height: 1.35; }
  tbody th { min-width: 4.5rem; }
  .number { white-space: normal; }
}
.faint { color: var(--faint); }
.better { color: var(--better); }
.worse { color: var(--worse); }
.note { border-inline-start: .25rem solid var(--rule); padding: .1rem 0 .1rem .9rem; }
ul.note { padding-inline-start: 2rem; }
pre { background: var(--shade); padding: .75rem 1rem; overflow-x: auto; margin: .5rem 0 1rem; }
pre, code { font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
figure { margin: 1rem 0 1.5rem; break-inside: avoid; }
figcaption { color: var(--faint); }
svg { display: block; max-width: 100%; height: auto; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .25rem 0; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
main:focus { outline: none; }
@media (forced-colors: active) { .note { border-color: CanvasText; } }
@media print {
  @page { margin: 1.5cm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .skip { display: none; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  details::details-content { content-visibility: visible; block-size: auto; opacity: 1; }
  summary { list-style: none; }
  :focus-visible { outline: none; }
}
"""
