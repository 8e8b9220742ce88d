"""Numbers for people, the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Callable

from recipe_kit.comparison.scores import Difference, Estimate
from recipe_kit.comparison.seeds import Spread

NOTHING = "–"


def number(value: float, *, like: float | None = None, sign: bool = False) -> str:
    """Four significant digits, at most four decimals, or as many decimals as `like` has; thousands are separated."""
    if not math.isfinite(value):
        return str(value)
    scale = abs(value if like is None else like)
    decimals = 3 - math.floor(math.log10(scale)) if scale > 0 else 0
    text = f"{value:{'+' if sign else ''},.{min(max(decimals, 0), 4)}f}"
    return text if text.strip("+-0.,") else "0"


def estimate(found: Estimate | None) -> str:
    """`2.184 [2.101, 2.266]`; the value alone where no interval was recorded."""
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return number(found.value)
    return f"{number(found.value)} [{number(found.low, like=found.value)}, {number(found.high, like=found.value)}]"


def difference(found: Difference | None, higher_is_better: bool | None) -> str:
    """`+0.120 [+0.051, +0.190] worse`."""
    if found is None:
        return NOTHING
    if found.low == found.high == 0:
        return "0, equal"
    like = max(abs(found.value), (found.high - found.low) / 10)
    low, high = (number(end, like=like, sign=True) for end in (found.low, found.high))
    return f"{number(found.value, like=like, sign=True)} [{low}, {high}] {found.verdict(higher_is_better)}"


def spread(found: Spread | None, runs: int, shown: Callable[[float], str] | None = None) -> str:
    """`2.312 (2.281–2.350, sd 0.031)`: mean, range and standard deviation over seeds.

    Says n where fewer than all `runs` have the number. `shown` writes a number that is no score; it then has no
    standard deviation, and no range where all look alike.
    """
    if found is None:
        return NOTHING
    fewer = "" if found.n == runs else f", n {found.n}"
    if shown is not None:
        ends = shown(found.min), shown(found.max)
        return shown(found.mean) if ends[0] == ends[1] else f"{shown(found.mean)} ({ends[0]}–{ends[1]}{fewer})"
    low, high = (number(end, like=found.mean) for end in (found.min, found.max))
    sd = "" if found.sd is None else f", sd {number(found.sd, like=found.mean)}"
    return f"{number(found.mean)} ({low}–{high}{sd}{fewer})"


def difference_over_seeds(found: Spread | None, higher_is_better: bool | None) -> str:
    """`+0.120 (+0.101 to +0.150) worse in 3 of 3`."""
    if found is None:
        return NOTHING
    if found.min == found.max == 0:
        return "0, equal"
    like = max(abs(found.mean), (found.max - found.min) / 10)
    if found.n == 1:
        return f"{number(found.mean, like=like, sign=True)} (n 1)"
    low, high = (number(end, like=like, sign=True) for end in (found.min, found.max))
    rises, falls = found.min > 0, found.max < 0
    verdict = f"not clear, n {found.n}"
    if rises or falls:
        words = ("higher", "lower") if higher_is_better is None else ("better", "worse")
        verdict = f"{words[0 if rises == (higher_is_better is not False) else 1]} in {found.n} of {found.n}"
    return f"{number(found.mean, like=like, sign=True)} ({low} to {high}) {verdict}"


def figure(name: str, value: float) -> str:
    """A figure of `comparison.figures` with its unit."""
    if name.endswith("_bytes"):
        return _bytes(value)
    if name.endswith("seconds"):
        return _duration(value)
    return number(value) if name == "cost" else f"{value:,.0f}"


def _bytes(size: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
