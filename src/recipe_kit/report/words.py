"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from recipe_kit.report.files import Json, finite


def number(value: Any, places: int | None = None) -> str:
    """Three significant digits, or `places` decimals: `55.1`, `0.431`, `−0.05`, `50,257`; `—` for none."""
    found = finite(value)
    if math.isnan(found):
        return {"nan": "not a number", "inf": "infinite", "-inf": "minus infinite"}.get(str(value), "—")
    text = f"{found:,.{_places(found) if places is None else places}f}"
    if found and not text.strip("-0.,"):  # the sign of a small number matters
        text = f"{found:,.{_places(found)}f}"
    if not text.strip("-0.,"):
        return "0" if found else text.lstrip("-")
    return text.replace("-", "−")


def brief(value: float) -> str:
    """Three digits and no more: `4.03`, `0`, `2.8e−06`, `8,012`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")


def estimate(found: Json) -> str:
    """`2.18 (1.95 to 2.51)`; without the interval where none was recorded; `—` for nothing."""
    if "value" not in found:
        return "—"
    value = number(found["value"])
    return f"{value} ({interval(found)})" if interval(found) else value


def interval(found: Json) -> str:
    """`1.95 to 2.51`, with the decimals of the value; "" where no interval was recorded."""
    low, high = finite(found.get("low")), finite(found.get("high"))
    if math.isnan(low) or math.isnan(high):
        return ""
    places = _places(finite(found.get("value")))
    return f"{number(low, places)} to {number(high, places)}"


def p_value(value: Any) -> str:
    """`p < 0.0001` or `p = 0.032`; "" for none."""
    found = finite(value)
    if math.isnan(found):
        return ""
    return "p < 0.0001" if found < 0.0001 else f"p = {found:.2g}"


def count(value: Any) -> str:
    """`16,000`; `—` for what is no number."""
    found = finite(value)
    return "—" if math.isnan(found) else f"{found:,.0f}"


def counted(value: Any, noun: str) -> str:
    """`1 row`, `52 rows`."""
    return f"{count(value)} {noun}{'' if finite(value) == 1 else 's'}"


def size(value: Any) -> str:
    """Bytes as `4.2 GiB` or `650 MiB`."""
    found = finite(value)
    if math.isnan(found):
        return "—"
    return f"{found / 2**30:.1f} GiB" if found >= 2**30 else f"{found / 2**20:.0f} MiB"


def short_count(value: Any) -> str:
    """`4.9 M`, `1.24 B`, `205,120`."""
    found = finite(value)
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if found >= unit:
            return f"{found / unit:.3g} {name}"
    return count(value)


def duration(value: Any) -> str:
    """Seconds as `0.6 s`, `42 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    found = finite(value)
    if math.isnan(found):
        return "—"
    if found < 59.5:
        return f"{found:.1f} s" if found < 10 else f"{found:.0f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest = round(found)
    parts: list[tuple[int, str]] = []
    for name, seconds in units:
        if rest >= seconds or parts:
            parts.append((rest // seconds, name))
            rest %= seconds
    return " ".join(f"{amount} {name}" for amount, name in parts[:2] if amount)


def moment(value: Any) -> str:
    """An ISO time as `2026-11-22 06:19 (+00:00)`."""
    text = str(value)
    return f"{text[:10]} {text[11:16]} ({text[19:]})" if len(text) == 25 else text


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def inside(name: str) -> str:
    """A name inside a sentence: `exact match` for `Exact match`; `ROUGE-L` and `chrF2` stay."""
    return name[:1].lower() + name[1:] if _ordinary(name) else name


def first(name: str) -> str:
    """A name at the start of a sentence: `Perplexity`; `chrF2` stays."""
    return name[:1].upper() + name[1:] if _ordinary(name) else name


def _ordinary(name: str) -> bool:
    start = name.split(" ")[0].rstrip(",")
    return start.isalpha() and start[1:].islower()


def sentence(text: Any) -> str:
    """The text with a full stop, if it has no end."""
    stripped = str(text).strip()
    return stripped if stripped.endswith((".", "!", "?", "…")) else f"{stripped}."


def _places(value: float) -> int:
    magnitude = abs(value)
    if not magnitude or math.isnan(magnitude):
        return 3
    exponent = math.floor(math.log10(magnitude))
    return min(max(2 - exponent, 0), 3) if exponent >= -3 else min(1 - exponent, 9)
