"""Whether a card is that of a run: its scores, base, relation, recipe and duties against the run's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe_kit.card import facts as card_facts
from recipe_kit.card.facts import Facts
from recipe_kit.card.lint_licence import unmet
from recipe_kit.card.lint_metadata import Entry
from recipe_kit.card.metadata import metadata
from recipe_kit.card.page import Page

_OF_THE_RUN = ("base_model", "base_model_relation", "library_name")


def compare(page: Page, text: str, run: Path, what: str | None, repo_id: str | None) -> Iterator[Entry]:
    """Level, line and sentence of everything in which a card differs from its run. Raises RunError."""
    data = page.data or {}
    facts = card_facts.read(run, what=what, repo_id=repo_id)
    if what is None and not facts.is_full and data.get("library_name") in ("peft", "transformers"):
        told = "adapter" if data["library_name"] == "peft" else "both" if facts.what == "both" else "merged"
        facts = card_facts.read(run, what=told, repo_id=repo_id)
    digest = str(facts.info.get("recipe_sha256", ""))
    if digest not in text:
        yield "error", 0, f"this card is not of this run: it does not name {digest}, the SHA-256 of its recipe"
    expected = metadata(facts)
    for key in _OF_THE_RUN:
        if data.get(key) != expected.get(key):
            told = f"expected {expected[key]!r}" if key in expected else "the run knows none"
            yield "error", page.key_lines.get(key, 1), f"{key}: {told}, got {data.get(key)!r}"
    if data.get("license") != expected.get("license") and expected.get("license"):
        line = page.key_lines.get("license", 1)
        yield "error", line, f"license: the run says {expected['license']!r}, got {data.get('license')!r}"
    line = page.key_lines.get("model-index", 1)
    for message in _scores(data.get("model-index"), expected.get("model-index"), facts):
        yield "error", line, message
    for line, message in unmet(page, facts.duties, facts.repo_id):
        yield "error", line, message
    if facts.what != "adapter" and not facts.is_full and not facts.merge:
        yield "warning", 0, f"the card is of merged weights, and the run has none: recipe-kit merge {run}"
    if facts.metrics is None:
        yield "warning", 0, f"the run was not evaluated: recipe-kit eval {run}"


def _scores(found: Any, expected: Any, facts: Facts) -> Iterator[str]:
    """Where the scores of a card are not those of `metrics.json`."""
    given, wanted = _by_name(found), _by_name(expected)
    for name, metric in wanted.items():
        if name not in given:
            yield f"model-index: {name[1]} of metrics.json is missing"
        elif given[name] != metric:
            here, there = given[name].get("value"), metric["value"]
            yield f"model-index: {name[1]} is {here!r} here and {there!r} in metrics.json"
    for name in given.keys() - wanted.keys():
        yield f"model-index: {name[1]} is not in metrics.json"
    if not any(True for name in wanted if given.get(name) != wanted[name]) and _datasets(found) != _datasets(expected):
        yield "model-index: its data sets are not those that were measured on"


def _by_name(index: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Metrics by data set and name; whatever is no `model-index` has none."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for result in _results(index):
        metrics = result.get("metrics")
        for metric in metrics if isinstance(metrics, list) else []:
            if isinstance(metric, dict):
                dataset = result.get("dataset")
                where = str(dataset.get("name")) if isinstance(dataset, dict) else ""
                found[where, str(metric.get("name") or metric.get("type"))] = metric
    return found


def _datasets(index: Any) -> list[str]:
    return [json.dumps(result.get("dataset"), sort_keys=True, default=str) for result in _results(index)]


def _results(index: Any) -> list[dict[str, Any]]:
    entries = [entry for entry in index if isinstance(entry, dict)] if isinstance(index, list) else []
    lists = [entry["results"] for entry in entries if isinstance(entry.get("results"), list)]
    return [result for results in lists for result in results if isinstance(result, dict)]
