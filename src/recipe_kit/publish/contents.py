"""What a push publishes of a run, decided from the run folder alone: files, what stays, and why something must not go.

Adapter alone: its files at the root. Merged weights, or those of `method: full`: at the root. Both: the adapter in
`adapter/`. Beside them the card, the public record of the run in `recipe-kit/`, the texts of the base's licence, and
NOTICE where a licence wants it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_kit import lock, run_dir
from recipe_kit.card import facts as card_facts
from recipe_kit.card.facts import Facts, What
from recipe_kit.card.private import LOCAL_PATH
from recipe_kit.publish import manifest, weights
from recipe_kit.publish.files import File, allowed, described
from recipe_kit.publish.readme import Readme, readme
from recipe_kit.run_dir import RunInfo

_CONFIGS = ("config.json", "adapter_config.json", "generation_config.json", "tokenizer_config.json")
_WHERE_FROM = ("_name_or_path", "name_or_path", "tokenizer_file")  # keys in which the libraries note a local path


@dataclass(frozen=True)
class Contents:
    """The files of a push. `problems` are sentences, each a reason not to publish them."""

    what: What
    files: tuple[File, ...]
    left_out: tuple[str, ...]  # of the folders that are published: file and reason
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    readme: Readme

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass
class _Gathering:
    """What is collected on the way."""

    run: Path
    facts: Facts
    tokens: tuple[str, ...]
    files: list[File]
    left_out: list[str]
    problems: list[str]

    @property
    def hashes(self) -> dict[Path, str]:
        """SHA-256 of the files of the run folder that were read: whole models are not read twice."""
        return {file.content: file.sha256 for file in self.files if isinstance(file.content, Path)}

    def add(self, path: str, content: Path | bytes) -> None:
        file = described(path, content, self.tokens)
        self.files.append(file)
        self.problems += [
            f"{path}: holds what looks like {kind} (from byte {place}); take it out, and make a new one if it was "
            "ever shown to anybody"
            for kind, place in file.secrets.items()
        ]


def gather(
    run: Path,
    *,
    what: str | None = None,
    repo_id: str | None = None,
    tokens: Iterable[str] = (),
    report: Callable[[str], None] = lambda text: None,
) -> Contents:
    """Everything that would be published, hashed and searched for secrets and `tokens`. Writes nothing.

    Raises RunError for a run that is not finished, and CardError for one that has nothing of the kind.
    """
    facts = card_facts.read(run, what=what, repo_id=repo_id)
    info = run_dir.require_finished(run)
    job = _Gathering(run, facts, tuple(tokens), [], [], [])
    report(f"reading the files of {run}")
    if facts.what != "adapter":
        _weights(job, run / (run_dir.MODEL if facts.is_full else run_dir.MERGED), "model", "")
    if facts.what != "merged":
        _weights(job, run / run_dir.ADAPTER, "adapter", "adapter/" if facts.what == "both" else "")
    if facts.what != "adapter" and not facts.is_full:
        job.problems += _merged(job, info)
    page = readme(run, facts)
    job.add("README.md", page.text.encode())
    job.problems += page.problems
    if page.notice is not None:
        job.add("NOTICE", page.notice.encode())
    _license_texts(job, run / run_dir.LICENSE)
    for name, content in sorted(lock.public_record(run, job.hashes).items()):
        job.add(name, content)
    job.add(manifest.PATH, manifest.written(facts.what, job.files))
    files = sorted(job.files, key=lambda file: file.path)
    return Contents(facts.what, tuple(files), tuple(job.left_out), tuple(job.problems), page.notes, page)


def _license_texts(job: _Gathering, folder: Path) -> None:
    """Take the texts of the base's licence, and whatever else lies beside them not."""
    for path in sorted(folder.glob("*")) if not folder.is_symlink() else []:
        if path.is_file() and not path.is_symlink() and run_dir.LICENSE_TEXT.fullmatch(path.name):
            job.add(path.name, path)
        else:
            job.left_out.append(f"{folder.name}/{path.name}: no text of a licence")


