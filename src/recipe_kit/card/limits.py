"""What the numbers do not show, as far as the files of a run can tell."""

from __future__ import annotations

import math
from collections.abc import Iterator

from recipe_kit.card.facts import Facts, counted
from recipe_kit.card.markdown import plain
from recipe_kit.card.scores import measured_split
from recipe_kit.report import words
from recipe_kit.report.files import finite, items, section
from recipe_kit.report.verdict import FEW_ROWS, finding, label, scores_of

FEW_TRAINING_ROWS = 1_000
_OVERLAP = ("ROUGE", "chrF", "BLEU")


def limits(facts: Facts) -> list[str]:
    """A sentence for each limit that follows from the run itself, not from what its maker says of it."""
    return [*_of_training(facts), *_of_evaluation(facts), *_of_publication(facts)]


def _of_training(facts: Facts) -> Iterator[str]:
    if facts.base_kind == "tiny":
        yield "The base is a tiny random model: this is a check that the parts fit, and its answers mean nothing."
    kept = counted(section(facts.info, "data", "splits", "train").get("kept"))
    if 0 < kept < FEW_TRAINING_ROWS and not facts.recipe.data.streaming:
        yield f"It learnt from {words.counted(kept, 'row')}: enough for a manner, not for knowledge beyond them."
    yield "It is one run with one seed; another seed may give other numbers."
    failed = [str(p.get("name")) for p in items(facts.info, "proofs") if isinstance(p, dict) and p.get("ok") is False]
    if failed:
        yield f"Proofs that did not hold, with the recipe's leave: {plain(words.listed(failed))}."


def _of_evaluation(facts: Facts) -> Iterator[str]:
    metrics = facts.metrics
    if metrics is None:
        yield "Nothing was measured, so nothing is known of how good it is."
        return
    found = scores_of(metrics)
    if finite(metrics.get("rows")) < FEW_ROWS:
        yield f"It was measured on {words.counted(metrics.get('rows'), 'row')}, so the intervals are rough."
    if not facts.recipe.data.sources(measured_split(facts)):
        yield "The rows it was measured on were held out of the training data: how it does on other data is not known."
    for verdict, told in (
        ("no difference shown", "No difference from the base was shown in"),
        ("worse", "Worse than the base in"),
    ):
        names = [label(name, score) for name, score in found.items() if finding(score) == verdict]
        if names:
            yield f"{told} {plain(words.listed([words.inside(name) for name in names]))}."
    if any("answer also in training" in str(name) for name in section(metrics, "groups")):
        yield "Some answers it was measured on also stand in the training rows; the evaluation tells these rows apart."
    overlap = sorted({kind for kind in _OVERLAP for score in found.values() if label("", score).startswith(kind)})
    if overlap:
        counts = "counts" if len(overlap) == 1 else "count"
        yield f"{words.listed(overlap)} {counts} what is shared with one reference: no measure of truth."
    if section(metrics, "judge"):
        yield "Answers were also judged by another language model, which has its own preferences."
    stopped = finite(section(found.get("stop_rate"), "tuned").get("value"))
    if not math.isnan(stopped) and stopped < 0.9:
        limit = section(metrics, "generation").get("max_new_tokens")
        yield f"{100 * (1 - stopped):.0f} % of its measured answers did not end by themselves within {limit} tokens."


def _of_publication(facts: Facts) -> Iterator[str]:
    """What was scored, where that is not what is published."""
    precision = section(facts.metrics).get("precision")
    if facts.is_full or not precision:
        return
    if facts.what != "merged" and precision == "nf4":
        yield "Scores of the adapter were measured on the base in 4 bits (nf4); on another it may answer otherwise."
    if facts.what == "adapter" or precision == facts.dtype:
        return
    told = f"Scores were measured on base and adapter in {precision}; the merged weights are {facts.dtype}"
    if precision == "nf4" and facts.merge.get("base") == "original":
        of_both = ", and what that does to the loss is told under *Merge*" if section(facts.merge, "choice") else ""
        yield f"{told}, made from the base before it was brought to 4 bits{of_both}. They were not scored themselves."
    else:
        near = " (how near they are is told under *Merge*)" if section(facts.merge, "parity") else ""
        yield f"{told}{near}."
