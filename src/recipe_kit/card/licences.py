"""What some licences ask of those who publish a model made from another: a name, a line on the card, a notice.

From the licences' own texts: Llama 2 1.b.iii, Llama 3 to 4 1.b.i and iii, Gemma Terms of Use 3.1. The notice lines are
theirs, word for word, as they require. This is no legal advice, and no list of all that a licence asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_META = "Copyright © Meta Platforms, Inc. All Rights Reserved."


@dataclass(frozen=True)
class Duties:
    """What a licence asks for, as far as a card can do it; a field is None where it asks for nothing of the kind."""

    name_prefix: str | None = None  # the published name begins so
    built_with: str | None = None  # to be shown where it is seen
    notice: str | None = None  # the line of the NOTICE file
    license_name: str | None = None
    link: str | None = None  # to the text, a copy of which is to go with the weights
    policy: str | None = None  # uses that the licence rules out


def _llama(version: str, link: str, *, prefix: str = "Llama", built_with: str = "Built with Llama") -> Duties:
    return Duties(
        name_prefix=prefix,
        built_with=built_with,
        notice=f"Llama {version} is licensed under the Llama {version} Community License, {_META}",
        license_name=f"Llama {version} Community License Agreement",
        link=f"https://www.llama.com/{link}/license/",
        policy=f"https://www.llama.com/{link}/use-policy/",
    )


_DUTIES = {
    "llama2": Duties(
        notice=f"Llama 2 is licensed under the LLAMA 2 Community License, {_META}",
        license_name="Llama 2 Community License Agreement",
        link="https://ai.meta.com/llama/license/",
        policy="https://ai.meta.com/llama/use-policy/",
    ),
    "llama3": Duties(
        name_prefix="Llama 3",
        built_with="Built with Meta Llama 3",
        notice=f"Meta Llama 3 is licensed under the Meta Llama 3 Community License, {_META}",
        license_name="Meta Llama 3 Community License Agreement",
        link="https://www.llama.com/llama3/license/",
        policy="https://www.llama.com/llama3/use-policy/",
    ),
    "llama3.1": _llama("3.1", "llama3_1"),
    "llama3.2": _llama("3.2", "llama3_2"),
    "llama3.3": _llama("3.3", "llama3_3"),
    "llama4": _llama("4", "llama4"),
    "gemma": Duties(
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        license_name="Gemma Terms of Use",
        link="https://ai.google.dev/gemma/terms",
        policy="https://ai.google.dev/gemma/prohibited_use_policy",
    ),
}


def duties(license_id: str | None) -> Duties:
    """The duties under a licence of the Hub's list; none for a licence that asks for nothing of the kind."""
    return _DUTIES.get(license_id or "", Duties())


def duties_of(*entries: Any) -> Duties:
    """The duties of the first of several licence entries, `{license, license_name}`, that has any.

    A licence that is not on the list is known by its name: Llama 4 is often `license: other` with that name.
    """
    for entry in entries:
        told = entry if isinstance(entry, dict) else {}
        for key in ("license", "license_name"):
            identifier = re.sub(r"[\s_-]+", "", str(told.get(key) or "").casefold())
            if identifier in _DUTIES:
                return _DUTIES[identifier]
    return Duties()


def begins_with(name: str, prefix: str) -> bool:
    """Whether a name begins as asked: `Llama-3-shop` and `Llama3_shop` with `Llama 3`, but not `my-Llama-3`."""
    return re.sub(r"[\s._-]+", "", name).startswith(re.sub(r"[\s._-]+", "", prefix))


def with_prefix(name: str, prefix: str | None) -> str:
    """The name, which begins as a licence asks: `Llama-shop` for `shop`, `Llama32_shop` for `llama32_shop`."""
    if prefix is None or begins_with(name, prefix):
        return name
    word = prefix.split()[0]
    spelt = word + name[len(word) :]
    own = name.casefold().startswith(word.casefold()) and begins_with(spelt, prefix)
    return spelt if own else f"{prefix.replace(' ', '-')}-{name}"
