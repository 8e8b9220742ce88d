"""The data quality report: what is worth knowing about formatted rows before a model learns from them.

Standard library only, apart from near duplicates, for which the `quality` extra brings datasketch.

    >>> from recipe_kit.quality import examine, lines
    >>> row = {"prompt": [{"role": "user", "content": "Where is my parcel?"}],
    ...        "completion": [{"role": "assistant", "content": "Write to ann@example.com, she will look."}]}
    >>> lines(examine({"train": [row]}, near=False))[0]
    'train: e-mail addresses: 1 in 1 of 1 rows (row 1)'
"""

from __future__ import annotations

from recipe_kit.quality.examine import Progress, examine
from recipe_kit.quality.repairs import KINDS, Kind, find_personal, merge_roles, redact
from recipe_kit.quality.report import Overlap, Quality, SplitQuality, lines, warnings

__all__ = [
    "KINDS",
    "Kind",
    "Overlap",
    "Progress",
    "Quality",
    "SplitQuality",
    "examine",
    "find_personal",
    "lines",
    "merge_roles",
    "redact",
    "warnings",
]
