"""The test Hub, asked by the real clients: what it accepts, what it refuses, and what its faults make of them."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, get_session
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status

from hub.clients import MAJORS, run_client, use_in_this_process
from hub.faults import Entry, Mode
from hub.server import Hub
from hub.store import Repo

try:
    import httpx2 as httpx
except ImportError:  # what the client of the older major is built on
    import httpx

CARD = b"---\nlicense: mit\nlibrary_name: peft\ntags: [lora]\n---\n# A model\n"
WEIGHTS = bytes(range(256)) * 40  # 10240 bytes
MORE = bytes(5000)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the client about itself
    pytest.mark.filterwarnings("ignore:Warnings while validating:UserWarning"),
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the client of this process talks to."""
    with Hub(tmp_path / "hub") as running:
        use_in_this_process(running, monkeypatch, home=tmp_path / "home")
        yield running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds the client meant to wait between tries; it does not."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "adapter").mkdir(parents=True)
    (path / "README.md").write_bytes(CARD)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(WEIGHTS)
    (path / "adapter" / "adapter_model.safetensors").write_bytes(MORE)
    return path


@dataclass
class Acme:
    """The user most tests are, with an empty repository acme/x."""

    hub: Hub
    token: str

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.hub.endpoint, token=self.token)

    @property
    def repo(self) -> Repo:
        return self.hub.repo("acme/x")

    def upload(self, folder: Path, **options: Any) -> Any:
        return self.api.upload_folder(repo_id="acme/x", folder_path=folder, commit_message="Upload", **options)


@pytest.fixture
def acme(hub: Hub) -> Acme:
    hub.add_repo("acme/x")
    return Acme(hub, hub.add_user("acme", orgs={"lab": "write", "club": "read"}))


