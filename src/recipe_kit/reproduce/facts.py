"""What is the same as then, and what is not: environment, rows, settings of the measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipe_kit.recipe import Recipe, diff_recipes
from recipe_kit.run_dir import Metrics, RunInfo

_UNKNOWN = "(not recorded)"
_SHOWN_OF_A_HASH = 12


@dataclass(frozen=True)
class Fact:
    """One thing that was recorded, then and now, as it is shown."""

    what: str
    then: str
    now: str

    @property
    def equal(self) -> bool:
        return self.then == self.now


def environment(then: RunInfo, now: RunInfo) -> list[Fact]:
    """Kit, packages, hardware, processes, seed, base model, template and formatter."""
    facts = [_fact("recipe-kit", then.get("recipe_kit_version"), now.get("recipe_kit_version"))]
    facts += _each("", then.get("versions", {}), now.get("versions", {}))
    facts += _each("hardware ", then.get("hardware", {}), now.get("hardware", {}))
    facts += [_fact(key, then.get(key), now.get(key)) for key in ("processes", "seed")]
    if "revision" in now["model"]:  # known once the model is loaded
        facts.append(_fact("base model", _base(then), _base(now)))
    else:
        facts.append(_fact("base model", _shown_id(then), _shown_id(now)))
    facts.append(_hash("chat template", then["model"], now["model"], "chat_template_sha256"))
    mine, theirs = (info["data"].get("formatter", {}) for info in (then, now))
    facts.append(_fact("formatter", mine.get("name"), theirs.get("name")))
    facts.append(_hash("formatter's source", mine, theirs, "source_sha256"))
    return facts


def rows(then: RunInfo, now: RunInfo) -> list[Fact]:
    """The prepared rows of each split: how many, and the hash of what they say, in any order."""
    before, after = (info["data"].get("splits", {}) for info in (then, now))
    return [
        Fact(f"rows of {name}", _said_rows(before.get(name)), _said_rows(after.get(name)))
        for name in dict.fromkeys((*before, *after))
    ]


def training(then: RunInfo, now: RunInfo) -> list[Fact]:
    """What the training came to, apart from time and memory."""
    before, after = (info.get("training", {}) for info in (then, now))
    outcome = ("steps", "effective_batch_size", "tokens", "train_loss", "final_loss", "resumed_at_step")
    weights = ("dtype", "parameters", "trainable_parameters", "trainable_dtype")
    return [
        *(_fact(f"training: {key}", before.get(key), after.get(key)) for key in outcome),
        *(_fact(f"model: {key}", then["model"].get(key), now["model"].get(key)) for key in weights),
    ]


def measurement(then: Metrics, now: Metrics) -> list[Fact]:
    """What was measured and how: other rows, precision or decoding make other numbers."""
    facts = [
        _fact(f"measured: {key}", then.get(key), now.get(key)) for key in ("split", "rows", "precision", "processes")
    ]
    facts.append(_hash("measured: content", then, now, "content_sha256"))
    facts += _each("answers: ", _of_answers(then), _of_answers(now))
    for name, entry in then.get("scores", {}).items():
        if name in now.get("scores", {}):
            facts.append(_fact(f"settings of {name}", entry.get("settings"), now["scores"][name].get("settings")))
    return facts


def recipes(then: Recipe, now: Recipe) -> list[Fact]:
    """Values that differ, but for the places of local files: what is in them is told by the rows."""
    return [
        _fact(found.key, found.left, found.right)
        for found in diff_recipes(then, now)
        if not (found.key.startswith("data.") and found.key.endswith(".path"))
    ]


def same_machine(then: tuple[RunInfo, Metrics], now: tuple[RunInfo, Metrics]) -> bool:
    """Whether numbers of the same weights on the same rows must agree to rounding: float32 on the same kind of CPU,
    with the same packages, threads and processes."""
    (info, metrics), (info_now, metrics_now) = then, now
    return (
        info.get("hardware") == info_now.get("hardware")
        and info.get("hardware", {}).get("device") == "cpu"
        and metrics["precision"] == metrics_now["precision"] == "float32"
        and metrics["versions"] == metrics_now["versions"]
        and metrics["processes"] == metrics_now["processes"]
    )


def threads(info: RunInfo) -> dict[str, str]:
    """The environment variable that gives a CPU process as many threads as were recorded: in 16 bits another number
    rounds another way. {} for a GPU."""
    recorded = info.get("hardware", {}).get("threads")
    return {"OMP_NUM_THREADS": str(recorded)} if recorded else {}


def _each(prefix: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Fact]:
    return [_fact(f"{prefix}{key}", then.get(key), now.get(key)) for key in dict.fromkeys((*then, *now))]


def _fact(what: str, then: Any, now: Any) -> Fact:
    return Fact(what, *(_UNKNOWN if value is None else str(value) for value in (then, now)))


def _hash(what: str, then: Mapping[str, Any], now: Mapping[str, Any], key: str) -> Fact:
    return _fact(what, *((side.get(key) or "")[:_SHOWN_OF_A_HASH] or None for side in (then, now)))


def _of_answers(metrics: Metrics) -> dict[str, Any]:
    found = metrics.get("generation", {})
    return {key: found.get(key) for key in ("answers", "max_new_tokens", "do_sample", "stop_token_ids", "batch_size")}


def _base(info: RunInfo) -> str:
    revision = info["model"].get("revision")
    return f"{_shown_id(info)}@{revision}" if revision else _shown_id(info)


def _shown_id(info: RunInfo) -> str:
    """The base's id; of a folder its name, for the same model may lie anywhere."""
    model_id = str(info["model"].get("id"))
    return model_id.rpartition("/")[2] if model_id.startswith("/") else model_id


def _said_rows(split: Mapping[str, Any] | None) -> str:
    if not split:
        return "(none)"
    return f"{split['kept']:,} rows, {split['tokens']:,} tokens, content {split['content_sha256'][:_SHOWN_OF_A_HASH]}"
