"""Chat completions from an OpenAI-compatible server, with the standard library.

`huggingface_hub.InferenceClient` (1.31 and 2.4) is not used: without a key it sends the user's Hub token to whatever
server it is given, and under HF_HUB_OFFLINE it refuses to ask any, also one on this machine.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from recipe_kit import __version__
from recipe_kit.errors import RunError

LONGEST_REPLY = 4 << 20  # bytes
_LONGEST_REMARK = 200  # characters of what a server says about an error


class NoReplyError(Exception):
    """A request without a usable reply. `kind` is short and the same for the same failure; `detail` says more."""

    def __init__(self, kind: str, detail: str = "", *, again: bool = True, wait: float = 0.0) -> None:
        self.kind, self.detail = kind, detail
        self.again = again  # whether the same request may succeed later
        self.wait = wait  # seconds the server asks for before that
        super().__init__(f"{kind}: {detail}" if detail else kind)


@dataclass(frozen=True)
class Reply:
    """What came back, and what it used; None where the server does not say."""

    text: str
    model: str | None
    input_tokens: int | None
    output_tokens: int | None


@dataclass
class Endpoint:
    """A server, the model to ask there, and what to send with each request.

    `optional` are parameters that not every server takes; one that is refused by name is left out from then on.
    """

    url: str
    model: str
    timeout: float
    key: str = field(default="", repr=False)
    optional: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RunError(f"{self.url}: not the URL of a server; expected one such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise RunError(
                f"{parts.hostname}: a URL must not hold a password, since it is recorded; name the environment "
                "variable that holds the key in evaluation.judge.api_key_env"
            )
        self.key = self.key.strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise RunError("the judge's API key holds characters that no HTTP header can carry; set it again")

    @property
    def shown(self) -> str:
        """The URL as it may be recorded: a query could hold a key."""
        return urlunsplit(urlsplit(self.url)._replace(query="", fragment=""))

    def ask(self, question: str) -> Reply:
        """The model's answer to one user message. Raises NoReplyError."""
        while True:
            sent = dict(self.optional)
            body = {"model": self.model, "messages": [{"role": "user", "content": question}], **sent}
            try:
                return _reply(self._post(body))
            except _RefusedError as error:
                refused = [name for name in sent if name in error.said]
                if not refused:
                    raise
                for name in refused:
                    if self.optional.pop(name, None) is not None:  # another thread may have been first
                        self.left_out.append(name)

    def _post(self, body: dict[str, Any]) -> str:
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
        headers = {"Content-Type": "application/json", "User-Agent": f"recipe-kit/{__version__}"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            urlunsplit(parts._replace(path=path, fragment="")), json.dumps(body).encode(), headers
        )
        deadline = time.monotonic() + self.timeout
        try:
            with _opener.open(request, timeout=self.timeout) as response:
                return self._without_key(_read(response, deadline).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, deadline) from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise NoReplyError(f"no answer within {self.timeout:g} seconds") from None
            raise NoReplyError("cannot reach the server", self._without_key(str(reason))) from None

    def _refused(self, error: urllib.error.HTTPError, deadline: float) -> NoReplyError:
        said = ""
        with suppress(OSError, http.client.HTTPException, NoReplyError):
            said = self._without_key(_read(error, deadline).decode("utf-8", "replace"))
        kind = self._without_key(f"HTTP {error.code} {error.reason}".strip())
        if error.code in (400, 422):
            return _RefusedError(kind, _remark(said), said)
        if error.code == 404:
            said = said or "is the path right? it mostly ends in /v1"
        wait = 0.0
        with suppress(ValueError):
            wait = max(0.0, float(error.headers.get("Retry-After", "0")))
        again = error.code in (408, 409, 429) or error.code >= 500
        return NoReplyError(kind, _remark(said), again=again, wait=min(wait, self.timeout))

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "[key]") if self.key else text


class _RefusedError(NoReplyError):
    """The server does not like the request; `said` is all it had to say."""

    def __init__(self, kind: str, detail: str, said: str) -> None:
        self.said = said
        super().__init__(kind, detail, again=False)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key, and the texts, to a server that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def _read(response: Any, deadline: float) -> bytes:
    """The whole body; a server that sends a byte now and then does not hold us for ever."""
    parts: list[bytes] = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if sum(map(len, parts)) > LONGEST_REPLY:
            raise NoReplyError("the reply is far too long", again=False)
    return b"".join(parts)


def _reply(body: str) -> Reply:
    try:
        data = json.loads(body)
        text = data["choices"][0]["message"]["content"]
        usage = data.get("usage") or {}
        model = data.get("model")
        counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise NoReplyError("the reply is not a chat completion", _remark(body)) from None
    read = [count if isinstance(count, int) and not isinstance(count, bool) else None for count in counts]
    return Reply(text if isinstance(text, str) else "", model if isinstance(model, str) else None, *read)


def _remark(said: str) -> str:
    """What a server says about an error: its own message where it is in the usual place, on one line, shortened."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        said = str(json.loads(said)["error"]["message"])
    line = " ".join(said.split())
    return line if len(line) <= _LONGEST_REMARK else line[:_LONGEST_REMARK] + "…"
