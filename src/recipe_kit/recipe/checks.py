"""Everything that can be wrong with a merged recipe, found in one pass and said in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from recipe_kit.errors import Problem
from recipe_kit.recipe.data_section import HELD_OUT_KEYS, SOURCE_KEYS
from recipe_kit.recipe.hints import expected_one_of, refused, unknown_key
from recipe_kit.recipe.overlay import Layer, forget
from recipe_kit.recipe.schema import AUTO_TRAINING, CLOSED, PASSED_ON, Recipe
from recipe_kit.recipe.upstream import Option, options
from recipe_kit.recipe.yaml_source import Keys, dotted

_NOT_TRUE_OR_FALSE = ("on", "off", "yes", "no", "y", "n")
_LONGEST_SHOWN = 60
_HINTS = {
    "model": "such as `model: {id: org/name}`",
    "data.train": "such as `train: {id: org/name}`",
    "data.test": "such as `test: {id: org/name, split: test}`",
    "data.eval": "such as `eval: {id: org/name, split: validation}` or `eval: {fraction: 0.05}`",
    "data.formatter": "such as `formatter: {name: chat}`, or a name alone",
}


@dataclass(frozen=True)
class Finding:
    """A sentence about the value at a path."""

    keys: Keys
    message: str


def normalise(layer: Layer) -> Layer:
    """The merged layer in its one long form: short forms written out, cleared sections gone. Changes it in place."""
    for section in list(layer.data):
        # Only `description: null` means something by itself; a section set to null is one not written.
        if layer.data[section] is None:
            del layer.data[section]
    for section in PASSED_ON:
        _clear_nulls(layer, section)
    _name_metrics(layer)
    rows = layer.data.get("data")
    if not isinstance(rows, dict):
        return layer
    train = rows.get("train")
    if isinstance(train, list) and len(train) == 1:
        rows["train"] = train[0]
        _move_origins(layer, ("data", "train", 0), ("data", "train"))
    for place, keys in [(rows, ("data",)), *_sources(rows)]:
        if isinstance(place.get("formatter"), str):
            place["formatter"] = {"name": place["formatter"]}
            here = (*keys, "formatter")
            layer.origins[(*here, "name")] = layer.origin(here)
    return layer


def _name_metrics(layer: Layer) -> None:
    """`metrics: rouge` and `metrics: [rouge]` as `metrics: [{name: rouge}]`."""
    evaluation = layer.data.get("evaluation")
    if not isinstance(evaluation, dict):
        return
    place: Keys = ("evaluation", "metrics")
    if isinstance(evaluation.get("metrics"), str | dict):
        evaluation["metrics"] = [evaluation["metrics"]]
        _move_origins(layer, place, (*place, 0))
    listed = evaluation.get("metrics")
    for index, metric in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(metric, str):
            evaluation["metrics"][index] = {"name": metric}
            layer.origins[(*place, index, "name")] = layer.origin((*place, index))


def _clear_nulls(layer: Layer, section: str) -> None:
    """Drop options set to null that cannot be null: it is how a child takes back what its parent set."""
    values = layer.data.get(section)
    if not isinstance(values, dict):
        return
    known = options(section) or {}
    for key in list(values):
        types = known[key].types if key in known else None
        if values[key] is None and types is not None and "None" not in types:
            del values[key]
            forget(layer.origins, (section, key))


def _move_origins(layer: Layer, old: Keys, new: Keys) -> None:
    for path in [path for path in layer.origins if path[: len(old)] == old]:
        layer.origins[new + path[len(old) :]] = layer.origins.pop(path)


def check(layer: Layer) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in a normalised layer, or None, and all that is wrong with it."""
    recipe, findings = _validate(layer.data)
    findings += _passed_on(layer.data)
    findings += _across_fields(layer.data)
    return recipe, [layer.origin(finding.keys).problem(finding.message, finding.keys) for finding in findings]


def _validate(data: dict[str, Any]) -> tuple[Recipe | None, list[Finding]]:
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        findings = [(details["type"], _finding(details, data)) for details in error.errors(include_url=False)]
        return None, [finding for kind, finding in findings if not _said_by_source(kind, finding.keys)]


def _said_by_source(kind: str, keys: Keys) -> bool:
    """`{id: …, fraction: …}`: the check of the source says it better than an unknown key."""
    return kind == "extra_forbidden" and keys[:-1] == ("data", "eval") and keys[-1] in HELD_OUT_KEYS


def _finding(error: ErrorDetails, data: dict[str, Any]) -> Finding:
    keys = _path(error["loc"], data)
    return Finding(keys, _sentence(error, keys))


