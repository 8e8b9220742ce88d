"""Tasks of EleutherAI's lm-evaluation-harness for base and tuned model: the optional extra `lm-eval`."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit.errors import ModelError
from recipe_kit.evaluation.generation import CPU_BATCH
from recipe_kit.suggest import did_you_mean

EXTRA = "pip install 'recipe-kit[lm-eval]'"
_STDERR = "_stderr"


def check(tasks: Sequence[str]) -> None:
    """The harness is installed and knows every task; reads its index of tasks (seconds), no data and no model.

    Raises ModelError with the line to install it, or with the nearest names.
    """
    _manager_and_names(tasks)


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """What one model scores, an adapter being on or off as the caller left it.

    `tasks` are names of the harness (tasks, groups, tags), or folders whose task files all run. Each runs by itself:
    one that fails, for instance because its data cannot be downloaded, is a sentence among `problems`, and the others
    are kept. As is the rule for the harness, prompts are written without a chat template. Raises what `check` raises.
    """
    manager, names = _manager_and_names(tasks)
    from lm_eval.models.huggingface import HFLM

    found: dict[str, Any] = {"lm_eval": version("lm_eval"), "tasks": {}, "problems": []}
    with _quiet():
        size = batch_size or ("auto" if model.device.type == "cuda" else CPU_BATCH)
        harnessed = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
        for name in names:
            try:
                found["tasks"] |= _run(harnessed, manager, name, limit, num_fewshot)
            except Exception as error:  # a task is code and data of others, and may fail in any way
                found["problems"].append(f"lm_eval task {name} failed: {_reason(error)}")
    return found


def side_by_side(base: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    """What `run_tasks` found for both models, per task and metric: `base` and `tuned`, each a value with its stderr.

    A task that only one of the two could run is left out; why is among `problems`.
    """
    of_base, of_tuned = base.get("tasks", {}), tuned.get("tasks", {})
    tasks = {}
    for name in [name for name in of_tuned if name in of_base]:
        facts = {key: value for key, value in of_tuned[name].items() if key != "metrics"}
        if facts != {key: value for key, value in of_base[name].items() if key != "metrics"}:
            facts["differs"] = "base and tuned model were not asked the same; the scores cannot be compared"
        metrics = {
            metric: {"base": of_base[name]["metrics"].get(metric), "tuned": score}
            for metric, score in of_tuned[name]["metrics"].items()
        }
        tasks[name] = {**facts, "metrics": metrics}
    problems = dict.fromkeys([*base.get("problems", []), *tuned.get("problems", [])])
    return {"lm_eval": tuned.get("lm_eval") or base.get("lm_eval"), "tasks": tasks, "problems": [*problems]}


def _manager_and_names(tasks: Sequence[str]) -> tuple[Any, list[str]]:
    """The harness's index, and the names to run: a folder stands for all tasks in it."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ModelError(f"evaluation.lm_eval needs the lm-evaluation-harness; {EXTRA}")
    from lm_eval.tasks import TaskManager

    with _quiet():
        folders = {task: Path(task) for task in tasks if _is_path(task)}
        in_folder: dict[str, list[str]] = {}
        for task, folder in folders.items():
            if not folder.is_dir():
                raise ModelError(f"evaluation.lm_eval.tasks: {task} is no folder; give one with task files (*.yaml)")
            in_folder[task] = list(TaskManager(include_path=str(folder), include_defaults=False).all_tasks)
            if not in_folder[task]:
                raise ModelError(f"evaluation.lm_eval.tasks: {task} holds no task file (*.yaml with a `task:` in it)")
        manager = TaskManager(
            include_path=[str(folder) for folder in folders.values()] or None,
            include_defaults=len(folders) < len(tasks),
        )
    known = set(manager.all_tasks)
    names: list[str] = []
    for task in tasks:
        if task not in in_folder and task not in known:
            hint = did_you_mean(task, known) or "; `lm-eval ls tasks` lists them"
            raise ModelError(
                f"evaluation.lm_eval.tasks: lm-eval {version('lm_eval')} knows no task {task!r}{hint}; "
                "a folder with task files needs a `/` in it"
            )
        names += in_folder.get(task, [task])
    return manager, list(dict.fromkeys(names))


def _run(lm: Any, manager: Any, name: str, limit: int | None, num_fewshot: int | None) -> dict[str, Any]:
    """Results of one task, or of a group with all tasks in it. The samples are read for their hashes only."""
    import lm_eval

    results = lm_eval.simple_evaluate(
        model=lm, tasks=[name], task_manager=manager, limit=limit, num_fewshot=num_fewshot, log_samples=True
    )
    found = {}
    for task, values in results["results"].items():
        higher = results["higher_is_better"].get(task, {})
        samples = sorted(results["samples"].get(task, []), key=lambda sample: sample["doc_id"])
        parts = [sample[key] for sample in samples for key in ("doc_hash", "prompt_hash", "target_hash")]
        found[task] = {
            "version": results["versions"].get(task),
            "documents": (results["n-samples"].get(task) or {}).get("effective"),
            "num_fewshot": results["n-shot"].get(task),
            "documents_sha256": hashlib.sha256("".join(parts).encode()).hexdigest() if parts else None,
            "metrics": _metrics(values, higher),
        }
    return found


def _metrics(values: dict[str, Any], higher_is_better: dict[str, Any]) -> dict[str, Any]:
    """`acc,none` and `acc_stderr,none` become one entry `acc`; a filter other than `none` stays in the name."""
    metrics = {}
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith(_STDERR) or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}{_STDERR},{filtered}")
        metrics[metric if filtered == "none" else key] = {
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, int | float) else None,
            "higher_is_better": higher_is_better.get(metric),
        }
    return metrics


def _is_path(task: str) -> bool:
    return "/" in task or os.sep in task


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness talks a lot about what it is about to do."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
