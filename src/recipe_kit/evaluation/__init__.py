"""Did it help? Base against tuned on the same held-out rows, in the same precision, with the same decoding."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit import data, modeling, provenance, run_dir
from recipe_kit.errors import DataError, RecipeKitError, RunError
from recipe_kit.evaluation import generation, lm_tasks, record, scoring
from recipe_kit.evaluation.questions import own_prompts, questions, turns
from recipe_kit.evaluation.work import Report, Work, measure_both, together
from recipe_kit.evaluation.work import inference as inference
from recipe_kit.labels import IGNORED
from recipe_kit.lock import recipe_of
from recipe_kit.metrics import check_options, get_metric, note
from recipe_kit.recipe import Recipe
from recipe_kit.run_dir import Metrics

PRECISIONS = ("float32", "bfloat16", "float16", "nf4")


def evaluate(
    run: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    precision: str | None = None,
    packed: bool = False,
    fresh: bool = False,
    overrides: Iterable[str] = (),
    report: Report = lambda text: None,
) -> Metrics:
    """Measure a finished run again from its folder, and rewrite its evaluation files; called by every rank.

    `split` is `test` or `eval`; by default what the recipe says. A QLoRA run is measured with its base in 4 bits, as
    it was trained; `precision` (one of PRECISIONS) measures any run another way. `packed` takes perplexity over rows
    laid one after another; `fresh` measures the base model anew where its results are kept. `overrides` change values
    of the recipe's `evaluation` section, as `evaluation.limit=100`. Raises RunError for a run that did not finish,
    DataError when the held-out rows are not the ones the run recorded.
    """
    folder = run_dir.find(run)
    info = run_dir.require_finished(folder)
    overrides = tuple(overrides)
    if other := [text for text in overrides if not text.startswith("evaluation.")]:
        raise RunError(f"--set {other[0]}: a finished run cannot be changed; set values of `evaluation` only")
    recipe = recipe_of(folder, overrides)
    check(recipe)
    run_dir.check_changeable(folder)
    PartialState(cpu=modeling.uses_cpu(recipe))  # the ranks know of each other from here on
    quantize = recipe.method == "qlora" if precision is None else precision == "nf4"
    if precision in (None, "nf4"):
        precision = modeling.choose_precision(recipe, [])
    weights = run_dir.weights(folder, recipe.method)
    if not weights.is_dir():
        raise RunError(f"{weights}: no such folder; what this run learnt is gone")
    name: str = split or split_name(recipe)
    if getattr(recipe.data, name) is None:
        second = "eval" if name == "test" else "test"
        has_other = getattr(recipe.data, second) is not None
        then = f"it has data.{second}: --split {second}" if has_other else "name one, and train again"
        raise RunError(f"{folder}: the recipe has no data.{name} to measure on; {then}")
    tokenizer = modeling.load_tokenizer(_saved_tokenizer(recipe, folder, info["method"]))
    held_out = data.prepare(recipe.data, tokenizer, splits=(name,))[name]
    recorded = info["data"].get("splits", {}).get(held_out.name, {}).get("content_sha256")
    if recorded is not None and recorded != held_out.content_sha256:
        raise DataError(
            f"data.{held_out.name}: the held-out rows have changed since this run was trained "
            f"({recorded[:12]} then, {held_out.content_sha256[:12]} now); restore them, or train again"
        )
    problems: list[str] = []
    train = None if recipe.data.streaming else _training_rows(recipe, tokenizer, info, problems)
    report("loading the tuned model")
    tuned = modeling.load_tuned(recipe, weights, tokenizer, precision, quantize=quantize)
    return measure(
        folder, recipe, tokenizer, tuned, held_out, precision,
        train=train, limit=limit, quantize=quantize, packed=packed, fresh=fresh, problems=problems, report=report,
    )  # fmt: skip


def check(recipe: Recipe) -> None:
    """The metrics a recipe names exist, take their options, and their packages are installed; loads no model.

    Raises a RecipeKitError.
    """
    for metric in recipe.evaluation.metrics:
        check_options(get_metric(metric.name), metric.options)
    if recipe.evaluation.lm_eval is not None:
        lm_tasks.check(recipe.evaluation.lm_eval.tasks)


def check_prompts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """The chat template takes the recipe's fixed prompts. Raises LabelError, before hours of training, not after."""
    own_prompts(recipe, tokenizer)


def split_name(recipe: Recipe) -> str:
    """Which split a recipe is measured on, whether or not it has one."""
    return recipe.evaluation.split or ("test" if recipe.data.test is not None else "eval")


