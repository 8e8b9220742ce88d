"""What a run took and what it left behind: memory, speed, time, tokens, size, cost."""

from __future__ import annotations

from collections.abc import Sequence

from recipe_kit import run_dir
from recipe_kit.comparison.runs import RunRecord

Figure = float | int | None

# name -> how tables call it
LABELS = {
    "peak_memory_bytes": "peak memory",
    "tokens_per_second": "tokens a second",
    "seconds": "training time",
    "wall_seconds": "wall time",
    "tokens": "tokens read in training",
    "trainable_parameters": "trainable parameters",
    "weights_bytes": "learnt weights on disk",
    "cost": "cost",
}
_WEIGHTS = (".safetensors", ".bin")


def figures(record: RunRecord, price_per_hour: float | None = None) -> dict[str, Figure]:
    """Each of `LABELS`; None where the run folder does not say. `cost` is there when a price is given; it is None for
    a resumed run, which recorded its last part only.

    `seconds` are those of the training loop. `wall_seconds` begin with loading the model and end after the evaluation;
    preparing the rows is not in them.
    """
    training = record.training
    found: dict[str, Figure] = {
        name: training.get(name)
        for name in ("peak_memory_bytes", "tokens_per_second", "seconds", "wall_seconds", "tokens")
    }
    found["trainable_parameters"] = record.info["model"].get("trainable_parameters")
    found["weights_bytes"] = _weights_bytes(record)
    if price_per_hour is not None:
        found["cost"] = _cost(record, price_per_hour)
    return found


def _weights_bytes(record: RunRecord) -> int | None:
    """Bytes of the weight files, without tokenizer and template, which do not depend on what was learnt."""
    folder = run_dir.weights(record.folder, record.info["method"])
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix in _WEIGHTS]
    return sum(sizes) if sizes else None


def _cost(record: RunRecord, price_per_hour: float) -> float | None:
    seconds = record.training.get("wall_seconds")
    if seconds is None or run_dir.counted_from(record.training):
        return None
    return float(seconds) / 3600 * price_per_hour * devices(record)


def devices(record: RunRecord) -> int:
    """What is paid for by the hour: a GPU for each process, or the one machine where all of them share its cores."""
    on_gpus = (record.info.get("hardware") or {}).get("device") == "cuda"
    return int(record.info["processes"]) if on_gpus else 1


def cost_remark(price_per_hour: float, records: Sequence[RunRecord]) -> str:
    """What the cost counts, in a sentence, and for which runs it is not known."""
    in_part = any(run_dir.counted_from(record.training) for record in records)
    resumed = any(record.training.get("resumed_at_step") for record in records)
    return (
        f"cost: {price_per_hour:g} an hour for each process's GPU (on a CPU: for the machine), times the wall time, "
        "which begins with loading the model and ends after the evaluation; preparing the rows is not counted"
        + ("; of a resumed run, steps that were done twice are counted once" if resumed and not in_part else "")
        + ("; none is shown for a resumed run that recorded the time of its last part only" if in_part else "")
    )