def _weights(job: _Gathering, folder: Path, kind: str, prefix: str) -> None:
    """Take the published files of a weights folder, or say why they cannot be."""
    if folder.is_symlink() or not folder.is_dir():
        there = "is a link, which is not followed" if folder.is_symlink() else "is not there"
        job.problems.append(f"{folder}: {there}; {_to_get(job, kind, folder)}")
        return
    found, others = allowed(folder, kind)
    index = folder / "model.safetensors.index.json"
    if index.name in found:
        named = weights.indexed(index)
        for name in [name for name in found if name.endswith(".safetensors") and name not in named]:
            del found[name]
            others[name] = "its index does not name it"
    job.left_out += [f"{folder.name}/{name}: {reason}" for name, reason in sorted(others.items())]
    job.problems += _incomplete(job, folder, kind, found, others)
    for name, path in found.items():
        job.add(prefix + name, _public_config(job, path) if name in _CONFIGS else path)
        if name.endswith(".safetensors"):
            job.problems += _unsound(job, path, kind)


def _incomplete(job: _Gathering, folder: Path, kind: str, found: dict[str, Path], others: dict[str, str]) -> list[str]:
    """Files without which the folder cannot be loaded."""
    needed = ["adapter_config.json", "adapter_model.safetensors"] if kind == "adapter" else ["config.json"]
    if kind == "model":
        index = folder / "model.safetensors.index.json"
        needed += sorted(weights.indexed(index)) if index.name in found else ["model.safetensors"]
    if not {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"} & set(found):
        needed.append("tokenizer.json")
    return [
        f"{folder / name}: {f'is {others[name]}' if name in others else 'is not there'}; {_to_get(job, kind, folder)}"
        for name in needed
        if name not in found
    ]


def _to_get(job: _Gathering, kind: str, folder: Path) -> str:
    """What to do for whole weights."""
    if kind == "model" and not job.facts.is_full:
        return f"run `recipe-kit merge {job.run}` first"
    return f"{run_dir.RUN} says that the run is finished, so {folder.name} was changed since: train again"


def _unsound(job: _Gathering, path: Path, kind: str) -> list[str]:
    """Why a weights file must not be published, if there is a reason in the file itself."""
    told = weights.header(path)
    if isinstance(told, str):
        return [f"{path}: {told}; {_to_get(job, kind, path.parent)}"]
    if kind == "adapter" and (tensor := weights.not_finite(path)) is not None:
        return [f"{path}: {tensor} holds numbers that are infinite or none; the training diverged: lower its rate"]
    return []


def _merged(job: _Gathering, info: RunInfo) -> list[str]:
    """Why `merged/` must not be published."""
    folder = job.run / run_dir.MERGED
    if any(problem.startswith(str(folder)) for problem in job.problems):
        return []  # not whole, which is said already
    adapter = job.run / run_dir.ADAPTER / "adapter_model.safetensors"
    known = job.hashes
    adapter_hash = known.get(adapter) or (described("", adapter).sha256 if adapter.is_file() else None)
    recorded = (info.get("merge") or {}).get("files") or {}
    here = {path.name: known.get(path) for path in folder.iterdir() if path.is_file()}
    hashes = {
        name: told or described("", folder / name).sha256
        for name, told in here.items()
        if name in recorded or name.endswith(".safetensors")
    }
    return weights.merge_problems(job.run, info, hashes, adapter_hash)


def _public_config(job: _Gathering, path: Path) -> Path | bytes:
    """A configuration as strangers can use it: the base by its Hub id and commit, no path of this machine."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        public = dict(told.items())
    except (OSError, ValueError, AttributeError):
        kind = "adapter" if path.parent.name == run_dir.ADAPTER else "model"
        job.problems.append(f"{path}: is no JSON object; {_to_get(job, kind, path.parent)}")
        return path
    if path.name == "adapter_config.json":
        if "peft_type" not in told:
            job.problems.append(f"{path}: no configuration of an adapter; {_to_get(job, 'adapter', path.parent)}")
        public |= {"base_model_name_or_path": job.facts.base_id, "revision": job.facts.base_revision}
        if job.facts.base_id is None:
            job.problems.append(
                f"{path}: its base model {job.facts.base_name} is not on the Hub, so nobody could load the adapter; "
                "publish merged weights with --what merged, or name the base's Hub id in the recipe as card.base_model"
            )
    for key in _WHERE_FROM:
        if key in public and public[key] != job.facts.base_id:
            del public[key]
    job.problems += [
        f"{path}: {key} names a path of this machine; take it out" for key, value in public.items() if _is_local(value)
    ]
    return path if public == told else json.dumps(public, indent=2, ensure_ascii=False).encode() + b"\n"


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and "\n" not in value and LOCAL_PATH.fullmatch(value) is not None