def _path(loc: Keys, data: Any) -> Keys:
    """Where an error is in the file: pydantic also names union members and items of lists it made itself."""
    keys: Keys = ()
    for part in loc:
        if isinstance(part, int) and not isinstance(data, list):
            continue
        if isinstance(part, str) and (part.startswith("<") or not isinstance(data, dict)):
            continue
        keys = (*keys, part)
        if isinstance(data, dict):
            data = data.get(str(part))
        else:
            data = data[part] if isinstance(part, int) and part < len(data) else None
    return keys


def _section_of(keys: Keys) -> str:
    """The closed section around a key, as `CLOSED` names it: indexes of mixtures left out."""
    names = [str(key) for key in keys[:-1] if not isinstance(key, int)]
    return "data.formatter" if names[-1:] == ["formatter"] else ".".join(names)


def _sentence(error: ErrorDetails, keys: Keys) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        field = _field_description(keys)
        return f"is required: {field}" if field else "is required"
    if kind == "extra_forbidden":
        return unknown_key(_section_of(keys), str(keys[-1]))
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return expected_one_of(tuple(choices), value, _shown(value))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        place = dotted(tuple(key for key in keys if not isinstance(key, int)))
        hint = _HINTS.get(place, "")
        return f"expected a mapping{', ' + hint if hint else ''}; got {_shown(value)}"
    types = {"int": "int", "float": "float", "bool": "bool", "string": "str"}
    name, _, failed = kind.partition("_")
    if failed == "type" and name in types:
        return _type_sentence(value, frozenset({types[name]}))
    bounds = {
        "greater_than": "more than {gt:g}",
        "greater_than_equal": "{ge:g} or more",
        "less_than": "less than {lt:g}",
        "string_too_short": "some text",
    }
    if kind in bounds:
        return f"expected {bounds[kind].format(**context)}; got {_shown(value)}"
    if kind == "string_pattern_mismatch":
        wanted = {"name": "small letters, digits, - and _, starting with a letter or digit", "repo_id": "owner/name"}
        return f"expected {wanted.get(str(keys[-1]), context['pattern'])}; got {_shown(value)}"
    return str(context.get("error") or error["msg"]) + f"; got {_shown(value)}"


def _field_description(keys: Keys) -> str:
    model: type[BaseModel] | None = CLOSED.get(_section_of(keys))
    field = model.model_fields.get(str(keys[-1])) if model else None
    return (field.description or "").rstrip(".") if field else ""


# --- lora, quantization, training -------------------------------------------------------------------------------


def _passed_on(data: dict[str, Any]) -> Iterator[Finding]:
    for section in PASSED_ON:
        values = data.get(section)
        known = options(section)
        for key, value in values.items() if isinstance(values, dict) else ():
            keys = (section, key)
            if reason := refused(section, key):
                yield Finding(keys, reason)
            elif known is None:
                continue
            elif key not in known:
                yield Finding(keys, unknown_key(section, key))
            elif not known[key].settable:
                yield Finding(keys, f"{PASSED_ON[section]} works this out by itself; leave it out")
            else:
                automatic = section == "training" and key in AUTO_TRAINING
                if message := _value_problem(value, _or_auto(known[key]) if automatic else known[key]):
                    yield Finding(keys, message)


def _or_auto(option: Option) -> Option:
    """The option with one more value, which the kit takes and the library would not."""
    if option.choices:
        return replace(option, choices=(*option.choices, "auto"))
    return replace(option, types=option.types and option.types | {"auto"})


def _value_problem(value: Any, option: Option) -> str:
    if option.choices and not (value is None and option.types and "None" in option.types):
        if value in option.choices:
            return ""
        return expected_one_of(option.choices, value, _shown(value))
    if option.types is None or _fits(value, option.types):
        return ""
    return _type_sentence(value, option.types)


def _fits(value: Any, types: frozenset[str]) -> bool:
    if value is None:
        return "None" in types
    if value == "auto" and "auto" in types:
        return True
    name = type(value).__name__
    return name in types or (name == "int" and "float" in types)


