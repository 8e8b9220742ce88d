"""What goes wrong on purpose, and the log of what was asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["status", "reset", "reset_mid_body", "lost", "truncate"]


@dataclass
class Entry:
    """One request as it arrived. `status` is 0 until it was answered, and stays 0 where it never was."""

    op: str
    method: str
    path: str  # with the query
    origin: Literal["hub", "storage"]
    headers: dict[str, str]
    body: bytes = b""
    status: int = 0
    bytes_out: int = 0

    @property
    def bytes_in(self) -> int:
        """Bytes of the body that were read."""
        return len(self.body)

    @property
    def auth(self) -> bool:
        return any(name.lower() == "authorization" for name in self.headers)

    @property
    def token(self) -> str | None:
        for name, value in self.headers.items():
            if name.lower() == "authorization":
                return value.removeprefix("Bearer ")
        return None

    def holds(self, text: str) -> bool:
        """Whether `text` stands in the URL, in a header or in the body."""
        shown = f"{self.path}\n{self.headers}"
        return text in shown or text.encode() in self.body


@dataclass
class Fault:
    """One thing that will go wrong: for requests of `op` whose "METHOD /path?query" `path` finds."""

    op: str | None
    path: str | None
    mode: Mode
    status: int
    times: int | None  # None: for ever
    skip: int
    headers: Mapping[str, str]
    message: str
    code: str | None
    hits: int = 0  # how often it has happened

    def wants(self, entry: Entry) -> bool:
        named = self.op in (None, entry.op)
        return named and (self.path is None or re.search(self.path, f"{entry.method} {entry.path}") is not None)


@dataclass
class Faults:
    """The faults still to come, in the order they were asked for; a request meets at most one."""

    waiting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self.waiting.append(fault)
        return fault

    def next(self, entry: Entry) -> Fault | None:
        with self._lock:
            for fault in self.waiting:
                if not fault.wants(entry):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.hits += 1
                if fault.times is not None and fault.hits >= fault.times:
                    self.waiting.remove(fault)
                return fault
        return None

    def clear(self) -> None:
        with self._lock:
            self.waiting.clear()
