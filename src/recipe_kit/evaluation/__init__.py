"""Did it help? Base against tuned on the same held-out rows, in the same precision, with the same decoding."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit import data, modeling, run_dir
from recipe_kit.errors import DataError, RunError
from recipe_kit.evaluation import generation, perplexity
from recipe_kit.labels import IGNORED
from recipe_kit.recipe import Recipe, load_recipe
from recipe_kit.run_dir import Metrics

Report = Callable[[str], None]


def evaluate(
    run: str | Path, *, split: str | None = None, limit: int | None = None, report: Report = lambda text: None
) -> Metrics:
    """Measure a finished run again from its folder, and rewrite its `metrics.json` and `samples.jsonl`.

    `split` is `test` or `eval`; by default `test` where the recipe names one. A QLoRA run is measured with its base in
    4 bits, as it was trained. Raises RunError for a run that did not finish, DataError when the held-out rows are not
    the ones the run recorded.
    """
    folder = run_dir.find(run)
    info = run_dir.require_finished(folder)
    recipe = load_recipe(folder / run_dir.RECIPE)
    notes: list[str] = []
    precision = modeling.choose_precision(recipe, notes)
    tokenizer = modeling.load_tokenizer(_saved_tokenizer(recipe, folder, info["method"]))
    held_out = held_out_split(recipe, tokenizer, split)
    if held_out is None:
        raise RunError(f"{folder}: the recipe holds no rows out; name data.eval or data.test to measure on")
    recorded = info["data"].get("splits", {}).get(held_out.name, {}).get("content_sha256")
    if recorded is not None and recorded != held_out.content_sha256:
        raise DataError(
            f"data.{held_out.name}: the held-out rows have changed since this run was trained "
            f"({recorded[:12]} then, {held_out.content_sha256[:12]} now); restore them, or train again"
        )
    report("loading the tuned model")
    tuned = modeling.load_tuned(recipe, run_dir.weights(folder, recipe.method), tokenizer, precision)
    return measure(folder, recipe, tokenizer, tuned, held_out, precision, limit=limit, report=report)


def held_out_split(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> data.Split | None:
    """The rows to measure on: the split asked for, else `test`, else `eval`; None when the recipe has neither."""
    if name is None:
        name = "test" if recipe.data.test is not None else "eval"
    if getattr(recipe.data, name) is None:
        return None
    return data.prepare(recipe.data, tokenizer, splits=(name,))[name]


def measure(
    run: Path,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    tuned: PreTrainedModel,
    held_out: data.Split,
    precision: str,
    *,
    limit: int | None = None,
    report: Report = lambda text: None,
) -> Metrics:
    """Score base and tuned model on `held_out` and write the run's evaluation files.

    Several ranks share the rows; sums and answers are gathered, and the first rank writes. For an adapter the base is
    the same model with the adapter switched off; for full weights it is loaded anew after `tuned` was measured.
    """
    from accelerate import PartialState

    state = PartialState()
    settings = recipe.evaluation
    count = min(value for value in (len(held_out.rows), limit, settings.limit) if value is not None)
    rows = held_out.rows.select(range(count))
    chats = _sample_prompts(held_out.examples[:count], settings.samples)
    ends = {labels[-1] for labels in ([t for t in row if t != IGNORED] for row in rows["labels"][:64]) if labels}
    stop_ids = generation.stop_token_ids(tuned, tokenizer, ends)
    mine = list(range(state.process_index, count, state.num_processes))
    my_chats = list(range(state.process_index, len(chats), state.num_processes))
    results: dict[str, dict[str, Any]] = {}

    for which, model in _both(recipe, tokenizer, tuned, precision):
        report(f"measuring the {which} model on {count} held-out rows")
        sums = (
            [perplexity.loss_sum(model, rows[i]["input_ids"], rows[i]["labels"]) for i in mine]
            if settings.perplexity
            else []
        )
        answers = generation.answer(
            model, tokenizer, [chats[i][0] for i in my_chats],
            stop_ids=stop_ids, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size,
        )  # fmt: skip
        results[which] = {
            "sums": _gather(state, sums),
            "answers": dict(_gather(state, list(zip(my_chats, answers, strict=True)))),
        }

    metrics: Metrics = {
        "split": held_out.name,
        "rows": count,
        "content_sha256": held_out.content_sha256,
        "precision": "nf4" if recipe.method == "qlora" else precision,
        "generation": {"max_new_tokens": settings.max_new_tokens, "do_sample": False, "stop_token_ids": stop_ids},
    }
    if settings.perplexity:
        for which in ("base", "tuned"):
            sums = results[which]["sums"]
            total, tokens = sum(loss for loss, _ in sums), sum(number for _, number in sums)
            metrics[which] = perplexity.score(total, tokens)  # type: ignore[literal-required]
    if state.is_main_process:
        run_dir.write_json(run / run_dir.METRICS, metrics)
        lines = [
            {
                "prompt": prompt,
                "reference": reference,
                "base": results["base"]["answers"][index],
                "tuned": results["tuned"]["answers"][index],
            }
            for index, (prompt, reference) in enumerate(chats)
        ]
        run_dir.write_text(
            run / run_dir.SAMPLES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )
    return metrics


def read_samples(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `samples.jsonl`; [] for a run without samples."""
    path = run_dir.find(run) / run_dir.SAMPLES
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _saved_tokenizer(recipe: Recipe, run: Path, method: str) -> Any:
    """The recipe's model section, pointed at the tokenizer and template that the run saved."""
    changes = {"id": str(run_dir.weights(run, method)), "revision": None, "chat_template": None}
    return recipe.model.model_copy(update={**changes, "chat_template_kwargs": {}})


def _sample_prompts(examples: list[Any], number: int) -> list[tuple[list[dict[str, Any]], str]]:
    """`number` prompts with references, spread evenly over the rows."""
    chats = [chat for chat in map(generation.split_last_turn, examples) if chat is not None and chat[0]]
    number = min(number, len(chats))
    return [chats[index * len(chats) // number] for index in range(number)]


def _both(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, tuned: PreTrainedModel, precision: str
) -> Iterator[tuple[str, PreTrainedModel]]:
    with _inference(tuned):
        yield "tuned", tuned
        if recipe.method != "full":
            with tuned.disable_adapter():
                yield "base", tuned
            return
    tuned.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    base = modeling.load_model(recipe, tokenizer, precision)
    with _inference(base):
        yield "base", base


@contextmanager
def _inference(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off, cache on, weights used in the precision they are computed in."""
    was_training, had_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        with _autocast(model):
            yield
    finally:
        model.train(was_training)
        model.config.use_cache = had_cache


def _autocast(model: PreTrainedModel) -> Any:
    """Mixed 16-bit base and float32 adapter need autocast, as in training."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    half = dtypes & {torch.bfloat16, torch.float16}
    if len(half) == 1 and torch.float32 in dtypes:
        return torch.autocast(model.device.type, dtype=half.pop())
    return nullcontext()


def _gather(state: Any, values: list[Any]) -> list[Any]:
    from accelerate.utils import gather_object

    return list(gather_object(values)) if state.num_processes > 1 else values
