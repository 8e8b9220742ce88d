"""What a push would do, before it does: files, repository, account, and every reason not to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recipe_kit import lock, run_dir
from recipe_kit.card.page import parse
from recipe_kit.errors import PublishError
from recipe_kit.publish import account, checks, client, contents, refusals, repository
from recipe_kit.publish.account import Account
from recipe_kit.publish.contents import Contents
from recipe_kit.publish.files import File
from recipe_kit.publish.repository import MAIN, Remote

Report = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What the user asked for. None is: as the recipe says."""

    what: str | None = None
    repo_id: str | None = None
    private: bool | None = None
    revision: str | None = None
    tag: str | None = None
    pull_request: bool = False


@dataclass(frozen=True)
class Plan:
    """A push that could be made. `problems` are sentences; with one of them it is not."""

    run: Path
    repo_id: str  # owner/name
    branch: str
    tag: str | None
    private: bool  # as it is afterwards
    changes_visibility: bool
    pull_request: bool
    title: str  # of the commit
    contents: Contents
    account: Account
    remote: Remote
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sends(self) -> list[File]:
        """Files that the repository has not, or has otherwise."""
        return repository.different(self.contents.files, self.remote.files)

    @property
    def removes(self) -> list[str]:
        """Files of an earlier push that are no longer part of it."""
        return repository.stale(self.contents.files, self.remote)

    @property
    def leaves(self) -> list[str]:
        """Files of others, which stay."""
        return repository.foreign(self.contents.files, self.remote, self.removes)

    @property
    def url(self) -> str:
        return f"{client.endpoint()}/{self.repo_id}"


def plan(run: Path, wish: Wish, *, report: Report = lambda text: None) -> Plan:
    """Look at the run folder and ask the Hub, without changing either.

    Raises PublishError when the Hub cannot be asked, RunError or CardError when the run has nothing to publish; all
    other reasons not to push are in the plan's `problems`.
    """
    recipe = lock.recipe_of(run)
    named = wish.repo_id or recipe.publish.repo_id
    if named is None:
        raise PublishError(
            f"{run}: no repository to push to; say --repo-id OWNER/NAME, or write publish.repo_id in the recipe"
        )
    token = client.hub_token()
    report("asking the Hub who this is")
    me = account.ask(token)
    repo_id = named if "/" in named else f"{me.name}/{named}"
    found = contents.gather(run, what=wish.what, repo_id=repo_id, tokens=(token,), report=report)
    branch = wish.revision or recipe.publish.revision or MAIN
    tag = wish.tag or recipe.publish.tag
    notes = list(found.notes)
    if wish.pull_request and tag and not wish.tag:
        notes.append(f"the tag {tag} is left out: a pull request is no release yet")
        tag = None
    if wrong := checks.names(repo_id, branch, tag):
        raise PublishError("\n".join(wrong))
    title = f"Publish {run_dir.read(run)['name']} ({found.what}, run {run.name})"
    remote = _look(me, repo_id, branch, title if wish.pull_request else None, report)
    private = recipe.publish.private if wish.private is None else wish.private
    if remote.exists and remote.private and not private and wish.private is None:
        notes.append(f"{repo_id} is private and stays so; --public makes it public")
    changes = remote.exists and remote.private and wish.private is False
    stays_private = remote.private and not changes if remote.exists else private
    problems = [
        *checks.references(repo_id, branch, tag, remote),
        *(checks.proposal(branch, tag) if wish.pull_request else ()),
        *checks.visibility(repo_id, private, remote),
        *account.problems(me, repo_id, pull_request=wish.pull_request and remote.exists),
        *found.problems,
        *_tag_problems(found, tag, remote, me, repo_id),
        *([] if stays_private else _without_licence(found)),
        *_card_problems(found, me, repo_id),
    ]
    return Plan(
        run=run,
        repo_id=repo_id,
        branch=branch,
        tag=tag,
        private=stays_private,
        changes_visibility=changes,
        pull_request=wish.pull_request,
        title=title,
        contents=found,
        account=me,
        remote=remote,
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
    )


def look_again(plan: Plan) -> Remote:
    """The plan's repository as it is now."""
    return _look(plan.account, plan.repo_id, plan.branch, plan.title if plan.pull_request else None)


def _look(me: Account, repo_id: str, branch: str, title: str | None, report: Report = lambda text: None) -> Remote:
    report(f"asking the Hub about {repo_id}")
    with refusals.explained("looking at the repository", repo_id, (me.token,)):
        return repository.look(client.api(me.token), repo_id, branch, title=title, author=me.name)


def _tag_problems(found: Contents, tag: str | None, remote: Remote, me: Account, repo_id: str) -> list[str]:
    """A tag that exists has to hold these very files: a release is never moved."""
    if tag is None or tag not in remote.tags:
        return []
    if _holds(me, repo_id, remote.tags[tag], found):
        return []
    return [
        f"--tag {tag}: it exists in {repo_id} and holds other files; choose another, such as {checks.next_tag(tag)}"
    ]


def _holds(me: Account, repo_id: str, commit: str, found: Contents) -> bool:
    """Whether all files stand at a commit as they would be published."""
    with refusals.explained("comparing the files", repo_id, (me.token,)):
        there = repository.tree(client.api(me.token), repo_id, commit)
    return not repository.different(found.files, there)


def _without_licence(found: Contents) -> list[str]:
    """Weights that everybody gets say what everybody may do with them."""
    if (parse(found.readme.text).data or {}).get("license"):
        return []
    return ["README.md: names no licence, and everybody will see these weights; write card.license in the recipe"]


def _card_problems(found: Contents, me: Account, repo_id: str) -> list[str]:
    """What the Hub itself says against the metadata of the card; it would refuse the commit after a long upload."""
    from huggingface_hub import hf_raise_for_status

    def validate() -> list[str]:
        card = {"content": found.readme.text, "repoType": "model"}
        response = client.post(me.token, "/api/validate-yaml", card)
        if response.status_code == 400:
            told = response.json()
            return [str(error.get("message")) for error in told.get("errors", ())] or [str(told.get("error"))]
        hf_raise_for_status(response)
        return []

    with refusals.explained("asking the Hub whether it accepts the card", repo_id, (me.token,)):
        errors = client.ask(validate)
    remedy = "correct the recipe's card section"
    return [f"README.md: the Hub does not accept its metadata ({error}); {remedy}" for error in errors]
