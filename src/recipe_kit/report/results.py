"""The evaluation as HTML: scores with intervals, groups of rows apart, what a judge and benchmarks said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipe_kit.page import escape, table
from recipe_kit.report import words
from recipe_kit.report.files import Json, Record, finite, items, section
from recipe_kit.report.verdict import FEW_ROWS, finding, label, scores_of

_SCORE_COLUMNS = ("score", "base", "tuned", "difference", "finding", "rows better / worse / equal", "sign test p")


def evaluation(record: Record) -> str:
    """Tables and sentences of `metrics.json`; a sentence where there is none."""
    metrics = record.metrics
    if metrics is None:
        return "<p>Nothing was measured on held-out rows yet.</p>" + _about(record)
    parts = [f"<p>{escape(_on_what(metrics))}</p>"]
    scores = scores_of(metrics)
    if scores:
        parts += [_scores(scores, "Base against tuned, with 95 % intervals"), _HOW_SURE]
    elif section(metrics, "base") and section(metrics, "tuned"):
        parts.append(_losses(metrics))
    else:
        parts.append("<p>No score was computed.</p>")
    groups = section(metrics, "groups")
    if groups:
        parts.append(_GROUPS)
    for name, group in groups.items():
        rows = words.counted(section(group).get("rows"), "row")
        parts.append(_scores(scores_of(group), f"{str(name).capitalize()}: {rows}"))
    parts += [_problems(metrics), _settings(metrics, scores)]
    return "\n".join(part for part in parts if part)


_TIED = "\N{NO-BREAK SPACE}"
_HOW_SURE = (
    "<p class=faint>An interval holds 95 % of what was found when rows were drawn again and again from these rows, "
    "the same rows for both models: it says how far other rows like these could move a number. It does not say what "
    "another training seed would have brought. Where the interval of the difference includes zero, no difference is "
    "claimed. The sign test asks how likely so lopsided a count of rows is if both models were equally good.</p>"
)
_GROUPS = (
    "<h3>Rows seen and not seen in training</h3>\n<p>Some reference answers also occur among the training rows. A "
    "model can know these by heart, so only the other rows tell what it can do with new ones.</p>"
)


def _on_what(metrics: Json) -> str:
    rows = words.counted(metrics.get("rows"), "held-out row")
    precision = f", weights in {metrics['precision']}" if metrics.get("precision") else ""
    tokens = section(metrics, "tuned").get("tokens")
    counted = f", {words.count(tokens)} answer tokens" if tokens is not None else ""
    few = f" Fewer than {FEW_ROWS} rows make rough intervals." if finite(metrics.get("rows")) < FEW_ROWS else ""
    return f"{rows} of the split “{metrics.get('split', '?')}”{counted}{precision}.{few}"


def _scores(scores: Mapping[str, Json], caption: str) -> str:
    rows = []
    for name, score in scores.items():
        higher = score.get("higher_is_better")
        direction = "" if higher is None else f"{_TIED}↑" if higher else f"{_TIED}↓"
        rows.append([
            label(name, score) + direction,
            *(words.estimate(section(score, key)) for key in ("base", "tuned", "difference")),
            finding(score),
            *(_rows_won(score) if higher is not None else ("—", "—")),
        ])  # fmt: skip
    arrows = " (↑ higher is better, ↓ lower is better)"
    return table(_SCORE_COLUMNS, rows, caption=caption + arrows) if rows else ""


def _rows_won(score: Json) -> tuple[str, str]:
    counts = " / ".join(words.count(score.get(key)) for key in ("tuned_better", "base_better", "ties"))
    return counts, words.p_value(score.get("p_value")).removeprefix("p ").removeprefix("= ") or "—"


def _losses(metrics: Json) -> str:
    """What older runs recorded: no intervals."""
    both = [section(metrics, which) for which in ("base", "tuned")]
    rows = [
        [name, *(words.number(score.get(key)) for score in both)]
        for name, key in (("perplexity ↓", "perplexity"), ("loss (nats a token) ↓", "loss"))
    ]
    return table(["score", "base", "tuned"], rows, caption="Base against tuned; no intervals were recorded")


def _problems(metrics: Json) -> str:
    listed = _items(items(metrics, "problems"))
    return f"<h3>What could not be measured, or only in part</h3>\n{listed}" if listed else ""


def _items(texts: Sequence[Any]) -> str:
    listed = "".join(f"<li>{escape(words.sentence(text))}</li>" for text in texts)
    return f'<ul class="note">{listed}</ul>' if listed else ""


def _about(record: Record) -> str:
    status = record.status
    if status == "finished":
        return f"<p>To measure: <code>recipe-kit eval {escape(str(record.folder))}</code></p>"
    return "<p>It is measured when training has ended, unless the recipe says otherwise.</p>" * (status == "running")


def _settings(metrics: Json, scores: Mapping[str, Json]) -> str:
    known = {
        key: metrics.get(key)
        for key in ("split", "content_sha256", "precision", "processes", "base_from_cache", "evaluated_at")
    }
    known |= {f"generation: {key}": value for key, value in section(metrics, "generation").items()}
    known |= {f"versions: {key}": value for key, value in section(metrics, "versions").items()}
    for name, score in scores.items():
        settings = plain(section(score, "settings"))
        known |= {label(name, score): settings} if settings else {}
    return details("How it was measured", facts(known, "Settings of the evaluation"))


def judge(metrics: Json | None) -> str:
    """What the judge said; "" where none was asked."""
    found = section(metrics, "judge")
    if not found:
        return ""
    intro = (
        "<p>Another model was asked which answer is better, twice a pair, with the answers in both orders. A verdict "
        "that changes with the order counts as a tie.</p>"
    )
    known = {
        "judge": found.get("model_reported") or found.get("model"),
        "pairs": found.get("pairs"),
        "tuned answer preferred": found.get("wins"),
        "base answer preferred": found.get("losses"),
        "ties": found.get("ties"),
        "of these, equal answers": found.get("identical"),
        "of these, a verdict that changed with the order": found.get("inconsistent"),
        "failed": found.get("failed"),
        "share of wins, a tie counting half": words.estimate(section(found, "win_share")),
        "sign test p": words.p_value(found.get("p_value")).removeprefix("p ").removeprefix("= "),
        "requests": found.get("requests"),
        "tokens sent and received": " and ".join(words.count(found.get(k)) for k in ("input_tokens", "output_tokens")),
        "cost, in the currency of the prices given": found.get("cost"),
    }
    rest = {
        key: value for key, value in found.items() if key in ("url", "criteria", "seed", "temperature", "failures")
    }
    return intro + facts(known, "Verdicts of the judge") + details("How it was asked", facts(rest, "Settings"))


def benchmarks(metrics: Json | None) -> str:
    """Results of lm-evaluation-harness; "" where none were asked for."""
    found = section(metrics, "lm_eval")
    rows = [
        [
            str(task),
            str(metric) + ("" if higher is None else f"{_TIED}↑" if higher else f"{_TIED}↓"),
            *(_with_error(section(both, which)) for which in ("base", "tuned")),
            words.count(section(result).get("documents")),
            words.count(section(result).get("num_fewshot")),
        ]
        for task, result in section(found, "tasks").items()
        for metric, both in section(result, "metrics").items()
        for higher in [section(both, "tuned").get("higher_is_better")]
    ]
    if not found:
        return ""
    caption = f"lm-evaluation-harness {found.get('lm_eval') or ''}: values ± their standard error"
    header = ["task", "metric", "base", "tuned", "documents", "examples shown"]
    differs = [
        f"{task}: {result['differs']}"
        for task, result in section(found, "tasks").items()
        if section(result).get("differs")
    ]
    return (table(header, rows, caption=caption) if rows else "") + _items([*differs, *items(found, "problems")])


def _with_error(score: Json) -> str:
    if "value" not in score:
        return "—"
    error = f" ± {words.number(score['stderr'])}" if score.get("stderr") is not None else ""
    return words.number(score["value"]) + error


def facts(known: Mapping[str, Any], caption: str) -> str:
    """A table of names and values; what is unknown is left out."""
    rows = [[str(name), plain(value)] for name, value in known.items() if value not in (None, "")]
    return table(["", "value"], rows, caption=caption) if rows else ""


def details(summary: str, inner: str) -> str:
    """A part that opens when asked for, and is open on paper."""
    return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>" if inner else ""


def plain(value: Any) -> str:
    """A value of a JSON file as text for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return words.number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items() if inner not in (None, {}, []))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return words.count(value) if isinstance(value, int) else str(value)


def flat(found: Json, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of everything inside."""
    pairs: list[tuple[str, Any]] = []
    for key, value in found.items():
        pairs += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs
