"""`recipe-kit push`: publish a run on the Hugging Face Hub."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recipe_kit.cli._common import Sentence, json_option, print_json, remark, table

if TYPE_CHECKING:
    from recipe_kit.publish import Contents, Plan


@click.command(cls=Sentence)
@click.argument("run", type=click.Path())
@click.option("--repo-id", metavar="OWNER/NAME", help="Repository; a name alone is one of your own.")
@click.option("--what", type=click.Choice(["adapter", "merged", "both"]), help="Which weights.")
@click.option("--private/--public", "private", default=None, help="Who may see it; private unless the recipe says so.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to, made if missing.  [default: main]")
@click.option("--pr", "pull_request", is_flag=True, help="Open a pull request instead of changing the branch.")
@click.option("--tag", metavar="TAG", help="Tag for the published commit, such as v1.0.")
@click.option("--dry-run", is_flag=True, help="Show what would be published and every reason not to; send nothing.")
@click.option(
    "--to-folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write what would be published to DIR; needs no network and no token.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Publish without being asked.")
@json_option
def push(
    run: str,
    repo_id: str | None,
    what: str | None,
    private: bool | None,
    revision: str | None,
    pull_request: bool,
    tag: str | None,
    dry_run: bool,
    to_folder: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Publish RUN on the Hugging Face Hub: weights, tokenizer, card and the record of the run, in one commit.

    Shows what it is about to do and asks. Afterwards every file on the Hub is compared with the one here, and what
    was published is downloaded and loaded. A push that was cut off is finished by the same command. Options left out
    are as in the recipe's publish section.

    \b
    recipe-kit push runs/samsum/latest --dry-run
    recipe-kit push runs/samsum/latest --repo-id acme/samsum-lora
    recipe-kit push runs/guanaco/latest --what both --tag v1.0 --yes
    recipe-kit push runs/samsum/latest --to-folder published
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from recipe_kit import publish, run_dir

    folder = run_dir.find(run)
    if to_folder is not None:
        if revision or tag or pull_request:
            raise click.UsageError("--to-folder writes files and asks no Hub: leave out --revision, --tag and --pr.")
        _export(folder, to_folder, what, repo_id, dry_run, as_json)
        return
    wish = publish.Wish(what, repo_id, private, revision, tag, pull_request)
    planned = publish.plan(folder, wish, report=remark)
    _show(planned, on_stdout=dry_run, as_json=as_json)
    if planned.problems:
        sys.exit(1)
    if dry_run:
        return
    if not yes:
        _ask(planned)
    try:
        done = publish.push(planned, report=remark)
    except KeyboardInterrupt:
        remark("\ninterrupted: push again to finish what was begun")
        sys.exit(130)
    if as_json:
        print_json(done.record)
        return
    record = done.record
    if not done.news:
        remark("already published: nothing had to be sent")
    click.echo(record["pull_request"] or f"{record['url']}/tree/{record['tag'] or record['revision']}")
    click.echo(f"commit {record['commit']}")


def _export(run: Path, folder: Path, what: str | None, repo_id: str | None, dry_run: bool, as_json: bool) -> None:
    """Write the files of a push to a folder, or show them."""
    from recipe_kit import publish
    from recipe_kit.publish.files import readable

    found = publish.gather(run, what=what, repo_id=repo_id, report=remark)
    if not dry_run and not found.problems:
        publish.write_folder(found.files, folder)
    for line in [*_remarks(found.left_out, found.notes), *(f"problem: {problem}" for problem in found.problems)]:
        remark(line)
    if as_json:
        print_json({"folder": str(folder), "files": _files_json(found), "problems": list(found.problems)})
    else:
        click.echo(table((file.path, readable(file.size)) for file in found.files))
    if found.problems:
        remark(f"nothing was written to {folder}")
        sys.exit(1)


def _show(plan: Plan, *, on_stdout: bool, as_json: bool) -> None:
    """The plan: the result of a dry run, otherwise what the question is about."""
    if on_stdout and as_json:
        print_json(_plan_json(plan))
        return
    for line in _plan_lines(plan):
        click.echo(line, err=not on_stdout)
    for problem in plan.problems:
        click.echo(f"problem: {problem}", err=True)
    if plan.problems:
        click.echo("nothing was sent", err=True)


def _ask(plan: Plan) -> None:
    from recipe_kit.errors import PublishError
    from recipe_kit.publish.files import readable

    if not _is_terminal():
        raise PublishError("there is nobody to ask here: say --yes to publish, or --dry-run to look at it only")
    count = len(plan.contents.files)
    verb = "Propose" if plan.pull_request else "Publish"
    question = f"{verb} {count} files, {readable(plan.contents.size)}, to {plan.repo_id} ({_seen_by(plan)})?"
    if not click.confirm(question, err=True):
        remark("nothing was sent")
        sys.exit(1)


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()  # None: closed with <&-


def _plan_lines(plan: Plan) -> list[str]:
    """The plan for a person."""
    from recipe_kit.publish.files import readable

    remote = plan.remote
    state = f"at {remote.short}" if remote.exists else "new"
    where = "pull request" if plan.pull_request else f"branch {plan.branch}"
    tag = f", tag {plan.tag}" if plan.tag else ""
    sends = {file.path for file in plan.sends}
    rows = [
        (f"  {file.path}", readable(file.size), _change(file.path, sends, remote.files))
        for file in plan.contents.files
    ]
    role = f", token role {plan.account.token_role}" if plan.account.token_role else ""
    return [
        f"{plan.repo_id} ({_seen_by(plan)}, {state}), {where}{tag}, as {plan.account.name}{role}",
        *table(rows).splitlines(),
        f"  {len(rows)} files, {readable(plan.contents.size)}; to send: {len(sends)} files, "
        f"{readable(sum(file.size for file in plan.sends))}",
        *(f"removed: {path} (of an earlier push)" for path in plan.removes),
        *_remarks(plan.contents.left_out, plan.notes),
        *([f"left alone in {plan.repo_id}: {', '.join(plan.leaves)}"] if plan.leaves else []),
    ]


def _remarks(left_out: tuple[str, ...], notes: tuple[str, ...]) -> list[str]:
    return [*(f"not published: {entry}" for entry in left_out), *(f"note: {note}" for note in notes)]


def _plan_json(plan: Plan) -> dict[str, Any]:
    """The plan for a script."""
    return {
        "repo_id": plan.repo_id,
        "url": plan.url,
        "account": plan.account.name,
        "token_role": plan.account.token_role,
        "private": plan.private,
        "exists": plan.remote.exists,
        "head": plan.remote.head,
        "revision": plan.branch,
        "pull_request": plan.pull_request,
        "tag": plan.tag,
        "what": plan.contents.what,
        "files": _files_json(plan.contents),
        "to_send": [file.path for file in plan.sends],
        "to_remove": plan.removes,
        "left_alone": plan.leaves,
        "not_published": list(plan.contents.left_out),
        "notes": list(plan.notes),
        "problems": list(plan.problems),
    }


def _files_json(found: Contents) -> dict[str, Any]:
    return {file.path: {"size": file.size, "sha256": file.sha256} for file in found.files}


def _change(path: str, sends: set[str], there: Any) -> str:
    if path not in sends:
        return "there already"
    return "changed" if path in there else "new"


def _seen_by(plan: Plan) -> str:
    seen = "private" if plan.private else "public"
    return f"{seen}, until now private" if plan.changes_visibility else seen
