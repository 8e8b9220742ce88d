"""What a run's log and row lengths look like: which plots there are, what they say in words, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from recipe_kit.report import plots, words
from recipe_kit.report.files import Record, finite, section
from recipe_kit.report.plots import Curve, Plot, Points

_GIB = 2**30
COLUMNS = {
    "loss": "training loss",
    "eval_loss": "held-out loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens a second",
    "peak_memory_bytes": "peak memory (GiB)",
}


def training_plots(record: Record) -> list[Plot]:
    """The plots for which the log has a finite number: loss, learning rate, gradient norm, speed, memory."""
    memory = [(step, value / _GIB) for step, value in record.logged("peak_memory_bytes")]
    wanted: list[tuple[str, str, str, list[Curve], bool]] = [
        (
            "loss", "Loss", "nats a token",
            [Curve("training", record.logged("loss")), Curve("held out", record.logged("eval_loss"))], False,
        ),
        ("learning-rate", "Learning rate", "", [Curve("", record.logged("learning_rate"))], True),
        ("gradient-norm", "Gradient norm", "", [Curve("", record.logged("grad_norm"))], True),
        ("speed", "Speed", "tokens a second", [Curve("", record.logged("tokens_per_second"))], True),
        ("memory", "Peak memory", "GiB", [Curve("", memory)], True),
    ]  # fmt: skip
    found = []
    for name, title, unit, lines, from_zero in wanted:
        drawn = [line for line in lines if any(not math.isnan(value) for _, value in line.points)]
        if drawn:
            said = " ".join(_in_words(line, unit) for line in drawn)
            label = f"{title.lower()} ({unit})" if unit else title.lower()
            found.append(plots.curves(name, f"{title} over steps", said, "step", label, drawn, from_zero=from_zero))
    return found


def length_plots(record: Record) -> list[Plot]:
    """A histogram of row lengths for each split that has one recorded; older runs have none."""
    found = []
    for split, facts in section(record.info, "data", "splits").items():
        lengths = section(facts, "lengths")
        edges, tokens, trained = (_numbers(lengths.get(key)) for key in ("edges", "tokens", "trained"))
        if len(edges) < 2 or len(tokens) != len(edges) - 1:
            continue
        counts = [("all tokens", tokens), ("trained tokens", trained)][: 2 if len(trained) == len(tokens) else 1]
        said = " ".join(_most_rows(label, values, edges) for label, values in counts)
        name = "lengths-" + "".join(letter for letter in str(split) if letter.isalnum())
        found.append(plots.histogram(name, f"Lengths of the {split} rows", said, edges, counts))
    return found


def numbers(record: Record, *, limit: int | None = None) -> tuple[list[str], list[list[str]]]:
    """The log as a table: header and one row a step, evenly thinned to `limit` rows, the last one kept."""
    steps: dict[int, dict[str, float]] = {}
    for key in COLUMNS:
        for step, value in record.logged(key):
            steps.setdefault(step, {})[key] = value / _GIB if key == "peak_memory_bytes" else value
    keys = [key for key in COLUMNS if any(key in values for values in steps.values())]
    rows = [
        [str(step), *(_exact(values[key]) if key in values else "" for key in keys)]
        for step, values in sorted(steps.items())
    ]
    if limit is not None and len(rows) > limit:
        rows = [rows[(index + 1) * len(rows) // limit - 1] for index in range(limit)]
    return ["step", *(COLUMNS[key] for key in keys)], rows


def _in_words(curve: Curve, unit: str) -> str:
    points: Points = [(step, value) for step, value in curve.points if not math.isnan(value)]
    start = f"{curve.label.capitalize()}: " if curve.label else ""
    (first_step, first), (last_step, last) = points[0], points[-1]
    start += f"{words.brief(first)}{unit and ' '}{unit} at step {first_step:,}"
    if len(points) == 1:
        return f"{start}."
    low, high = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    return (
        f"{start}, {words.brief(last)} at step {last_step:,}; lowest {words.brief(low[1])} at step {low[0]:,}, "
        f"highest {words.brief(high[1])} at step {high[0]:,}."
    )


def _most_rows(label: str, values: Sequence[float], edges: Sequence[float]) -> str:
    place = max(range(len(values)), key=lambda index: values[index])
    return (
        f"{label.capitalize()}: most rows ({words.count(values[place])} of {words.count(sum(values))}) have "
        f"{words.count(edges[place])} to {words.count(edges[place + 1])}."
    )


def _numbers(values: Any) -> list[float]:
    found = [finite(value) for value in values] if isinstance(values, list) else []
    return [] if any(math.isnan(value) for value in found) else found


def _exact(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.6g}"