def contents(folder: Path) -> dict[str, str]:
    """Path -> sha256 of the files of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def published(repo: Repo, revision: str = "main") -> dict[str, str]:
    """The same of a repository, without the .gitattributes that each has from the start."""
    return {path: sha256 for path, sha256 in repo.files(revision).items() if path != ".gitattributes"}


def ask(url: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request as no client of ours would send it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, target, body, named, encode_chunked="Transfer-Encoding" in named)
    response = connection.getresponse()
    answer = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return answer


# Whole round trips, in processes of their own

ROUND_TRIP = """
import json, sys, huggingface_hub
from huggingface_hub import HfApi, snapshot_download
api = HfApi()
me = api.whoami()
api.create_repo("acme/x", private=True)
commit = api.upload_folder(repo_id="acme/x", folder_path=sys.argv[1], commit_message="Upload")
api.create_tag("acme/x", tag="v1", revision=commit.oid)
refs = api.list_repo_refs("acme/x", include_pull_requests=True)
print(json.dumps({
    "version": huggingface_hub.__version__,
    "me": [me["name"], me["orgs"][0]["name"], me["auth"]["accessToken"]["role"]],
    "commit": commit.oid,
    "tags": {tag.name: tag.target_commit for tag in refs.tags},
    "snapshot": snapshot_download("acme/x", revision="v1"),
    "tree": [item.path for item in api.list_repo_tree("acme/x", recursive=True)],
    "large": {s.rfilename: s.lfs.sha256 for s in api.repo_info("acme/x", files_metadata=True).siblings if s.lfs},
    "titles": [commit.title for commit in api.list_repo_commits("acme/x")],
}))
"""


@pytest.mark.parametrize("major", MAJORS)
def test_a_folder_goes_up_and_comes_back_under_a_tag(major: str, tmp_path: Path, folder: Path) -> None:
    with Hub(tmp_path / "hub", page_size=2) as hub:
        token = hub.add_user("acme", orgs={"lab": "write"})
        told = json.loads(run_client(hub, ROUND_TRIP, folder, token=token, major=major))
    here = metadata.version("huggingface-hub").split(".")[0]
    assert told["version"].split(".")[0] == ("1" if major == "client 1" else here)
    repo = hub.repo("acme/x")
    assert repo.private
    assert told["me"] == ["acme", "lab", "write"]
    assert told["commit"] == repo.branches["main"] == repo.commits[-1].oid
    assert told["tags"] == repo.tags == {"v1": told["commit"]}
    assert told["titles"] == ["Upload", "initial commit"]
    names = [".gitattributes", "README.md", "adapter", "adapter/adapter_model.safetensors", "config.json"]
    assert told["tree"] == [*names, "model.safetensors"]
    assert contents(folder) == published(repo) == published(repo, "v1")
    assert contents(Path(told["snapshot"])) == repo.files("main")
    large = {path: sha256 for path, sha256 in contents(folder).items() if path.endswith(".safetensors")}
    assert told["large"] == large
    assert sum(entry.bytes_in for entry in hub.requests("lfs_put")) == len(WEIGHTS) + len(MORE)
    assert len(hub.requests("download", status=200)) == 2
    assert [entry.op for entry in hub.log if entry.status >= 400 or entry.status == 0] == []
    assert hub.requests_with(token) == []
    assert not any(entry.auth for entry in hub.log if entry.origin == "storage")


XET = """
import sys
from huggingface_hub import HfApi, snapshot_download
api = HfApi()
api.create_repo("acme/x", exist_ok=True)
commit = api.upload_folder(repo_id="acme/x", folder_path=sys.argv[1], commit_message="Upload")
print(snapshot_download("acme/x", revision=commit.oid))
"""


@pytest.mark.parametrize("major", MAJORS)
def test_xet_stores_what_a_client_without_it_can_read(major: str, tmp_path: Path, folder: Path) -> None:
    """The three ways in which hf_xet keeps a chunk: as it is, compressed, and compressed byte lane by byte lane."""
    numbers = struct.pack("<60001f", *(0.02 + 1e-5 * n * (-1) ** n for n in range(60001))) + b"end"
    (folder / "noise.safetensors").write_bytes(os.urandom(70_000))
    (folder / "model.safetensors").write_bytes(numbers)
    (folder / "text.safetensors").write_bytes(b"".join(b"line %d of many\n" % n for n in range(9000)))
    with Hub(tmp_path / "hub", xet=True) as hub:
        token = hub.add_user("acme")
        through_xet = run_client(hub, XET, folder, token=token, major=major)
        asked = {entry.op for entry in hub.log}
        plain = run_client(hub, XET, folder, token=token, major=major, home=tmp_path / "other", HF_HUB_DISABLE_XET="1")
    assert "xet_token" in asked and not asked & {"lfs_batch", "lfs_put", "download"}
    assert contents(Path(through_xet)) == contents(Path(plain)) == hub.repo("acme/x").files()
    assert published(hub.repo("acme/x")) == contents(folder)
    assert len(hub.requests("download", status=200)) == 4
    assert hub.requests("lfs_put") == []
    assert len(hub.requests("commit")) == 1  # the second upload found everything there


FAULTS = """
import sys, time
time.sleep = lambda seconds: None
from huggingface_hub import HfApi
api = HfApi()
def upload():
    try:
        return api.upload_folder(repo_id="acme/x", folder_path=sys.argv[1], commit_message="Upload").oid
    except Exception as error:
        return type(error).__name__
