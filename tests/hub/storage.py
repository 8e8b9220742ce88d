"""The storage origin: presigned links for single uploads, parts, completions and downloads. It never wants a token."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import threading
import time
from urllib.parse import urlencode

from hub.store import Blobs
from hub.wire import HubError, Request, Response

OPERATIONS = {"put": "lfs_put", "part": "lfs_part", "complete": "lfs_complete", "get": "download"}


class Storage:
    """Signs links and serves them. `link_seconds` is how long a link lives: a negative number makes expired ones."""

    def __init__(self, blobs: Blobs, *, multipart_threshold: int, part_size: int) -> None:
        self.blobs = blobs
        self.multipart_threshold = multipart_threshold
        self.part_size = part_size
        self.link_seconds = 900.0
        self.url = ""  # known once the origin listens
        self._secret = os.urandom(16)
        self._parts: dict[str, dict[int, bytes]] = {}  # upload -> number of the part -> its bytes
        self._lock = threading.Lock()

    def link(self, verb: str, sha256: str, **values: str | int) -> str:
        """A link for one thing: `put`, `part`, `complete` or `get` of the object with that hash."""
        query = {
            **{name: str(value) for name, value in values.items()},
            "expires": str(time.time() + self.link_seconds),
        }
        signature = self._sign(verb, sha256, query)
        return f"{self.url}/{verb}/{sha256}?{urlencode({**query, 'signature': signature})}"

    def upload_action(self, sha256: str, size: int) -> dict[str, object]:
        """What the LFS batch tells the client: one link, or one for each part and one to say that all are there."""
        if size <= self.multipart_threshold:
            return {"href": self.link("put", sha256, size=size)}
        upload = os.urandom(8).hex()
        count = math.ceil(size / self.part_size)
        with self._lock:
            self._parts[upload] = {}
        header = {f"{n:05d}": self.link("part", sha256, upload=upload, number=n) for n in range(1, count + 1)}
        href = self.link("complete", sha256, upload=upload, size=size, count=count)
        return {"href": href, "header": {"chunk_size": str(self.part_size), **header}}

    def operation(self, request: Request) -> str:
        return OPERATIONS.get(request.segments[0], "unknown")

    def respond(self, request: Request) -> Response:
        verb, sha256, values = self._checked(request)
        if verb == "get":
            return ranged(request, self.blobs.read(sha256), {"ETag": f'"{sha256}"'})
        if verb == "complete":
            return self._complete(sha256, values, request)
        if request.chunked:
            raise HubError(
                501, "A header you provided implies functionality that is not implemented: Transfer-Encoding"
            )
        if verb == "part":
            with self._lock:
                self._parts[values["upload"]][int(values["number"])] = request.body
        else:
            self._store(sha256, int(values["size"]), request.body)
        return Response(200, headers={"ETag": _etag(request.body)})

    def _complete(self, sha256: str, values: dict[str, str], request: Request) -> Response:
        asked = request.json()
        with self._lock:
            parts = dict(self._parts[values["upload"]])
        expected = [{"partNumber": n, "etag": _etag(parts.get(n, b""))} for n in range(1, int(values["count"]) + 1)]
        if asked.get("oid") != sha256 or asked.get("parts") != expected:
            raise HubError(400, "One or more of the specified parts could not be found, or its ETag did not match")
        self._store(sha256, int(values["size"]), b"".join(parts[n] for n in sorted(parts)))
        with self._lock:
            del self._parts[values["upload"]]
        return Response(200, b"{}", {"Content-Type": "application/json"})

    def _store(self, sha256: str, size: int, content: bytes) -> None:
        if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, f"BadDigest: the {len(content)} bytes received are not the {size} bytes of {sha256}")
        self.blobs.put(content)

    def _checked(self, request: Request) -> tuple[str, str, dict[str, str]]:
        """Verb, hash and values of a link that was signed here, has not expired and is used as it was meant."""
        verb, sha256 = [*request.segments, ""][:2]
        values = {name: given[0] for name, given in request.query.items()}
        signature = values.pop("signature", "")
        methods = {"put": ["PUT"], "part": ["PUT"], "complete": ["POST"], "get": ["GET", "HEAD"]}
        if request.method not in methods.get(verb, []) or not hmac.compare_digest(
            signature, self._sign(verb, sha256, values)
        ):
            raise HubError(403, "SignatureDoesNotMatch")
        if request.headers.get("Authorization"):
            raise HubError(400, "InvalidArgument: only one auth mechanism allowed, and the link is signed")
        if float(values["expires"]) < time.time():
            raise HubError(403, "AccessDenied: request has expired")
        if verb in ("part", "complete") and values["upload"] not in self._parts:
            raise HubError(404, "NoSuchUpload")
        return verb, sha256, values

    def _sign(self, verb: str, sha256: str, values: dict[str, str]) -> str:
        text = f"{verb}\n{sha256}\n{sorted(values.items())}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def ranged(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """`content`, or the part of it that a Range header asks for: 206, and 416 where there is no such part."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if match is None or match.groups() == ("", ""):
        return Response(200, content, headers)
    first, last = match.groups()
    start = int(first) if first else max(len(content) - int(last), 0)
    end = min(int(last), len(content) - 1) if first and last else len(content) - 1
    if start > end:
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
    part = content[start : end + 1]
    return Response(206, part, {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
