"""Xet without a service: hf_xet takes a folder for its content-addressed store, and this module reads such a folder.

Given the address `local:///folder`, hf_xet cuts files into chunks, writes the chunks into xorbs and what each file is
made of into shards, all under that folder, which one process at a time can have open. The Hub needs to know which
files are there, and their bytes for tests and for clients without Xet. The layouts are those of
github.com/huggingface/xet-core.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = 48  # bytes of every record of a shard, its header included
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30


@dataclass(frozen=True)
class Stored:
    """A file in the store: Xet's hash of it, and the runs of chunks (xorb, first, one past the last) it is made of."""

    xet_hash: str
    size: int
    runs: list[tuple[str, int, int]]


class XetStore:
    """The files that clients have put into `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._files: dict[str, Stored] = {}  # by sha256
        self._seen: set[Path] = set()

    def token(self) -> dict[str, Any]:
        return {"casUrl": f"local://{self.folder}", "accessToken": "xet", "exp": int(time.time()) + 3600}

    def find(self, sha256: str) -> Stored | None:
        for shard in self.folder.glob("**/shards/*.mdb"):
            if shard not in self._seen:
                self._files.update(_files_of(shard.read_bytes()))
                self._seen.add(shard)
        return self._files.get(sha256)

    def read(self, sha256: str) -> bytes:
        file = self.find(sha256)
        if file is None:
            raise KeyError(sha256)
        return b"".join(chunk for xorb, first, end in file.runs for chunk in self._chunks(xorb, first, end))

    def _chunks(self, xorb: str, first: int, end: int) -> Iterator[bytes]:
        [path] = self.folder.glob(f"**/xorbs/*{xorb}")
        content, at = path.read_bytes(), 0
        for number in range(end):
            # One byte of version, three of the packed size, one of the scheme, three of the size.
            packed, scheme = int.from_bytes(content[at + 1 : at + 4], "little"), content[at + 4]
            if number >= first:
                yield _unpack(content[at + 8 : at + 8 + packed], scheme)
            at += 8 + packed


def _files_of(shard: bytes) -> Iterator[tuple[str, Stored]]:
    """sha256 and description of every file a shard tells of; the section ends with a record of ones."""
    at = RECORD
    while shard[at : at + 32] != b"\xff" * 32:
        xet_hash = _hex(shard[at : at + 32])
        flags, count = struct.unpack_from("<II", shard, at + 32)
        runs, size = [], 0
        for n in range(1, count + 1):
            entry = at + n * RECORD
            _, length, first, end = struct.unpack_from("<IIII", shard, entry + 32)
            runs.append((_hex(shard[entry : entry + 32]), first, end))
            size += length
        at += RECORD * (1 + count * (2 if flags & HAS_VERIFICATION else 1))
        if flags & HAS_SHA256:
            yield _hex(shard[at : at + 32]), Stored(xet_hash, size, runs)
            at += RECORD


def _hex(digest: bytes) -> str:
    """Hashes are kept as four little-endian numbers and written as numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _unpack(packed: bytes, scheme: int) -> bytes:
    """A chunk's bytes: 0 as they are, 1 an LZ4 frame, 2 an LZ4 frame of the bytes 0, 4, 8, then 1, 5, 9, and so on."""
    if scheme == 0:
        return packed
    content = _lz4_frame(packed)
    if scheme == 1:
        return content
    restored, start = bytearray(len(content)), 0
    for lane in range(4):
        length = len(range(lane, len(content), 4))
        restored[lane::4] = content[start : start + length]
        start += length
    return bytes(restored)


def _lz4_frame(frame: bytes) -> bytes:
    """The content of an LZ4 frame; the standard library has no decoder for it."""
    flags = frame[4]
    at = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    out = bytearray()
    while size := int.from_bytes(frame[at : at + 4], "little"):
        length = size & 0x7FFFFFFF
        block = frame[at + 4 : at + 4 + length]
        if size >> 31:
            out += block
        else:
            _lz4_block(block, out)
        at += 4 + length + (4 if flags & 0x10 else 0)
    return bytes(out)


def _lz4_block(block: bytes, out: bytearray) -> None:
    at = 0

    def length(start: int) -> int:
        nonlocal at
        total = start
        while start == 15 or (start == -1 and block[at - 1] == 255):
            total += block[at]
            at, start = at + 1, -1
        return total

    while at < len(block):
        token = block[at]
        at += 1
        literals = length(token >> 4)
        out += block[at : at + literals]
        at += literals
        if at >= len(block):
            return
        offset = block[at] | block[at + 1] << 8
        at += 2
        count = length(token & 15) + 4
        start = len(out) - offset
        while count > 0:  # a match may reach into what it is itself writing
            piece = out[start : start + min(count, len(out) - start)]
            out += piece
            start, count = start + len(piece), count - len(piece)