print(upload(), upload(), upload())
"""


@pytest.mark.parametrize("major", MAJORS)
def test_a_lost_answer_to_a_commit_is_a_bare_error_and_a_rerun_finds_it_done(
    major: str, tmp_path: Path, folder: Path
) -> None:
    with Hub(tmp_path / "hub") as hub:
        repo = hub.add_repo("acme/x")
        hub.fail("lfs_put", status=500, times=2)
        hub.fail("commit", status=503)
        hub.fail("commit", mode="lost")
        told = run_client(hub, FAULTS, folder, token=hub.add_user("acme"), major=major)
    head = repo.branches["main"]
    assert told == f"HfHubHTTPError ReadError {head}"
    assert published(repo) == contents(folder)
    assert len(repo.commits) == 2
    assert [entry.status for entry in hub.requests("commit")] == [503, 0]
    assert sorted(entry.status for entry in hub.requests("lfs_put")) == [200, 200, 500, 500]


def test_through_xet_a_lost_answer_makes_the_client_commit_twice(tmp_path: Path, folder: Path) -> None:
    """Fact 4: the second commit is empty, and with a parent it would be refused although the first succeeded."""
    with Hub(tmp_path / "hub", xet=True) as hub:
        repo = hub.add_repo("acme/x")
        hub.fail("commit", mode="lost")
        told = run_client(hub, FAULTS, folder, token=hub.add_user("acme"))
    assert told == " ".join([repo.branches["main"]] * 3)
    assert len(repo.commits) == 3
    assert repo.commits[-1].tree == repo.commits[-2].tree
    assert published(repo) == contents(folder)


def test_a_refused_xet_token_is_a_connection_error(tmp_path: Path, folder: Path) -> None:
    with Hub(tmp_path / "hub", xet=True) as hub:
        hub.add_repo("acme/x")
        hub.fail("xet_token", status=403, times=None)
        assert "ConnectionError" in run_client(hub, FAULTS, folder, token=hub.add_user("acme"))
    assert hub.requests("commit") == []


# Who may do what


def test_who_asks_decides_what_there_is(acme: Acme) -> None:
    hub = acme.hub
    acme.api.create_repo("acme/secret", private=True)
    stranger = HfApi(endpoint=hub.endpoint, token=hub.add_user("stranger"))
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    assert stranger.model_info("acme/x").private is False
    assert acme.api.model_info("acme/secret").private is True
    for api, repo_id, status in [
        (stranger, "acme/secret", 404),
        (nobody, "acme/secret", 401),
        (stranger, "acme/none", 404),
        (nobody, "acme/none", 401),
    ]:
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.model_info(repo_id)
        assert caught.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        HfApi(endpoint=hub.endpoint, token="hf_wrong").model_info("acme/x")
    assert not isinstance(refused.value, RepositoryNotFoundError)
    with pytest.raises(RepositoryNotFoundError):
        acme.api.dataset_info("acme/x")


def test_only_those_with_the_right_and_a_write_token_may_write(acme: Acme, folder: Path) -> None:
    hub = acme.hub
    hub.add_repo("club/x")
    reader = hub.add_user("acme", role="read")
    scoped = hub.add_user("acme", role="fineGrained", scopes={"acme": ["repo.write"]}, orgs={"lab": "admin"})
    for token, repo_id in [(reader, "acme/x"), (hub.add_user("other"), "acme/x"), (acme.token, "club/x")]:
        api = HfApi(endpoint=hub.endpoint, token=token)
        writes: list[Callable[[], Any]] = [
            partial(api.upload_folder, repo_id=repo_id, folder_path=folder),
            partial(api.create_tag, repo_id, tag="v1"),
            partial(api.update_repo_settings, repo_id, private=True),
            partial(api.create_repo, repo_id.replace("/x", "/new")),
            partial(api.delete_repo, repo_id),
        ]
        for write in writes:
            with pytest.raises(HfHubHTTPError) as caught:
                write()
            assert caught.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(endpoint=hub.endpoint, token=scoped).create_repo("lab/x")
    HfApi(endpoint=hub.endpoint, token=scoped).create_tag("acme/x", tag="v1")
    assert list(acme.repo.tags) == ["v1"]
    acme.api.create_repo("lab/x")
    assert sorted(hub.repos) == ["acme/x", "club/x", "lab/x"]


def test_a_taken_name_answers_with_its_address_and_keeps_its_visibility(acme: Acme) -> None:
    """Fact 7: with exist_ok the client asks for private, gets 409 with a `url`, and says nothing."""
    with pytest.raises(HfHubHTTPError, match="409"):
        acme.api.create_repo("acme/x", private=True)
    busy = "Cannot create repo: another conflicting operation is in progress"
    acme.hub.fail("create_repo", status=409, message=busy, times=3)
    assert acme.api.create_repo("acme/x", private=True, exist_ok=True).repo_id == "acme/x"
    assert len(acme.hub.requests("create_repo")) == 5
    assert acme.repo.private is False
    acme.api.update_repo_settings("acme/x", private=True)
    assert acme.repo.private is True
    with pytest.raises(BadRequestError, match="Invalid repo name"):
        send(acme, "POST", "/api/repos/create", {"name": "a--b"})
    acme.api.delete_repo("acme/x")
    assert acme.hub.repos == {}


def test_gated_files_are_for_those_let_in(acme: Acme, folder: Path) -> None:
    base = acme.hub.add_repo("meta/base", folder, gated=True)
    assert published(base) == contents(folder)
    assert acme.api.model_info("meta/base").gated == "auto"
    for api, status in [(acme.api, 403), (HfApi(endpoint=acme.hub.endpoint, token=False), 401)]:
        with pytest.raises(GatedRepoError) as caught:
            api.auth_check("meta/base")
        assert caught.value.response.status_code == status
        assert ask(f"{acme.hub.endpoint}/meta/base/resolve/main/config.json")[0] == 401
    base.granted.add("acme")
    acme.api.auth_check("meta/base")
    assert acme.api.get_hf_file_metadata(url=f"{acme.hub.endpoint}/meta/base/resolve/main/config.json").size == 2


# Uploads and their faults


def send(acme: Acme, method: str, path: str, body: Any, *, token: str | None = None) -> Any:
    """One API call with a JSON body, as the client would make it; errors become the client's."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token or acme.token}"}
    response = get_session().request(method, acme.hub.endpoint + path, content=content, headers=headers)
    hf_raise_for_status(response)
    return response.json()


