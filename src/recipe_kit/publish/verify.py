"""Whether what stands on the Hub is what lies here, and can be loaded by somebody who has nothing else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from recipe_kit import run_dir
from recipe_kit.errors import PublishError
from recipe_kit.publish import client, refusals, repository, weights
from recipe_kit.publish.files import File

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from recipe_kit.publish.plan import Plan

LARGEST_DOWNLOAD = 200_000_000  # bytes; larger files are compared by their hash on the Hub alone


def hashes(api: HfApi, repo_id: str, commit: str, files: Iterable[File]) -> None:
    """Raises PublishError when one of the files is missing at a commit, or is not byte for byte what lies here."""
    there = repository.tree(api, repo_id, commit)
    wrong = repository.different(files, there)
    if not wrong:
        return
    missing = [file.path for file in wrong if file.path not in there]
    if missing:
        raise PublishError(
            f"{repo_id}: {', '.join(missing)} did not arrive in {commit[:7]}; if the repository has a .gitignore that "
            "names such files, take it out, and push again"
        )
    names = ", ".join(file.path for file in wrong)
    raise PublishError(f"{repo_id}: {names} at {commit[:7]} is not what lies here: do not use this commit; push again")


def round_trip(api: HfApi, plan: Plan, commit: str) -> list[str]:
    """Download the published files of moderate size into a folder of their own, compare and load them.

    Returns remarks. Raises PublishError when something cannot be loaded, or there is no room for it.
    """
    small = [file for file in plan.contents.files if file.size <= LARGEST_DOWNLOAD]
    large = [file for file in plan.contents.files if file.size > LARGEST_DOWNLOAD]
    after = f"published ({commit[:7]}), but downloading it for a check"
    with (
        refusals.explained(after, plan.repo_id, (plan.account.token,)),
        tempfile.TemporaryDirectory(prefix="recipe-kit-") as temporary,
    ):
        folder = Path(temporary)
        client.ask(lambda: _download(api, plan.repo_id, commit, small, folder), waits=client.FEW_WAITS)
        for file in small:
            if run_dir.sha256(folder / file.path) != file.sha256:
                raise PublishError(f"{plan.repo_id}: {file.path} comes back from the Hub changed; push again")
        remarks = load(folder, plan.contents.what)
    if large:
        remarks.append(f"not downloaded, compared by their hash alone: {', '.join(file.path for file in large)}")
    return remarks


def load(folder: Path, what: str) -> list[str]:
    """Load what was downloaded, as far as it goes without the base model; what was loaded, as remarks.

    Raises PublishError for what does not load.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded = [f"tokenizer of {len(tokenizer):,} tokens"]
        if what != "adapter":
            loaded.append(f"configuration of a {AutoConfig.from_pretrained(folder, local_files_only=True).model_type}")
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PublishError(f"what was published cannot be loaded again: {reason}") from error
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = weights.header(path)
        if isinstance(tensors, str):
            raise PublishError(f"what was published cannot be loaded again: {path.name} {tensors}")
        loaded.append(f"{len(tensors)} tensors of {path.relative_to(folder)}")
    for path in sorted(folder.rglob("adapter_config.json")):
        loaded.append(f"adapter for {json.loads(path.read_text(encoding='utf-8'))['base_model_name_or_path']}")
    return [f"downloaded and loaded: {', '.join(loaded)}"]


def _download(api: HfApi, repo_id: str, commit: str, files: list[File], folder: Path) -> None:
    from huggingface_hub import utils

    quiet = utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        paths = [file.path for file in files]
        api.snapshot_download(repo_id, revision=commit, local_dir=folder, allow_patterns=paths)
    finally:
        if not quiet:
            utils.enable_progress_bars()  # type: ignore[attr-defined]
