"""Scores that others gave: a judge's verdicts and the tasks of lm-evaluation-harness, as `metrics.json` keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_DEVIATIONS = 1.96  # standard errors to each side of a mean that hold 95 % of a normal distribution
# What has to be equal for two judges, or two runs of a task, to have been asked the same.
_JUDGE = ("model", "url", "criteria", "prompt_sha256", "pairs")
_TASK = ("version", "num_fewshot", "documents", "documents_sha256")


def external_scores(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries as in `scores` of `metrics.json`, by a name that no metric has; {} where nobody was asked."""
    found: dict[str, dict[str, Any]] = {}
    judge = metrics.get("judge") or {}
    if judge.get("win_share"):
        label = f"preferred to the base by {judge.get('model')} ({judge.get('pairs')} pairs)"
        found["judge/win_share"] = {"label": label, "tuned": judge["win_share"], "higher_is_better": True}
    for task, content in _tasks(metrics).items():
        for metric, both in (content.get("metrics") or {}).items():
            found[f"lm_eval/{task}/{metric}"] = {
                "label": f"{task}, {metric} (lm-eval)",
                "base": _with_interval(both.get("base")),
                "tuned": _with_interval(both.get("tuned")),
                "higher_is_better": (both.get("tuned") or {}).get("higher_is_better"),
            }
    return found


def asked_otherwise(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """In what the judge or a task of two runs was not the same, where both have one."""
    theirs, mine = first.get("judge") or {}, other.get("judge") or {}
    for key in _JUDGE if theirs and mine else ():
        if theirs.get(key) != mine.get(key):
            yield f"judged otherwise: {key} is {mine.get(key)!r} instead of {theirs.get(key)!r}"
    before = _tasks(first)
    for task, content in _tasks(other).items():
        for key in _TASK if task in before else ():
            asked, asked_first = content.get(key), before[task].get(key)
            if asked != asked_first:
                yield f"{task} of lm-eval was asked otherwise: {key} is {asked} instead of {asked_first}"


def _tasks(metrics: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (metrics.get("lm_eval") or {}).get("tasks") or {}
    return found


def _with_interval(score: Any) -> dict[str, Any] | None:
    """The harness gives a standard error; the normal interval that it stands for."""
    if not isinstance(score, Mapping) or score.get("value") is None:
        return None
    value, stderr = float(score["value"]), score.get("stderr")
    if stderr is None:
        return {"value": value}
    return {"value": value, "low": value - _DEVIATIONS * stderr, "high": value + _DEVIATIONS * stderr}