def measure(
    run: Path,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    tuned: PreTrainedModel,
    held_out: data.Split,
    precision: str,
    *,
    train: data.Split | None = None,
    limit: int | None = None,
    quantize: bool | None = None,
    packed: bool = False,
    fresh: bool = False,
    problems: Iterable[str] = (),
    report: Report = lambda text: None,
) -> Metrics:
    """Score base and tuned model on `held_out` and write the run's evaluation files.

    Several ranks share the rows; sums and answers are gathered, and the first rank writes. With `train`, answers that
    were also learnt are reported apart from the others. What fails on the way (a metric, a judge, a prompt that is too
    long) is a sentence among `problems`; everything else is kept.
    """
    settings = recipe.evaluation
    count = min(value for value in (len(held_out.rows), limit, settings.limit) if value is not None)
    rows = held_out.rows.select(range(count))
    asked, has_prompts = questions(recipe, tokenizer, held_out, count)
    stop_ids = generation.stop_token_ids(tuned, tokenizer)
    quantize = recipe.method == "qlora" if quantize is None else quantize
    work = Work(recipe, tokenizer, rows, asked, stop_ids, precision, quantize, packed, report)
    work.problems.extend(problems)
    if settings.metrics and not has_prompts:
        work.problems.append("metrics: these rows are plain text, without prompts to answer; only perplexity is taken")
    for metric in settings.metrics if has_prompts else []:
        if remark := note(metric.name, [question.reference for question in asked if question.reference]):
            report(remark)  # before hours of answers, not after
    results, base_was_known = measure_both(work, tuned, fresh=fresh)
    seen = None if train is None else _seen(train, held_out, work)
    found = scoring.all_scores(results["base"], results["tuned"], asked, seen, settings, work.problems)
    metrics: Metrics = {
        "schema_version": 2,
        "evaluated_at": provenance.now(),
        "versions": provenance.versions(),
        "processes": work.state.num_processes,
        "split": held_out.name,
        "rows": count,
        "content_sha256": held_out.content_sha256,
        "precision": work.label,
        **found.losses,  # type: ignore[typeddict-item]
        "generation": {
            "answers": sum(
                question.row is not None and results["tuned"].answers[index] is not None
                for index, question in enumerate(asked)
            ),
            "max_new_tokens": settings.max_new_tokens,
            "do_sample": False,
            "stop_token_ids": stop_ids,
            "batch_size": settings.batch_size,
            "seed": settings.seed,
        },
        "base_from_cache": base_was_known,
        "seconds": {which: result.seconds for which, result in results.items()},
        "scores": found.scores,
        "groups": found.groups,
        "problems": work.problems,
    }
    if settings.lm_eval is not None:
        metrics["lm_eval"] = lm_tasks.side_by_side(results["base"].tasks, results["tuned"].tasks)
        work.problems.extend(f"lm_eval: {problem}" for problem in metrics["lm_eval"].get("problems", []))

    def write() -> None:
        if not work.state.is_main_process:
            return
        record.keep_earlier(run, metrics, report)
        run_dir.write_json(run / run_dir.METRICS, metrics)
        run_dir.write_lines(run / run_dir.SCORES, record.score_lines(work, results, found, held_out))
        run_dir.write_lines(run / run_dir.SAMPLES, record.sample_lines(work, results))
        (run / run_dir.JUDGE).unlink(missing_ok=True)
        if settings.judge is not None:
            record.ask_judge(run, work, metrics, results)

    together(work.state, write)
    return metrics


def read_samples(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `samples.jsonl`; [] for a run without samples."""
    return run_dir.read_lines(run_dir.find(run) / run_dir.SAMPLES)


def _saved_tokenizer(recipe: Recipe, run: Path, method: str) -> Any:
    """The recipe's model section, pointed at the tokenizer and template that the run saved."""
    changes = {"id": str(run_dir.weights(run, method)), "revision": None, "chat_template": None}
    return recipe.model.model_copy(update={**changes, "chat_template_kwargs": {}})


def _training_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, info: run_dir.RunInfo, problems: list[str]
) -> data.Split | None:
    """The rows a run was trained on; None, with a sentence in `problems`, where they are not what they were."""
    recorded = info["data"].get("splits", {}).get("train", {}).get("content_sha256")
    try:
        train = data.prepare(recipe.data, tokenizer, splits=("train",))["train"]
    except RecipeKitError as error:
        problems.append(f"groups: answers that were also learnt are not told apart ({error})")
        return None
    if recorded in (None, train.content_sha256):
        return train
    problems.append("groups: answers that were also learnt are not told apart, for the training rows have changed")
    return None


def _seen(train: data.Split, held_out: data.Split, work: Work) -> list[list[bool]]:
    """Of each held-out row's trained turns, whether the same answer was also trained on; without turns cut off."""
    train_on = work.recipe.data.train_on
    learnt = {text for example in train.examples for _, text in turns(example, train_on)}
    count = len(work.rows)
    flags = [[text in learnt for _, text in turns(row, train_on)] for row in held_out.examples[:count]]
    cut = held_out.details.select_columns(["truncated"])["truncated"][:count]
    for row in range(count):
        if cut[row]:
            stretches = [trained for trained, _ in groupby(label != IGNORED for label in work.labels[row])]
            flags[row] = flags[row][: sum(stretches)]
    return flags
