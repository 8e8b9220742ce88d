"""What goes wrong on the way to the Hub, as one sentence with what to do next: the only table of its kind.

The client fails with its own errors, with those of the HTTP library below it (httpx in 1.x, httpx2 in 2.x), and with
plain ValueError, RuntimeError, ConnectionError and OSError; which of them depends on the step and on the way files go.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recipe_kit.errors import PublishError
from recipe_kit.publish.scan import in_one_line

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
NO_TOKEN = f"no Hub token on this machine; make one with the role write at {TOKENS_PAGE} and run `hf auth login`"
BAD_TOKEN = (
    "the Hub does not accept this token: unknown, expired or revoked; make a new one with the role write at "
    f"{TOKENS_PAGE}, run `hf auth login`, and push again"
)
OFFLINE = "offline: HF_HUB_OFFLINE is set; unset it to push, or write the files to a folder with --to-folder DIR"

AGAIN = (408, 429, 500, 502, 503, 504)  # worth asking again
LONGEST_WAIT = 300.0  # seconds; what the Hub may ask a push to wait

_QUOTA = re.compile(r"quota|storage (?:limit|space)|out of storage|payment|billing|exceed", re.IGNORECASE)
_STATUS_IN_TEXT = re.compile(r"\b(401|403|404|413|429|5\d\d)\b")


def sentence(error: BaseException, *, doing: str, repo_id: str | None, tokens: tuple[str, ...] = ()) -> str | None:
    """What happened and what to do next; None for an error that is no refusal but a bug."""
    if isinstance(error, RuntimeError) and error.__cause__ and (file := re.search(r"'([^']+)'", str(error))):
        doing = f"uploading {file[1]}"
    error = _inner(error)
    where = f"{repo_id or 'the Hub'}: {doing}"
    told = _told(error, tokens)
    if _is(error, "OfflineModeIsEnabled"):
        return OFFLINE
    if _is(error, "LocalTokenNotFoundError"):
        return NO_TOKEN
    status = status_of(error)
    if status is not None:
        return _refused(status, told, where, repo_id)
    if _is(error, "HFValidationError"):
        return f"publish.repo_id: {told}; expected owner/name of letters, digits, `-`, `_` and `.`"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" at {error.filename}" if error.filename else ""
        return f"{where}: no space left on this machine's disk{place}; make room, or set TMPDIR to a folder with room"
    if isinstance(error, json.JSONDecodeError):
        return f"{where}: the Hub answered something that is no JSON; push again in a while"
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return (
            f"{where}: the Hub does not accept the metadata of README.md ({told}); correct the recipe's card section"
        )
    if isinstance(error, ValueError) and str(error).startswith("LFS batch API"):
        return _refused(413 if _QUOTA.search(told) else 400, told, where, repo_id)
    if is_no_connection(error):
        return f"{where}: {_connection(error, told)}; push again to finish"
    if isinstance(error, OSError) and error.errno is not None:
        return (
            f"{where}: {error.strerror} ({error.filename or 'no file is named'}); see that it can be read and written"
        )
    if _from_xet(error):
        return f"{where}: the upload failed ({told}); push again to finish, or set HF_HUB_DISABLE_XET=1 first"
    return None


@contextmanager
def explained(doing: str, repo_id: str | None, tokens: tuple[str, ...] = ()) -> Iterator[None]:
    """Turns refusals into a PublishError; bugs go through as they are."""
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        text = sentence(error, doing=doing, repo_id=repo_id, tokens=tokens)
        if text is None:
            raise
        # The client's own texts hold signed URLs, and its causes whole requests: they end here.
        raise PublishError(text) from None


def pause(error: BaseException, seconds: float) -> float | None:
    """Seconds to wait before the same is asked again, at least `seconds`; None where asking again is of no use."""
    error = _inner(error)
    status = status_of(error)
    if status is None:
        return seconds if is_no_connection(error) or isinstance(error, json.JSONDecodeError) else None
    if status not in AGAIN:
        return None
    wanted = _wanted_pause(error)
    return None if wanted > LONGEST_WAIT else max(seconds, wanted)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a refusal, also where the client only writes it into a text; None for other errors."""
    error = _inner(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return int(status)
    if type(error) is ConnectionError or _from_xet(error):  # the Xet client: "Network error: ... 403 ..."
        found = _STATUS_IN_TEXT.search(str(error))
        return int(found[1]) if found else None
    return None


def is_busy(told: str) -> bool:
    """Whether the Hub makes another repository of the same user, and takes one after the other."""
    return "conflicting operation" in told


def is_no_connection(error: BaseException) -> bool:
    """Whether no answer came, rather than a refusal: no way to the Hub, a reset, a time-out."""
    from huggingface_hub.errors import HTTPError as NoConnection  # type: ignore[attr-defined]  # httpx's, or httpx2's

    if status_of(error) is not None or _is(error, "OfflineModeIsEnabled"):
        return False
    return isinstance(error, NoConnection | ConnectionError | TimeoutError) or _is(error, "LocalEntryNotFoundError")


def _inner(error: BaseException) -> BaseException:
    """The error that the client has wrapped: around a failed upload, or a download of which it has no older copy."""
    while isinstance(error, RuntimeError) or _is(error, "LocalEntryNotFoundError"):
        if error.__cause__ is None:
            break
        error = error.__cause__
    return error


def _refused(status: int, told: str, where: str, repo_id: str | None) -> str:
    """The Hub's answer with its status, and what to do about it."""
    owner = (repo_id or "").partition("/")[0]
    refused = f"{where}: the Hub refused ({status}: {told})"
    if status in (402, 403, 413, 507) and (_QUOTA.search(told) or status in (402, 507)):
        return f"{refused}; the account has no room left: free some or extend it, then push again to finish"
    if status == 409 and is_busy(told):
        return f"{refused}; push again in a minute"
    answers = {
        400: f"{refused}; this needs a look at the files and names in `recipe-kit push RUN --dry-run`",
        401: BAD_TOKEN,
        403: f"{refused}; this account or token may not write there: use a token with the role write for {owner}, or "
        "another --repo-id",
        404: f"{where}: not there, or not visible to this account (404); check --repo-id and --revision, and that the "
        "token belongs to the right account",
        409: f"{refused}; the name is taken: choose another with --repo-id",
        412: f"{where}: a commit has happened since; look at it with `recipe-kit push RUN --dry-run`, and push again",
        413: f"{refused}; it is more than the Hub takes at once: see the sizes with `recipe-kit push RUN --dry-run`",
        429: f"{where}: too many requests for now ({status}); push again in a few minutes to finish",
    }
    if status >= 500:
        return f"{where}: the Hub is in trouble ({status}: {told}); push again in a while to finish"
    return answers.get(status, refused)


def _connection(error: BaseException, told: str) -> str:
    name = type(error).__name__
    if "Timeout" in name or isinstance(error, TimeoutError):
        return "no answer came in time"
    if name == "ConnectError" or any(word in told for word in ("Name or service", "resolve", "getaddrinfo", "DNS")):
        return f"the Hub cannot be reached ({told}); check the network"
    return f"the connection broke off ({told or name})"


def _told(error: BaseException, tokens: tuple[str, ...]) -> str:
    """What the Hub said, or else the error, in one line without tokens and signed URLs."""
    said = getattr(error, "server_message", None)
    text = said or str(error) or type(error).__name__
    text = re.sub(r"https?://\S+", lambda url: url[0].partition("?")[0], text)
    text = re.sub(r"\(Request ID: [^)]*\)", "", text)
    text = in_one_line(text, tokens).rstrip(".;:")
    return text if len(text) <= 200 else f"{text[:199]}…"


def _wanted_pause(error: BaseException) -> float:
    """Seconds the Hub asks to wait; 0 where it does not say."""
    headers: Any = getattr(getattr(error, "response", None), "headers", {})
    window = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit") or "")
    if window:
        return float(window[1]) + 1
    wanted = (headers.get("retry-after") or "").strip()
    return float(wanted) if wanted.isdigit() else 0.0


def _is(error: BaseException, name: str) -> bool:
    import huggingface_hub.errors as known

    return isinstance(error, getattr(known, name))


def _from_xet(error: BaseException) -> bool:
    return type(error).__module__.startswith("hf_xet") or "Xet" in type(error).__name__
