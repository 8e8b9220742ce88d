"""Tokens and keys: what they look like, where they stand in a text, and the text without them."""

from __future__ import annotations

import re

# What it is, how it starts, and a regular expression for the whole of it: of characters that are one byte each.
KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "a Hugging Face token",
        ("hf_", "api_org_"),
        r"(?<![A-Za-z0-9])(?:(?:hf|api_org)_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt)_[A-Za-z0-9_.-]{20,})",
    ),
    (
        "an OpenAI or Anthropic key",
        ("sk-",),
        r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]*[0-9])(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{32,}",
    ),
    ("an AWS key", ("AKIA", "ASIA"), r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])"),
    (
        "a GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    ),
    ("a Slack token", ("xox",), r"(?<![A-Za-z0-9])xox[abeoprs]-[0-9A-Za-z-]{10,}"),
    ("a Google key", ("AIza",), r"(?<![A-Za-z0-9])AIza[0-9A-Za-z_-]{35}"),
    ("a private key", ("-----BEGIN ",), r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    ("a GitLab token", ("glpat-",), r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}"),
    ("a Groq key", ("gsk_",), r"(?<![A-Za-z0-9])gsk_[A-Za-z0-9]{30,}"),
    (
        "a package registry token",
        ("npm_", "pypi-AgE"),
        r"(?<![A-Za-z0-9])(?:npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])|pypi-AgE[A-Za-z0-9_-]{40,})",
    ),
    (
        "a signed token",
        ("eyJ",),
        r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    ),
    (
        "a user name and password in a URL",
        ("://",),
        r"(?<=[a-z])://[A-Za-z0-9._~%+-]+:[!-.0-9;-?A-~]{3,}@(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9]{2,}",
    ),
)

# Shorter ones, and words that begin like one: no harm where a text is only made unreadable.
_WIDER = (
    r"hf_[A-Za-z0-9]{8,}",
    r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}",
    r"gh[pousr]_[A-Za-z0-9]{20,}",
    r"github_pat_\w{20,}",
)
_WHOLE = [(kind, re.compile(whole)) for kind, _, whole in KINDS]
_ANY = re.compile("|".join([*_WIDER, *(whole for _, _, whole in KINDS)]))
_STARTS = tuple(start for _, starts, _ in KINDS for start in starts)


def found_in(text: str) -> list[tuple[int, str]]:
    """(place, kind) of everything in the text that looks like a secret."""
    return sorted((match.start(), kind) for kind, whole in _WHOLE for match in whole.finditer(text))


def blotted(text: str) -> str:
    """The text with everything that looks like a secret cut down to how its kind starts: `hf_…`."""
    return _ANY.sub(lambda match: next(start for start in _STARTS if match[0].startswith(start)) + "…", text)
