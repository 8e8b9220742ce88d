"""The files of a run folder: their names, what is in them, and how to find a run.

    runs/<name>/<time>/
      recipe.yaml          the recipe as it was run, every value written out
      recipe.before-step-N.yaml  that of the steps before N, where a run was gone on with by another recipe
      run.json             what happened: records.RunInfo
      training_log.jsonl   one line per logged step
      metrics.json         base against tuned on the held-out rows: records.Metrics
      scores.jsonl         one held-out row a line: what both models made of it
      samples.jsonl        one prompt a line with both answers and the reference, to read
      judge.jsonl          one pair of answers a line, where a judge was asked
      evaluations/         earlier evaluations, of other rows or settings, under the time they were made
      report.html          the page that `recipe-kit report` writes
      adapter/ or model/   what was learnt, with tokenizer and chat template: plain PEFT or transformers
      license/             the texts of the base's licence, to go with what is published
      merged/              the adapter in 16-bit weights: plain transformers
      gguf/                the merged weights for llama.cpp and Ollama
      README.md            the model card
      checkpoints/         for --resume: checkpoint-STEP, each whole (`recipe_kit.checkpoints`)
      tensorboard/         curves
    runs/<name>/latest     -> the newest finished run

A run is finished when `run.json` says so; it is written last.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from recipe_kit.errors import RunError
from recipe_kit.records import Estimate as Estimate
from recipe_kit.records import Group as Group
from recipe_kit.records import Metrics as Metrics
from recipe_kit.records import RunInfo as RunInfo
from recipe_kit.records import Score as Score
from recipe_kit.records import ScoreEntry as ScoreEntry
from recipe_kit.suggest import did_you_mean

RECIPE = "recipe.yaml"
RECIPE_BEFORE = "recipe.before-step-{step}.yaml"
RUN = "run.json"
LOG = "training_log.jsonl"
METRICS = "metrics.json"
SCORES = "scores.jsonl"
SAMPLES = "samples.jsonl"
JUDGE = "judge.jsonl"
EVALUATIONS = "evaluations"
REPORT = "report.html"
ADAPTER = "adapter"
MODEL = "model"
MERGED = "merged"
GGUF = "gguf"
CARD = "README.md"
LICENSE = "license"
LICENSE_TEXT = re.compile(r"(LICEN[CS]E|COPYING|USE_POLICY)[\w-]*(\.(txt|md))?", re.IGNORECASE)  # files in it
CHECKPOINTS = "checkpoints"
CHECKPOINT_COMPLETE = "complete.json"  # in a checkpoint that was written to its end
TENSORBOARD = "tensorboard"
LATEST = "latest"


def create(runs_dir: Path, name: str) -> Path:
    """A new, empty run folder `runs_dir/name/<time>`. Raises RunError when it cannot be written."""
    stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    for attempt in range(100):
        run = runs_dir / name / (stamp if attempt == 0 else f"{stamp}-{attempt}")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{_not_writable(runs_dir, error)}; choose another folder with --runs-dir") from error
        return run
    raise RunError(f"{runs_dir / name}: a hundred runs started in one second; remove some")


def check_writable(runs_dir: Path) -> None:
    """Raises RunError when runs cannot be written below `runs_dir`; asked before anything slow."""
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs_dir):
            pass
    except OSError as error:
        raise RunError(f"{_not_writable(runs_dir, error)}; choose another folder with --runs-dir") from error


def check_changeable(run: Path) -> None:
    """Raises RunError when files of a run folder cannot be written; asked before anything slow."""
    try:
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise RunError(
            f"cannot write {run}: {error.strerror or error}; copy the run folder to a place you own"
        ) from error


def find(source: str | Path) -> Path:
    """The run folder a user means: the folder itself, or `latest` in it. Raises RunError."""
    run = Path(source)
    if (run / RUN).is_file():
        return run.resolve()
    if (run / LATEST / RUN).is_file():
        return (run / LATEST).resolve()
    if run.is_dir():
        inside = sorted(entry.parent for entry in (*run.glob(f"*/{RUN}"), *run.glob(f"*/{LATEST}/{RUN}")))
        hint = f"; did you mean {inside[-1]}?" if inside else ""
    else:
        nearby = [entry.name for entry in run.parent.iterdir() if entry.is_dir()] if run.parent.is_dir() else []
        hint = did_you_mean(run.name, nearby)
    raise RunError(f"{run}: not a run folder (no {RUN} in it){hint or '; give one such as runs/samsum/latest'}")


def newest_unfinished(runs_dir: Path, name: str) -> Path:
    """The newest run of this recipe that did not finish and left a checkpoint. Raises RunError when there is none."""
    folder = runs_dir / name
    runs = (
        sorted((entry for entry in folder.iterdir() if (entry / RUN).is_file()), reverse=True)
        if folder.is_dir()
        else []
    )
    for run in runs:
        if run.name != LATEST and read(run)["status"] != "finished" and has_checkpoint(run):
            return run
    raise RunError(f"nothing to resume: {folder} has no unfinished run with a checkpoint; start without --resume")


def read(run: Path) -> RunInfo:
    """`run.json` of a run. Raises RunError when it is missing or damaged."""
    info: RunInfo = _read_json(run / RUN, dict)
    missing = [key for key in ("name", "status", "method", "model", "data") if key not in info]
    if missing:
        raise RunError(f"{run / RUN}: it has no {', '.join(missing)}; the run folder is damaged")
    return info


def read_metrics(run: Path) -> Metrics:
    """`metrics.json` of a run. Raises RunError when the run was not evaluated."""
    metrics: Metrics = _read_json(run / METRICS, dict)
    return metrics


def require_finished(run: Path) -> RunInfo:
    """`run.json` of a run that has something to show. Raises RunError for one that did not finish."""
    info = read(run)
    if info["status"] == "finished":
        return info
    reason = f" ({info['error']})" if "error" in info else ""
    if info["status"] == "running" and is_alive(info):
        raise RunError(f"{run}: this run is still training; wait until it has finished")
    then = (
        "continue it with `recipe-kit train ... --resume`"
        if has_checkpoint(run)
        else "train again: it left no checkpoint"
    )
    raise RunError(f"{run}: this run is {info['status']}{reason}; {then}")


def has_checkpoint(run: Path) -> bool:
    """Whether some checkpoint of this run was written to its end."""
    return any((run / CHECKPOINTS).glob(f"checkpoint-*/{CHECKPOINT_COMPLETE}"))


def counted_from(training: Mapping[str, Any]) -> int:
    """The step from which tokens, seconds and losses in a run's `training` count: 0, or where it was resumed without.

    Runs of earlier versions counted from where they were resumed, and do not say so.
    """
    step = training.get("counted_from_step", training.get("resumed_at_step"))
    return step if isinstance(step, int) else 0


def process() -> dict[str, Any]:
    """Who is at work on a run: recorded in it, for `is_alive`."""
    return {"pid": os.getpid(), "host": platform.node()}


def is_alive(info: RunInfo) -> bool:
    """Whether the process that trains a run is there; False for another machine's, which cannot be asked."""
    owner = info.get("process", {})
    if owner.get("host") != platform.node() or not isinstance(owner.get("pid"), int):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # there, and somebody else's
        return True
    return True


