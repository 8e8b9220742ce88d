"""Endpoints of a download: small files from here, large ones from the storage origin, and the tokens for Xet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hub.repositories import REPO
from hub.routes import route
from hub.storage import ranged
from hub.wire import HubError, Request, Response, answer

if TYPE_CHECKING:
    from hub.server import Hub


@route("resolve", "GET HEAD", r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)")
def resolve(hub: Hub, request: Request, repo_id: str, revision: str, path: str) -> Response:
    repo = hub.readable(request, repo_id)
    hub.check_gate(request, repo)
    commit = hub.revision(repo, revision)
    headers = {"X-Repo-Commit": commit.oid}
    file = commit.tree.get(path)
    if file is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    if not file.lfs:
        return ranged(request, hub.blobs.read(file.sha256), {**headers, "ETag": f'"{file.oid}"'})
    headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
    xet_hash = hub.xet_hash(file)
    if xet_hash:
        headers["X-Xet-Hash"] = xet_hash
        headers["Link"] = f'<{hub.endpoint}/api/models/{repo.id}/xet-read-token/{commit.oid}>; rel="xet-auth"'
    name = path.split("/")[-1]
    headers["Location"] = hub.storage.link("get", file.sha256, name=name)
    return Response(302, b"Found. Redirecting to storage", {**headers, "Content-Type": "text/plain"})


@route("xet_token", "GET", f"{REPO}/xet-(read|write)-token/([^/]+)")
def xet_token(hub: Hub, request: Request, repo_id: str, right: str, revision: str) -> Response:
    """A token for the content-addressed store, which here is a folder that the client opens itself."""
    repo = hub.target(request, repo_id, revision) if right == "write" else hub.readable(request, repo_id)
    if hub.xet is None:
        raise HubError(404, "this Hub runs without Xet")
    hub.check_gate(request, repo)
    if revision != "None":
        hub.revision(repo, revision)
    token = hub.xet.token()
    headers = {
        "X-Xet-Cas-Url": token["casUrl"],
        "X-Xet-Access-Token": token["accessToken"],
        "X-Xet-Token-Expiration": str(token["exp"]),
    }
    return answer(token, headers=headers)
