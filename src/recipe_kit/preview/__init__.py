"""Which tokens of a row are trained, for people: in the terminal, and as a page that needs nothing but itself."""

from __future__ import annotations

from recipe_kit.preview.page import html
from recipe_kit.preview.rows import Piece, Row, Worst, pieces, preview_row, worst_rows
from recipe_kit.preview.terminal import legend, terminal, visible

__all__ = ["Piece", "Row", "Worst", "html", "legend", "pieces", "preview_row", "terminal", "visible", "worst_rows"]
