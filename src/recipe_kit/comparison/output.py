"""A comparison as text, as a page for a browser, and as lines of CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from recipe_kit import page
from recipe_kit.comparison.build import Comparison, Entry
from recipe_kit.comparison.layout import Kind, Layout, Row, layout, legend, numbered_marks, single_runs

_PARTS: dict[str, tuple[Kind, ...]] = {
    "Runs": ("run",),
    "Scores": ("score", "base", "difference"),
    "What it took": ("figure",),
}
_INDENTED = {"base": "  base", "difference": "  difference"}


def as_text(comparison: Comparison, *, width: int | None = None) -> str:
    """One table for the terminal, then what to keep in mind. Columns that `width` has no room for stand below."""
    found = [_table(block) for block in _blocks(layout(comparison), width)]
    found += _paragraph("Not a fair comparison in every respect", numbered_marks(comparison))
    found += _paragraph("Notes", [*legend(comparison), *comparison.remarks])
    return "\n\n".join(found)


def _paragraph(heading: str, sentences: Sequence[str]) -> list[str]:
    return ["\n".join([f"{heading}:", *(f"  {sentence}" for sentence in sentences)])] if sentences else []


def _blocks(laid: Layout, width: int | None) -> Iterator[list[list[str]]]:
    """The rows of the table with as many columns as fit; the first column stands in each block."""
    rows = [["", "base", *laid.heads]]
    for title, kinds in _PARTS.items():
        body = [[_INDENTED.get(row.kind, row.name), row.base, *row.cells] for row in laid.of(*kinds)]
        rows += [[title.upper(), *[""] * (len(laid.heads) + 1)], *body] if body else []
    widths = [max(len(cell) for cell in column) + 2 for column in zip(*rows, strict=True)]
    first = 1 if any(row.base for row in laid.rows) else 2
    chosen: list[int] = []
    for column in range(first, len(widths)):
        if chosen and width is not None and widths[0] + sum(widths[c] for c in chosen) + widths[column] > width:
            yield [[row[0], *(row[c] for c in chosen)] for row in rows]
            chosen = []
        chosen.append(column)
    yield [[row[0], *(row[c] for c in chosen)] for row in rows]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_page(comparison: Comparison, *, title: str, before: Sequence[tuple[str, str]] = ()) -> str:
    """The comparison as one HTML document. `before` are sections of the caller (heading, HTML) that come first."""
    laid = layout(comparison)
    sections = [*before, ("Runs", _html_table("", laid.heads, laid.of("run"), "What was trained and measured"))]
    if comparison.marks:
        sections.append(("Not fair in every respect", _items(numbered_marks(comparison))))
    sections += _score_sections(laid)
    sections.append(("What it took", _html_table("", laid.heads, laid.of("figure"), "Memory, speed, time and size")))
    if comparison.has_seeds:
        single = layout(comparison, single_runs(comparison))
        tables = [inner for _, inner in _score_sections(single)]
        tables.append(_html_table("", single.heads, single.of("figure"), "Memory, speed, time and size"))
        sections.append(("Every run", "\n".join(tables)))
    if comparison.remarks:
        sections.append(("Notes", _items(comparison.remarks)))
    sections.append(("Folders", _folders(comparison)))
    lead = f'<p class="faint">{page.escape(" ".join(legend(comparison)))}</p>'
    return page.page(title, sections, kind="compare", lead=lead)


def _score_sections(laid: Layout) -> list[tuple[str, str]]:
    """The tuned scores with those of their base, and the differences from the first run, where there are any."""
    caption = "Tuned models, and the base where it is the same for all, on the held-out rows"
    found = [("Scores", _html_table("tuned", laid.heads, laid.of("score"), caption))] if laid.of("score") else []
    if laid.of("base"):
        found.append(
            ("Base scores", _html_table("base", laid.heads, laid.of("base"), "Base models, where they differ"))
        )
    if laid.of("difference"):
        caption = "Tuned score less that of the first, on the same rows"
        table = _html_table("difference", laid.heads, laid.of("difference"), caption)
        found.append(("Difference from the first", table))
    return found


def _html_table(corner: str, heads: Sequence[str], rows: Sequence[Row], caption: str) -> str:
    shared = any(row.base for row in rows)
    body = [[row.name, *([row.base] if shared else []), *row.cells] for row in rows]
    return page.table([corner, *(["base"] if shared else []), *heads], body, caption=caption)


def _items(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{page.escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _folders(comparison: Comparison) -> str:
    rows = [[entry.label, entry.folder, entry.recipe_sha256[:12]] for entry in comparison.entries]
    return page.table(["run", "folder", "recipe"], rows, caption="Where the runs lie")


def as_csv(comparison: Comparison) -> str:
    """One line a run, numbers as they are; a score has `.tuned`, `.tuned.low`, `.tuned.high` and so on for `base`,
    and `.difference`, `.p_value` against the first run."""
    lines = [_flat(entry) for entry in comparison.entries]
    columns = dict.fromkeys(column for line in lines for column in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(entry: Entry) -> dict[str, Any]:
    line: dict[str, Any] = {
        "run": entry.label,
        **{key: getattr(entry, key) for key in ("folder", "name", "method", "status", "seed", "recipe_sha256")},
        **{key: getattr(entry, key) for key in ("base_model", "revision", "dtype", "precision")},
        **{f"held_out.{key}": value for key, value in entry.held_out.items()},
        **entry.figures,
    }
    for name, part in entry.scores.items():
        for which, found in (("base", part.base), ("tuned", part.tuned)):
            if found is not None:
                line |= {f"{name}.{which}": found.value, f"{name}.{which}.low": found.low}
                line[f"{name}.{which}.high"] = found.high
        apart = entry.against_first.get(name)
        if apart is not None:
            line |= {f"{name}.difference": apart.value, f"{name}.difference.low": apart.low}
            line |= {f"{name}.difference.high": apart.high, f"{name}.p_value": apart.p_value}
    return line
