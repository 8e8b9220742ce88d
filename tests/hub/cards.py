"""What the Hub demands of the metadata of a README.md: errors refuse a commit, warnings do not."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
    mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma
    grok2-community unknown other
"""
RELATIONS = ("adapter", "finetune", "merge", "quantized")
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
DATASET_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")


def validate(content: bytes) -> tuple[list[str], list[str]]:
    """Errors and warnings about the metadata at the head of a README.md."""
    data, error = front_matter(content)
    if error:
        return [error], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ['"metadata" must be of type object'], []
    errors = [problem for check in _CHECKS for problem in check(data)]
    warnings = []
    if not data.get("license"):
        warnings.append('"license" is missing')
    if data.get("license") == "other" and not data.get("license_name"):
        warnings.append('"license_name" is recommended where "license" is "other"')
    return errors, warnings


def front_matter(content: bytes) -> tuple[Any, str | None]:
    """The YAML between the first two `---` lines, None where there is none; and what is wrong with it."""
    match = re.match(
        r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", content.decode("utf-8", "replace"), re.DOTALL | re.MULTILINE
    )
    if match is None:
        return None, None
    try:
        return yaml.safe_load(match[1]), None
    except yaml.YAMLError as error:
        return None, f"Invalid YAML: {str(error).splitlines()[0]}"


def tags(data: dict[str, Any]) -> list[str]:
    """Tags as the Hub lists them: the card's own, then those it makes of other keys."""
    found = [str(data["library_name"])] if data.get("library_name") else []
    found += [tag for tag in _as_list(data.get("tags")) if tag not in found]
    found += [str(language) for language in _as_list(data.get("language"))]
    for base in _as_list(data.get("base_model")):
        found.append(f"base_model:{base}")
        if data.get("base_model_relation"):
            found.append(f"base_model:{data['base_model_relation']}:{base}")
    found += [f"dataset:{name}" for name in _as_list(data.get("datasets"))]
    found += [f"license:{name}" for name in _as_list(data.get("license"))]
    return list(dict.fromkeys(found))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _texts(data: dict[str, Any]) -> list[str]:
    """Keys that hold a text, or texts, and nothing else: `language: no` is a boolean to YAML."""
    problems = []
    for key in (
        "library_name",
        "pipeline_tag",
        "license_name",
        "license_link",
        "model_name",
        "thumbnail",
        "new_version",
    ):
        if key in data and not isinstance(data[key], str):
            problems.append(f'"{key}" must be a string')
    for key in ("language", "datasets", "base_model", "metrics", "license"):
        for n, value in enumerate(_as_list(data.get(key))):
            if not isinstance(value, str):
                problems.append(
                    f'"{key}[{n}]" must be a string' if isinstance(data[key], list) else f'"{key}" must be a string'
                )
    if "tags" in data and not (isinstance(data["tags"], list) and all(isinstance(tag, str) for tag in data["tags"])):
        problems.append('"tags" must be an array of strings')
    return problems


def _vocabulary(data: dict[str, Any]) -> list[str]:
    problems = [
        f'"license" must be one of [{", ".join(LICENSES.split())}]'
        for name in _as_list(data.get("license"))
        if isinstance(name, str) and name not in LICENSES.split()
    ]
    for language in _as_list(data.get("language")):
        if isinstance(language, str) and not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual", language):
            problems.append(
                f'"language" with value "{language}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code'
            )
    if "base_model_relation" in data and data["base_model_relation"] not in RELATIONS:
        problems.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    return problems


def _ids(data: dict[str, Any]) -> list[str]:
    problems = []
    for key, pattern, kind in (("base_model", REPO_ID, "model"), ("datasets", DATASET_ID, "dataset")):
        for value in _as_list(data.get(key)):
            if isinstance(value, str) and not pattern.fullmatch(value):
                problems.append(
                    f'"{key}" with value "{value}" is not valid. Use a {kind} id from https://hf.co/{kind}s.'
                )
    return problems


def _model_index(data: dict[str, Any]) -> list[str]:
    """`model-index` is a list of models, each with results of a task, a data set and metrics with a value."""
    index = data.get("model-index")
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    problems = []
    for m, model in enumerate(index):
        at = f"model-index[{m}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            problems.append(f'"{at}.name" is required')
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list):
            problems.append(f'"{at}.results" must be an array')
            continue
        for r, result in enumerate(results):
            problems += _result(result, f"{at}.results[{r}]")
    return problems


def _result(result: Any, at: str) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{at}" must be an object']
    problems = []
    for name, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
        section = result.get(name)
        for key in keys:
            if not isinstance(section, dict) or not isinstance(section.get(key), str):
                problems.append(f'"{at}.{name}.{key}" is required')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*problems, f'"{at}.metrics" must be a non-empty array']
    for n, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            problems.append(f'"{at}.metrics[{n}].type" is required')
        value = metric.get("value") if isinstance(metric, dict) else None
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            problems.append(f'"{at}.metrics[{n}].value" must be a finite number')
    return problems


_CHECKS = (_texts, _vocabulary, _ids, _model_index)
