"""The first thing a reader sees: did it help, on what, how sure, and what did it cost. Computed, never guessed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from recipe_kit.report import words
from recipe_kit.report.files import Json, Record, finite, items, section
from recipe_kit.report.state import cost, not_finite, state, went_wrong

Finding = Literal["better", "worse", "no difference shown", "not judged"]
FEW_ROWS = 20  # with fewer, percentile intervals are too narrow
_KIN = {"rouge1": "rougeL", "rouge2": "rougeL", "rougeLsum": "rougeL"}  # told by one of the family
_NOT_LEARNT = "perplexity_all_tokens"  # counts prompts too, which the run did not learn


@dataclass(frozen=True)
class Verdict:
    headline: str
    sentences: list[str]


def verdict(record: Record) -> Verdict:
    """What the run's files allow to say, in words, most important first."""
    metrics = record.metrics
    said = _unmeasured(record) if metrics is None else _measured(metrics)
    sentences = [*state(record), *not_finite(record), *said.sentences, *_problems(metrics), *cost(record)]
    headline = said.headline
    if record.is_wiring_check:
        remark = "The model is a tiny random one: this run shows that the parts fit, and its scores mean nothing."
        headline, sentences = "A wiring check", [remark, *sentences]
    wrong = went_wrong(record)
    if record.status == "failed":
        headline = said.headline if metrics is None else "The run failed"
    elif wrong:
        headline = f"Training went wrong: {words.listed(wrong)}"
    return Verdict(headline, sentences)


def finding(score: Json) -> Finding:
    """What the 95 % interval of the difference (tuned - base) allows to say. With zero in it, nothing is shown."""
    higher, difference = score.get("higher_is_better"), section(score, "difference")
    low, high = finite(difference.get("low")), finite(difference.get("high"))
    if higher is None or math.isnan(low) or math.isnan(high):
        return "not judged"
    if low <= 0 <= high:
        return "no difference shown"
    return "better" if (low > 0) == bool(higher) else "worse"


def label(name: str, score: Json) -> str:
    """How a score is called for people."""
    return str(score.get("label") or name)


def scores_of(metrics: Json | None) -> dict[str, Json]:
    """Name -> score of `scores`, here or in a group; entries that are none are left out."""
    return {name: score for name, score in section(metrics, "scores").items() if section(score, "tuned")}


def _measured(metrics: Json) -> Verdict:
    judged = {n: s for n, s in scores_of(metrics).items() if n != _NOT_LEARNT and finding(s) != "not judged"}
    if not judged:
        old = _old_perplexity(metrics)
        return Verdict("Measured, but without intervals" if old else "Nothing could be measured", [old] if old else [])
    told = {name: score for name, score in judged.items() if _is_told(name, judged)}
    sentences = [_score_sentence(name, score, metrics) for name, score in told.items()]
    sentences += [_group_sentence(name, group) for name, group in section(metrics, "groups").items()]
    rows = finite(metrics.get("rows"))
    if rows < FEW_ROWS:
        sentences.append(f"With {words.counted(rows, 'row')} the intervals are rough: measure on more rows.")
    sentences += _judged_pairs(section(metrics, "judge"))
    return Verdict(_headline(told), [text for text in sentences if text])


def _headline(told: dict[str, Json]) -> str:
    found: dict[Finding, list[str]] = {"better": [], "worse": [], "no difference shown": []}
    for name, score in told.items():
        found[finding(score)].append(words.inside(label(name, score)))
    better, worse, same = map(words.listed, found.values())
    if better and worse:
        return f"Mixed: better in {better}, worse in {worse}"
    if better:
        return (
            f"It helped in part: better in {better}, no difference shown in {same}"
            if same
            else f"It helped: better in {better}"
        )
    if worse:
        return f"It did harm: worse in {worse}{f', no difference shown in {same}' if same else ''}"
    return f"No difference was shown in {same}"


def _is_told(name: str, judged: dict[str, Json]) -> bool:
    """One score speaks for its family, unless another of the family found something else."""
    head = _KIN.get(name)
    return head not in judged or finding(judged[name]) != finding(judged[str(head)])