def test_a_storage_error_is_tried_again(acme: Acme, folder: Path, waits: list[float]) -> None:
    """Fact 1, first half; a Retry-After is honoured."""
    acme.hub.fail("lfs_put", status=500, times=2, path=contents(folder)["model.safetensors"])
    acme.hub.fail("preupload", status=429, headers={"Retry-After": "7"})
    acme.upload(folder)
    assert published(acme.repo) == contents(folder)
    assert waits == [8, 1, 2]  # one second longer than it was told


def test_storage_that_stays_away_commits_nothing_and_a_rerun_sends_what_is_missing(
    acme: Acme, folder: Path, waits: list[float]
) -> None:
    """Fact 1, second half."""
    sha256 = contents(folder)["model.safetensors"]
    acme.hub.fail("lfs_put", status=503, times=None, path=sha256)
    with pytest.raises(RuntimeError, match="model.safetensors"):
        acme.upload(folder)
    assert waits == [1, 2, 4, 8, 8]
    assert published(acme.repo) == {}
    acme.hub.heal()
    before = len(acme.hub.log)
    acme.upload(folder)
    assert [sha256 in entry.path for entry in acme.hub.log[before:] if entry.op == "lfs_put"] == [True]
    assert published(acme.repo) == contents(folder)


@pytest.mark.parametrize(("mode", "read"), [("reset", 10240), ("reset_mid_body", 5120), ("lost", 10240)])
def test_a_broken_upload_is_sent_once_more_whole(
    acme: Acme, folder: Path, waits: list[float], mode: Mode, read: int
) -> None:
    """Fact 2."""
    fault = acme.hub.fail("lfs_put", mode=mode, path=contents(folder)["model.safetensors"])
    acme.upload(folder)
    assert fault.hits == 1 and waits == [1]
    sent = [(e.bytes_in, e.status) for e in acme.hub.requests("lfs_put") if len(e.body) != len(MORE)]
    assert sent == [(read, 0), (10240, 200)]
    assert published(acme.repo) == contents(folder)


