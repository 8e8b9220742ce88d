"""Runs as a comparison sees them: read from their folders, named so that they can be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_kit import run_dir
from recipe_kit.errors import RecipeError, RunError
from recipe_kit.recipe import Recipe, flatten, load_recipe, recipe_digest
from recipe_kit.run_dir import RunInfo

_KEYS_IN_LABEL = 3
_INFO_TEXTS = ("status", "name", "method", "recipe_sha256")
_INFO_NUMBERS = ("seed", "processes")
_METRICS_PARTS = ("scores", "groups", "base", "tuned", "generation", "judge", "lm_eval")
# What a label leaves out: words, how a run is measured and logged, and the seed, which is named by itself.
_NO_SETTING = (
    "name", "description", "evaluation.", "launch.", "publish.", "card.", "proofs.", "training.seed", "training.eval_",
    "training.save_", "training.logging_", "training.report_to",
)  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """What the folder of one run holds, as far as a comparison reads it."""

    folder: Path
    info: RunInfo
    metrics: dict[str, Any] | None  # None when the run was not evaluated, or its metrics cannot be read
    recipe: Recipe | None  # None when it cannot be read by this version
    missing: str = ""  # why scores or figures are not there, in words that follow the run's label

    @property
    def training(self) -> dict[str, Any]:
        """Steps, tokens, seconds and memory; empty for a run that did not finish."""
        return self.info.get("training", {})

    @property
    def seed(self) -> int:
        return int(self.info["seed"])

    @property
    def recipe_without_seed(self) -> str:
        """SHA-256 of the recipe apart from its seed: equal for the runs that are repetitions of one experiment."""
        if self.recipe is None:
            return f"{self.info['recipe_sha256']} seed {self.seed}"
        training = {key: value for key, value in self.recipe.training.items() if key != "seed"}
        return recipe_digest(self.recipe.model_copy(update={"training": training}))


def read_runs(sources: Sequence[str | Path]) -> tuple[list[RunRecord], list[str], list[str]]:
    """The runs that are meant, each once and in the order given, remarks about them, and a sentence for each that is
    left out because its `run.json` is damaged.

    A source is a run folder, a `latest` link, or the folder above it. Raises RunError where there is no run, or none
    that can be read.
    """
    records: list[RunRecord] = []
    remarks: list[str] = []
    damaged: list[str] = []
    given: dict[Path, str | Path] = {}
    for source in sources:
        folder = run_dir.find(source)
        if folder in given:
            remarks.append(f"{source} and {given[folder]} are the same run ({folder.name}); it is listed once")
            continue
        given[folder] = source
        try:
            record, remark = _read(folder)
        except RunError as error:
            damaged.append(str(error))
            continue
        records.append(record)
        remarks += [remark] if remark else []
    if damaged and not records:
        raise RunError("\n".join(damaged))
    return records, remarks, damaged


def _read(folder: Path) -> tuple[RunRecord, str]:
    info = run_dir.read(folder)
    _check_info(folder / run_dir.RUN, info)
    remark = ""
    try:
        recipe = load_recipe(folder / run_dir.RECIPE)
    except RecipeError as error:
        recipe = None
        remark = f"{folder / run_dir.RECIPE} cannot be read by this version, so its settings are not compared: "
        remark += str(error.problems[0])
    metrics: dict[str, Any] | None = None
    missing = _unfinished(info)
    try:
        metrics = _checked_metrics(folder)
    except RunError as error:
        if (folder / run_dir.METRICS).exists():
            missing = missing or f"has no scores: {error}"
    if metrics is not None and not (metrics.get("scores") or metrics.get("tuned")):
        missing = missing or "was evaluated without any score"
    if metrics is None and not missing:
        missing = f"was not evaluated; `recipe-kit eval {folder}` does it"
    return RunRecord(folder, info, metrics, recipe, missing), remark


def _check_info(path: Path, info: Any) -> None:
    """Raises RunError for a `run.json` without what a comparison needs of it."""
    if not isinstance(info, Mapping):
        raise RunError(f"{path}: expected an object, got {type(info).__name__}; the run folder is damaged")
    for key in (*_INFO_TEXTS, *_INFO_NUMBERS, "model"):
        if key not in info:
            raise RunError(f"{path}: {key} is missing; the run folder is damaged")
    for key in _INFO_NUMBERS:
        if not isinstance(info[key], int):
            raise RunError(f"{path}: {key} is {info[key]!r}, not a whole number; the run folder is damaged")
    for key in ("model", "training", "data", "hardware"):
        if not isinstance(info.get(key, {}), Mapping):
            raise RunError(f"{path}: {key} is {info[key]!r}, not an object; the run folder is damaged")


def _checked_metrics(folder: Path) -> dict[str, Any]:
    """`metrics.json`, whose parts are objects wherever they are there. Raises RunError."""
    found: Any = run_dir.read_metrics(folder)
    path = folder / run_dir.METRICS
    if not isinstance(found, Mapping):
        raise RunError(f"{path}: expected an object, got {type(found).__name__}; `recipe-kit eval` writes it again")
    parts = [(key, found.get(key)) for key in _METRICS_PARTS]
    for key in ("scores", "groups"):
        parts += found[key].items() if isinstance(found.get(key), Mapping) else []
    for key, value in parts:
        if value is not None and not isinstance(value, Mapping):
            raise RunError(f"{path}: {key} is {value!r}, not an object; `recipe-kit eval` writes it again")
    return dict(found)


def _unfinished(info: RunInfo) -> str:
    if info["status"] == "finished":
        return ""
    reason = f" ({info['error']})" if info.get("error") else ""
    if info["status"] == "running":
        return "has not finished: it is still running, or was killed"
    return f"did not finish: it {'was interrupted' if info['status'] == 'interrupted' else 'failed'}{reason}"


def labels(records: Sequence[RunRecord], *, with_seed: bool = True) -> list[str]:
    """A name for each run: the recipe's, with the settings that differ among runs of one name, then seed and time."""
    named = [_with_settings(record, records) for record in records]
    if with_seed:
        named = _told_apart(named, [f"seed {record.seed}" for record in records])
        named = _told_apart(named, [record.folder.name for record in records])
    return named


def _with_settings(record: RunRecord, records: Sequence[RunRecord]) -> str:
    name = record.info["name"]
    alike = [flatten(other.recipe) for other in records if other.info["name"] == name and other.recipe is not None]
    if record.recipe is None or len(alike) < 2:
        return name
    mine = flatten(record.recipe)
    every = dict.fromkeys(key for other in alike for key in other if not key.startswith(_NO_SETTING))
    keys = [key for key in every if any(other.get(key) != mine.get(key) for other in alike)]
    if not 0 < len(keys) <= _KEYS_IN_LABEL:
        return name
    return f"{name}, " + ", ".join(f"{key.rpartition('.')[2]} {short(mine.get(key))}" for key in keys)


def _told_apart(named: Sequence[str], more: Sequence[str]) -> list[str]:
    """Names that occur more than once with `more` behind them, where that differs among those of the same name."""
    pairs = list(zip(named, more, strict=True))
    return [f"{name}, {word}" if any(n == name and w != word for n, w in pairs) else name for name, word in pairs]


def short(value: Any) -> str:
    """A value of a recipe in few characters: 0.0001 as 1e-4, a list by its items."""
    if isinstance(value, float) and value and not 0.01 <= abs(value) < 10_000:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    text = "+".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 30 else f"{text[:29]}…"
