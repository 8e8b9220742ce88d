"""Endpoints of an upload: the card's check, what goes through LFS, the LFS batch, and the commit."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any

from hub import cards
from hub.repositories import REPO
from hub.routes import route
from hub.store import REGULAR_LIMIT, Commit, File, Repo, large_file, matches
from hub.wire import HubError, Request, Response, answer

if TYPE_CHECKING:
    from hub.server import Hub

LFS = r"/([^/]+/[^/]+)\.git/info/lfs/objects"


@route("validate_yaml", "POST", "/api/validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Response:
    errors, warnings = cards.validate(str(request.json().get("content", "")).encode())
    found = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return answer(found, 400 if errors else 200)


@route("preupload", "POST", f"{REPO}/preupload/([^/]+)")
def preupload(hub: Hub, request: Request, repo_id: str, revision: str) -> Response:
    """How each file is to be sent, whether it is to be left out, and what stands there now."""
    repo, asked = hub.target(request, repo_id, revision), request.json()
    commit = hub.revision(repo, revision)
    files = asked.get("files", [])
    if len(files) > 256:
        raise HubError(400, '"files" must contain less than or equal to 256 items')
    ignored = asked.get("gitIgnore")
    if ignored is None and ".gitignore" in commit.tree:
        ignored = repo.read(commit.oid, ".gitignore").decode()
    patterns = [line.strip() for line in (ignored or "").splitlines() if line.strip() and not line.startswith("#")]
    found = []
    for file in files:
        path, there = file["path"], commit.tree.get(file["path"])
        _check_path(path)
        sample = base64.b64decode(file.get("sample", ""))
        large = repo.is_large(path, commit) or file["size"] >= REGULAR_LIMIT or b"\0" in sample
        item = {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": any(matches(path, pattern) for pattern in patterns),
        }
        if there:
            item["oid"] = there.sha256 if there.lfs else there.oid
        found.append(item)
    return answer({"files": found, "commitOid": commit.oid})


@route("lfs_batch", "POST", f"{LFS}/batch")
def lfs_batch(hub: Hub, request: Request, repo_id: str) -> Response:
    """Nothing to do for an object that is stored with that size; a signed link, or several, for one that is not."""
    asked = request.json()
    repo = hub.target(request, repo_id, asked.get("ref", {}).get("name"))
    objects: list[dict[str, Any]] = []
    for item in asked.get("objects", []):
        oid, size = item["oid"], item["size"]
        found: dict[str, Any] = {"oid": oid, "size": size}
        if not re.fullmatch(r"[0-9a-f]{64}", oid):
            found["error"] = {"code": 422, "message": "the oid is not a sha256"}
        elif not hub.blobs.has(oid, size):
            verify = {"href": f"{hub.endpoint}/{repo.id}.git/info/lfs/objects/verify"}
            found["actions"] = {"upload": hub.storage.upload_action(oid, size), "verify": verify}
        objects.append(found)
    several = any("header" in item.get("actions", {}).get("upload", {}) for item in objects)
    kind = {"Content-Type": "application/vnd.git-lfs+json"}
    return answer({"transfer": "multipart" if several else "basic", "objects": objects}, headers=kind)


@route("lfs_verify", "POST", f"{LFS}/verify")
def lfs_verify(hub: Hub, request: Request, repo_id: str) -> Response:
    hub.signed_in(request)
    hub.readable(request, repo_id)
    asked = request.json()
    if not hub.blobs.has(asked["oid"], asked["size"]):
        raise HubError(404, "Object not found")
    return answer({})


@route("commit", "POST", f"{REPO}/commit/([^/]+)")
def commit(hub: Hub, request: Request, repo_id: str, revision: str) -> Response:
    """Apply every line or none. With create_pr the branch stays and a pull request holds the commit."""
    user, repo = hub.signed_in(request), hub.target(request, repo_id, revision)
    head = hub.revision(repo, revision)
    if not request.flag("create_pr") and revision not in (*repo.branches, *(f"refs/pr/{n}" for n in repo.heads)):
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    header, lines = _lines(request)
    summary, description = str(header.get("summary", "")).strip(), str(header.get("description") or "")
    if not summary:
        raise HubError(400, '"summary" is not allowed to be empty')
    parent = header.get("parentCommit")
    if parent and not head.oid.startswith(parent):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(head.tree)
    for key, value in lines:
        _apply(hub, repo, head, tree, key, value)
    _check_card(hub, head, tree)
    number = None
    if request.flag("create_pr"):
        number = repo.open_pull_request(summary, description, user.name, head).num
    ref = f"refs/pr/{number}" if number else revision
    new = repo.commit(tree, head, summary, message=description, author=user.name, ref=ref)
    page = f"{hub.endpoint}/{repo.id}"
    made = {"success": True, "commitOid": new.oid, "commitUrl": f"{page}/commit/{new.oid}", "hookOutput": ""}
    return answer({**made, **({"pullRequestUrl": f"{page}/discussions/{number}"} if number else {})})


def _lines(request: Request) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The header and the lines after it."""
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        pairs = [(line["key"], line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError):
        raise HubError(400, "the body is not lines of JSON with a key and a value") from None
    if not pairs or pairs[0][0] != "header":
        raise HubError(400, "the first line must be the header")
    return pairs[0][1], pairs[1:]


def _apply(hub: Hub, repo: Repo, head: Commit, tree: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = str(value.get("path", ""))
    _check_path(path)
    if key == "file":
        tree[path] = _regular(hub, repo, head, path, value)
    elif key == "lfsFile":
        oid = str(value.get("oid"))
        size = hub.blobs.size(oid) if re.fullmatch(r"[0-9a-f]{64}", oid) else None
        if size is None or value.get("size", size) != size:
            message = "Your push was rejected because an LFS pointer pointed to a file that does not exist"
            raise HubError(400, f"{message}: {path}")
        tree[path] = large_file(oid, size)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [p for p in tree if p == path or (key == "deletedFolder" and p.startswith(path.rstrip("/") + "/"))]
        if not gone:
            raise HubError(404, f"A file with the name {path!r} does not exist", "EntryNotFound")
        for each in gone:
            del tree[each]
    else:
        raise HubError(400, f"unknown operation {key!r}")


def _regular(hub: Hub, repo: Repo, head: Commit, path: str, value: dict[str, Any]) -> File:
    try:
        encoded = value.get("encoding") == "base64"
        content = base64.b64decode(value["content"], validate=True) if encoded else str(value["content"]).encode()
    except (KeyError, binascii.Error):
        raise HubError(400, f"{path}: the content is missing or not base64") from None
    if len(content) > REGULAR_LIMIT:
        raise HubError(400, f"{path}: files larger than 10 MiB must be sent through LFS")
    if content and repo.is_large(path, head):
        raise HubError(400, f"{path}: .gitattributes wants this file sent through LFS")
    return hub.blobs.file(content, lfs=False)


def _check_path(path: str) -> None:
    parts = path.rstrip("/").split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f"Invalid file path: {path!r}")


def _check_card(hub: Hub, head: Commit, tree: dict[str, File]) -> None:
    card = tree.get("README.md")
    if card and card != head.tree.get("README.md"):
        errors, _ = cards.validate(hub.blobs.read(card.sha256))
        if errors:
            raise HubError(400, f"Invalid metadata in README.md. {'; '.join(errors)}")
