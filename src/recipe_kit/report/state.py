"""Where a run stands, whether its numbers went wrong on the way, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from recipe_kit import run_dir
from recipe_kit.report import words
from recipe_kit.report.files import Json, Record, finite, section

_GRADIENT = "gradient norm"


def state(record: Record) -> list[str]:
    """Where a run stands that did not finish."""
    if record.status == "finished":
        return []
    error = f": {words.sentence(record.info['error'])}" if record.info.get("error") else "."
    said = {
        "running": "This run is still going on, or was killed without a word.",
        "failed": f"This run failed{error}",
        "interrupted": "This run was interrupted.",
    }.get(record.status, f"The status of this run is {record.status}.")
    sentences = [said]
    if record.log:
        last = record.log[-1]["step"]
        total = _steps_in_all(record)
        losses = [value for _, value in record.logged("loss") if not math.isnan(value)]
        loss = f", with a training loss of {words.number(losses[-1])}" if losses else ""
        sentences.append(f"The last logged step is {last:,}{f' of about {total:,}' if total else ''}{loss}.")
    else:
        sentences.append("No step was logged yet.")
    if record.status != "running" and run_dir.has_checkpoint(record.folder):
        sentences.append("Checkpoints were saved: `recipe-kit train … --resume` goes on from the last one.")
    return sentences


def _steps_in_all(record: Record) -> int:
    """Steps the recipe asks for; 0 where the log does not tell yet."""
    training = section(record.settings, "training")
    if finite(training.get("max_steps")) > 0:
        return int(training["max_steps"])
    epochs = finite(training.get("num_train_epochs", 3))
    seen = [(line["step"], finite(line.get("epoch"))) for line in record.log if finite(line.get("epoch")) > 0]
    return round(seen[-1][0] / seen[-1][1] * epochs) if seen and epochs > 0 else 0


def cost(record: Record) -> list[str]:
    training, model = section(record.info, "training"), section(record.info, "model")
    seconds = training.get("wall_seconds", training.get("seconds"))
    tokens, memory = training.get("tokens"), training.get("peak_memory_bytes")
    took = "It took"
    if not training and record.log:
        took = "So far it has taken" if record.status == "running" else "Until then it had taken"
        seconds = record.log[-1].get("seconds")
        tokens = _greatest(record, "num_tokens")
        memory = _greatest(record, "peak_memory_bytes")
    resumed = run_dir.counted_from(training)
    since = f" since step {words.count(resumed)}, where it was resumed" if resumed else ""
    parts = [
        f"{words.duration(seconds)} on {hardware(record.info)}{since}" if seconds is not None else "",
        f"at most {words.size(memory)} of {_kind_of_memory(record.info)}" if memory is not None else "",
        f"{words.count(tokens)} tokens" if tokens is not None else "",
    ]
    sentence = f"{took} {', '.join(part for part in parts if part)}" if any(parts) else ""
    trained, total = model.get("trainable_parameters"), model.get("parameters")
    if trained is not None and total is not None:
        share = "all" if trained == total else f"{words.short_count(trained)} of"
        sentence += f"{'; ' if sentence else ''}{share} {words.short_count(total)} parameters were trained"
    return [f"{sentence[0].upper()}{sentence[1:]}."] if sentence else []


def hardware(info: Json) -> str:
    """`2 CPU cores`, `1 × NVIDIA H100`."""
    found, processes = section(info, "hardware"), words.count(info.get("processes", 1))
    if found.get("device") == "cuda":
        return f"{processes} × {found.get('name', 'GPU')}"
    return words.counted(found["cores"], "CPU core") if found.get("cores") else "a CPU"


def _kind_of_memory(info: Json) -> str:
    kind = "GPU memory" if section(info, "hardware").get("device") == "cuda" else "memory"
    return f"{kind} in the first of {info['processes']} processes" if finite(info.get("processes")) > 1 else kind


def _greatest(record: Record, key: str) -> float | None:
    values: Sequence[float] = [value for _, value in record.logged(key) if not math.isnan(value)]
    return max(values) if values else None


def not_finite(record: Record) -> list[str]:
    """A sentence for each logged value that was no finite number at some step: the run went wrong there."""
    return [
        f"The {name} was no finite number at {len(wrong):,} of {words.counted(logged, 'logged step')}, first at step "
        f"{wrong[0]:,}: the training went wrong there."
        for name, wrong, logged in _wrong_steps(record)
    ]


def went_wrong(record: Record) -> list[str]:
    """The same in few words, of losses alone: a gradient that overflows once may be one step that was skipped."""
    return [
        f"the {name} was no finite number, first at step {wrong[0]:,}"
        for name, wrong, _ in _wrong_steps(record)
        if name != _GRADIENT
    ]


def _wrong_steps(record: Record) -> Iterator[tuple[str, list[int], int]]:
    """Each logged value that was no finite number somewhere: its name, at which steps, of how many logged."""
    for key, name in (("loss", "training loss"), ("eval_loss", "held-out loss"), ("grad_norm", _GRADIENT)):
        points = record.logged(key)
        wrong = [step for step, value in points if math.isnan(value)]
        if wrong:
            yield name, wrong, len(points)
