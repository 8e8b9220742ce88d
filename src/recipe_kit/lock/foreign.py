"""What a stranger's record may do here unasked: have rows and a model fetched, trained and measured. Nothing else.

Whoever trains a repository again runs its recipe, and that recipe was written by somebody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from recipe_kit.errors import RunError
from recipe_kit.lock.public import is_path
from recipe_kit.lock.recipes import SPLITS, is_local_model, sources_by_key
from recipe_kit.recipe import Recipe, Source

# What is read of a published run.json. Keys that end in ? may be missing, and values null; `*` stands for any key.
_SHAPE: dict[str, Any] = {
    "name": str, "method": str, "processes?": int, "seed?": int, "versions?": dict, "hardware?": {"threads?": int},
    "model": {"revision?": str, "chat_template_sha256?": str}, "training?": {"train_loss?": float},
    "lock": {"published_recipe_sha256": str, "weights": dict}, "changed_on_resume?": [dict],
    "data": {
        "formatter?": {"source_sha256?": str},
        "splits?": {"*": {"kept": int, "tokens": int, "content_sha256": str, "sources?": [dict]}},
    },
}  # fmt: skip
_ESTIMATE = {"value?": float, "low?": float, "high?": float}
_METRICS_SHAPE: dict[str, Any] = {
    "split": str, "rows": int, "precision": str, "processes": int, "versions": dict, "generation?": dict,
    "scores": {"*": {"label": str, "rows": int, "base": _ESTIMATE, "tuned": _ESTIMATE}},
}  # fmt: skip


def require_record(info: Any, metrics: Any, origin: str) -> None:
    """Raises RunError for a run.json or metrics.json that `push` did not write."""
    for name, value, shape in (("run.json", info, _SHAPE), ("metrics.json", metrics, _METRICS_SHAPE)):
        if value is not None and (problem := next(_misfits(value, shape), None)):
            raise RunError(f"{origin}: its {name} is not one that recipe-kit published ({problem}); get it again")


def require_no_places(recipe: Recipe, folder: Path, origin: str) -> None:
    """Raises RunError for a published recipe, read from `folder`, that names a file or folder of this machine.

    A published recipe has names of files and no places, so that whoever trains it again says which file is meant.
    """
    model, tasks = recipe.model, recipe.evaluation.lm_eval
    named = {
        "model.chat_template": model.chat_template if "{" not in (model.chat_template or "{") else None,
        "model.id": model.id if is_local_model(model.id) and "/" in model.id else None,
        "launch.accelerate_config": recipe.launch.accelerate_config,
        **{f"evaluation.lm_eval.tasks.{index}": task for index, task in enumerate(tasks.tasks if tasks else ())},
    }
    found = [key for key, value in named.items() if value and (key.startswith("model.") or is_path(value))]
    for key, source in _sources(recipe):
        found += [f"{key}.path"] if source.path and Path(source.path).parent != folder else []
    for section, options in (("training", recipe.training), ("lora", recipe.lora)):
        found += [f"{section}.{key}" for key, value in options.items() if isinstance(value, str) and is_path(value)]
    if found:
        raise RunError(
            f"{origin}: its recipe names a file or folder of this machine in {', '.join(found)}, which no recipe that "
            "recipe-kit published does; do not train it, and tell whoever gave it to you"
        )


def refuse_code(recipe: Recipe, overrides: Collection[str], origin: str) -> None:
    """Raises RunError for Python that runs only because the recipe says so: a model's own, or any `module:attr`.

    The command line agrees by naming it. Formatters and metrics that go by a registered name are the kit's own or of
    a package that was installed for it; `module:attr` may be any function of any module, such as one that starts a
    shell.
    """
    if recipe.model.trust_remote_code and "model.trust_remote_code" not in _keys(overrides):
        raise RunError(
            f"{origin}: its recipe runs Python code that comes with {recipe.model.id}; read that code, then repeat "
            "with --set model.trust_remote_code=true"
        )
    given = [text.partition("=")[2] for text in overrides]
    for key, name in _named_functions(recipe):
        if ":" in name and not any(name in value for value in given):
            raise RunError(
                f"{origin}: its recipe calls {name} on this machine ({key}); look at what that does, then repeat with "
                f"--set {key}={name}"
            )


def without_services(recipe: Recipe, overrides: Collection[str]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe without what would send rows elsewhere, and a sentence for each.

    A judge is asked with a key from an environment variable that the recipe names, at an address that it names: a
    stranger's recipe could have any secret sent anywhere.
    """
    notes = []
    keys = _keys(overrides)
    if recipe.evaluation.judge is not None and not {"evaluation.judge", "evaluation.judge.url"} & keys:
        notes.append("the judge is not asked again: --set evaluation.judge.url=... would")
        recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"judge": None})})
    loggers = recipe.training.get("report_to", [])
    kept = [name for name in ([loggers] if isinstance(loggers, str) else loggers or []) if name == "tensorboard"]
    if loggers not in (kept, "tensorboard", "none", None) and "training.report_to" not in keys:
        notes.append(f"nothing is sent to {loggers}: --set training.report_to=... would")
        recipe = recipe.model_copy(update={"training": recipe.training | {"report_to": kept}})
    return recipe, tuple(notes)


def _keys(overrides: Collection[str]) -> set[str]:
    return {text.partition("=")[0].strip() for text in overrides}


def _sources(recipe: Recipe) -> Iterator[tuple[str, Source]]:
    return chain.from_iterable(sources_by_key(recipe, split) for split in SPLITS)


def _named_functions(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield "data.formatter.name", recipe.data.formatter.name
    for key, source in _sources(recipe):
        if source.formatter is not None:
            yield f"{key}.formatter.name", source.formatter.name
    for index, metric in enumerate(recipe.evaluation.metrics):
        yield f"evaluation.metrics.{index}.name", metric.name


def _misfits(value: Any, shape: Any, place: str = "") -> Iterator[str]:
    """Where a value is not of a shape: a type, a list of one shape, or a mapping of keys to shapes."""
    kind = shape if isinstance(shape, type) else type(shape)
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is int and value < 1 and place == "processes"):
        yield f"{place or 'all of it'} is {value!r:.40}"
    elif isinstance(shape, list):
        for item in value:
            yield from _misfits(item, shape[0], place)
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            name = key.removesuffix("?")
            for found in value if key == "*" else [name]:
                absent = found not in value if isinstance(inner, dict) or inner is dict else value.get(found) is None
                if key == name or not absent:
                    yield from _misfits(value.get(found), inner, f"{place}.{found}".removeprefix("."))
