"""What stands in a run folder, read so that a damaged, half-written or missing file costs one sentence and no more."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe_kit import run_dir
from recipe_kit.errors import RunError

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """A run as its files tell it. `remarks` says what could not be read."""

    folder: Path
    info: Json  # run.json
    recipe: str  # recipe.yaml as it is; "" where there is none
    metrics: Json | None
    samples: list[Json]
    log: list[Json]  # the logged steps, each once
    remarks: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.folder.parent.name)

    @property
    def status(self) -> str:
        return str(self.info.get("status", "unknown"))

    @property
    def is_wiring_check(self) -> bool:
        """Whether its model is a random one, whose scores mean nothing."""
        return any("wiring check" in str(note) for note in items(self.info, "notes"))

    @property
    def settings(self) -> Json:
        """The recipe as data; {} where it cannot be read."""
        import yaml

        try:
            found = yaml.safe_load(self.recipe)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    def logged(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever the log has `key`; NaN where a value is not a finite number."""
        return [(int(line["step"]), finite(line[key])) for line in self.log if key in line]


def read(folder: Path) -> Record:
    """The files of a run folder. Raises RunError when `run.json` is missing or damaged."""
    remarks: list[str] = []
    info: Any = run_dir.read(folder)
    if not isinstance(info, dict):
        raise RunError(f"{folder / run_dir.RUN}: expected an object, got {type(info).__name__}; the folder is damaged")
    return Record(
        folder=folder,
        info=info,
        recipe=_text(folder / run_dir.RECIPE, remarks),
        metrics=_metrics(folder, remarks),
        samples=_lines(folder / run_dir.SAMPLES, remarks, _is_sample),
        log=_each_step_once(_lines(folder / run_dir.LOG, remarks, _is_step)),
        remarks=remarks,
    )


def section(data: Json | None, *keys: str) -> Json:
    """The mapping under `keys`; {} where there is none, or something else stands there."""
    found: Any = data
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def items(data: Json | None, key: str) -> list[Any]:
    """The list under `key`; [] where there is none, or something else stands there."""
    found = section(data).get(key)
    return found if isinstance(found, list) else []


def finite(value: Any) -> float:
    """The number, or NaN for whatever is not a finite one."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else math.nan


def _text(path: Path, remarks: list[str]) -> str:
    """A file's text. A missing file is empty; bytes that are no UTF-8 are shown as such."""
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace") if path.is_file() else ""
    except OSError as error:
        remarks.append(f"{path.name} cannot be read ({error.strerror or error}) and is left out.")
        return ""


def _metrics(folder: Path, remarks: list[str]) -> Json | None:
    if not (folder / run_dir.METRICS).is_file():
        return None
    try:
        found: Any = run_dir.read_metrics(folder)
    except RunError as error:
        remarks.append(f"{run_dir.METRICS} cannot be read ({error.__cause__}) and is left out.")
        return None
    if isinstance(found, dict):
        return found
    remarks.append(f"{run_dir.METRICS} is left out: it holds no results.")
    return None


def _lines(path: Path, remarks: list[str], fits: Callable[[Any], bool]) -> list[Json]:
    """The objects of a JSON Lines file; a line that is none, such as one half written, is counted and left out."""
    found: list[Json] = []
    left_out = 0
    for line in _text(path, remarks).split("\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if fits(value):
            found.append(value)
        else:
            left_out += 1
    if left_out:
        what = "one line that is not whole" if left_out == 1 else f"{left_out:,} lines that are not whole"
        remarks.append(f"{path.name} has {what}; the others are shown.")
    return found


def _is_step(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("step"), int)


def _is_sample(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("prompt"), list)
        and all(isinstance(value.get(which), dict) for which in ("base", "tuned"))
    )


def _each_step_once(lines: list[Json]) -> list[Json]:
    """A resumed run logs the steps since its checkpoint again: what was logged of them before is replaced.

    The loss of training and the held-out loss of one step are two lines, which both stay.
    """
    kept: list[Json] = []
    for line in lines:
        step, is_held_out = line["step"], "eval_loss" in line
        while kept and kept[-1]["step"] > step:
            kept.pop()
        if any(k["step"] == step and ("eval_loss" in k) == is_held_out for k in kept[-2:]):
            while kept and kept[-1]["step"] == step:
                kept.pop()
        kept.append(line)
    return kept