def _score_sentence(name: str, score: Json, metrics: Json) -> str:
    base, tuned, difference = (section(score, key) for key in ("base", "tuned", "difference"))
    called, rows = (
        words.inside(label(name, score)),
        words.counted(score.get("rows") or metrics.get("rows"), "held-out row"),
    )
    sure = f"difference {words.number(difference.get('value'))}, 95 % interval {words.interval(difference)}"
    found = finding(score)
    before, after = words.number(base.get("value")), words.number(tuned.get("value"))
    if found == "no difference shown":
        return f"On {rows} no difference in {called} was shown: {before} before, {after} after ({sure}{_p(score)})."
    if name == "perplexity":
        return (
            f"On {rows} the tuned model’s perplexity is {after} (95 % interval {words.interval(tuned)}) where the "
            f"base model’s is {before}: {found}, as lower is better. It is {_share_of_rows(score, found)}."
        )
    went = "rose" if finite(difference.get("value")) > 0 else "fell"
    return f"{words.first(called)} {went} from {before} to {after}: {found} ({sure}); {_share_of_rows(score, found)}."


def _share_of_rows(score: Json, found: Finding) -> str:
    key = "tuned_better" if found == "better" else "base_better"
    text = f"{found} on {words.count(score.get(key))} of {words.counted(score.get('rows'), 'row')}"
    p = words.p_value(score.get("p_value"))
    if not p:
        return text
    if finite(score.get("p_value")) >= 0.05:
        return f"{text}, which a sign test alone would not find remarkable ({p})"
    return f"{text} (sign test {p})"


def _p(score: Json) -> str:
    p = words.p_value(score.get("p_value"))
    return f", sign test {p}" if p else ""


def _group_sentence(name: str, group: Any) -> str:
    """Rows whose answers were seen in training say little about new ones, so each group is told apart."""
    told = [
        f"{words.inside(label(n, s))} {words.number(section(s, 'base').get('value'))} before, "
        f"{words.number(section(s, 'tuned').get('value'))} after ({finding(s)})"
        for n, s in scores_of(group).items()
        if finding(s) != "not judged" and n != _NOT_LEARNT and n not in _KIN
    ]
    rows = words.counted(section(group).get("rows"), "row")
    return f"On the {rows} “{name}”: {'; '.join(told)}." if told else ""


def _judged_pairs(judge: Json) -> list[str]:
    """What another model said of the answers, with the share of wins and whether its interval holds one half."""
    share = section(judge, "win_share")
    low, high = finite(share.get("low")), finite(share.get("high"))
    if math.isnan(low) or math.isnan(high):
        return []
    shown = "the tuned model is preferred" if low > 0.5 else "the base model is preferred"
    shown = "no preference was shown" if low <= 0.5 <= high else shown
    wins, losses, ties = (words.count(judge.get(key)) for key in ("wins", "losses", "ties"))
    return [
        f"A judge ({judge.get('model', 'unnamed')}) preferred the tuned answer {wins} times and the base answer "
        f"{losses} times, with {ties} ties: {shown} (share of wins {words.estimate(share)}{_p(judge)})."
    ]


def _old_perplexity(metrics: Json) -> str:
    base, tuned = section(metrics, "base").get("perplexity"), section(metrics, "tuned").get("perplexity")
    if base is None or tuned is None:
        return ""
    rows = words.counted(metrics.get("rows"), "held-out row")
    return (
        f"On {rows} the tuned model’s perplexity is {words.number(tuned)} where the base model’s is "
        f"{words.number(base)}; no interval was recorded."
    )


def _problems(metrics: Json | None) -> list[str]:
    number = len(items(metrics, "problems"))
    if not number:
        return []
    return [f"The evaluation names {'one problem' if number == 1 else f'{number} problems'}."]


def _unmeasured(record: Record) -> Verdict:
    splits = section(record.info, "data", "splits")
    if record.status == "finished" and splits and not {"test", "eval"} & set(splits):
        why = "The recipe names no held-out rows, so there is nothing to measure on: name `data.test` or `data.eval`."
        return Verdict("Not measured: whether it helped is not known", [why])
    if record.status == "finished":
        why = f"This run was not evaluated. Type: recipe-kit eval {record.folder}"
        return Verdict("Not measured: whether it helped is not known", [why])
    headline = {
        "running": "Still training: nothing is measured yet",
        "failed": "The run failed before anything was measured",
        "interrupted": "The run was interrupted before anything was measured",
    }
    return Verdict(headline.get(record.status, "Nothing is measured yet"), [])
