"""What a card is made of: the files of one run folder, and what is to be published of it under which name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from recipe_kit import lock, run_dir
from recipe_kit.card import vocabulary
from recipe_kit.card.licences import Duties, duties_of, with_prefix
from recipe_kit.card.private import last_part
from recipe_kit.errors import CardError
from recipe_kit.recipe import Recipe
from recipe_kit.report import files
from recipe_kit.report.files import Json, Record, section

What = Literal["adapter", "merged", "both"]
Base = Literal["hub", "package", "tiny", "folder"]

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Facts:
    """A finished run as its files tell it. `what` is published of it: adapter, merged (or full) weights, or both."""

    run: Path
    record: Record
    recipe: Recipe
    what: What
    repo_id: str | None  # `owner/name`, or the name alone; None where nothing says

    @property
    def info(self) -> Json:
        return self.record.info

    @property
    def metrics(self) -> Json | None:
        return self.record.metrics

    @property
    def is_full(self) -> bool:
        return self.recipe.method == "full"

    @property
    def weights(self) -> Path:
        """What the run learnt, with its tokenizer."""
        return run_dir.weights(self.run, self.recipe.method)

    @property
    def merge(self) -> Json:
        """What `run.json` says of the merged weights; {} where they are not published, or there are none."""
        return {} if self.what == "adapter" or self.is_full else section(self.info, "merge")

    @property
    def title(self) -> str:
        """The published name, which begins as the base's licence asks."""
        name = (self.repo_id or "").rpartition("/")[2] or str(self.info.get("name") or self.recipe.name)
        return with_prefix(name, self.duties.name_prefix)

    @property
    def base_kind(self) -> Base:
        model_id, revision = self.recipe.model.id, section(self.info, "model").get("revision")
        if model_id.startswith(("package:", "tiny:")):
            return "package" if model_id.startswith("package:") else "tiny"
        is_hub = HUB_ID.fullmatch(model_id) and (revision is not None or not Path(model_id).is_dir())
        return "hub" if is_hub else "folder"

    @property
    def base_id(self) -> str | None:
        """The Hub id of the base model, where it has one."""
        return self.recipe.model.id if self.base_kind == "hub" else self.recipe.card.base_model

    @property
    def base_revision(self) -> str | None:
        """The commit of the base on the Hub that was trained on."""
        revision = section(self.info, "model").get("revision") if self.base_kind == "hub" else None
        return str(revision) if revision else None

    @property
    def base_name(self) -> str:
        """What the base is called where it has no Hub id; never a path."""
        return last_part(self.recipe.model.id) if self.base_kind == "folder" else self.recipe.model.id

    @property
    def dtype(self) -> str:
        """The type that the published weights are to be loaded in."""
        if self.merge.get("dtype"):
            return str(self.merge["dtype"])
        trained = section(self.info, "model").get("dtype")
        told = self.recipe.model.dtype if trained in (None, "nf4") else str(trained)
        return "bfloat16" if told == "auto" else told

    @cached_property
    def base_license(self) -> dict[str, str]:
        """`license`, `license_name`, `license_link` of the base, as its own card says; {} where nothing is known."""
        told = section(self.info, "model", "license")
        found = {key: str(told[key]) for key in ("license", "license_name", "license_link") if told.get(key)}
        if found and found.get("license") not in vocabulary.licenses():  # the Hub knows no other word for it
            named = re.sub(r"[^a-z0-9.-]+", "-", found.get("license", "").casefold()).strip("-")
            found = {"license_name": named, **found, "license": "other"}
        link = found.get("license_link", "")
        if link and "://" not in link:  # a file beside the base's weights
            found.pop("license_link")
            if self.base_id:
                commit = self.base_revision or "main"
                found["license_link"] = f"https://huggingface.co/{self.base_id}/blob/{commit}/{link.lstrip('./')}"
        return found

    @cached_property
    def license(self) -> dict[str, str]:
        """The licence of what is published: the recipe's, else the base's; {} where neither is known."""
        card = self.recipe.card
        if card.license is None:
            return self.base_license
        own = {"license": card.license, "license_name": card.license_name, "license_link": card.license_link}
        return {key: value for key, value in own.items() if value}

    @cached_property
    def duties(self) -> Duties:
        """What the licence of the base asks for; a licence that the recipe names does not end that."""
        return duties_of(self.base_license, self.license)

    @cached_property
    def languages(self) -> list[str]:
        told = self.recipe.card.language
        return [told] if isinstance(told, str) else list(told or [])

    def has_chat_template(self) -> bool:
        """Whether the saved tokenizer turns messages into a prompt; weights that are not here count as such."""
        config = self.weights / "tokenizer_config.json"
        if (self.weights / "chat_template.jinja").is_file() or not config.is_file():
            return True
        return '"chat_template"' in config.read_text(encoding="utf-8", errors="replace")


def read(run: str | Path, *, what: str | None = None, repo_id: str | None = None) -> Facts:
    """The facts of a finished run. `what` and `repo_id` are the recipe's where they are None.

    Raises RunError for a run that did not finish, CardError when the run has nothing of the kind to publish.
    """
    folder = run_dir.find(run)
    run_dir.require_finished(folder)
    recipe = lock.recipe_of(folder)
    repo_id = repo_id or recipe.publish.repo_id
    if repo_id is not None and not _REPOSITORY.fullmatch(repo_id):
        raise CardError(f"--repo-id {repo_id}: expected owner/name, such as acme/{recipe.name}")
    return Facts(folder, files.read(folder), recipe, _published(recipe, what), repo_id)


def _published(recipe: Recipe, what: str | None) -> What:
    if recipe.method == "full":
        if what in ("adapter", "both"):
            raise CardError(
                f"--what {what}: this run trained all weights and has no adapter; leave out --what, or use merged"
            )
        return "merged"
    chosen = what or recipe.publish.what
    if chosen not in ("adapter", "merged", "both"):
        raise CardError(f"--what {chosen}: expected adapter, merged or both")
    return chosen  # type: ignore[return-value]


def counted(value: Any) -> int:
    """A count of a JSON file; 0 for what is none."""
    number = files.finite(value)
    return int(number) if number == number else 0
