"""The files of a repository: which of a run's are published, and what each of them is."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recipe_kit.errors import PublishError
from recipe_kit.publish.scan import Search

PIECE = 1 << 22  # bytes read at a time

_TOKENIZER = {
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
}
_ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
_MODEL = {"config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_TEMPLATE = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class File:
    """One file as it will stand in the repository."""

    path: str  # in the repository
    size: int  # bytes
    sha256: str
    git_sha1: str  # git's name for these bytes, by which the Hub knows a small file
    content: Path | bytes = field(repr=False)  # a Path is sent as it lies there
    secrets: Mapping[str, int] = field(default_factory=dict)  # kind -> byte it starts at

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def described(path: str, content: Path | bytes, tokens: tuple[str, ...] = ()) -> File:
    """The file with its size and hashes, searched for secrets and `tokens` in the same reading."""
    search = Search(tokens)
    sha256 = hashlib.sha256()
    if isinstance(content, bytes):
        search.feed(content)
        return File(path, len(content), hashlib.sha256(content).hexdigest(), git_sha1(content), content, search.found)
    try:
        with content.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            sha1 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            read = 0
            while piece := file.read(PIECE):
                for hashed in (sha256, sha1):
                    hashed.update(piece)
                search.feed(piece)
                read += len(piece)
    except OSError as error:
        raise PublishError(f"{content}: cannot be read ({error.strerror or error}); it would be published") from error
    if read != size:
        raise PublishError(f"{content}: it changed while it was read; wait until nothing writes there, and push again")
    return File(path, size, sha256.hexdigest(), sha1.hexdigest(), content, search.found)


def git_sha1(data: bytes) -> str:
    """What git calls a blob of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def readable(count: int) -> str:
    """Bytes as people read them: 4.1 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def allowed(folder: Path, kind: str) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of a weights folder that are published, by name, and why each of the others is not.

    `kind` is `adapter` or `model`. A link is not followed: what it leads to may be anything.
    """
    wanted = _TOKENIZER | (_ADAPTER if kind == "adapter" else _MODEL)
    published: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for path in sorted(_walk(folder)):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            left_out[name] = "a link"
        elif name in wanted or _TEMPLATE.fullmatch(name) or (kind == "model" and _SHARD.fullmatch(name)):
            published[name] = path
        elif name.endswith(_PICKLES):
            left_out[name] = "a pickle, which can run code when it is loaded"
        else:
            left_out[name] = "no file that loading needs"
    return published, left_out


def _walk(folder: Path) -> list[Path]:
    """Files and links below a folder; linked folders are not entered."""
    found = []
    for root, folders, names in os.walk(folder, followlinks=False):
        here = Path(root)
        found += [here / name for name in names]
        found += [here / name for name in folders if (here / name).is_symlink()]
    return found
