"""What a proof says, and what it is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Verdict:
    """What one proof found. `fatal` says whether a failure stops the run; the recipe can downgrade it by name."""

    name: str
    ok: bool | None  # None: could not be checked here; `detail` says why
    detail: str  # what was looked at and found, with counts; for a failure the first place it was seen
    remedy: str = ""  # what to change; for failures
    fatal: bool = True

    def __str__(self) -> str:
        found = {True: "ok", False: "FAILED" if self.fatal else "warning", None: "not checked"}[self.ok]
        return f"{self.name}: {found}: {self.detail}" + (f"; {self.remedy}" if self.ok is False else "")


class Rows(Protocol):
    """What is asked of a split: `data.Split` is one."""

    name: str
    rows: Any  # datasets.Dataset with input_ids and labels
    details: Any  # datasets.Dataset with example, turn_lengths, truncated
    counts: Any
    digests: Any

    @property
    def examples(self) -> Sequence[Any]: ...
    def place(self, index: int) -> str: ...


def found(name: str, wrong: Sequence[int], train: Rows, fine: str, what: str, remedy: str) -> Verdict:
    """Fine if no row is wrong; else how many are, and where the first one stands."""
    if not len(wrong):
        return Verdict(name, True, fine)
    different = sorted({int(index) for index in wrong})
    counted = f"1 {what.replace('rows', 'row', 1)}" if len(different) == 1 else f"{len(different):,} {what}"
    return Verdict(name, False, f"{counted}, first {train.place(different[0])}", remedy)


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of `count` row numbers, evenly spread, the first among them."""
    return list(range(count)) if count <= wanted else [index * count // wanted for index in range(wanted)]
