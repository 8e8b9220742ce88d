"""What can be known before training of a push afterwards, for `recipe-kit train --push`."""

from __future__ import annotations

from typing import Any

from recipe_kit.card.facts import HUB_ID
from recipe_kit.card.licences import begins_with, duties_of
from recipe_kit.errors import PublishError
from recipe_kit.publish import account, checks, client, refusals, repository
from recipe_kit.publish.repository import MAIN
from recipe_kit.recipe import Recipe


def check_before_training(recipe: Recipe) -> list[str]:
    """Why a push after this training would be refused, a sentence each; asks the Hub, and changes nothing."""
    wanted = recipe.publish
    if wanted.repo_id is None:
        return ["publish.repo_id: not set; write OWNER/NAME there, or train without --push"]
    try:
        token = client.hub_token()
        me = account.ask(token)
        repo_id = wanted.repo_id if "/" in wanted.repo_id else f"{me.name}/{wanted.repo_id}"
        branch = wanted.revision or MAIN
        found = checks.names(repo_id, branch, wanted.tag)
        if found:
            return found
        with refusals.explained("looking at the repository", repo_id, (token,)):
            remote = repository.look(client.api(token), repo_id, branch)
    except PublishError as error:
        return [str(error)]
    found += account.problems(me, repo_id, pull_request=False)
    found += checks.references(repo_id, branch, wanted.tag, remote)
    found += checks.visibility(repo_id, wanted.private, remote)
    if wanted.tag in remote.tags:
        found.append(
            f"publish.tag: {repo_id} has a tag {wanted.tag} already; write another, such as "
            f"{checks.next_tag(str(wanted.tag))}"
        )
    return found + _loadable(recipe) + _licence(recipe, repo_id, token)


def _loadable(recipe: Recipe) -> list[str]:
    """An adapter is of use only with a base that others can get."""
    if recipe.method == "full" or recipe.publish.what == "merged" or _base_id(recipe):
        return []
    return [
        f"publish.what: {recipe.publish.what}, and the base model {recipe.model.id} is not on the Hub, so nobody "
        "could load the adapter; write publish.what: merged, or the base's Hub id as card.base_model"
    ]


def _licence(recipe: Recipe, repo_id: str, token: str) -> list[str]:
    """What the base's licence asks of the name, and whether any licence is known of what everybody will see."""
    own = {"license": recipe.card.license, "license_name": recipe.card.license_name}
    base = _base_license(recipe, token)
    prefix = duties_of(base, own).name_prefix
    name = repo_id.rpartition("/")[2]
    if prefix and not begins_with(name, prefix):
        return [
            f"publish.repo_id: the base's licence asks for a name that begins with {prefix}; write "
            f"{repo_id.rpartition('/')[0]}/{prefix.replace(' ', '-')}-{name}"
        ]
    if not recipe.publish.private and not recipe.card.license and base is not None and not base.get("license"):
        return ["card.license: the base model's card names no licence; write one before the weights become public"]
    return []


def _base_license(recipe: Recipe, token: str) -> dict[str, Any] | None:
    """The licence in the card of the base; None where it cannot be asked for, which training finds out."""
    base = _base_id(recipe)
    if base is None:
        return {} if recipe.card.license is None else None
    try:
        with refusals.explained("looking at the base model", base, (token,)):
            info = client.ask(
                lambda: client.api(token).model_info(
                    base, revision=recipe.model.revision, timeout=client.QUESTION_SECONDS
                )
            )
    except PublishError:
        return None
    told = info.card_data
    return {key: told.get(key) for key in ("license", "license_name")} if told else {}


def _base_id(recipe: Recipe) -> str | None:
    """The base's Hub id, if it has one."""
    local = recipe.model.id.startswith(("tiny:", "package:", ".", "/", "~"))
    if not local and HUB_ID.fullmatch(recipe.model.id):
        return recipe.model.id
    return recipe.card.base_model
