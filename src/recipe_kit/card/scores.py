"""`metrics.json` as the Hub's `model-index`: the tuned model's scores, each with its rows, interval and base value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from recipe_kit.card.facts import Facts
from recipe_kit.card.private import cleaned, last_part
from recipe_kit.recipe import Source
from recipe_kit.report.files import Json, finite, items, section
from recipe_kit.report.verdict import label, scores_of

TASK = {"type": "text-generation", "name": "Text Generation"}
CUSTOM = "custom"
# Our names of scores, and those of lm-evaluation-harness, by the Hub's metric that they are.
_TYPES = {
    "perplexity": "perplexity", "perplexity_all_tokens": "perplexity", "rouge1": "rouge", "rouge2": "rouge",
    "rougeL": "rouge", "rougeLsum": "rouge", "chrf": "chrf", "chrf+": "chrf", "chrf++": "chrf",
    "exact_match": "exact_match", "acc": "accuracy", "f1": "f1", "bleu": "bleu", "mcc": "matthews_correlation",
}  # fmt: skip


def metric_type(name: str) -> str:
    """The Hub's metric that a score is; `custom` for one it does not know."""
    return _TYPES.get(name, CUSTOM)


def model_index(facts: Facts) -> list[dict[str, Any]]:
    """The `model-index` of a run's scores; [] where nothing was measured. A score that is no number is left out."""
    metrics = facts.metrics
    own = [*_scores(scores_of(metrics))]
    for group, found in section(metrics, "groups").items():
        own += _scores(scores_of(section(found)), group=str(group))
    own = own or _without_interval(section(metrics, "tuned"), section(metrics, "base"))
    results = [{"task": TASK, "dataset": measured_on(facts), "metrics": own}] if own else []
    results += _tasks(section(metrics, "lm_eval"))
    return [{"name": facts.title, "results": results}] if results else []


def not_numbers(facts: Facts) -> list[str]:
    """The labels of scores that are no finite number, which no card can give."""
    return [label(name, score) for name, score in scores_of(facts.metrics).items() if math.isnan(tuned_value(score))]


def held_out_sources(facts: Facts) -> tuple[Source, ...]:
    """Where the rows that were measured on come from: a source of their own, or the training rows they were among."""
    return facts.recipe.data.sources(measured_split(facts)) or facts.recipe.data.sources("train")


def measured_on(facts: Facts) -> dict[str, Any]:
    """The data set that was measured on, as `model-index` names it. Rows that are not on the Hub are `custom`."""
    sources = held_out_sources(facts)
    first, revisions = sources[0], recorded_revisions(facts, measured_split(facts))
    alone = len(sources) == 1
    found: dict[str, Any] = {
        "type": first.id if alone and first.id else CUSTOM,
        "name": ", ".join(map(source_name, sources)),
        "config": first.config if alone else None,
        "split": first.split if alone else None,
        "revision": (revisions[0] or first.revision) if alone and revisions else None,
        "args": {
            "rows": _number(section(facts.metrics).get("rows")),
            "rows_are": "held out of the training data"
            if not facts.recipe.data.sources(measured_split(facts))
            else None,
            "content_sha256": section(facts.metrics).get("content_sha256"),
        },
    }
    found["args"] = {key: value for key, value in found["args"].items() if value is not None}
    return {key: value for key, value in found.items() if value}


def source_name(source: Source) -> str:
    """A source in few words, without the folder it lies in."""
    if source.id is not None:
        return source.id
    return last_part(source.path) if source.path else f"recipe-kit's sample {source.sample}"


def recorded_revisions(facts: Facts, split: str) -> list[str | None]:
    """The commit of the Hub that each source of a split was read at, where `run.json` knows it."""
    told = items(section(facts.info, "data", "splits", split), "sources")
    found = [section(source).get("resolved_revision") for source in told]
    return [revision if isinstance(revision, str) else None for revision in found]


def measured_split(facts: Facts) -> str:
    """The split that was measured on, or that the recipe names for it."""
    told = section(facts.metrics).get("split")
    return told if told in ("eval", "test") else facts.recipe.evaluation.split or _default_split(facts)


def _default_split(facts: Facts) -> str:
    return "test" if facts.recipe.data.test is not None else "eval"


def _scores(scores: Json, group: str = "") -> Iterator[dict[str, Any]]:
    for name, score in scores.items():
        value = tuned_value(score)
        if math.isnan(value):
            continue
        tuned, base = section(score, "tuned"), section(score, "base")
        args = {
            "score": name,
            "rows": _number(score.get("rows")),
            "low_95": _number(tuned.get("low")),
            "high_95": _number(tuned.get("high")),
            "base_model": _number(base.get("value")),
            "group": group or None,
        }
        called = label(name, score)
        yield {
            "type": metric_type(name),
            "value": value,
            "name": cleaned(f"{called}, {group}" if group else called),
            "args": {key: value for key, value in args.items() if value is not None},
        }


def _without_interval(tuned: Json, base: Json) -> list[dict[str, Any]]:
    """What runs of the first version recorded: perplexity alone."""
    if math.isnan(finite(tuned.get("perplexity"))):
        return []
    known = {"score": "perplexity", "tokens": tuned.get("tokens"), "base_model": _number(base.get("perplexity"))}
    args = {key: value for key, value in known.items() if value is not None}
    return [{"type": "perplexity", "value": tuned["perplexity"], "name": "perplexity", "args": args}]


def _tasks(found: Json) -> Iterator[dict[str, Any]]:
    """Tasks of lm-evaluation-harness, a data set each."""
    for task, result in section(found, "tasks").items():
        metrics = []
        for name, both in section(result, "metrics").items():
            tuned, base = section(both, "tuned"), section(both, "base")
            if math.isnan(finite(tuned.get("value"))):
                continue
            args = {
                "score": name,
                "documents": section(result).get("documents"),
                "num_fewshot": section(result).get("num_fewshot"),
                "stderr": _number(tuned.get("stderr")),
                "base_model": _number(base.get("value")),
                "lm_eval": section(found).get("lm_eval"),
            }
            kept = {key: value for key, value in args.items() if value is not None}
            metrics.append({"type": metric_type(name), "value": tuned["value"], "name": name, "args": kept})
        if metrics:
            called = last_part(str(task))
            yield {"task": TASK, "dataset": {"type": called, "name": called}, "metrics": metrics}


def tuned_value(score: Json) -> float:
    return finite(section(score, "tuned").get("value"))


def _number(value: Any) -> Any:
    return None if math.isnan(finite(value)) else value