def _type_sentence(value: Any, types: frozenset[str]) -> str:
    """What was expected and what was got, with the usual slip named when it is one."""
    words = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "auto": "auto"}
    wanted = " or ".join(
        word for name, word in words.items() if name in types and not (name == "int" and "float" in types)
    )
    if isinstance(value, str):
        if "bool" in types and value.lower() in _NOT_TRUE_OR_FALSE:
            return f"write true or false; {value!r} is text in YAML 1.2"
        if types & {"int", "float"} and _is_number(value):
            return f"expected {wanted}; {value!r} is written as text: remove the quotes"
        if types & {"int", "float"} and _is_number(value.replace("_", "").replace(",", "")):
            return f"expected {wanted}; got {value!r}: write the digits without separators"
    if isinstance(value, float) and value.is_integer():
        return f"expected {wanted}; got {value}: write {int(value)}"
    if value is not None and "str" in types:
        return f"expected {wanted}; got {_shown(value)}: put quotes around the text"
    return f"expected {wanted}; got {_shown(value)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


# --- across fields ----------------------------------------------------------------------------------------------


def _across_fields(data: dict[str, Any]) -> Iterator[Finding]:
    """Fields that are right alone and wrong together. Reads raw values, so it runs whatever else is wrong."""
    yield from _method(data)
    rows = data.get("data")
    if isinstance(rows, dict):
        yield from _rows(rows)
    training = data.get("training")
    if not isinstance(training, dict):
        return
    if training.get("fp16") is True and training.get("bf16") is True:
        yield Finding(("training", "fp16"), "fp16 and bf16 are both true; set one of them to false")
    if training.get("packing") is True and training.get("packing_strategy") == "wrapped":
        message = "'wrapped' lets packed rows see each other; use bfd, which keeps them apart"
        yield Finding(("training", "packing_strategy"), message)
    strategy = training.get("eval_strategy", "no")
    if strategy not in ("no", None) and isinstance(rows, dict) and rows.get("eval") is None:
        message = f"{_shown(strategy)} needs rows to evaluate on; fill in data.eval, or set eval_strategy: no"
        yield Finding(("training", "eval_strategy"), message)


def _method(data: dict[str, Any]) -> Iterator[Finding]:
    method = data.get("method")
    lora, quantization = data.get("lora"), data.get("quantization")
    if method == "full" and lora:
        yield Finding(("lora",), "method is full: lora is not used; remove it or set method: lora")
    if method in ("full", "lora") and quantization:
        message = f"method is {method}: quantization is not used; remove it or set method: qlora"
        yield Finding(("quantization",), message)
    if isinstance(lora, dict) and lora.get("task_type") not in (None, "CAUSAL_LM"):
        yield Finding(("lora", "task_type"), f"expected CAUSAL_LM; got {_shown(lora['task_type'])}")
    if isinstance(quantization, dict) and quantization.get("load_in_4bit") is False:
        yield Finding(("quantization", "load_in_4bit"), "qlora is 4-bit; remove this, or set method: lora")
    if isinstance(quantization, dict) and quantization.get("load_in_8bit") not in (None, False):
        yield Finding(("quantization", "load_in_8bit"), "qlora is 4-bit; remove this key")


def _rows(rows: dict[str, Any]) -> Iterator[Finding]:
    for source, keys in _sources(rows):
        yield from _source(source, keys)
    train = rows.get("train")
    if train == []:
        yield Finding(("data", "train"), "the list is empty; give at least one source")


def _sources(rows: dict[str, Any]) -> list[tuple[dict[str, Any], Keys]]:
    found: list[tuple[Any, Keys]] = []
    for name in ("train", "eval", "test"):
        value, keys = rows.get(name), ("data", name)
        found += [(item, (*keys, i)) for i, item in enumerate(value)] if isinstance(value, list) else [(value, keys)]
    return [(value, keys) for value, keys in found if isinstance(value, dict)]


def _source(source: dict[str, Any], keys: Keys) -> Iterator[Finding]:
    places = [key for key in SOURCE_KEYS if source.get(key) is not None]
    measures = [key for key in HELD_OUT_KEYS if source.get(key) is not None] if keys[1] == "eval" else []
    if len(places + measures) > 1:
        yield Finding(
            (*keys, (places + measures)[1]), f"{' and '.join(places + measures)} exclude each other; keep one"
        )
    elif not places + measures:
        offer = "id, path, sample, or fraction or rows to hold out" if keys[1] == "eval" else "id, path or sample"
        yield Finding(keys, f"does not say where its rows come from; give one of {offer}")
    if places and places[0] != "id":
        for key in ("config", "revision"):
            if source.get(key) is not None:
                yield Finding((*keys, key), f"belongs to a data set on the Hub (id); remove it for a {places[0]}")
    if source.get("weight") is not None and keys[1] != "train":
        yield Finding((*keys, "weight"), "only training rows are weighed: held-out rows count once; remove it")
