"""What must not stand in a card: paths of somebody's machine, and secrets."""

from __future__ import annotations

import re

from recipe_kit import secrets

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


def is_private(text: str) -> bool:
    """Whether the text holds a local path or a secret."""
    return bool(LOCAL_PATH.search(text) or secrets.found_in(text))


def cleaned(text: str) -> str:
    """The text with each local path as its last part, and each secret blotted out."""
    text = secrets.blotted(text)
    for pattern in (LOCAL_PATH, _ANY_PATH):
        text = pattern.sub(lambda path: last_part(path[0]), text)
    return text


def last_part(path: str) -> str:
    """`rows.jsonl` of a path of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
