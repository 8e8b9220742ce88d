"""Endpoints about accounts and repositories: who am I, create, settings, info, tree, refs, discussions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hub import cards
from hub.routes import route
from hub.store import Commit, File, PullRequest, Repo, git_sha1
from hub.wire import HubError, Request, Response, answer

if TYPE_CHECKING:
    from hub.server import Hub

REPO = r"/api/models/([^/]+/[^/]+)"
BAD_REF = re.compile(r"\s|\.\.|^refs/|[~^:?*\[\\]|^/|/$|^-|\.lock$|^$")


@route("whoami", "GET", "/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Response:
    user = hub.signed_in(request)
    token: dict[str, Any] = {"displayName": "test", "role": user.role, "createdAt": hub.started}
    if user.role == "fineGrained":
        scoped = [{"entity": {"type": "user", "name": n}, "permissions": p} for n, p in user.scopes.items()]
        token["fineGrained"] = {"scoped": scoped, "global": [], "canReadGatedRepos": False}
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": role} for name, role in user.orgs.items()]
    return answer(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "email": f"{user.name}@example.com",
            "isPro": False,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


@route("create_repo", "POST", "/api/repos/create")
def create_repo(hub: Hub, request: Request) -> Response:
    user = hub.signed_in(request)
    asked = request.json()
    namespace, name = asked.get("organization") or user.name, str(asked.get("name", ""))
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", name) or re.search(r"--|\.\.|[.-]$|\.git$", name):
        raise HubError(400, f"Invalid repo name: {namespace}/{name}")
    if asked.get("type") not in (None, "model"):
        raise HubError(400, f"this Hub keeps models only, not a {asked['type']}")
    if not user.may_write_in(namespace):
        raise HubError(403, f"You don't have the rights to create a model under the namespace {namespace!r}")
    repo_id = f"{namespace}/{name}"
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repos:
        raise HubError(409, "You already created this model repo", url=url, name=repo_id)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    hub.repos[repo_id] = Repo(repo_id, hub.blobs, private=private, gated=False, author=user.name)
    return answer({"url": url, "name": repo_id, "id": repo_id})


@route("delete_repo", "DELETE", "/api/repos/delete")
def delete_repo(hub: Hub, request: Request) -> Response:
    user = hub.signed_in(request)
    asked = request.json()
    repo = hub.writable(request, f"{asked.get('organization') or user.name}/{asked.get('name')}")
    del hub.repos[repo.id]
    return answer({})


@route("settings", "PUT", f"{REPO}/settings")
def settings(hub: Hub, request: Request, repo_id: str) -> Response:
    repo, asked = hub.writable(request, repo_id), request.json()
    if "visibility" in asked or "private" in asked:
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    if "gated" in asked:
        repo.gated = bool(asked["gated"])
    return answer({"private": repo.private, "gated": repo.gated and "auto"})


@route("auth_check", "GET", f"{REPO}/auth-check")
def auth_check(hub: Hub, request: Request, repo_id: str) -> Response:
    hub.check_gate(request, hub.readable(request, repo_id))
    return answer({})


@route("repo_info", "GET", f"{REPO}(?:/revision/([^/]+))?")
def repo_info(hub: Hub, request: Request, repo_id: str, revision: str | None) -> Response:
    repo = hub.readable(request, repo_id)
    commit = hub.revision(repo, revision or "main")
    front_matter, _ = cards.front_matter(repo.read(commit.oid, "README.md") if "README.md" in commit.tree else b"")
    data: dict[str, Any] = front_matter if isinstance(front_matter, dict) else {}
    siblings = [_sibling(path, file, request.flag("blobs")) for path, file in sorted(commit.tree.items())]
    info = {
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": cards.tags(data),
        "pipeline_tag": data.get("pipeline_tag"),
        "library_name": data.get("library_name"),
        "cardData": data or None,
        "siblings": siblings,
        "spaces": [],
        "usedStorage": sum(file.size for file in commit.tree.values()),
    }
    wanted = request.query.get("expand", []) + request.query.get("expand[]", [])
    kept = {name: value for name, value in info.items() if not wanted or name in wanted}
    return answer({"_id": repo.id, "id": repo.id, "modelId": repo.id, **kept})


def _sibling(path: str, file: File, blobs: bool) -> dict[str, Any]:
    return {"rfilename": path, **({"blobId": file.oid, **_content(file)} if blobs else {})}


def _content(file: File) -> dict[str, Any]:
    lfs = {"sha256": file.sha256, "oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return {"size": file.size, **({"lfs": lfs} if file.lfs else {})}


@route("repo_info", "GET", "/api/(?:datasets|spaces)/.+")
def no_such_kind(hub: Hub, request: Request) -> Response:
    raise HubError(404 if request.user else 401, "Repository not found", "RepoNotFound")


@route("tree", "GET", f"{REPO}/tree/([^/]+)(?:/(.*))?")
def tree(hub: Hub, request: Request, repo_id: str, revision: str, folder: str | None) -> Response:
    """Files and folders below `folder`, `hub.page_size` at a time."""
    repo = hub.readable(request, repo_id)
    commit = hub.revision(repo, revision)
    prefix = f"{folder.strip('/')}/" if folder else ""
    below = {path.removeprefix(prefix) for path in commit.tree if path.startswith(prefix)}
    if prefix and not below:
        raise HubError(404, f"{prefix[:-1]} does not exist on {revision!r}", "EntryNotFound")
    if not request.flag("recursive"):
        names = {path.split("/")[0] for path in below}
    else:
        names = below | {"/".join(path.split("/")[:n]) for path in below for n in range(1, path.count("/") + 1)}
    start = int(request.query.get("cursor", ["0"])[0])
    page = sorted(names)[start : start + hub.page_size]
    headers = {}
    if start + len(page) < len(names):
        query = "&".join(f"{k}={v[0]}" for k, v in request.query.items() if k != "cursor")
        address = f"{hub.endpoint}{request.target.split('?')[0]}?{query}&cursor={start + len(page)}"
        headers["Link"] = f'<{address}>; rel="next"'
    return answer([_item(hub, repo, commit, prefix + name, request.flag("expand")) for name in page], headers=headers)


@route("paths_info", "POST", f"{REPO}/paths-info/([^/]+)")
def paths_info(hub: Hub, request: Request, repo_id: str, revision: str) -> Response:
    repo = hub.readable(request, repo_id)
    commit = hub.revision(repo, revision)
    form = hub.form(request)
    paths = [path.strip("/") for path in form.get("paths", [])]
    known = [path for path in paths if path in commit.tree or any(p.startswith(f"{path}/") for p in commit.tree)]
    expand = form.get("expand", ["0"])[0].lower() in ("1", "true")
    return answer([_item(hub, repo, commit, path, expand) for path in known])


def _item(hub: Hub, repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    file = commit.tree.get(path)
    if file is None:
        return {"type": "directory", "path": path, "oid": git_sha1(path.encode()), "size": 0}
    item = {"type": "file", "path": path, "oid": file.oid, **_content(file)}
    if xet_hash := hub.xet_hash(file):
        item["xetHash"] = xet_hash
    if expand:
        changed = commit
        for older in repo.history(commit):
            if older.tree.get(path) != file:
                break
            changed = older
        item["lastCommit"] = {"id": changed.oid, "title": changed.title, "date": changed.date}
    return item


@route("refs", "GET", f"{REPO}/refs")
def refs(hub: Hub, request: Request, repo_id: str) -> Response:
    repo = hub.readable(request, repo_id)
    found = {
        "branches": [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repo.branches.items()],
        "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repo.tags.items()],
        "converts": [],
    }
    if request.flag("include_prs"):
        pulls = [{"name": str(n), "ref": f"refs/pr/{n}", "targetCommit": oid} for n, oid in repo.heads.items()]
        found["pullRequests"] = pulls
    return answer(found)


@route("commits", "GET", f"{REPO}/commits/([^/]+)")
def commits(hub: Hub, request: Request, repo_id: str, revision: str) -> Response:
    repo = hub.readable(request, repo_id)
    return answer(
        [
            {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in repo.history(hub.revision(repo, revision))
        ]
    )


def _new_ref(name: str, taken: dict[str, str], what: str) -> None:
    if BAD_REF.search(name):
        raise HubError(400, f"Invalid {what} name: {name!r}")
    if name in taken:
        raise HubError(409, f"{what.capitalize()} {name!r} already exists")


@route("tag", "POST", f"{REPO}/tag/([^/]+)")
def create_tag(hub: Hub, request: Request, repo_id: str, revision: str) -> Response:
    repo, name = hub.writable(request, repo_id), str(request.json().get("tag", ""))
    commit = hub.revision(repo, revision)
    _new_ref(name, repo.tags, "tag")
    repo.tags[name] = commit.oid
    return answer({})


@route("tag", "DELETE", f"{REPO}/tag/([^/]+)")
def delete_tag(hub: Hub, request: Request, repo_id: str, name: str) -> Response:
    repo = hub.writable(request, repo_id)
    if repo.tags.pop(name, None) is None:
        raise HubError(404, f"Tag {name!r} does not exist", "RevisionNotFound")
    return answer({})


@route("branch", "POST", f"{REPO}/branch/([^/]+)")
def create_branch(hub: Hub, request: Request, repo_id: str, name: str) -> Response:
    repo = hub.writable(request, repo_id)
    start = hub.revision(repo, request.json().get("startingPoint") or "main")
    _new_ref(name, repo.branches, "branch")
    repo.branches[name] = start.oid
    return answer({})


@route("branch", "DELETE", f"{REPO}/branch/([^/]+)")
def delete_branch(hub: Hub, request: Request, repo_id: str, name: str) -> Response:
    repo = hub.writable(request, repo_id)
    if name == "main":
        raise HubError(403, "Cannot delete the main branch")
    if repo.branches.pop(name, None) is None:
        raise HubError(404, f"Branch {name!r} does not exist", "RevisionNotFound")
    return answer({})


@route("discussion", "POST", f"{REPO}/discussions")
def open_discussion(hub: Hub, request: Request, repo_id: str) -> Response:
    """Pull requests only: whoever can read a repository may open one, with a token that can write."""
    user, repo, asked = hub.signed_in(request), hub.readable(request, repo_id), request.json()
    if user.role == "read":
        raise HubError(403, "This token cannot write")
    if not asked.get("pullRequest"):
        raise HubError(400, "this Hub keeps no discussions, only pull requests")
    pull = repo.open_pull_request(asked["title"], asked.get("description", ""), user.name, repo.at("main"))
    return answer({"num": pull.num, "url": f"{hub.endpoint}/{repo.id}/discussions/{pull.num}", "pullRequest": True})


@route("discussion", "GET", f"{REPO}/discussions")
def list_discussions(hub: Hub, request: Request, repo_id: str) -> Response:
    repo = hub.readable(request, repo_id)
    pulls = [_discussion(repo, pull) for pull in repo.pull_requests.values()]
    return answer({"discussions": pulls, "count": len(pulls), "start": 0})


@route("discussion", "GET", rf"{REPO}/discussions/(\d+)")
def discussion(hub: Hub, request: Request, repo_id: str, num: str) -> Response:
    repo = hub.readable(request, repo_id)
    if int(num) not in repo.pull_requests:
        raise HubError(404, f"Discussion {num} does not exist")
    return answer(_discussion(repo, repo.pull_requests[int(num)]))


def _discussion(repo: Repo, pull: PullRequest) -> dict[str, Any]:
    return {
        "num": pull.num,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": pull.date,
        "status": "open",
        "repo": {"name": repo.id, "type": "model"},
        "isPullRequest": True,
        "events": [],
        "changes": {"base": pull.base},
        "filesWithConflicts": [],
        "diff": "",
    }
