"""Reasons not to push that lie in names, visibility and tags: pure functions, a sentence for each reason."""

from __future__ import annotations

import re

from recipe_kit.publish.repository import MAIN, Remote

# What git takes for the name of a branch or a tag, in short.
_REF = re.compile(r"(?!refs/|.*(?:\.\.|//|@\{|\.lock$|/$|\.$))\w[\w./-]*")
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.|\.git$))\w[\w.-]*/\w(?:[\w.-]*\w)?")
LONGEST_ID = 96  # characters


def names(repo_id: str, branch: str, tag: str | None) -> list[str]:
    """Names that neither the Hub nor git takes."""
    found = []
    if len(repo_id) > LONGEST_ID or not _REPOSITORY.fullmatch(repo_id):
        found.append(
            f"{repo_id}: no repository can have this id; expected owner/name of letters, digits, `-`, `_` and `.`, "
            f"at most {LONGEST_ID} characters"
        )
    for option, ref in (("--revision", branch), ("--tag", tag)):
        if ref is not None and not _REF.fullmatch(ref):
            found.append(f"{option} {ref}: expected a name such as v1.0, of letters, digits, `-`, `_`, `.` and `/`")
    return found


def references(repo_id: str, branch: str, tag: str | None, remote: Remote) -> list[str]:
    """Names that are taken by something of another kind."""
    found = []
    if branch in remote.tags:
        found.append(f"--revision {branch}: a tag of {repo_id}, and a push goes to a branch; choose another name")
    if tag is not None and tag in remote.branches:
        found.append(f"--tag {tag}: a branch of {repo_id}; choose another name")
    return found


def proposal(branch: str, tag: str | None) -> list[str]:
    """What cannot be asked for together with a pull request."""
    found = []
    if tag is not None:
        found.append("--tag and --pr: a pull request is tagged once it is merged; leave one of them out")
    if branch != MAIN:
        found.append(f"--revision {branch} and --pr: the Hub proposes changes to {MAIN} only; leave one of them out")
    return found


def visibility(repo_id: str, private: bool, remote: Remote) -> list[str]:
    """A repository that everybody reads gets nothing that was meant to be private."""
    if remote.exists and not remote.private and private:
        return [
            f"{repo_id} is public, and this push is private; say --public to publish there, or choose another "
            "--repo-id"
        ]
    return []


def next_tag(tag: str) -> str:
    """`v1.1` after `v1.0`."""
    number = re.search(r"(\d+)(?!.*\d)", tag)
    return f"{tag[: number.start()]}{int(number[1]) + 1}{tag[number.end() :]}" if number else f"{tag}-2"