def update(run: Path, **values: Any) -> RunInfo:
    """Set keys of `run.json`, leaving all others as they are on disk now; what it says afterwards."""
    info = read(run)
    info.update(values)  # type: ignore[typeddict-item]
    write_json(run / RUN, info)
    return info


def weights(run: Path, method: str) -> Path:
    """Where a run of this method keeps what was learnt."""
    return run / (MODEL if method == "full" else ADAPTER)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write beside and move into place: a reader sees the old file or the new one, never half of one."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Write one JSON value a line, beside and moved into place."""
    write_text(path, "".join(json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def read_lines(path: Path) -> list[Any]:
    """The JSON values of a file that has one a line; [] for a file that is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise RunError(_not_writable(path, error)) from error


def point_latest(run: Path) -> None:
    """Let `latest` beside a run name it. On systems without links, `latest` is left out."""
    link = run.parent / LATEST
    part = run.parent / f".{LATEST}.part"
    try:
        part.unlink(missing_ok=True)
        part.symlink_to(run.name, target_is_directory=True)
        part.replace(link)
    except OSError:
        part.unlink(missing_ok=True)


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "run `recipe-kit eval RUN` first" if path.name == METRICS else "not a run folder"
        raise RunError(f"{path}: no such file; {hint}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); the run folder is damaged") from error
    if not isinstance(value, kind):
        raise RunError(f"{path}: holds {type(value).__name__} instead of {kind.__name__}; the run folder is damaged")
    return value


def _not_writable(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror or error}"
