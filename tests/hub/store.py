"""Repositories as git knows them: blobs, commits, refs and who may touch what. Nothing here speaks HTTP."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hub.xet import XetStore

LFS_PATTERNS = (  # of the .gitattributes that a new repository gets
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz "
    "*.wasm *.xz *.zip *.zst *tfevents*"
)
GITATTRIBUTES = "".join(f"{each} filter=lfs diff=lfs merge=lfs -text\n" for each in LFS_PATTERNS.split()).encode()
REGULAR_LIMIT = 10 * 1024 * 1024  # bytes; larger files go through LFS
ROLES_THAT_WRITE = ("admin", "write", "contributor")


@dataclass
class User:
    """Somebody behind one token. `role` is the token's: read, write or fineGrained, the last with `scopes`."""

    name: str
    role: str
    orgs: dict[str, str] = field(default_factory=dict)  # organisation -> role of the user in it
    scopes: dict[str, list[str]] = field(default_factory=dict)  # namespace -> permissions of a fineGrained token

    def belongs_to(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs

    def may_write_in(self, namespace: str) -> bool:
        if self.role == "fineGrained" and "repo.write" not in self.scopes.get(namespace, []):
            return False
        return self.role != "read" and (namespace == self.name or self.orgs.get(namespace) in ROLES_THAT_WRITE)


@dataclass(frozen=True)
class File:
    """A path's content in one commit. `oid` is git's: sha1 of the blob, for LFS of the pointer's text."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass(frozen=True)
class Commit:
    """One commit with the whole tree it stands for."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: Mapping[str, File]


@dataclass
class PullRequest:
    """`refs/pr/<num>`, opened by `author` on `base`."""

    num: int
    title: str
    description: str
    author: str
    date: str
    base: str = "refs/heads/main"


class Blobs:
    """Contents by sha256, one file each; those that came through Xet are fetched from its store when they are read."""

    def __init__(self, folder: Path, xet: XetStore | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.xet = xet

    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        if not (self.folder / sha256).exists():
            unfinished = self.folder / f"{sha256}.{os.urandom(4).hex()}"
            unfinished.write_bytes(content)
            unfinished.rename(self.folder / sha256)
        return sha256

    def size(self, sha256: str) -> int | None:
        """Bytes of the content, None where it was never uploaded."""
        path = self.folder / sha256
        if path.is_file():
            return path.stat().st_size
        stored = self.xet.find(sha256) if self.xet else None
        return stored.size if stored else None

    def has(self, sha256: str, size: int) -> bool:
        return self.size(sha256) == size

    def read(self, sha256: str) -> bytes:
        if self.xet and not (self.folder / sha256).exists():
            content = self.xet.read(sha256)
            assert self.put(content) == sha256, "the Xet store was read wrongly"
        return (self.folder / sha256).read_bytes()

    def file(self, content: bytes, *, lfs: bool) -> File:
        """Store `content` and describe it."""
        sha256 = self.put(content)
        return large_file(sha256, len(content)) if lfs else File(sha256, len(content), git_sha1(content), False)


class Repo:
    """One repository. Tests read `private`, `refs`, `commits`, `files` and `read`; the Hub adds with `commit`."""

    def __init__(self, repo_id: str, blobs: Blobs, *, private: bool, gated: bool, author: str) -> None:
        self.id = repo_id
        self.namespace = repo_id.split("/")[0]
        self.private = private
        self.gated = gated
        self.granted: set[str] = set()  # users who may read the files although the repository is gated
        self.blobs = blobs
        self.commits: list[Commit] = []  # newest last, of all branches and pull requests
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pull_requests: dict[int, PullRequest] = {}
        self.heads: dict[int, str] = {}  # number of a pull request -> its commit
        self.created = now()
        self.commit({".gitattributes": blobs.file(GITATTRIBUTES, lfs=False)}, None, "initial commit", author=author)

    @property
    def refs(self) -> dict[str, str]:
        """Every ref by the name a client would ask for: branch, tag or refs/pr/N -> commit."""
        return {**self.tags, **self.branches, **{f"refs/pr/{num}": oid for num, oid in self.heads.items()}}

    def find(self, revision: str) -> Commit | None:
        """The commit a branch, tag, pull request, full ref or commit id (of seven digits or more) stands for."""
        name = re.sub(r"^refs/(heads|tags)/", "", revision)
        wanted = self.refs.get(name, revision)
        for commit in reversed(self.commits):
            if commit.oid == wanted or (re.fullmatch(r"[0-9a-f]{7,39}", wanted) and commit.oid.startswith(wanted)):
                return commit
        return None

    def at(self, revision: str) -> Commit:
        commit = self.find(revision)
        if commit is None:
            raise KeyError(f"{self.id} has no revision {revision}: {sorted(self.refs)}")
        return commit

    def files(self, revision: str = "main") -> dict[str, str]:
        """Path -> sha256 of the content, with the .gitattributes that every new repository has."""
        return {path: file.sha256 for path, file in sorted(self.at(revision).tree.items())}

    def read(self, revision: str, path: str) -> bytes:
        return self.blobs.read(self.at(revision).tree[path].sha256)

    def history(self, commit: Commit) -> Iterator[Commit]:
        """`commit` and its ancestors, newest first."""
        known = {each.oid: each for each in self.commits}
        oid: str | None = commit.oid
        while oid:
            yield known[oid]
            oid = known[oid].parent

    def commit(
        self,
        tree: Mapping[str, File],
        parent: Commit | None,
        title: str,
        *,
        message: str = "",
        author: str,
        ref: str = "main",
    ) -> Commit:
        """Add a commit and move `ref`, a branch or refs/pr/N, to it."""
        date = now()
        parent_oid = parent.oid if parent else None
        names = "".join(f"{path} {file.oid}\n" for path, file in sorted(tree.items()))
        seed = f"{parent_oid}\n{title}\n{message}\n{author}\n{date}\n{len(self.commits)}\n{names}{os.urandom(8).hex()}"
        new = Commit(hashlib.sha1(seed.encode()).hexdigest(), parent_oid, title, message, author, date, dict(tree))
        self.commits.append(new)
        self.move(ref, new.oid)
        return new

    def move(self, ref: str, oid: str) -> None:
        if match := re.fullmatch(r"refs/pr/(\d+)", ref):
            self.heads[int(match[1])] = oid
        else:
            self.branches[re.sub(r"^refs/heads/", "", ref)] = oid

    def open_pull_request(self, title: str, description: str, author: str, start: Commit) -> PullRequest:
        num = len(self.pull_requests) + 1
        self.pull_requests[num] = PullRequest(num, title, description, author, now())
        self.heads[num] = start.oid
        return self.pull_requests[num]

    def is_large(self, path: str, commit: Commit) -> bool:
        """Whether .gitattributes at `commit` sends `path` through LFS; the last matching line decides."""
        rules = commit.tree.get(".gitattributes")
        large = False
        for line in self.blobs.read(rules.sha256).decode().splitlines() if rules else []:
            pattern, *attributes = line.split() or ["#"]
            if not pattern.startswith("#") and matches(path, pattern):
                large = "filter=lfs" in attributes
        return large


def large_file(sha256: str, size: int) -> File:
    file = File(sha256, size, "", True)
    return File(sha256, size, git_sha1(file.pointer), True)


def matches(path: str, pattern: str) -> bool:
    """Git's rule in short: a pattern without a slash is for the name alone, one with a slash for the whole path."""
    if "/" not in pattern.rstrip("/"):
        return any(fnmatch.fnmatchcase(part, pattern.rstrip("/")) for part in path.split("/"))
    return fnmatch.fnmatchcase(path, pattern.lstrip("/").replace("**/", "*"))


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def now() -> str:
    """The time as the client parses it."""
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
