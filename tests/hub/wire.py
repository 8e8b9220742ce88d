"""HTTP for both origins: requests read, answers written, and connections broken where a fault asks for it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub.faults import Entry, Fault

if TYPE_CHECKING:
    from hub.store import User


@dataclass
class Request:
    """One request, its body read. `segments` are the parts of the path, each unquoted."""

    method: str
    target: str  # path and query as sent
    headers: Message
    body: bytes = b""
    user: User | None = None
    chunked: bool = False
    segments: list[str] = field(init=False)
    query: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        url = urlsplit(self.target)
        self.segments = [unquote(part) for part in url.path.split("/")[1:]]
        self.query = parse_qs(url.query, keep_blank_values=True)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[-1].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise HubError(400, "the body is not a JSON object")
        return value


@dataclass
class Response:
    """An answer. `body` is sent with its length; a HEAD request gets the length alone."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class HubError(Exception):
    """An error as the Hub sends it: status, a sentence, and for some a code that the client turns into a class."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None, **body: Any
    ) -> None:
        super().__init__(message)
        self.response = answer({"error": message, **body}, status, headers)
        self.response.headers["X-Error-Message"] = message
        if code:
            self.response.headers["X-Error-Code"] = code


class Origin(socketserver.ThreadingTCPServer):
    """A server on a free port of 127.0.0.1, running in threads from construction until `stop`."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, exchange: Callable[[Handler, Request], None], errors: list[BaseException]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.exchange = exchange
        self.errors = errors
        self.port: int = self.server_address[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in mid-sentence, often because a test killed them; anything else is a bug of ours."""
        error = sys.exc_info()[1]
        if error and not isinstance(error, OSError):
            self.errors.append(error)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        with self._lock:
            idle = list(self._open)
        for connection in idle:  # kept alive by clients; closing them ends their threads
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    """Reads requests off one connection and hands each to the origin's `exchange`."""

    server: Origin
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.server.exchange(self, Request(self.command, self.path, self.headers))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are in `hub.log`."""

    def read_body(self, request: Request, entry: Entry, *, share: float = 1.0) -> None:
        """Fill `request.body`; with a `share` below 1 stop there, which is for connections about to be reset."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            request.chunked = True
            while size := int(self.rfile.readline().split(b";")[0], 16):
                request.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            wanted = length if share == 1 else int(length * share)
            request.body = self.rfile.read(wanted) if wanted else b""
            if share == 1 and len(request.body) < length:
                entry.body = request.body
                raise ConnectionResetError("the client went away in mid-body")
        entry.body = request.body

    def send(self, response: Response, *, share: float = 1.0) -> None:
        """Write the answer; with a `share` below 1 its whole length is announced and only that part of it sent."""
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in response.headers:
            self.send_header("Content-Length", str(len(response.body)))
        if share < 1:
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[: int(len(response.body) * share)] if share < 1 else response.body)

    def reset(self) -> None:
        """End the connection with a TCP reset, so that the client sees an error rather than an end of file."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def carry_out(self, fault: Fault | None, request: Request, entry: Entry, act: Callable[[], Response]) -> None:
        """Answer with what `act` returns, or spoil it as `fault` says. `entry.status` stays 0 without an answer."""
        mode = fault.mode if fault else None
        if mode == "reset":
            return self.reset()
        if fault and mode == "status":
            response = HubError(fault.status, fault.message, fault.code, fault.headers).response
        else:
            response = act()
        if mode == "lost":
            return self.reset()
        spoilt = mode in ("truncate", "reset_mid_body")
        if not spoilt:
            entry.status, entry.bytes_out = response.status, len(response.body)
        self.send(response, share=0.5 if spoilt else 1.0)
        if mode == "reset_mid_body":
            self.reset()
        return None
