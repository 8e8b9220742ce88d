"""A row as text for a terminal, and every character of it made harmless."""

from __future__ import annotations

import itertools
import re
import unicodedata

from recipe_kit.preview.rows import Row, facts

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
JOINERS = frozenset("\u200c\u200d")  # Devanagari and emoji need them


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
    parts = [f"row {row.number:,} of {row.of:,}", visible(row.place), *facts(row)]
    return " · ".join(parts)


def visible(text: str) -> str:
    """The text with each character that leaves no ink written as `<U+001B>`, which no terminal and no page acts on.

    Spaces, line breaks, tabs and the joiners inside of words and emoji stay as they are.
    """
    return text if text.isprintable() else "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character in _MARKS or character in JOINERS or character in _DRAWN:
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