def test_large_files_come_in_parts_and_start_again_at_the_first(
    tmp_path: Path, hub: Hub, folder: Path, waits: list[float]
) -> None:
    """Fact 2: the client does not resume in the middle of a file, not even when run again."""
    with Hub(tmp_path / "parts", multipart_threshold=6000, part_size=4096) as parts:
        acme = Acme(parts, parts.add_user("acme"))
        repo = parts.add_repo("acme/x")
        parts.fail("lfs_part", status=500, skip=2)
        parts.fail("lfs_complete", mode="reset")
        acme.upload(folder)
        assert [entry.bytes_in for entry in parts.requests("lfs_part")] == [4096, 4096, 2048, 2048]
        assert [entry.status for entry in parts.requests("lfs_complete")] == [0, 200]
        assert published(repo) == contents(folder)
        (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
        parts.fail("lfs_part", status=403, skip=1)
        with pytest.raises(RuntimeError, match="model.safetensors"):
            acme.upload(folder)
        before = len(parts.log)
        acme.upload(folder)
        assert [e.bytes_in for e in parts.log[before:] if e.op == "lfs_part"] == [4096, 4096, 2048]
        assert published(repo) == contents(folder)


def test_a_failed_commit_keeps_the_uploads(acme: Acme, folder: Path, waits: list[float]) -> None:
    """Fact 3."""
    acme.hub.fail("commit", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        acme.upload(folder)
    assert waits == [] and published(acme.repo) == {}
    acme.upload(folder)
    assert len(acme.hub.requests("lfs_put")) == 2
    assert published(acme.repo) == contents(folder)


def test_a_lost_answer_leaves_one_commit_which_a_rerun_finds(acme: Acme, folder: Path) -> None:
    """Facts 4 and 8."""
    acme.hub.fail("commit", mode="lost")
    with pytest.raises(httpx.ReadError):
        acme.upload(folder)
    assert acme.upload(folder).oid == acme.repo.branches["main"]
    assert len(acme.repo.commits) == 2
    assert acme.upload(folder, create_pr=True).pr_url is None
    assert acme.repo.pull_requests == {}


def test_a_commit_made_since_refuses_a_stale_parent(acme: Acme, folder: Path) -> None:
    """Fact 5."""
    planned = acme.api.model_info("acme/x").sha
    theirs = acme.hub.add_commit("acme/x", {"config.json": b"[]"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        acme.upload(folder, parent_commit=planned)
    assert caught.value.response.status_code == 412
    assert acme.repo.branches["main"] == theirs
    acme.upload(folder, parent_commit=theirs)
    assert published(acme.repo) == contents(folder)


def test_a_link_that_expired_is_not_tried_again(acme: Acme, folder: Path, waits: list[float]) -> None:
    """Fact 8."""
    acme.hub.storage.link_seconds = -1
    with pytest.raises(RuntimeError, match="safetensors"):
        acme.upload(folder)
    assert waits == []
    assert {entry.status for entry in acme.hub.requests("lfs_put")} == {403}


def test_a_token_revoked_between_upload_and_commit_leaves_the_branch_alone(acme: Acme, folder: Path) -> None:
    def revoke(entry: Entry) -> None:
        if entry.op == "commit" and entry.token in acme.hub.users:
            acme.hub.revoke(entry.token)

    acme.hub.on_request = revoke
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        acme.upload(folder)
    assert published(acme.repo) == {} and len(acme.hub.requests("lfs_put", status=200)) == 2


def test_a_dropped_request_is_logged_and_not_carried_out(acme: Acme) -> None:
    acme.hub.on_request = lambda entry: "drop" if entry.op == "tag" else None
    with pytest.raises(httpx.ReadError):
        acme.api.create_tag("acme/x", tag="v1")
    assert acme.repo.tags == {}
    assert [(entry.op, entry.status) for entry in acme.hub.log] == [("tag", 0)]


def test_tags_and_branches(acme: Acme, folder: Path) -> None:
    """Fact 9."""
    oid = acme.upload(folder).oid
    acme.api.create_tag("acme/x", tag="v1", revision=oid)
    acme.api.create_tag("acme/x", tag="v1", exist_ok=True)
    acme.api.create_branch("acme/x", branch="dev", revision="v1")
    later = acme.hub.add_commit("acme/x", {"config.json": b"[]"}, ref="dev")
    assert acme.repo.refs == {"main": oid, "v1": oid, "dev": later}
    assert acme.api.model_info("acme/x", revision="dev").sha == later
    for call, status in [
        (partial(acme.api.create_tag, "acme/x", tag="v1"), 409),
        (partial(acme.api.create_tag, "acme/x", tag="a b"), 400),
        (partial(acme.api.create_tag, "acme/x", tag="v2", revision="none"), 404),
        (partial(acme.api.create_branch, "acme/x", branch="dev"), 409),
        (partial(acme.api.delete_branch, "acme/x", branch="main"), 403),
        (partial(acme.api.delete_tag, "acme/x", tag="v2"), 404),
    ]:
        with pytest.raises(HfHubHTTPError) as caught:
            call()
        assert caught.value.response.status_code == status
        assert isinstance(caught.value, RevisionNotFoundError) == (status == 404)
    acme.api.delete_tag("acme/x", tag="v1")
    acme.api.delete_branch("acme/x", branch="dev")
    assert acme.repo.refs == {"main": oid}


def test_a_pull_request_leaves_the_branch_alone(acme: Acme, folder: Path) -> None:
    main = acme.repo.branches["main"]
    guest = HfApi(endpoint=acme.hub.endpoint, token=acme.hub.add_user("guest"))
    commit = guest.upload_folder(repo_id="acme/x", folder_path=folder, create_pr=True)
    assert commit.pr_url == f"{acme.hub.endpoint}/acme/x/discussions/1"
    assert acme.repo.refs == {"main": main, "refs/pr/1": commit.oid}
    assert published(acme.repo, "refs/pr/1") == contents(folder)
    (folder / "config.json").write_text("[]")
    again = guest.upload_folder(repo_id="acme/x", folder_path=folder, revision="refs/pr/1")
    assert acme.repo.refs == {"main": main, "refs/pr/1": again.oid}
    empty = acme.api.create_pull_request("acme/x", title="Later")
    assert (empty.num, empty.git_reference, acme.repo.heads[2]) == (2, "refs/pr/2", main)
    listed = acme.api.list_repo_refs("acme/x", include_pull_requests=True).pull_requests
    assert {pull.ref: pull.target_commit for pull in listed or []} == {"refs/pr/1": again.oid, "refs/pr/2": main}


def line(key: str, **value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


def regular(path: str, content: bytes = b"text") -> dict[str, Any]:
    return line("file", path=path, content=base64.b64encode(content).decode(), encoding="base64")


HEADER = line("header", summary="Change")


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        ([regular("a.txt")], 400, "first line must be the header"),
        ([line("header", summary=" "), regular("a.txt")], 400, "summary"),
        ([HEADER, line("lfsFile", path="a.bin", algo="sha256", oid="0" * 64, size=3)], 400, "does not exist: a.bin"),
        ([HEADER, line("lfsFile", path="a.bin", algo="sha256", oid="../config.json", size=3)], 400, "does not exist"),
        ([HEADER, regular("a.safetensors")], 400, "a.safetensors: .gitattributes wants this file"),
        ([HEADER, regular("a.txt", bytes(10 * 1024 * 1024 + 1))], 400, "larger than 10 MiB"),
        ([HEADER, regular("README.md", b"---\nlicense: free\n---\n")], 400, "Invalid metadata in README.md"),
        ([HEADER, line("deletedFile", path="none.txt")], 404, "none.txt"),
        ([HEADER, line("movedFile", path="none.txt")], 400, "unknown operation"),
        ([HEADER, line("file", path="a.txt", content="?", encoding="base64")], 400, "not base64"),
        *(([HEADER, regular(path)], 400, "Invalid file path") for path in ("../a", "/a", "a/../b", ".git/config", "")),
    ],
)
def test_a_commit_with_one_bad_line_changes_nothing(
    acme: Acme, lines: list[dict[str, Any]], status: int, message: str
) -> None:
    before = dict(acme.repo.refs)
    good = regular("fine.txt")
    body = b"\n".join(json.dumps(each).encode() for each in [lines[0], good, *lines[1:]])
    with pytest.raises(HfHubHTTPError, match=message) as caught:
        send(acme, "POST", "/api/models/acme/x/commit/main", body)
    assert caught.value.response.status_code == status
    assert acme.repo.refs == before and len(acme.repo.commits) == 1


def test_a_commit_adds_replaces_and_deletes_at_once(acme: Acme, folder: Path) -> None:
    acme.upload(folder)
    (folder / "config.json").write_text("[]")
    acme.upload(folder, delete_patterns=["adapter/*"], allow_patterns=["config.json"])
    files = contents(folder)
    del files["adapter/adapter_model.safetensors"]
    assert published(acme.repo) == files
    info = acme.api.get_paths_info("acme/x", ["config.json", "README.md", "adapter"], expand=True)
    commits = acme.api.list_repo_commits("acme/x")
    changed_by = {item.path: item.last_commit.oid for item in info if item.last_commit}
    assert changed_by == {"config.json": commits[0].commit_id, "README.md": commits[1].commit_id}


def test_preupload_says_how_each_file_travels(acme: Acme) -> None:
    acme.hub.add_commit("acme/x", {"same.txt": b"same", "same.bin": b"same"})

    def file(path: str, size: int = 4, sample: bytes = b"same") -> dict[str, Any]:
        return {"path": path, "size": size, "sample": base64.b64encode(sample).decode()}

    asked = [
        file("same.txt"),
        file("same.bin"),
        file("big.txt", 10 * 1024 * 1024),
        file("zeros.txt", sample=b"a\0b"),
        file("cache/new.txt"),
    ]
    path = "/api/models/acme/x/preupload/main"
    told = send(acme, "POST", path, {"files": asked, "gitIgnore": "# local\ncache/\n"})["files"]
    assert told[0]["oid"] == hashlib.sha1(b"blob 4\0same").hexdigest()
    assert told[1]["oid"] == hashlib.sha256(b"same").hexdigest()
    modes = [(item["path"], item["uploadMode"], item["shouldIgnore"]) for item in told]
    assert modes == [
        ("same.txt", "regular", False),
        ("same.bin", "lfs", False),
        ("big.txt", "lfs", False),
        ("zeros.txt", "lfs", False),
        ("cache/new.txt", "regular", True),
    ]
    with pytest.raises(BadRequestError, match="256"):
        send(acme, "POST", path, {"files": [file(f"{n}.txt") for n in range(257)]})


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("license: mit", None),
        ("license: other\nlicense_name: mine\nlicense_link: LICENSE", None),
        ("license: free", '"license" must be one of'),
        ("language: no", '"language" must be a string'),
        ("language: [en, 'no']", None),
        ("base_model: /home/me/model", '"base_model" with value "/home/me/model" is not valid'),
        ("base_model: acme/base\nbase_model_relation: adapter", None),
        ("base_model: acme/base\nbase_model_relation: lora", '"base_model_relation" must be one of'),
        ("datasets: [./rows.jsonl]", '"datasets" with value "./rows.jsonl" is not valid'),
        ("tags: lora", '"tags" must be an array'),
        ("library_name: 3", '"library_name" must be a string'),
        ("license: [", "Invalid YAML"),
        ("model-index: {}", '"model-index" must be an array'),
        ("model-index: [{name: m, results: [{}]}]", '"model-index[0].results[0].task.type" is required'),
        (
            "model-index: [{name: m, results: [{task: {type: t}, dataset: {type: d, name: D},"
            " metrics: [{type: loss, value: .nan}]}]}]",
            '"model-index[0].results[0].metrics[0].value" must be a finite number',
        ),
        (
            "model-index: [{name: m, results: [{task: {type: t}, dataset: {type: d, name: D},"
            " metrics: [{type: loss, value: 1.5}]}]}]",
            None,
        ),
    ],
)
def test_the_metadata_of_a_card_is_checked(acme: Acme, metadata: str, problem: str | None) -> None:
    operation = CommitOperationAdd("README.md", f"---\n{metadata}\n---\n# Card\n".encode())
    commit = partial(acme.api.create_commit, "acme/x", [operation], commit_message="Card")
    if problem is None:
        commit()
        assert "README.md" in published(acme.repo)
    else:
        with pytest.raises(ValueError, match=re.escape(problem)):
            commit()
        assert acme.hub.requests("commit") == []


# Storage and downloads


def test_storage_takes_only_what_a_link_was_signed_for(acme: Acme) -> None:
    storage, sha256 = acme.hub.storage, hashlib.sha256(WEIGHTS).hexdigest()
    link = storage.link("put", sha256, size=len(WEIGHTS))
    assert ask(link, "PUT", WEIGHTS[:-1])[0] == 400
    assert ask(link, "PUT", WEIGHTS[::-1])[0] == 400
    assert ask(link, "PUT", WEIGHTS, Authorization="Bearer x")[0] == 400
    assert ask(link, "PUT", iter([WEIGHTS]), Transfer_Encoding="chunked")[0] == 501
    assert ask(link.replace(sha256, "0" * 64), "PUT", WEIGHTS)[0] == 403
    assert ask(link.replace("/put/", "/get/"))[0] == 403
    assert ask(f"{storage.url}/anything")[0] == 403
    assert acme.hub.blobs.size(sha256) is None
    assert ask(link, "PUT", WEIGHTS)[0] == 200
    assert acme.hub.blobs.read(sha256) == WEIGHTS


def test_downloads_in_ranges(acme: Acme, folder: Path) -> None:
    acme.upload(folder)
    url = f"{acme.hub.endpoint}/acme/x/resolve/main"
    token = f"Bearer {acme.token}"
    status, headers, _ = ask(f"{url}/model.safetensors", "HEAD", Authorization=token)
    assert status == 302
    assert headers["x-linked-etag"] == f'"{contents(folder)["model.safetensors"]}"'
    assert headers["x-linked-size"] == "10240" and headers["x-repo-commit"] == acme.repo.branches["main"]
    assert urlsplit(headers["location"]).hostname == "localhost"
    for asked, told, expected in [
        ("bytes=0-9", 206, WEIGHTS[:10]),
        ("bytes=10000-", 206, WEIGHTS[10000:]),
        ("bytes=-5", 206, WEIGHTS[-5:]),
        ("bytes=10240-", 416, b""),
        ("", 200, WEIGHTS),
    ]:
        status, answer, body = ask(headers["location"], Range=asked)
        assert (status, body) == (told, expected)
        assert answer["content-length"] == str(len(expected))
    status, headers, body = ask(f"{url}/README.md", Range="bytes=4-10")
    assert (status, body) == (206, CARD[4:11])
    assert headers["content-range"] == f"bytes 4-10/{len(CARD)}"


def test_a_missing_file_and_a_missing_revision_are_told_apart(acme: Acme, tmp_path: Path) -> None:
    with pytest.raises(RemoteEntryNotFoundError) as missing:
        acme.api.hf_hub_download("acme/x", "none.json", cache_dir=tmp_path / "cache")
    assert missing.value.response.headers["X-Repo-Commit"] == acme.repo.branches["main"]
    with pytest.raises(RevisionNotFoundError):
        acme.api.hf_hub_download("acme/x", "config.json", revision="v9", cache_dir=tmp_path / "cache")


def test_a_download_cut_short_goes_on_and_one_reset_does_not(
    acme: Acme, folder: Path, tmp_path: Path, waits: list[float]
) -> None:
    acme.upload(folder)
    acme.hub.fail("download", mode="truncate")
    path = acme.api.hf_hub_download("acme/x", "model.safetensors", cache_dir=tmp_path / "first")
    assert Path(path).read_bytes() == WEIGHTS
    assert [entry.status for entry in acme.hub.requests("download")] == [0, 200]
    acme.hub.fail("download", mode="reset_mid_body")
    with pytest.raises(httpx.ReadError):
        acme.api.hf_hub_download("acme/x", "model.safetensors", cache_dir=tmp_path / "second")


# The log and the server itself


def test_a_token_sent_to_storage_is_found_wherever_it_hides(acme: Acme, folder: Path) -> None:
    acme.upload(folder)
    assert acme.hub.requests_with(acme.token) == []
    assert acme.hub.requests_with(acme.token, origin="hub") == [e for e in acme.hub.log if e.origin == "hub"]
    (folder / "model.safetensors").write_bytes(b"weights and " + acme.token.encode())
    acme.upload(folder)
    ask(f"{acme.hub.storage.url}/get/0?token={acme.token}")
    ask(f"{acme.hub.storage.url}/get/0", Authorization=f"Bearer {acme.token}")
    assert [entry.op for entry in acme.hub.requests_with(acme.token)] == ["lfs_put", "download", "download"]


def test_what_breaks_in_the_hub_itself_is_raised_at_the_end(tmp_path: Path) -> None:
    def broken(entry: Entry) -> None:
        raise ZeroDivisionError("in a test's callback")

    with pytest.raises(ZeroDivisionError), Hub(tmp_path) as hub:
        hub.on_request = broken
        with pytest.raises(http.client.RemoteDisconnected):
            ask(f"{hub.endpoint}/api/whoami-v2")


def test_a_hub_stops_while_clients_hold_connections_open(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        held = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=5)
        held.request("GET", "/api/whoami-v2")
        assert held.getresponse().read() == b'{"error": "Invalid username or password."}'
    with pytest.raises(ConnectionError):
        ask(f"{hub.endpoint}/api/whoami-v2")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        held.request("GET", "/api/whoami-v2")
        held.getresponse()
    held.close()
