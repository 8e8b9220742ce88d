"""`Hub`, the test Hub as a context manager."""

from __future__ import annotations

import os
import random
import string
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs

from hub import downloads, repositories, routes, uploads
from hub.faults import Entry, Fault, Faults, Mode
from hub.storage import Storage
from hub.store import Blobs, Commit, File, Repo, User, now
from hub.wire import Handler, HubError, Origin, Request, Response, answer
from hub.xet import XetStore

ENDPOINTS = (repositories, uploads, downloads)  # importing them fills the table of routes
NO_PROXY = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "")


class Hub:
    """A Hub on 127.0.0.1 and its storage on localhost, for as long as the `with` block lasts.

    `fail` names operations. On the hub: whoami, create_repo, delete_repo, settings, auth_check, repo_info, tree,
    paths_info, refs, commits, tag, branch, discussion, validate_yaml, preupload, lfs_batch, lfs_verify, commit,
    resolve, xet_token. On the storage origin: lfs_put, lfs_part, lfs_complete, download. `unknown` is any other
    address; it is answered with 404.

    Commits are atomic and one request changes the state at a time. Leaving the block raises whatever broke inside
    the server itself, so that no test passes over it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        multipart_threshold: int = 64 * 1024 * 1024,
        part_size: int = 16 * 1024 * 1024,
        page_size: int = 1000,
        xet: bool = False,
    ) -> None:
        """`folder` takes the blobs. `xet` serves tokens for a store on disk that the real hf_xet reads and writes."""
        self.folder = folder
        self.xet = XetStore(folder / "xet") if xet else None
        self.blobs = Blobs(folder / "blobs", self.xet)
        self.storage = Storage(self.blobs, multipart_threshold=multipart_threshold, part_size=part_size)
        self.page_size = page_size
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, User] = {}  # by token
        self.log: list[Entry] = []
        self.errors: list[BaseException] = []
        self.on_request: Callable[[Entry], str | None] | None = None
        """Called with the log's entry when a request has arrived whole and nothing has been done about it; a test may
        kill its client here, and the request is still carried out, as it would be by a Hub that learns nothing of
        the client's end. Returning "drop" resets the connection, and the request is not carried out."""
        self.started = now()
        self._faults = Faults()
        self._lock = threading.RLock()

    def __enter__(self) -> Hub:
        self._origins = (Origin(self._on_hub, self.errors), Origin(self._on_storage, self.errors))
        self.endpoint = f"http://127.0.0.1:{self._origins[0].port}"
        self.storage.url = f"http://localhost:{self._origins[1].port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for origin in self._origins:
            origin.stop()
        if self.errors and kind is None:
            raise self.errors[0]

    # What a test prepares

    def add_user(
        self,
        name: str,
        role: str = "write",
        orgs: Mapping[str, str] | None = None,
        scopes: Mapping[str, list[str]] | None = None,
    ) -> str:
        """A new token of `name`. `role` is the token's: read, write, or fineGrained with `scopes`, namespace ->
        permissions (repo.write). `orgs` says the role in each organisation: admin, write, contributor or read.
        """
        token = "hf_" + "".join(random.SystemRandom().choices(string.ascii_letters, k=34))
        self.users[token] = User(name, role, dict(orgs or {}), {n: list(p) for n, p in (scopes or {}).items()})
        return token

    def revoke(self, token: str) -> None:
        del self.users[token]

    def add_repo(
        self, repo_id: str, folder: Path | None = None, *, private: bool = False, gated: bool = False
    ) -> Repo:
        """A repository with `folder`'s files in one commit. Gated files are for their owner and `repo.granted`."""
        self.repos[repo_id] = Repo(repo_id, self.blobs, private=private, gated=gated, author=repo_id.split("/")[0])
        if folder:
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            self.add_commit(repo_id, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})
        return self.repos[repo_id]

    def add_commit(self, repo_id: str, files: Mapping[str, bytes | None], *, ref: str = "main") -> str:
        """A commit of somebody else's, past the clients: these contents, None to delete. Returns its id."""
        with self._lock:
            repo = self.repos[repo_id]
            head = repo.at(ref)
            tree = dict(head.tree)
            for path, content in files.items():
                if content is None:
                    del tree[path]
                else:
                    large = repo.is_large(path, head) or b"\0" in content[:512]
                    tree[path] = self.blobs.file(content, lfs=large)
            return repo.commit(tree, head, "Change files", author="somebody", ref=ref).oid

    def repo(self, repo_id: str) -> Repo:
        return self.repos[repo_id]

    def fail(
        self,
        op: str | None = None,
        *,
        status: int = 500,
        times: int | None = 1,
        skip: int = 0,
        path: str | None = None,
        mode: Mode = "status",
        headers: Mapping[str, str] | None = None,
        message: str = "Internal Error - We're working hard to fix this as soon as possible!",
        code: str | None = None,
    ) -> Fault:
        """Let the next `times` requests of `op` fail, after `skip` more have gone well; `times=None` is for ever.

        `path` is a regular expression searched in "METHOD /path?query"; without `op` it alone decides.
        Modes: `status` answers with `status`, `message`, `headers` and X-Error-Code `code`, and does nothing;
        `reset` resets the connection when the request is in, and does nothing; `reset_mid_body` resets it when half
        of the request's body was read, or, for a request without a body, when half of the answer's was sent; `lost`
        carries the request out and resets the connection before the answer; `truncate` carries it out and ends
        the connection after half of the answer's body.
        Returns the fault, whose `hits` counts how often it has happened.
        """
        return self._faults.add(Fault(op, path, mode, status, times, skip, dict(headers or {}), message, code))

    def heal(self) -> None:
        """Forget the faults that have not happened yet."""
        self._faults.clear()

    def environment(self, token: str | None = None, home: Path | None = None) -> dict[str, str]:
        """Variables to lay over `os.environ` for a client in a process of its own: LFS, this Hub, no traces elsewhere.

        With `Hub(xet=True)` the client may use Xet. `home` takes its caches and defaults to a folder of the Hub's.
        """
        home = home or self.folder / "home"
        return {
            **NO_PROXY,
            "NO_PROXY": "*",
            "no_proxy": "*",
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token or "",
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        }

    # What a test looks at afterwards

    def requests(self, op: str, *, status: int | None = None) -> list[Entry]:
        """The logged requests of one operation, or those of them that were answered with `status`."""
        return [entry for entry in list(self.log) if entry.op == op and status in (None, entry.status)]

    def requests_with(self, text: str, origin: str | None = "storage") -> list[Entry]:
        """Requests that carry `text` in their URL, a header or the body; `origin=None` looks at both origins."""
        return [entry for entry in list(self.log) if origin in (None, entry.origin) and entry.holds(text)]

    # What the endpoints ask

    def signed_in(self, request: Request) -> User:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        return request.user

    def readable(self, request: Request, repo_id: str) -> Repo:
        """The repository, if whoever asks may know of it."""
        repo = self.repos.get(repo_id)
        stranger = request.user is None or not request.user.belongs_to(repo_id.split("/")[0])
        if repo is None or (repo.private and stranger):
            if request.user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, request: Request, repo_id: str) -> Repo:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        repo = self.readable(request, repo_id)
        if not request.user.may_write_in(repo.namespace):
            raise HubError(403, f"You don't have the rights to write to {repo_id}, or the token's role is not write")
        return repo

    def target(self, request: Request, repo_id: str, revision: str | None) -> Repo:
        """The repository of an upload. Reading it is enough with create_pr, no revision, or one's own pull request."""
        user = self.signed_in(request)
        repo = self.readable(request, repo_id)
        pulls = {f"refs/pr/{n}" for n, pull in repo.pull_requests.items() if pull.author == user.name}
        if user.role == "write" and (request.flag("create_pr") or revision is None or revision in pulls):
            return repo
        return self.writable(request, repo_id)

    def check_gate(self, request: Request, repo: Repo) -> None:
        user = request.user
        if not repo.gated or (user and (user.belongs_to(repo.namespace) or user.name in repo.granted)):
            return
        if user is None:
            message = f"Access to model {repo.id} is restricted. You must have access to it and be authenticated."
            raise HubError(401, message, "GatedRepo")
        message = f"Access to model {repo.id} is restricted and you are not in the authorized list."
        raise HubError(403, message, "GatedRepo")

    def revision(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def xet_hash(self, file: File) -> str | None:
        """Xet's hash of a file that came through Xet."""
        stored = self.xet.find(file.sha256) if self.xet and file.lfs else None
        return stored.xet_hash if stored else None

    @staticmethod
    def form(request: Request) -> dict[str, list[str]]:
        return parse_qs(request.body.decode())

    # How a request is answered

    def _on_hub(self, handler: Handler, request: Request) -> None:
        if request.target == "/api/agent-harnesses":
            # Asked by the client about itself, at most once a day: kept out of the log, which tests count in.
            return handler.send(answer({"standardEnvVars": [], "harnesses": {}}))
        op, call = routes.find(request)
        entry = self._arrived(op, request, "hub")

        def act() -> Response:
            authorization = request.headers.get("Authorization")
            with self._lock:
                if authorization is not None:
                    request.user = self.users.get(authorization.removeprefix("Bearer "))
                    if request.user is None:
                        raise HubError(401, "Invalid credentials in Authorization header")
                return call(self)

        return self._exchange(handler, request, entry, act)

    def _on_storage(self, handler: Handler, request: Request) -> None:
        entry = self._arrived(self.storage.operation(request), request, "storage")
        self._exchange(handler, request, entry, lambda: self.storage.respond(request))

    def _arrived(self, op: str, request: Request, origin: str) -> Entry:
        entry = Entry(op, request.method, request.target, origin, dict(request.headers.items()))  # type: ignore[arg-type]
        self.log.append(entry)
        return entry

    def _exchange(self, handler: Handler, request: Request, entry: Entry, act: Callable[[], Response]) -> None:
        fault = self._faults.next(entry)
        has_body = request.headers.get("Transfer-Encoding") or int(request.headers.get("Content-Length") or 0) > 0
        if fault and fault.mode == "reset_mid_body" and has_body:
            handler.read_body(request, entry, share=0.5)
            handler.reset()
            return
        handler.read_body(request, entry)
        if self.on_request and self.on_request(entry) == "drop":
            handler.reset()
            return
        handler.carry_out(fault, request, entry, lambda: self._guarded(act))

    def _guarded(self, act: Callable[[], Response]) -> Response:
        try:
            return act()
        except HubError as error:
            return error.response
        except Exception as error:
            self.errors.append(error)
            return HubError(500, f"the test Hub itself broke: {error!r}").response


def main() -> None:
    """Serve until interrupted, for a look by hand: python -m hub.server FOLDER."""
    import sys

    with Hub(Path(sys.argv[1])) as hub:
        print(f"HF_ENDPOINT={hub.endpoint} HF_TOKEN={hub.add_user(os.environ.get('USER', 'me'))}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
