"""Pushes against the test Hub with the real clients: cut off, disturbed and repeated, and what is there afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.clients import MAJORS, run_client
from hub.faults import Entry
from hub.server import Hub
from hub.store import Repo
from push_child import Done, Pusher, pusher
from push_run import add_merge, make_run, safetensors
from recipe_kit import run_dir

pytestmark = pytest.mark.slow  # each test talks to a server; what needs none is in test_push_plan.py

FEW_DOWNLOADS = "from recipe_kit.publish import verify; verify.LARGEST_DOWNLOAD = 60"  # they take half of the time


class Lab:
    """A Hub, somebody who may write to acme, and a process that pushes for them."""

    def __init__(self, hub: Hub, child: Pusher) -> None:
        self.hub = hub
        self.child = child
        self.token = hub.add_user("acme")
        self.texts: list[str] = []  # all that pushes wrote to the terminal

    def push(self, run: Path, *arguments: str, back: bool = False, **options: Any) -> Done:
        """Push as acme. With `back` all files are downloaded afterwards, as for a user; else only the smallest."""
        options.setdefault("token", self.token)
        if not back:
            options["patch"] = f"{FEW_DOWNLOADS}\n{options.get('patch', '')}"
        done = self.child.push(run, "--yes", *arguments, **options)
        self.texts += [done.out, done.err]
        return done

    def published(self, run: Path, *arguments: str, **options: Any) -> Done:
        """A push that has to succeed."""
        done = self.push(run, *arguments, **options)
        assert done.code == 0, done.err
        return done

    def forget(self) -> None:
        """Forget objects, faults and requests of earlier tests, so that uploads happen again."""
        self.hub.heal()
        self.hub.on_request = None
        self.hub.log.clear()
        shutil.rmtree(self.hub.blobs.folder)
        self.hub.blobs.folder.mkdir()
        self.hub.repos.clear()
        self.texts.clear()

    def kill_at(self, number: int, *, carried_out: bool) -> None:
        """Kill the push when its request of this number (from 0) is there, which is then carried out, or is not."""
        seen = 0

        def on_request(entry: Entry) -> str | None:
            nonlocal seen
            seen += 1
            if seen != number + 1:
                return None
            while not self.child.pid:
                time.sleep(0.001)
            os.kill(self.child.pid, signal.SIGKILL)
            return None if carried_out else "drop"

        self.hub.on_request = on_request


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Lab]]:
    """Makes the lab of one client major, once."""
    with contextlib.ExitStack() as stack:
        made: dict[tuple[str, bool], Lab] = {}

        def make(major: str, xet: bool) -> Lab:
            if (major, xet) not in made:
                folder = tmp_path_factory.mktemp("lab")
                hub = stack.enter_context(Hub(folder / "hub", xet=xet))
                made[major, xet] = Lab(hub, stack.enter_context(pusher(hub, folder / "child", major=major)))
            lab = made[major, xet]
            lab.forget()
            return lab

        yield make


@pytest.fixture
def lab(labs: Callable[[str, bool], Lab]) -> Lab:
    return labs("client 2", False)


@pytest.fixture(params=MAJORS)
def each_lab(labs: Callable[[str, bool], Lab], request: pytest.FixtureRequest) -> Lab:
    return labs(request.param, False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def files_of(run: Path) -> dict[str, str]:
    """sha256 by path of what the last push of a run recorded."""
    files: dict[str, str] = run_dir.read(run)["published"][-1]["files"]
    return files


def check_correct(lab: Lab, run: Path, repo_id: str, *, tag: str | None = "v1.0", commits: int = 2) -> Repo:
    """The repository holds the run in one commit after the Hub's own, tagged, recorded, and no token is anywhere."""
    repo = lab.hub.repo(repo_id)
    assert repo.private
    assert [c.title for c in repo.commits][1:] == [repo.commits[-1].title] * (commits - 1)
    assert len(repo.commits) == commits
    recorded = run_dir.read(run)["published"]
    assert [entry["commit"] for entry in recorded if entry["repo_id"] == repo_id] == [repo.refs["main"]]
    there = {path: sha256 for path, sha256 in repo.files("main").items() if path != ".gitattributes"}
    assert there == files_of(run)
    assert "README.md" in there
    assert "recipe-kit/run.json" in there
    if tag is not None:
        assert repo.tags == {tag: repo.refs["main"]}
    no_token(lab, run)
    return repo


