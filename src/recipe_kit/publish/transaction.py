"""Carrying out a plan: all of it or none, and nothing twice.

Everything the repository holds afterwards comes in one commit, on top of the commit that the plan saw. Until then what
was uploaded is invisible, and after it only tag and record are missing; a push that was cut off anywhere is finished
by pushing again.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from recipe_kit import run_dir
from recipe_kit.errors import PublishError
from recipe_kit.publish import client, refusals, repository, verify
from recipe_kit.publish.files import File, readable
from recipe_kit.publish.plan import Plan, Report, look_again
from recipe_kit.publish.repository import MAIN, Remote

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


@dataclass(frozen=True)
class Published:
    """What a push came to. `record` is the entry of `run.json`; `news` is False where all of it was there already."""

    record: dict[str, Any]
    news: bool


def push(plan: Plan, *, report: Report = lambda text: None) -> Published:
    """Carry out a plan without problems and record it in `run.json`.

    Raises PublishError in a state that pushing again completes.
    """
    if plan.problems:
        raise PublishError("\n".join(plan.problems))
    run_dir.check_changeable(plan.run)
    job = _Job(plan, client.api(plan.account.token), report)
    plan.contents.readme.write(plan.run)
    remote = _ready(job)
    commit = _commit(job, remote)
    with job.explained("comparing what arrived"):
        verify.hashes(job.api, plan.repo_id, commit, plan.contents.files)
    report(f"all {len(plan.contents.files)} files are there as they are here ({commit[:7]})")
    if plan.changes_visibility:
        _make_public(job)
    tagged = _tag(job, remote, commit)
    for remark in verify.round_trip(job.api, plan, commit):
        report(remark)
    record = _record(job, commit)
    return Published(record, news=job.changed or tagged)


class _Job:
    """A push at work."""

    def __init__(self, plan: Plan, api: HfApi, report: Report) -> None:
        self.plan = plan
        self.api = api
        self.report = report
        self.changed = False  # whether anything on the Hub was changed
        self.pull_request: int | None = None
        self.branch = plan.branch

    def explained(self, doing: str) -> Any:
        return refusals.explained(doing, self.plan.repo_id, (self.plan.account.token,))


def _ready(job: _Job) -> Remote:
    """The repository and its branch or pull request, made where they are missing, still as the plan saw them."""
    plan, api = job.plan, job.api
    remote = look_again(plan)
    seen = plan.remote
    if (remote.exists, remote.private, remote.head) != (seen.exists, seen.private, seen.head):
        raise PublishError(
            f"{plan.repo_id}: it changed since the plan was made (it was at {seen.short}, and is at {remote.short}); "
            "look at it with `recipe-kit push RUN --dry-run`, and push again"
        )
    if not remote.exists:
        with job.explained("creating the repository"):
            remote = _created(job)
        job.changed = True
        job.report(f"created {plan.repo_id} ({'private' if remote.private else 'public'})")
        if set(remote.files) - repository.HUBS_OWN:
            raise PublishError(f"{plan.repo_id}: somebody made it just now, with files in it; push again to see them")
    if plan.private and not remote.private:
        raise PublishError(
            f"{plan.repo_id} is public, and this push is private: nothing was sent; say --public to publish there, or "
            "choose another --repo-id"
        )
    if remote.head is None and not plan.pull_request:
        with job.explained(f"making the branch {plan.branch}"):
            client.ask(lambda: api.create_branch(plan.repo_id, branch=plan.branch, revision=MAIN, exist_ok=True))
        job.changed = True
        remote = look_again(plan)
    if plan.pull_request:
        job.pull_request = remote.pull_request
        if job.pull_request is None and not _holds(plan, remote):
            remote = _propose(job)
        if job.pull_request is not None:
            job.branch = f"refs/pr/{job.pull_request}"
    return remote


def _created(job: _Job) -> Remote:
    """Create the repository; that it is there already may be the doing of an attempt whose answer was lost."""
    from huggingface_hub.errors import HfHubHTTPError

    plan = job.plan
    for wait in (*client.WAITS, None):
        try:
            client.ask(lambda: repository.create(plan.account.token, plan.repo_id, private=plan.private))
            break
        except HfHubHTTPError as error:
            if refusals.status_of(error) != 409:
                raise
            remote = look_again(plan)
            if remote.exists:
                return remote
            if wait is None or not refusals.is_busy(str(error)):
                raise
            time.sleep(wait)
    return look_again(plan)


def _propose(job: _Job) -> Remote:
    """Open the pull request. An answer that was lost is looked for before a second one is opened."""
    plan, api = job.plan, job.api
    for wait in (*client.WAITS, None):
        try:
            with client.limited(client.UPLOAD_SECONDS):
                api.create_pull_request(plan.repo_id, plan.title, description="Made by `recipe-kit push --pr`.")
            failure = None
        except Exception as error:
            failure = error
        remote = look_again(plan)
        if remote.pull_request is not None:
            job.pull_request = remote.pull_request
            job.changed = True
            return remote
        if failure is not None:
            _wait_or_raise(job, failure, wait, "opening the pull request")
    raise PublishError(f"{plan.repo_id}: the pull request was opened and cannot be found; push again")


def _commit(job: _Job, remote: Remote) -> str:
    """The commit that holds all files: made now, or there already."""
    plan = job.plan
    if _holds(plan, remote):
        return _there_already(plan, remote)
    assert remote.head is not None
    with job.explained("uploading"):
        additions = _upload(job, repository.different(plan.contents.files, remote.files))
        _require_private(job)
    operations = [*additions, *_deletions(repository.stale(plan.contents.files, remote))]
    for wait in (*client.WAITS, None):
        try:
            with client.limited(client.UPLOAD_SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the Hub would like a card to say; the lint has said it
                made = job.api.create_commit(
                    plan.repo_id,
                    operations,
                    commit_message=plan.title,
                    revision=job.branch,
                    parent_commit=remote.head,
                )
            job.changed = True
            return str(made.oid)
        except Exception as error:
            # The commit may have been made although its answer was lost, or a second attempt be refused because of
            # the first: what the repository holds decides, not the error.
            with job.explained("looking whether the commit was made"):
                now = look_again(plan)
            if now.head and now.head != remote.head and _holds(plan, now):
                job.changed = True
                return now.head
            _wait_or_raise(job, error, wait, "committing")
    raise AssertionError("the last attempt returns or raises")


def _require_private(job: _Job) -> None:
    """Raises PublishError when the repository was made public while large files travelled, which can take hours."""
    plan = job.plan
    if plan.private and not client.ask(lambda: job.api.repo_info(plan.repo_id)).private:
        raise PublishError(
            f"{plan.repo_id}: it was made public while files were uploaded, and this push is private: nothing was "
            "published; make it private again, or say --public, and push again"
        )


def _holds(plan: Plan, remote: Remote) -> bool:
    """Whether the repository holds all of this push, and nothing that an earlier one left."""
    return not (
        repository.different(plan.contents.files, remote.files) or repository.stale(plan.contents.files, remote)
    )


def _there_already(plan: Plan, remote: Remote) -> str:
    """The commit that is meant where nothing has to be sent: the tagged one, else the head."""
    if plan.tag is not None and plan.tag in remote.tags:
        return remote.tags[plan.tag]
    assert remote.head is not None
    return remote.head


def _upload(job: _Job, files: list[File]) -> list[CommitOperationAdd]:
    """Send the content of large files, of which the Hub has none of yet; small ones travel with the commit."""
    from huggingface_hub import CommitOperationAdd

    if not files:
        return []
    job.report(f"sending {len(files)} files, {readable(sum(file.size for file in files))}, to {job.plan.repo_id}")
    additions = [
        CommitOperationAdd(file.path, file.content if isinstance(file.content, bytes) else str(file.content))
        for file in files
    ]
    for wait in (*client.WAITS[:1], None):
        try:
            with client.limited(client.UPLOAD_SECONDS):
                job.api.preupload_lfs_files(job.plan.repo_id, additions, revision=job.branch, free_memory=False)
            break
        except Exception as error:
            # The client has tried each file six times; what it never tries again is a signed link that ran out.
            if wait is None or refusals.status_of(error) != 403 or not isinstance(error, RuntimeError):
                raise
            time.sleep(wait)
    for file, addition in zip(files, additions, strict=True):
        if addition.upload_info.sha256.hex() != file.sha256:
            raise PublishError(f"{file.path}: it changed while it was uploaded; nothing was published: push again")
    return additions


def _deletions(paths: list[str]) -> list[Any]:
    from huggingface_hub import CommitOperationDelete

    return [CommitOperationDelete(path) for path in paths]


def _make_public(job: _Job) -> None:
    plan = job.plan
    with job.explained("making the repository public"):
        client.ask(lambda: job.api.update_repo_settings(plan.repo_id, private=False))
    job.changed = True
    job.report(f"{plan.repo_id} is public now")


def _tag(job: _Job, remote: Remote, commit: str) -> bool:
    """Tag the commit, unless its tag is there; whether one was made."""
    from huggingface_hub.errors import HfHubHTTPError

    plan, tag = job.plan, job.plan.tag
    if tag is None or tag in remote.tags:
        return False
    with job.explained(f"tagging {tag}"):
        try:
            client.ask(lambda: job.api.create_tag(plan.repo_id, tag=tag, revision=commit))
        except HfHubHTTPError as error:
            if refusals.status_of(error) != 409:
                raise
            there = look_again(plan).tags.get(tag)  # an attempt whose answer was lost, or somebody else's
            if there != commit:
                raise PublishError(
                    f"{plan.repo_id}: the files are published ({commit[:7]}), but a tag {tag} was made meanwhile for "
                    f"{str(there)[:7]}; push again with another --tag"
                ) from None
    job.report(f"tagged {tag}")
    return True


def _record(job: _Job, commit: str) -> dict[str, Any]:
    """Write into `run.json` what was published, unless it stands there."""
    plan = job.plan
    pull_request = f"{plan.url}/discussions/{job.pull_request}" if job.pull_request is not None else None
    record = {
        "repo_id": plan.repo_id,
        "url": plan.url,
        "commit": commit,
        "revision": job.branch,
        "tag": plan.tag,
        "what": plan.contents.what,
        "private": plan.private,
        "files": {file.path: file.sha256 for file in plan.contents.files},
        "pull_request": pull_request,
    }
    earlier = run_dir.read(plan.run).get("published") or []
    for entry in earlier:
        if {**entry, "at": None} == {**record, "at": None}:
            return entry
    entry = {"at": datetime.now().astimezone().isoformat(timespec="seconds"), **record}
    run_dir.update(plan.run, published=[*earlier, entry])
    return entry


def _wait_or_raise(job: _Job, error: Exception, wait: float | None, doing: str) -> None:
    """Wait as long as is needed before the next attempt; raises the error as a sentence where there is none."""
    pause = None if wait is None else refusals.pause(error, wait)
    if pause is None:
        with job.explained(doing):
            raise error
    time.sleep(pause)
