"""What is wrong with the metadata of a card, key by key."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterator
from typing import Any, Literal

from recipe_kit.card import vocabulary
from recipe_kit.card.page import Page
from recipe_kit.suggest import did_you_mean

Entry = tuple[Literal["error", "warning"], int, str]

RELATIONS = ("adapter", "finetune", "merge", "quantized")
_KEYS = (
    "base_model", "base_model_relation", "datasets", "language", "library_name", "license", "license_link",
    "license_name", "metrics", "model-index", "model_name", "new_version", "pipeline_tag", "tags", "thumbnail",
    "widget",
)  # fmt: skip
_MISSPELT = {"licence": "license", "licence_name": "license_name", "licence_link": "license_link"}
_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")  # the oldest models and data sets have no owner: gpt2, imdb
_ADAPTERS = {"peft", "adapter-transformers", "diffusers", "mlx", "unsloth"}  # libraries that know adapters


def check(page: Page) -> Iterator[Entry]:
    """Level, line and sentence of everything that is wrong."""
    data = page.data or {}
    for key, message in _all(data):
        yield "error", page.key_lines.get(key, 1), message
    for key, message in _doubts(data):
        yield "warning", page.key_lines.get(key, 1), message


def _all(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in data:
        if key in _MISSPELT:
            yield key, f"{key}: the Hub reads {_MISSPELT[key]!r}; rename the key"
    yield from _word(data, "pipeline_tag", vocabulary.pipeline_tags(), "task")
    yield from _word(data, "library_name", vocabulary.libraries(), "library")
    yield from _words(
        data, "license", vocabulary.licenses(), "licence of the Hub's list; write `license: other` with license_name"
    )
    yield from _words(data, "language", vocabulary.languages(), "code of ISO 639, two or three small letters")
    yield from _base(data)
    yield from _ids(data, "datasets", _ID, "a data set of the Hub, `owner/name`")
    yield from (("tags", message) for message in _texts(data, "tags"))
    yield from (("metrics", message) for message in _texts(data, "metrics"))
    if "model-index" in data:
        yield from (("model-index", message) for message in model_index(data["model-index"]))
    yield from _client(data)


def _doubts(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in data:
        if key not in _KEYS and key not in _MISSPELT and (meant := did_you_mean(str(key), _KEYS)):
            yield key, f"the Hub has no key {key!r}{meant}"
    if data.get("license") == "other":
        for key in ("license_name", "license_link"):
            if not data.get(key):
                yield "license", f"license: other says nothing without {key}"
    if isinstance(data.get("base_model"), str) and "/" not in data["base_model"]:
        yield "base_model", f"base_model: {data['base_model']!r} has no owner: right for the oldest models alone"
    if data.get("base_model") and not data.get("base_model_relation"):
        yield "base_model", f"no base_model_relation: say which of {', '.join(RELATIONS)} it is"


def _word(data: dict[str, Any], key: str, known: Collection[str], what: str) -> Iterator[tuple[str, str]]:
    value = data.get(key)
    if value is not None and not (isinstance(value, str) and value in known):
        yield key, f"{key}: the Hub knows no {what} {value!r}{did_you_mean(str(value), known)}"


def _words(data: dict[str, Any], key: str, known: Collection[str], what: str) -> Iterator[tuple[str, str]]:
    """A word of a list, or several."""
    value = data.get(key)
    for word in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(word, bool):
            yield key, f"{key}: YAML reads this as {str(word).lower()}; put the code in quotes, such as 'no'"
        elif not isinstance(word, str) or word not in known:
            yield key, f"{key}: {word!r} is no {what}{did_you_mean(str(word), known)}"


def _base(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _ids(data, "base_model", _ID, "a model of the Hub, `owner/name`")
    relation, library = data.get("base_model_relation"), data.get("library_name")
    if relation is None:
        return
    key = "base_model_relation"
    if relation not in RELATIONS:
        yield (
            key,
            f"{key}: expected one of {', '.join(RELATIONS)}, got {relation!r}{did_you_mean(str(relation), RELATIONS)}",
        )
    elif relation == "adapter" and library is not None and library not in _ADAPTERS:
        yield (
            key,
            f"{key}: an adapter is not loaded by {library}; write library_name: peft, or finetune for whole weights",
        )
    elif relation != "adapter" and library == "peft":
        yield key, f"{key}: {relation} does not go with library_name: peft, which loads adapters"


def _ids(data: dict[str, Any], key: str, pattern: re.Pattern[str], what: str) -> Iterator[tuple[str, str]]:
    value = data.get(key)
    for word in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(word, str) or not pattern.fullmatch(word):
            yield key, f"{key}: expected {what}, got {word!r}"


def _texts(data: dict[str, Any], key: str) -> Iterator[str]:
    value = data.get(key)
    if value is None:
        return
    if not isinstance(value, list):
        yield f"{key}: expected a list, got {value!r}"
        return
    for word in value:
        if isinstance(word, datetime.date):
            yield f"{key}: YAML reads {word} as a date; put it in quotes"
        elif not isinstance(word, str):
            yield f"{key}: expected text, got {word!r}; put it in quotes"


def model_index(index: Any) -> Iterator[str]:
    """What keeps a `model-index` from being one: parts that are missing, values that are no numbers."""
    if not isinstance(index, list) or not index or not all(isinstance(entry, dict) for entry in index):
        yield "model-index: expected a list of models, each with `name` and `results`"
        return
    for entry in index:
        if not isinstance(entry.get("name"), str):
            yield "model-index: a model has no `name`"
        results = entry.get("results")
        if not isinstance(results, list):
            yield "model-index: a model has no list of `results`"
            continue
        for place, result in enumerate(results, start=1):
            yield from (f"model-index: result {place}: {told}" for told in _result(result))


def _result(result: Any) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f"expected task, dataset and metrics, got {result!r}"
        return
    for part, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
        inner = result.get(part)
        for key in keys:
            if not isinstance(inner, dict) or not isinstance(inner.get(key), str) or not inner[key]:
                yield f"{part} has no {key}"
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield "it has no metrics"
        return
    for metric in metrics:
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            yield f"a metric has no type: {metric!r}"
            continue
        value = metric.get("value")
        name = metric.get("name") or metric["type"]
        if str(value).casefold().lstrip("+-.") in ("nan", "inf"):
            yield f"{name} is {value}: leave out what could not be measured"
        elif isinstance(value, bool) or not isinstance(value, int | float | str):
            yield f"{name} has no value, but {value!r}"


def _client(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What huggingface_hub itself refuses to read."""
    from huggingface_hub import ModelCardData

    if "model-index" in data and any(model_index(data["model-index"])):
        return  # said already, in more words
    try:
        ModelCardData(**{str(key): value for key, value in data.items()})
    except (TypeError, ValueError) as error:
        yield "model-index", f"huggingface_hub cannot read the metadata: {str(error).splitlines()[0]}"
