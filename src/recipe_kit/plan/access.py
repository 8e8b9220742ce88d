"""Whether the Hub will give what the recipe asks for: token, model, data sets, licences accepted. Prints no token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipe_kit.plan.shape import Finding
from recipe_kit.plan.stages import Report, silent
from recipe_kit.publish import check_before_training
from recipe_kit.recipe import ModelSection, Recipe

TIMEOUT_SECONDS = 8.0  # for each question
RepoType = Literal["model", "dataset"]


@dataclass(frozen=True)
class Access:
    """What the Hub said. `model_files` are the names and bytes of the model's files; None when it was not asked."""

    findings: list[Finding]
    model_files: list[tuple[str, int]] | None = None
    reached: bool = True  # False where the Hub was wanted and there was no way to it

    def gives(self, kind: RepoType) -> bool:
        """Whether none of the repositories of this kind was refused."""
        return not any(finding["ok"] is False and finding["what"].startswith(kind) for finding in self.findings)


@dataclass(frozen=True)
class Repo:
    """A repository of the Hub."""

    id: str
    type: RepoType
    revision: str | None


def check(recipe: Recipe, report: Report = silent) -> Access:
    """Ask the Hub about everything the recipe takes from it. Without a network nothing fails: it is not checked."""
    from huggingface_hub import constants

    repos = hub_repositories(recipe)
    if not repos:
        first = _finding("Hub", True, "not needed: model and rows are on this machine")
        return Access([first, *_publishing(recipe)])
    names = ", ".join(dict.fromkeys(repo.id for repo in repos))
    if constants.HF_HUB_OFFLINE:
        return Access([_finding("Hub", None, f"offline (HF_HUB_OFFLINE is set); needed for {names}")], reached=False)
    report(f"asking the Hub for {names}")
    try:
        findings = [_token()]
        files = None
        for repo in repos:
            finding, info = _repo(repo)
            findings.append(finding)
            if repo.type == "model" and info is not None:
                files = [(file.rfilename, int(file.size or 0)) for file in info.siblings or ()]
    except _UnreachableError as reason:
        return Access([_finding("Hub", None, f"offline ({reason}); needed for {names}")], reached=False)
    return Access([*findings, *_publishing(recipe)], files)


def is_on_hub(model: ModelSection) -> bool:
    """Whether `model.id` names a repository of the Hub rather than something on this machine."""
    elsewhere = model.id.startswith(("tiny:", "package:", ".", "/", "~")) or Path(model.id).is_dir()
    return "/" in model.id and not elsewhere


def hub_repositories(recipe: Recipe) -> list[Repo]:
    """Everything the recipe takes from the Hub, the model first, each once."""
    model = [Repo(recipe.model.id, "model", recipe.model.revision)] if is_on_hub(recipe.model) else []
    sources = [source for split in ("train", "eval", "test") for source in recipe.data.sources(split)]
    rows = [Repo(source.id, "dataset", source.revision) for source in sources if source.id]
    return list(dict.fromkeys([*model, *rows]))


@contextmanager
def cache_only(hub: Access) -> Iterator[None]:
    """Where the Hub was not reached, nothing is asked of it again: each attempt would wait half a minute."""
    import datasets
    from huggingface_hub import constants

    if hub.reached:
        yield
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _publishing(recipe: Recipe) -> list[Finding]:
    """Whether a run of this recipe could be pushed. Training does not depend on it: a reason against is a remark."""
    from huggingface_hub import constants

    if recipe.publish.repo_id is None or constants.HF_HUB_OFFLINE:
        return []
    what = f"push to {recipe.publish.repo_id}"
    problems = check_before_training(recipe)
    return [_finding(what, None, problem) for problem in problems] or [_finding(what, True, "possible")]


class _UnreachableError(Exception):
    """The Hub could not be asked."""


def _token() -> Finding:
    """Whether the Hub knows the token of this machine, if there is one."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        return _finding("token", True, "none; enough for what is public")
    try:
        account = _asked(lambda: HfApi().whoami())
    except HfHubHTTPError as error:
        if _status(error) == 401:
            return _finding("token", False, "the Hub does not accept this machine's token; run `hf auth login` again")
        return _finding("token", None, f"the Hub answered {_status(error)}")
    return _finding("token", True, f"valid, account {account.get('name', 'unknown')}")


def _repo(repo: Repo) -> tuple[Finding, Any]:
    """Whether a repository can be read, and what the Hub says about it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{repo.type} {repo.id}"
    page = f"https://huggingface.co/{'datasets/' if repo.type == 'dataset' else ''}{repo.id}"
    api = HfApi()
    try:
        info = _asked(
            lambda: api.repo_info(
                repo.id, repo_type=repo.type, revision=repo.revision, timeout=TIMEOUT_SECONDS, files_metadata=True
            )
        )
        if info.gated:
            _asked(lambda: api.auth_check(repo.id, repo_type=repo.type))
    except HFValidationError:
        return _finding(what, False, "no repository can have this id; expected owner/name"), None
    except GatedRepoError:
        detail = f"gated, and not granted to this account; accept its licence on {page} and run `hf auth login`"
        return _finding(what, False, detail), None
    except RevisionNotFoundError:
        return _finding(what, False, f"has no revision {repo.revision}; see {page}/commits"), None
    except RepositoryNotFoundError:
        detail = "no such repository, or a private one; check the id, and run `hf auth login` if it is private"
        return _finding(what, False, detail), None
    except HfHubHTTPError as error:
        return _finding(what, None, f"the Hub answered {_status(error)}"), None
    kind = "gated, and granted" if info.gated else "private, and granted" if info.private else "public"
    return _finding(what, True, f"{kind}, at {str(info.sha)[:7]}"), info


def _asked(question: Callable[[], Any]) -> Any:
    """The Hub's answer, or its refusal; _UnreachableError when none comes in time.

    `whoami` and `auth_check` take no timeout, so the question is put in a thread that does not keep the process alive.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.errors import HTTPError as NoConnection  # type: ignore[attr-defined]  # httpx's, or httpx2's

    answer: list[Any] = []
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            answer.append(question())
        except Exception as error:  # handed to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    if answer:
        return answer[0]
    if not failure:
        raise _UnreachableError(f"no answer within {TIMEOUT_SECONDS:g} seconds")
    error = failure[0]
    if isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, NoConnection | OSError) and not isinstance(error, HfHubHTTPError)
    ):
        raise _UnreachableError("the Hub cannot be reached") from error
    raise error


def _status(error: Any) -> int:
    return int(error.response.status_code)


def _finding(what: str, ok: bool | None, detail: str) -> Finding:
    return {"what": what, "ok": ok, "detail": detail}
