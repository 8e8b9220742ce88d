"""The words that the Hub knows: licences, pipeline tags, libraries and languages. Where they come from: data/."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parent / "data"
_NO_LANGUAGE = ("code", "multilingual")  # taken by the Hub beside codes of ISO 639


def licenses() -> frozenset[str]:
    """Identifiers that stand for a licence in a card's metadata."""
    return _words("licenses")


def pipeline_tags() -> frozenset[str]:
    return _words("pipeline_tags")


def libraries() -> frozenset[str]:
    return _words("libraries")


@cache
def languages() -> frozenset[str]:
    """Codes of ISO 639-1 and 639-3, and the two words that are no language."""
    told = _read("languages.json")
    return frozenset([*told["names"], *" ".join(told["codes"]).split(), *_NO_LANGUAGE])


def language_name(code: str) -> str:
    """`Hindi` for `hi`; the code itself where only the code is known."""
    return str(_read("languages.json")["names"].get(code, code))


@cache
def _words(which: str) -> frozenset[str]:
    return frozenset(" ".join(_read("hub.json")[which]).split())


@cache
def _read(name: str) -> Any:
    return json.loads((_DATA / name).read_text(encoding="utf-8"))
