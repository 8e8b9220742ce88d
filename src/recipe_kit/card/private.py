"""What must not stand in a card: paths of somebody's machine, and secrets."""

from __future__ import annotations

import re

_ROOTS = r"home|root|Users|tmp|var/tmp|var/folders|private/(?:tmp|var)|mnt|scratch|workspace|content/drive|kaggle|dbfs"
_PART = r"[^\s/\\\"'`<>|*?:,;(){}\[\]]+"
# A path begins a word: `https://example.com/home/page` and `and/tmp/` are none.
LOCAL_PATH = re.compile(
    rf"(?<![\w/.~\\-])(?:file://)?/(?:{_ROOTS})(?:/{_PART})+/?"
    rf"|(?<!\w)file://\S+"
    # C:\Users\ann, D:\\Rows\\a.jsonl; not the `A:\n` of a prompt written as a string
    r"|(?<!\w)[A-Za-z]:[\\/]{1,2}(?:Users|Windows|Program Files|Documents and Settings|temp|home|[A-Z][\w -]*)[\\/]"
    rf"[^\s\"'`<>|*?:,;(){{}}\[\]]*"
)

_ANY_PATH = re.compile(rf"(?<![\w/.~:<\\-])/(?:{_PART}/)+{_PART}")  # wider, for messages of programs

_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{16,}\b|\bhf_(?:oauth|jwt)_[\w.-]{16,}|\bapi_org_[A-Za-z0-9]{20,}\b",
    "an API key": r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_]{20,}|\bgsk_[A-Za-z0-9]{30,}\b|\bAIza[0-9A-Za-z_-]{35}\b",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bgithub_pat_\w{30,}|\bglpat-[\w-]{18,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "a package registry token": r"\bnpm_[A-Za-z0-9]{36}\b|\bpypi-AgE[\w-]{40,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a signed token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@<>]+:[^\s/:@<>]{3,}@",
}
SECRETS = {name: re.compile(pattern) for name, pattern in _SECRETS.items()}


def secrets_in(text: str) -> list[tuple[int, str]]:
    """(place, kind) of everything in the text that looks like a secret."""
    return sorted((match.start(), kind) for kind, pattern in SECRETS.items() for match in pattern.finditer(text))


def is_private(text: str) -> bool:
    """Whether the text holds a local path or a secret."""
    return bool(LOCAL_PATH.search(text) or secrets_in(text))


def cleaned(text: str) -> str:
    """The text with each local path as its last part, and each secret blotted out."""
    for pattern in SECRETS.values():
        text = pattern.sub("…", text)
    for pattern in (LOCAL_PATH, _ANY_PATH):
        text = pattern.sub(lambda path: last_part(path[0]), text)
    return text


def last_part(path: str) -> str:
    """`rows.jsonl` of a path of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
