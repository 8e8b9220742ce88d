"""What a repository of the Hub holds now, and how that differs from what is to be published."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_kit.errors import PublishError
from recipe_kit.publish import client, manifest, refusals
from recipe_kit.publish.files import File

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
HUBS_OWN = {".gitattributes"}  # made by the Hub itself


@dataclass(frozen=True)
class RemoteFile:
    """A file of the repository by the Hub's names for its bytes."""

    size: int
    git_sha1: str  # of a large file: of the pointer to it, which says nothing here
    sha256: str | None  # of a large file only

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.sha256 or self.git_sha1})


@dataclass(frozen=True)
class Remote:
    """A repository as the Hub describes it. `head` is the commit that a push would build on."""

    exists: bool
    private: bool = True
    head: str | None = None  # None where the branch is not there yet
    main: str | None = None
    branches: Mapping[str, str] = field(default_factory=dict)  # name -> commit
    tags: Mapping[str, str] = field(default_factory=dict)  # name -> commit
    pull_request: int | None = None  # the open one of an earlier push
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    put_there: Mapping[str, frozenset[str]] = field(default_factory=dict)  # names of their bytes, of earlier pushes

    @property
    def short(self) -> str:
        return (self.head or "nothing")[:7]


MISSING = Remote(exists=False)


def look(api: HfApi, repo_id: str, branch: str, *, title: str | None = None, author: str = "") -> Remote:
    """The repository at the head of `branch`, or of the open pull request of that title and author.

    Raises the client's errors; a repository that is not there is none.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = client.ask(lambda: api.repo_info(repo_id, timeout=client.QUESTION_SECONDS))
    except RepositoryNotFoundError as error:
        if refusals.status_of(error) == 401:  # a token of no account: the Hub does not say whether it is there
            raise PublishError(refusals.BAD_TOKEN) from None
        return MISSING
    refs = client.ask(lambda: api.list_repo_refs(repo_id, include_pull_requests=title is not None))
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    number = _open_pull_request(api, repo_id, title, author) if title is not None else None
    if number is not None:
        proposed = {ref.ref: ref.target_commit for ref in refs.pull_requests or ()}
        head = proposed.get(f"refs/pr/{number}")
    else:
        head = branches.get(branch)
    files = tree(api, repo_id, head or branches[MAIN]) if branches else {}
    return Remote(
        exists=True,
        private=bool(info.private),
        head=head,
        main=branches.get(MAIN),
        branches=branches,
        tags={ref.name: ref.target_commit for ref in refs.tags},
        pull_request=number,
        files=files,
        put_there=_manifest(api, repo_id, head or branches[MAIN]) if manifest.PATH in files else {},
    )


def create(token: str, repo_id: str, *, private: bool) -> None:
    """Make a repository. Raises the client's errors.

    Not with the client's own `create_repo`: while the Hub makes another repository of this user it asks again without
    a pause and without an end (1.33 and 2.4).
    """
    from huggingface_hub import hf_raise_for_status

    owner, _, name = repo_id.partition("/")
    wanted = {"name": name, "organization": owner, "visibility": "private" if private else "public"}
    hf_raise_for_status(client.post(token, "/api/repos/create", wanted))


def tree(api: HfApi, repo_id: str, commit: str) -> dict[str, RemoteFile]:
    """Every file at a commit, by path."""
    items = client.ask(
        lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)), waits=client.FEW_WAITS
    )
    return {item.path: _remote_file(item) for item in items if hasattr(item, "blob_id")}


def same(file: File, remote: RemoteFile | None) -> bool:
    """Whether the Hub has exactly these bytes."""
    if remote is None or remote.size != file.size:
        return False
    return remote.sha256 == file.sha256 if remote.sha256 else remote.git_sha1 == file.git_sha1


def different(files: Iterable[File], remote: Mapping[str, RemoteFile]) -> list[File]:
    """Files that the repository has not, or has otherwise."""
    return [file for file in files if not same(file, remote.get(file.path))]


def stale(files: Iterable[File], remote: Remote) -> list[str]:
    """Files of an earlier push that this one has not, and that nobody changed since: they go."""
    wanted = {file.path for file in files}
    return sorted(
        path
        for path, names in remote.put_there.items()
        if path not in wanted and path in remote.files and remote.files[path].names & names
    )


def foreign(files: Iterable[File], remote: Remote, going: Iterable[str]) -> list[str]:
    """Files that somebody else put there; they stay."""
    ours = {file.path for file in files} | {*going} | HUBS_OWN
    return sorted(path for path in remote.files if path not in ours)


def _manifest(api: HfApi, repo_id: str, commit: str) -> dict[str, frozenset[str]]:
    """What earlier pushes put into the repository, as they noted there."""
    with tempfile.TemporaryDirectory(prefix="recipe-kit-") as folder:
        path = client.ask(
            lambda: api.hf_hub_download(repo_id, manifest.PATH, revision=commit, local_dir=folder),
            waits=client.FEW_WAITS,
        )
        return manifest.read(Path(path).read_bytes())


def _open_pull_request(api: HfApi, repo_id: str, title: str, author: str) -> int | None:
    """The number of the open pull request of an earlier push; None when there is none."""
    found = client.ask(lambda: list(api.get_repo_discussions(repo_id, author=author, discussion_type="pull_request")))
    mine = [
        talk.num
        for talk in found
        if talk.is_pull_request and talk.title == title and talk.author == author and talk.status in ("open", "draft")
    ]
    return max(mine, default=None)


def _remote_file(item: Any) -> RemoteFile:
    return RemoteFile(int(item.size), str(item.blob_id), item.lfs.sha256 if item.lfs else None)
