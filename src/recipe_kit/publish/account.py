"""Who pushes: the account behind a token, and where it may write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipe_kit.publish import client, refusals

_WRITES = {"admin", "write", "contributor"}  # roles in an organisation


@dataclass(frozen=True)
class Account:
    """What the Hub says about a token."""

    name: str
    token_role: str  # read, write or fineGrained; empty where the Hub does not say
    organisations: Mapping[str, str]  # name -> this account's role in it
    scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of a fine-grained token: place -> rights
    token: str = field(default="", repr=False)


def ask(token: str) -> Account:
    """The account of a token. Raises PublishError for one that the Hub does not know, and when it cannot be asked."""
    api = client.api(token)
    with refusals.explained("asking who this token belongs to", None, (token,)):
        told = client.ask(api.whoami, waits=(1.0,))
    return account_of(told, token)


def account_of(told: Mapping[str, Any], token: str) -> Account:
    """The account in the Hub's answer to whoami."""
    access = (told.get("auth") or {}).get("accessToken") or {}
    scoped = (access.get("fineGrained") or {}).get("scoped") or []
    return Account(
        name=str(told["name"]),
        token_role=str(access.get("role") or ""),
        organisations={org["name"]: str(org.get("roleInOrg") or "") for org in told.get("orgs") or ()},
        scopes={scope["entity"]["name"]: tuple(scope["permissions"]) for scope in scoped if "name" in scope["entity"]},
        token=token,
    )


def problems(account: Account, repo_id: str, *, pull_request: bool) -> list[str]:
    """Why this account cannot push to `repo_id`, a sentence each. Anybody may propose a change where they can read."""
    owner = repo_id.partition("/")[0]
    found = []
    if account.token_role == "read":
        found.append(
            f"the token of {account.name} may only read; make one with the role write at {refusals.TOKENS_PAGE} and "
            "run `hf auth login`"
        )
    elif account.token_role == "fineGrained" and account.scopes and not _covers(account, repo_id, pull_request):
        found.append(
            f"the token of {account.name} has no right to write to {repo_id}; add it at {refusals.TOKENS_PAGE}"
        )
    if pull_request or owner == account.name:
        return found
    role = account.organisations.get(owner)
    if role is None:
        found.append(
            f"{repo_id} belongs to {owner}, and this token to {account.name}; push to {account.name}/"
            f"{repo_id.partition('/')[2]}, or propose a change with --pr"
        )
    elif role and role not in _WRITES:
        found.append(f"{account.name} has the role {role} in {owner}; ask its owner for the role write")
    return found


def _covers(account: Account, repo_id: str, pull_request: bool) -> bool:
    """Whether a fine-grained token names the repository or its owner with a right to write."""
    rights = {*account.scopes.get(repo_id, ()), *account.scopes.get(repo_id.partition("/")[0], ())}
    return "repo.write" in rights or (pull_request and "discussion.write" in rights)
