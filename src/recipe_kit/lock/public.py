"""What a published repository says of its run: enough to train it again, and nothing of the machine or its user."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from recipe_kit import run_dir
from recipe_kit.lock.recipes import is_local_model, recipe_of
from recipe_kit.recipe import Recipe, dump_recipe, load_recipe, to_data
from recipe_kit.run_dir import RunInfo
from recipe_kit.secrets import blotted

FOLDER = "recipe-kit"
_KEPT = (
    "schema_version", "recipe_kit_version", "status", "name", "method", "recipe_sha256", "started_at", "finished_at",
    "git_commit", "versions", "hardware", "processes", "seed", "notes", "model", "data", "proofs", "training", "merge",
    "reproduces", "changed_on_resume",
)  # fmt: skip
_SECRET_KEYS = {"token", "hub_token", "access_token", "api_key", "password", "secret"}
# A path of two parts or more: `</s>`, `[/INST]`, `tokens/s` and addresses are none.
_PATH = re.compile(
    r"""(?<![\w:/.~<\[])(?:~|/[^/\s'"`<>()\[\],;:]+)(?:/[^/\s'"`<>()\[\],;:]+)+"""
    r"""|(?<!\w)[A-Za-z]:[\\/][^\s'"`<>()\[\],;:]+"""
)
_HEADER = """\
# How this model was trained: every value written out, revisions pinned to commits, local files by their names.
# Train it again and compare:  recipe-kit reproduce OWNER/NAME
"""


def public_record(run: Path, hashes: Mapping[Path, str] = MappingProxyType({})) -> dict[str, bytes]:
    """The files of `recipe-kit/` in a published repository, by path: recipe, run.json and, if there is one, metrics.

    The same run gives the same bytes. `lock` in run.json says what was left out, and holds the hashes of the original
    recipe, of the published file, and of the weights that were trained; `hashes` are the SHA-256 of files that were
    read already. Raises RunError for an unfinished run.
    """
    info = run_dir.require_finished(run)
    recipe = recipe_of(run)
    known = _own_paths(load_recipe(run / run_dir.RECIPE), run)
    published, left_out = _without_paths(recipe, run, info)
    text = (_HEADER + dump_recipe(published)).encode()
    told: dict[str, Any] = {key: _clean(info[key], known) for key in _KEPT if key in info}  # type: ignore[literal-required]
    told["lock"] = {
        "schema_version": 1,
        "recipe_sha256": info.get("recipe_sha256"),  # of the recipe as it was trained
        "published_recipe_sha256": hashlib.sha256(text).hexdigest(),  # of the file beside this one
        "weights": weights_sha256(run, info["method"], hashes),
        "left_out": list(dict.fromkeys(left_out)),
    }
    files = {f"{FOLDER}/{run_dir.RECIPE}": text, f"{FOLDER}/{run_dir.RUN}": _json(told)}
    if (run / run_dir.METRICS).is_file():
        metrics: dict[str, Any] = _clean(run_dir.read_metrics(run), known)
        if "judge" in metrics:
            metrics["judge"]["url"] = _public_address(str(metrics["judge"].get("url", "")))
        files[f"{FOLDER}/{run_dir.METRICS}"] = _json(metrics)
    return files


def public_recipe(run: Path) -> str:
    """`recipe.yaml` of the public record alone, without reading the weights. Raises RunError for an unfinished run."""
    published, _ = _without_paths(recipe_of(run), run, run_dir.require_finished(run))
    return _HEADER + dump_recipe(published)


def weights_sha256(run: Path, method: str, hashes: Mapping[Path, str] = MappingProxyType({})) -> dict[str, str]:
    """SHA-256 of the weights' files that a run saved, by name; {} where they are gone.

    `hashes` are those of files that were read already.
    """
    paths = sorted(run_dir.weights(run, method).glob("*.safetensors"))
    return {path.name: hashes.get(path) or run_dir.sha256(path) for path in paths}


def _without_paths(recipe: Recipe, run: Path, info: RunInfo) -> tuple[Recipe, list[str]]:
    """The recipe without places of this machine, and a sentence for each that is not in it any more.

    What a model reads or is asked (templates, prompts, system prompt) keeps every letter, but for secrets.
    """
    data = to_data(recipe)
    left_out = []
    for source in _sources(data):
        if path := source.get("path"):
            source["path"] = _name(path)
            left_out.append(f"data: the file {_name(path)} is not published; its rows are known by content_sha256")
    model = data["model"]
    if is_local_model(model["id"]):
        model["id"] = _name(model["id"])
        left_out.append(f"model.id: the base was the local folder {model['id']}")
    if model["chat_template"] and "{" not in model["chat_template"]:
        model["chat_template"] = _saved_template(run, info) or Path(model["chat_template"]).read_text(encoding="utf-8")
    config = data["launch"]["accelerate_config"]
    if config and is_path(config):
        data["launch"]["accelerate_config"] = None
        left_out.append(f"launch.accelerate_config: the file {_name(config)} is not published")
    if judge := data["evaluation"]["judge"]:
        judge["url"] = _public_address(judge["url"])
    if tasks := data["evaluation"]["lm_eval"]:
        tasks["tasks"] = [_name(task) if is_path(task) else task for task in tasks["tasks"]]
    specs = [data["data"]["formatter"], *(s["formatter"] for s in _sources(data)), *data["evaluation"]["metrics"]]
    for options in [data["training"], data["lora"], data["quantization"], *(s["options"] for s in specs if s)]:
        _clean_options(options, left_out)
    return Recipe.model_validate(_blot(data)), left_out


def _sources(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for split in ("train", "eval", "test"):
        rows = data["data"][split]
        yield from (row for row in (rows if isinstance(rows, list) else [rows]) if row and "split" in row)


def _clean_options(options: dict[str, Any], left_out: list[str]) -> None:
    for key, value in list(options.items()):
        if key in _SECRET_KEYS:
            del options[key]
            left_out.append(f"{key}: a secret")
        elif isinstance(value, str) and is_path(value):
            options[key] = _name(value)
            left_out.append(f"{key}: {_name(value)} was a local file or folder")


def _saved_template(run: Path, info: RunInfo) -> str | None:
    """The template that was trained with, as saved beside the weights: the recipe's file may have changed since."""
    path = run_dir.weights(run, info["method"]) / "chat_template.jinja"
    if not path.is_file():
        return None
    template = path.read_text(encoding="utf-8")
    same = hashlib.sha256(template.encode()).hexdigest() == info["model"].get("chat_template_sha256")
    return template if same else None


def _own_paths(recipe: Recipe, run: Path) -> list[str]:
    """Places of this machine that messages of the run may name, the longest first."""
    sources = [source.path for split in ("train", "eval", "test") for source in recipe.data.sources(split)]
    named = [*sources, recipe.model.id, recipe.model.chat_template, recipe.launch.accelerate_config]
    paths = [text for text in named if text and "\n" not in text and is_path(text)]
    return sorted([*paths, str(run), str(run.parent.parent)], key=len, reverse=True)


def _clean(value: Any, known: list[str]) -> Any:
    """A value of run.json or metrics.json with paths shortened to names and secrets blotted out."""
    if isinstance(value, str):
        for path in known:
            value = value.replace(path, _name(path))
        if len(Path.home().parts) > 1:
            value = value.replace(f"{Path.home()}/", "~/")
        return blotted(_PATH.sub(lambda found: _name(found[0]), value))
    if isinstance(value, Mapping):
        return {_clean(key, known): _clean(item, known) for key, item in value.items()}
    return [_clean(item, known) for item in value] if isinstance(value, list | tuple) else value


def _blot(value: Any) -> Any:
    if isinstance(value, str):
        return blotted(value)
    if isinstance(value, Mapping):
        return {key: _blot(item) for key, item in value.items()}
    return [_blot(item) for item in value] if isinstance(value, list | tuple) else value


def is_path(text: str) -> bool:
    return bool(re.fullmatch(r"(?:~|/[^/\n]+|[A-Za-z]:)[\\/][^\n]*", text)) or text.startswith(("./", "../"))


def _name(path: str) -> str:
    return PureWindowsPath(path).name or path  # knows both kinds of slash


def _public_address(url: str) -> str:
    """The address of a judge without user and query; `http://localhost` for one that nobody else can reach."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        ip_address(host)
        private = True
    except ValueError:
        private = "." not in host or host.endswith((".local", ".internal", ".lan"))
    port = f":{parts.port}" if parts.port else ""
    return "http://localhost" if private else f"{parts.scheme}://{host}{port}{parts.path}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