def no_token(lab: Lab, run: Path) -> None:
    """The token went to the Hub, and nowhere else."""
    assert lab.hub.requests_with(lab.token, "hub")
    assert not lab.hub.requests_with(lab.token, "storage")
    assert not [entry for entry in lab.hub.log if entry.origin == "storage" and entry.auth]
    assert not [text for text in lab.texts if lab.token in text]
    places = [run, lab.child.folder, lab.hub.folder]
    looked = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(looked) > 10
    assert not [path for path in looked if lab.token.encode() in path.read_bytes()]


def stored_once(lab: Lab) -> None:
    """No object was sent again once it was there."""
    puts = [entry.path.partition("?")[0] for entry in lab.hub.requests("lfs_put", status=200)]
    assert puts
    assert len(puts) == len(set(puts))


@pytest.mark.parametrize("what", ["adapter", "merged", "both"])
def test_a_push_is_one_commit_with_weights_tokenizer_card_and_record(each_lab: Lab, run: Path, what: str) -> None:
    add_merge(run)
    done = each_lab.published(run, "--repo-id", "acme/x", "--what", what, "--tag", "v1.0", back=True)
    repo = check_correct(each_lab, run, "acme/x")
    names = set(repo.files("main")) - {".gitattributes"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    model = {"config.json", "generation_config.json", "model.safetensors.index.json"}
    model |= {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    beside = {"README.md", *(f"recipe-kit/{name}" for name in ("recipe.yaml", "run.json", "files.json"))}
    assert (
        names
        == {
            "adapter": tokenizer | adapter | beside,
            "merged": tokenizer | model | beside,
            "both": tokenizer | model | beside | {f"adapter/{name}" for name in tokenizer | adapter},
        }[what]
    )
    assert done.out.splitlines() == [f"{each_lab.hub.endpoint}/acme/x/tree/v1.0", f"commit {repo.refs['main']}"]
    stored_once(each_lab)


def test_configurations_name_the_base_by_its_hub_id_and_no_path_of_this_machine(lab: Lab, run: Path) -> None:
    """transformers #33922, TRL #1873: a local base path in the adapter's configuration."""
    add_merge(run)
    lab.published(run, "--repo-id", "acme/x", "--what", "both")
    repo = lab.hub.repo("acme/x")
    adapter = json.loads(repo.read("main", "adapter/adapter_config.json"))
    assert adapter["base_model_name_or_path"] == "acme/tiny-base"
    assert adapter["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert json.loads(repo.read("main", "config.json")) == {"model_type": "llama"}
    assert not [path for path in repo.files("main") if b"/somewhere" in repo.read("main", path)]
    assert "/somewhere" in (run / "adapter" / "adapter_config.json").read_text()  # the run itself is left alone


def test_pushing_again_sends_nothing_and_says_so(each_lab: Lab, run: Path) -> None:
    each_lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    requests = len(each_lab.hub.log)
    done = each_lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    assert "already published" in done.err
    check_correct(each_lab, run, "acme/x")
    again = {entry.op for entry in each_lab.hub.log[requests:]}
    assert not again & {"create_repo", "preupload", "lfs_batch", "lfs_put", "commit", "tag", "branch"}


def test_a_missing_tag_and_record_are_all_that_is_added(lab: Lab, run: Path) -> None:
    lab.published(run, "--repo-id", "acme/x")
    recorded = run_dir.read(run)["published"]
    run_dir.update(run, published=[])
    lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    check_correct(lab, run, "acme/x")
    assert recorded[0]["commit"] == run_dir.read(run)["published"][0]["commit"]


# Cut off


@pytest.mark.parametrize("carried_out", [False, True], ids=["not carried out", "carried out"])
@pytest.mark.parametrize(("major", "what"), [("client 2", "adapter"), ("client 1", "both")])
def test_killed_at_any_point_and_pushed_again_it_ends_in_one_correct_revision(
    labs: Callable[[str, bool], Lab], tmp_path: Path, major: str, what: str, carried_out: bool
) -> None:
    lab = labs(major, False)
    original = make_run(tmp_path)
    add_merge(original)
    command = ("--repo-id", "acme/x", "--what", what, "--tag", "v1.0")
    back = major == "client 2"
    lab.published(original, *command, back=back)
    ops = [entry.op for entry in lab.hub.log]
    assert {"create_repo", "preupload", "lfs_batch", "lfs_put", "lfs_verify", "commit", "tag", "resolve"} <= set(ops)
    (original / "README.md").unlink()
    run_dir.update(original, published=[])
    for number in points(ops, carried_out, thorough=back):
        lab.forget()
        run = shutil.copytree(original, tmp_path / f"killed-{number}")
        lab.kill_at(number, carried_out=carried_out)
        assert lab.push(run, *command, back=back).code == -signal.SIGKILL, number
        lab.hub.on_request = None
        lab.published(run, *command)
        check_correct(lab, run, "acme/x")
        stored_once(lab)


def points(ops: list[str], carried_out: bool, *, thorough: bool) -> list[int]:
    """Numbers of the requests to be killed at. Whether a question was answered makes no difference to anybody, so
    those are cut off before, and only where the test is thorough."""
    changing = {"create_repo", "lfs_put", "commit", "tag"}
    last = len(ops) - ops[::-1].index("tag")
    questions = [number for number, op in enumerate(ops[:last]) if op not in changing]
    changes = [number for number, op in enumerate(ops[:last]) if op in changing]
    downloads = [number for number in range(last, len(ops)) if ops[number] == "resolve"]
    if carried_out:
        return changes
    return sorted([*changes, *questions, downloads[0], downloads[-1]] if thorough else changes)


# Disturbed

DISTURBED = [
    pytest.param({"op": "whoami", "status": 503}, id="whoami 503"),
    pytest.param({"op": "repo_info", "status": 502}, id="repo_info 502"),
    pytest.param({"op": "validate_yaml", "status": 500, "times": 2}, id="validate 500"),
    pytest.param({"op": "validate_yaml", "status": 500, "skip": 1}, id="validate 500 before the commit"),
    pytest.param({"op": "create_repo", "status": 500}, id="create 500"),
    pytest.param({"op": "create_repo", "mode": "lost"}, id="create lost"),
    pytest.param({"op": "refs", "mode": "reset"}, id="refs reset"),
    pytest.param({"op": "tree", "mode": "truncate"}, id="tree truncated"),
    pytest.param({"op": "preupload", "status": 503}, id="preupload 503"),
    pytest.param({"op": "lfs_batch", "mode": "reset"}, id="batch reset"),
    pytest.param({"op": "lfs_put", "mode": "reset_mid_body"}, id="upload reset in mid-body"),
    pytest.param({"op": "lfs_put", "status": 500, "times": 2}, id="upload 500"),
    pytest.param({"op": "lfs_verify", "mode": "lost"}, id="verify lost"),
    pytest.param({"op": "commit", "mode": "lost"}, id="commit lost"),
    pytest.param({"op": "commit", "mode": "truncate"}, id="commit truncated"),
    pytest.param({"op": "commit", "mode": "reset"}, id="commit reset"),
    pytest.param({"op": "commit", "mode": "reset_mid_body"}, id="commit reset in mid-body"),
    pytest.param({"op": "commit", "status": 500, "times": 3}, id="commit 500"),
    pytest.param({"op": "tag", "mode": "lost"}, id="tag lost"),
    pytest.param({"op": "tag", "status": 504}, id="tag 504"),
    pytest.param({"op": "resolve", "mode": "reset", "skip": 3}, id="download reset"),
    pytest.param({"op": "download", "mode": "reset_mid_body"}, id="weights reset on their way back"),
]


# Faults whose effect depends on the HTTP library below the client are tried with both.
OF_THE_CLIENT = {
    "tree truncated",
    "batch reset",
    "upload reset in mid-body",
    "commit lost",
    "commit reset",
    "download reset",
}


@pytest.mark.parametrize(
    ("major", "fault"),
    [
        pytest.param(major, fault.values[0], id=f"{major}-{fault.id}")
        for major in MAJORS
        for fault in DISTURBED
        if major == "client 2" or fault.id in OF_THE_CLIENT
    ],
)
def test_a_disturbance_is_waited_out_and_there_is_one_commit(
    labs: Callable[[str, bool], Lab], run: Path, major: str, fault: dict[str, Any]
) -> None:
    lab = labs(major, False)
    happened = lab.hub.fail(**fault)
    lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0", back=fault["op"] in ("resolve", "download"))
    assert happened.hits == fault.get("times", 1)
    check_correct(lab, run, "acme/x")


def test_a_rate_limit_is_waited_out_as_long_as_the_hub_asks(lab: Lab, run: Path) -> None:
    lab.hub.fail("commit", status=429, headers={"Retry-After": "42"})
    lab.hub.fail("tag", status=429, headers={"ratelimit": '"api";r=0;t=55'})
    done = lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    assert done.waits == [42, 56]
    check_correct(lab, run, "acme/x")


def test_a_commit_whose_answer_was_lost_and_that_is_refused_the_second_time_was_made(lab: Lab, run: Path) -> None:
    """The Hub still works on a commit when its gateway gives up; the next attempt finds the branch moved: 412."""
    lab.hub.fail("commit", mode="lost")
    lab.hub.fail("repo_info", status=404, code="RepoNotFound", skip=4)  # the look after the first attempt sees nothing
    done = lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    assert [entry.status for entry in lab.hub.requests("commit")] == [0, 412]
    assert done.waits == [1]
    check_correct(lab, run, "acme/x")


LASTING = [
    ({"op": "lfs_put", "status": 503}, r"acme/x: uploading adapter_model.safetensors: the Hub is in trouble \(503"),
    ({"op": "commit", "mode": "reset"}, r"acme/x: committing: the connection broke off .*push again to finish"),
    ({"op": "commit", "status": 500}, r"acme/x: committing: the Hub is in trouble \(500"),
    ({"op": "preupload", "status": 500}, r"acme/x: uploading: the Hub is in trouble \(500"),
    ({"op": "commit", "status": 429, "headers": {"Retry-After": "4000"}}, r"too many requests .*in a few minutes"),
    ({"op": "create_repo", "status": 409, "message": "You already created this model repo"}, r"name is taken"),
    ({"op": "tag", "status": 500}, r"acme/x: tagging v1.0: the Hub is in trouble"),
    ({"op": "tree", "status": 500}, r"acme/x: looking at the repository: the Hub is in trouble"),
    ({"op": "resolve", "status": 500}, r"published \([0-9a-f]{7}\), but downloading it for a check: "),
]


@pytest.mark.parametrize(
    ("major", "fault", "sentence"),
    [("client 2", *each) for each in LASTING] + [("client 1", *each) for each in LASTING[:3]],
    ids=[f"{f['op']} {f.get('status', 'reset')}" for f, _ in LASTING] + ["1: put 503", "1: reset", "1: commit 500"],
)
def test_a_lasting_refusal_is_one_sentence_and_pushing_again_finishes(
    labs: Callable[[str, bool], Lab], run: Path, major: str, fault: dict[str, Any], sentence: str
) -> None:
    lab = labs(major, False)
    lab.hub.fail(**fault, times=None)
    done = lab.push(run, "--repo-id", "acme/x", "--tag", "v1.0", back=fault["op"] == "resolve")
    assert done.code == 1
    (said,) = [line for line in done.err.splitlines() if line.startswith("recipe-kit:")]
    assert re.search(sentence, said)
    assert "Traceback" not in done.err
    assert "http" not in said.replace("https://huggingface.co", "")  # no signed address
    assert sum(done.waits) < 60 or fault["op"] == "resolve"  # files are downloaded, and waited for, side by side
    assert not run_dir.read(run).get("published")
    lab.hub.heal()
    lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    check_correct(lab, run, "acme/x")
    stored_once(lab)


def test_a_shard_that_cannot_be_sent_leaves_nothing_visible_and_the_next_push_sends_it_alone(
    each_lab: Lab, run: Path
) -> None:
    add_merge(run)
    second = run / "merged" / "model-00002-of-00002.safetensors"
    oid = hashlib.sha256(second.read_bytes()).hexdigest()
    each_lab.hub.fail("lfs_put", path=oid, status=503, times=None)
    done = each_lab.push(run, "--repo-id", "acme/x", "--what", "merged", "--tag", "v1.0")
    assert "uploading model-00002-of-00002.safetensors" in done.err
    assert set(each_lab.hub.repo("acme/x").files("main")) <= {".gitattributes"}
    each_lab.hub.heal()
    earlier = len(each_lab.hub.log)
    each_lab.published(run, "--repo-id", "acme/x", "--what", "merged", "--tag", "v1.0")
    sent = [entry.path for entry in each_lab.hub.log[earlier:] if entry.op == "lfs_put"]
    assert len(sent) == 1
    assert oid in sent[0]
    check_correct(each_lab, run, "acme/x")


def test_a_signed_address_that_ran_out_is_asked_for_anew(lab: Lab, run: Path) -> None:
    lab.hub.fail("lfs_put", status=403, message="AccessDenied: request has expired")
    lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    check_correct(lab, run, "acme/x")


def test_a_token_revoked_between_upload_and_commit(lab: Lab, run: Path) -> None:
    token = lab.hub.add_user("acme")

    def revoke(entry: Entry) -> None:
        if entry.op == "commit" and token in lab.hub.users:
            lab.hub.revoke(token)

    lab.hub.on_request = revoke  # type: ignore[assignment]
    done = lab.push(run, "--repo-id", "acme/x", "--tag", "v1.0", token=token)
    assert done.code == 1
    assert "the Hub does not accept this token: unknown, expired or revoked" in done.err
    lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    check_correct(lab, run, "acme/x")
    stored_once(lab)


def test_a_repository_that_changed_since_the_plan_is_not_touched(lab: Lab, run: Path) -> None:
    repo = lab.hub.add_repo("acme/x", private=True)
    looks = 0

    def change(entry: Entry) -> None:
        nonlocal looks
        looks += entry.op == "repo_info"
        if entry.op == "repo_info" and looks == 2:
            repo.commit(dict(repo.at("main").tree), repo.at("main"), "somebody else", author="acme")

    lab.hub.on_request = change  # type: ignore[assignment]
    done = lab.push(run, "--repo-id", "acme/x")
    assert done.code == 1
    assert "acme/x: it changed since the plan was made" in done.err
    assert repo.commits[-1].title == "somebody else"
    assert not lab.hub.requests("preupload")


def test_a_commit_of_somebody_else_in_the_last_moment_is_not_built_upon(lab: Lab, run: Path) -> None:
    repo = lab.hub.add_repo("acme/x", private=True)

    def change(entry: Entry) -> None:
        if entry.op == "commit" and len(repo.commits) == 1:
            repo.commit(dict(repo.at("main").tree), repo.at("main"), "somebody else", author="acme")

    lab.hub.on_request = change  # type: ignore[assignment]
    done = lab.push(run, "--repo-id", "acme/x")
    assert done.code == 1
    assert "acme/x: committing: a commit has happened since; look at it" in done.err
    assert [commit.title for commit in repo.commits] == ["initial commit", "somebody else"]
    lab.hub.on_request = None
    lab.published(run, "--repo-id", "acme/x")
    assert len(repo.commits) == 3


def test_a_repository_made_public_behind_our_back_gets_nothing(lab: Lab, run: Path) -> None:
    """create_repo says nothing about the visibility of a repository that is there already."""

    def publish(entry: Entry) -> None:
        if entry.op == "repo_info" and "acme/x" in lab.hub.repos:
            lab.hub.repo("acme/x").private = False

    lab.hub.on_request = publish  # type: ignore[assignment]
    done = lab.push(run, "--repo-id", "acme/x")
    assert done.code == 1
    assert "acme/x is public, and this push is private: nothing was sent" in done.err
    assert not lab.hub.requests("preupload")


def test_a_repository_made_public_while_files_travel_gets_nothing(lab: Lab, run: Path) -> None:
    lab.published(run, "--repo-id", "acme/x")
    (run / "adapter" / "tokenizer.json").write_text('{"version": "1.1"}')
    repo = lab.hub.repo("acme/x")

    def make_public(entry: Entry) -> None:
        repo.private = repo.private and entry.op != "preupload"

    lab.hub.on_request = make_public
    done = lab.push(run, "--repo-id", "acme/x")
    assert done.code == 1 and "acme/x: it was made public while files were uploaded" in done.err
    assert len(repo.commits) == 2


def test_a_hub_that_makes_another_repository_is_not_asked_for_ever(lab: Lab, run: Path) -> None:
    """The client's own `create_repo` asks again and again, without a pause and without an end."""
    busy = "Cannot create repo: another conflicting operation is in progress"
    lab.hub.fail("create_repo", status=409, message=busy, times=2)
    done = lab.published(run, "--repo-id", "acme/x")
    assert done.waits == [1, 2] and lab.hub.repo("acme/x").private
    lab.hub.fail("create_repo", status=409, message=busy, times=None)
    done = lab.push(run, "--repo-id", "acme/y")
    assert done.code == 1 and done.waits == [1, 2, 4, 8]
    assert f"acme/y: creating the repository: the Hub refused (409: {busy}); push again in a minute" in done.err


def test_a_file_that_the_repository_ignores_is_missed(lab: Lab, run: Path) -> None:
    repo = lab.hub.add_repo("acme/x", private=True)
    ignore = {**repo.at("main").tree, ".gitignore": lab.hub.blobs.file(b"*.safetensors\n", lfs=False)}
    repo.commit(ignore, repo.at("main"), "ignore weights", author="acme")
    done = lab.push(run, "--repo-id", "acme/x")
    assert done.code == 1
    assert "acme/x: adapter_model.safetensors did not arrive" in done.err
    assert ".gitignore" in done.err


def test_a_file_that_changes_while_it_is_sent_is_not_committed(lab: Lab, run: Path) -> None:
    weights = run / "adapter" / "adapter_model.safetensors"

    def change(entry: Entry) -> None:
        if entry.op == "create_repo":
            weights.write_bytes(safetensors(9.0, 9.0, 9.0))

    lab.hub.on_request = change  # type: ignore[assignment]
    done = lab.push(run, "--repo-id", "acme/x")
    assert done.code == 1
    assert "it changed while it was uploaded; nothing was published" in done.err
    assert len(lab.hub.repo("acme/x").commits) == 1


def test_a_full_disk_after_publishing_says_what_is_done_and_what_is_not(lab: Lab, run: Path) -> None:
    patch = (
        "import errno\nfrom recipe_kit.publish import verify\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'No space left on device', '/tmp/x')\n"
        "verify._download = full"
    )
    done = lab.push(run, "--repo-id", "acme/x", "--tag", "v1.0", patch=patch)
    assert done.code == 1
    assert "published (" in done.err
    assert "no space left on this machine's disk at /tmp/x; make room, or set TMPDIR" in done.err
    lab.published(run, "--repo-id", "acme/x", "--tag", "v1.0")
    check_correct(lab, run, "acme/x")


def test_bytes_that_come_back_changed_are_noticed(lab: Lab, run: Path) -> None:
    """The client does not compare what it downloads with its hash."""

    def flip(entry: Entry) -> None:
        if entry.op == "download":
            path = lab.hub.blobs.folder / hashlib.sha256(weights).hexdigest()
            path.write_bytes(b"X" + weights[1:])

    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    lab.hub.on_request = flip  # type: ignore[assignment]
    done = lab.push(run, "--repo-id", "acme/x", back=True)
    assert done.code == 1
    assert "acme/x: adapter_model.safetensors comes back from the Hub changed" in done.err


def test_a_hub_that_is_silent_is_not_waited_for(each_lab: Lab, run: Path) -> None:
    def sleep(entry: Entry) -> str:
        time.sleep(0.5)
        return "drop"

    each_lab.hub.on_request = sleep
    patch = "from recipe_kit.publish import client; client.ask.__kwdefaults__['seconds'] = 0.1"
    done = each_lab.push(run, "--repo-id", "acme/x", patch=patch)
    assert done.code == 1
    assert "asking who this token belongs to: no answer came in time" in done.err


def test_without_a_way_to_the_hub(lab: Lab, run: Path) -> None:
    patch = "from huggingface_hub import constants; constants.ENDPOINT = 'http://127.0.0.1:9'"
    done = lab.push(run, "--repo-id", "acme/x", patch=patch)
    assert done.code == 1
    assert "the Hub cannot be reached" in done.err
    done = lab.push(
        run, "--repo-id", "acme/x", patch="from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True"
    )
    assert done.code == 1
    assert "offline: HF_HUB_OFFLINE is set; unset it to push" in done.err


# Repositories that are there already


def test_files_of_an_earlier_push_go_and_files_of_others_stay(lab: Lab, run: Path) -> None:
    add_merge(run)
    lab.published(run, "--repo-id", "acme/x", "--what", "both")
    repo = lab.hub.repo("acme/x")
    tree = dict(repo.at("main").tree)
    tree["notes.txt"] = lab.hub.blobs.file(b"mine", lfs=False)
    tree["generation_config.json"] = lab.hub.blobs.file(b'{"do_sample": true}', lfs=False)  # changed by hand
    repo.commit(tree, repo.at("main"), "by hand", author="acme")
    done = lab.published(run, "--repo-id", "acme/x", "--what", "adapter")
    names = set(repo.files("main"))
    assert {"notes.txt", "generation_config.json", "adapter_model.safetensors"} <= names
    assert not {name for name in names if name.startswith(("model", "adapter/"))}
    assert "config.json" not in names
    assert "removed: config.json (of an earlier push)" in done.err
    assert "left alone in acme/x: generation_config.json, notes.txt" in done.err
    assert len(repo.commits) == 4


def test_another_run_takes_the_place_of_the_first_in_one_commit(lab: Lab, tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "1"), make_run(tmp_path / "2", "training.max_steps=3")
    add_merge(first, shards=3)
    add_merge(second, shards=2)
    lab.published(first, "--repo-id", "acme/x", "--what", "merged", "--tag", "v1.0")
    lab.published(second, "--repo-id", "acme/x", "--what", "merged", "--tag", "v1.1")
    repo = lab.hub.repo("acme/x")
    shards = [name for name in repo.files("main") if name.endswith(".safetensors")]
    assert shards == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert len(repo.commits) == 3
    assert len([name for name in repo.files("v1.0") if name.endswith(".safetensors")]) == 3


def test_a_branch_is_made_and_main_is_left_alone(lab: Lab, run: Path) -> None:
    repo = lab.hub.add_repo("acme/x", private=True)
    main = repo.refs["main"]
    done = lab.published(run, "--repo-id", "acme/x", "--revision", "trial/1", "--tag", "v1.0")
    assert repo.refs["main"] == main
    assert repo.tags == {"v1.0": repo.refs["trial/1"]}
    assert f"commit {repo.refs['trial/1']}" in done.out
    assert lab.published(run, "--repo-id", "acme/x", "--revision", "trial/1", "--tag", "v1.0").code == 0
    assert len(repo.commits) == 2


def test_a_pull_request_is_opened_once(each_lab: Lab, run: Path) -> None:
    repo = each_lab.hub.add_repo("acme/x", private=True)
    main = repo.refs["main"]
    done = each_lab.published(run, "--repo-id", "acme/x", "--pr")
    assert done.out.splitlines()[0] == f"{each_lab.hub.endpoint}/acme/x/discussions/1"
    (run / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    each_lab.published(run, "--repo-id", "acme/x", "--pr")
    assert len(repo.pull_requests) == 1
    assert repo.refs["main"] == main
    assert len(repo.commits) == 3
    assert repo.read("refs/pr/1", "chat_template.jinja") == b"{{ messages }}"
    assert [entry["pull_request"] for entry in run_dir.read(run)["published"]] == [done.out.splitlines()[0]] * 2
    no_token(each_lab, run)


@pytest.mark.parametrize("op", ["discussion", "commit"])
def test_a_pull_request_whose_answer_was_lost_is_found_again(lab: Lab, run: Path, op: str) -> None:
    repo = lab.hub.add_repo("acme/x", private=True)
    lab.hub.fail(op, mode="lost", path="^POST")
    lab.published(run, "--repo-id", "acme/x", "--pr")
    assert len(repo.pull_requests) == 1
    assert len(repo.commits) == 2


def test_anybody_may_propose_a_change_to_a_public_repository(lab: Lab, run: Path) -> None:
    repo = lab.hub.add_repo("other/x")
    assert "other/x is public, and this push is private" in lab.push(run, "--repo-id", "other/x", "--pr").err
    lab.published(run, "--repo-id", "other/x", "--pr", "--public")
    assert len(repo.pull_requests) == 1
    assert "adapter_model.safetensors" in repo.files("refs/pr/1")


def test_a_private_repository_becomes_public_only_when_it_is_said(lab: Lab, tmp_path: Path) -> None:
    run = make_run(tmp_path, "publish.private=false")
    repo = lab.hub.add_repo("acme/x", private=True)
    done = lab.published(run, "--repo-id", "acme/x")
    assert repo.private
    assert "acme/x is private and stays so; --public makes it public" in done.err
    lab.published(run, "--repo-id", "acme/x", "--public")
    assert not repo.private
    assert len(repo.commits) == 2


def test_what_everybody_sees_is_created_public(lab: Lab, run: Path) -> None:
    lab.published(run, "--repo-id", "acme/x", "--public")
    assert not lab.hub.repo("acme/x").private


# Xet


@pytest.mark.parametrize("major", MAJORS)
def test_a_push_through_xet_may_be_cut_off_as_well(
    labs: Callable[[str, bool], Lab], tmp_path: Path, major: str
) -> None:
    lab = labs(major, True)
    original = make_run(tmp_path)
    add_merge(original)
    command = ("--repo-id", "acme/x", "--what", "both", "--tag", "v1.0")
    ops: list[str] = []
    for op, carried_out in ((None, False), ("xet_token", True), ("commit", False), ("commit", True), ("tag", False)):
        lab.forget()
        run = shutil.copytree(original, tmp_path / f"killed-{op}-{carried_out}")
        if op is not None:
            lab.kill_at(ops.index(op), carried_out=carried_out)
            assert lab.push(run, *command).code == -signal.SIGKILL
            lab.hub.on_request = None
        lab.published(run, *command)
        ops = ops or [entry.op for entry in lab.hub.log]
        check_correct(lab, run, "acme/x")
    assert not lab.hub.requests("lfs_put")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_on_the_way_through_xet_is_a_sentence(
    labs: Callable[[str, bool], Lab], run: Path, status: int
) -> None:
    """There the client raises ConnectionError, with the status in its text alone."""
    lab = labs("client 2", True)
    lab.hub.fail("xet_token", status=status, times=None)
    done = lab.push(run, "--repo-id", "acme/x")
    assert done.code == 1
    expected = {401: "the Hub does not accept this token", 403: "this account or token may not write there"}[status]
    assert expected in done.err
    assert "Traceback" not in done.err


# Somebody else loads it

TRAIN = """
import sys
from huggingface_hub import HfApi
from recipe_kit.local_models import local_folder
from recipe_kit.merge import merge
from recipe_kit.recipe import load_recipe
from recipe_kit.training import train

api = HfApi()
api.create_repo("acme/tiny-base")
card = b"---\\nlicense: apache-2.0\\n---\\n# A base\\n"
api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="acme/tiny-base")
api.upload_folder(folder_path=local_folder("tiny:chatml"), repo_id="acme/tiny-base")
run = train(load_recipe(sys.argv[1]), runs_dir=sys.argv[2])
merge(run)
print(run)
"""

RECIPE = """
name: support
model: {id: acme/tiny-base, dtype: float32}
method: lora
data:
  train: {sample: support, limit: 32}
  eval: {rows: 8}
  formatter: support
  max_length: 256
lora: {r: 4, target_modules: all-linear}
training: {max_steps: 20, per_device_train_batch_size: 4, learning_rate: 2.0e-2, logging_steps: 10, use_cpu: true,
           save_strategy: "no", report_to: []}
evaluation: {samples: 0, prompts: ["Where is my order?", "I want my money back."], max_new_tokens: 8, batch_size: 2}
"""

LOAD = """
import json, sys
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

run, major, *prompts = sys.argv[1:]

def answers(model, place, **where):
    tokenizer = AutoTokenizer.from_pretrained(place, **where)
    found = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**ids, do_sample=False, max_new_tokens=8, pad_token_id=tokenizer.pad_token_id)
        new = output[0, ids["input_ids"].shape[1]:].tolist()
        found.append([new, tokenizer.decode(new, skip_special_tokens=True).strip()])
    return found

base = AutoModelForCausalLM.from_pretrained("acme/tiny-base")
both = f"acme/both-{major}"
print(json.dumps({
    "base": answers(base, "acme/tiny-base"),
    "run": answers(AutoPeftModelForCausalLM.from_pretrained(f"{run}/adapter"), f"{run}/adapter"),
    "adapter": answers(AutoPeftModelForCausalLM.from_pretrained(f"acme/adapter-{major}"), f"acme/adapter-{major}"),
    "merged": answers(AutoModelForCausalLM.from_pretrained(f"acme/merged-{major}"), f"acme/merged-{major}"),
    "both": answers(AutoModelForCausalLM.from_pretrained(both), both),
    "both, adapter": answers(PeftModel.from_pretrained(base, both, subfolder="adapter"), both, subfolder="adapter"),
}))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, str, Path]]:
    """A Hub with a base model, its user's token, and a run that was trained from that base and merged."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(RECIPE)
    with Hub(folder / "hub") as hub:
        token = hub.add_user("acme")
        printed = run_client(hub, TRAIN, folder / "recipe.yaml", folder / "runs", token=token)
        yield hub, token, Path(printed.splitlines()[-1])


@pytest.mark.parametrize("major", MAJORS)
def test_what_was_pushed_answers_as_the_run_does_in_a_fresh_process(
    trained: tuple[Hub, str, Path], tmp_path: Path, major: str
) -> None:
    """LLaMA-Factory #6105, unsloth #1804: an adapter that is loaded, and changes nothing, or breaks everything."""
    hub, token, run = trained
    with pusher(hub, tmp_path / "child", major=major) as child:
        for what in ("adapter", "merged", "both"):
            done = child.push(
                run, "--repo-id", f"acme/{what}-{major[-1]}", "--what", what, "--yes", token=token, load=what == "both"
            )
            assert done.code == 0, done.err
            assert ("downloaded and loaded: tokenizer of 768 tokens" in done.err) is (what == "both")
    prompts = ["Where is my order?", "I want my money back."]
    printed = run_client(
        hub, LOAD, run, major[-1], *prompts, token=token, major=major, home=tmp_path / "home", OMP_NUM_THREADS="1"
    )
    found = json.loads(printed.splitlines()[-1])
    assert found["run"] != found["base"]
    samples = {
        sample["prompt"][-1]["content"]: sample["tuned"]["text"]
        for sample in run_dir.read_lines(run / "samples.jsonl")
    }
    assert [text for _, text in found["run"]] == [samples[prompt] for prompt in prompts]
    for what in ("adapter", "merged", "both", "both, adapter"):
        assert found[what] == found["run"], what
