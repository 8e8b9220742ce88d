"""One model at a time, measured on the rows and prompts of a piece of work that both models get."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit import modeling, provenance, signals
from recipe_kit.attention import FLASH
from recipe_kit.errors import RecipeKitError, RunError
from recipe_kit.evaluation import baseline, generation, lm_tasks, perplexity
from recipe_kit.evaluation.questions import Question
from recipe_kit.evaluation.scoring import ModelResults
from recipe_kit.progress import Countdown
from recipe_kit.recipe import Recipe

Report = Callable[[str], None]
T = TypeVar("T")


@dataclass
class Work:
    """Everything a measurement depends on, but for the model."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    rows: datasets.Dataset  # input_ids and labels
    asked: list[Question]
    stop_ids: list[int]
    precision: str  # float32, bfloat16 or float16
    quantize: bool
    packed: bool
    report: Report
    state: PartialState = field(default_factory=PartialState)
    problems: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What the base weights are held in."""
        return (
            "nf4" if self.quantize else str(modeling.model_dtype(self.recipe, self.precision)).removeprefix("torch.")
        )

    @property
    def base_is_inside(self) -> bool:
        """Whether the tuned model with its adapter switched off is the base: some ways of training change it too."""
        start = self.recipe.lora.get("init_lora_weights", True)
        keeps = isinstance(start, bool) or start in ("gaussian", "orthogonal", "eva")
        changes = self.recipe.lora.get("bias", "none") != "none" or self.recipe.lora.get("layer_replication")
        return self.recipe.method != "full" and keeps and not changes

    @cached_property
    def ids(self) -> list[list[int]]:
        return list(self.rows["input_ids"][:])

    @cached_property
    def labels(self) -> list[list[int]]:
        return list(self.rows["labels"][:])


def measure_both(work: Work, tuned: PreTrainedModel, *, fresh: bool) -> tuple[dict[str, ModelResults], bool]:
    """What base and tuned model make of the work, and whether the base's part was known from before.

    For an adapter the base is the same model with the adapter switched off, where that gives the base back; otherwise
    it is loaded anew after `tuned` was measured. `fresh` measures the base also where its results are kept.
    """
    name = _base_key(work, tuned)
    known = None if fresh else _known(work.state, name)
    results = {} if known is None else {"base": known}
    for which, model in _models(work, tuned, base_is_known=known is not None):
        results[which] = _measure_one(work, which, model)
    complete = work.recipe.evaluation.lm_eval is None or not results["base"].tasks.get("problems", ["failed"])
    if known is None and complete and work.state.is_main_process:
        baseline.keep(name, results["base"].as_dict())
    return results, known is not None


def _measure_one(work: Work, which: str, model: PreTrainedModel) -> ModelResults:
    """Losses of all rows and answers to all questions by one model; each rank does its share, all know everything."""
    settings, started, report = work.recipe.evaluation, time.monotonic(), work.report
    share, of = work.state.process_index, work.state.num_processes
    answers, losses = {}, {}
    if settings.perplexity:
        report(f"measuring the {which} model on {len(work.rows)} held-out rows")
        mine = sorted(range(len(work.ids)), key=lambda row: len(work.ids[row]))[share::of]
        rows = [(work.ids[row], work.labels[row]) for row in mine]
        step = _stoppable(Countdown(f"rows of the {which} model", len(mine), report))

        def measured() -> list[perplexity.RowLoss]:
            pad_id = work.tokenizer.pad_token_id
            if work.packed:
                perplexity.check_packed(model, rows, pad_id=pad_id)
            return perplexity.row_losses(model, rows, pad_id=pad_id, packed=work.packed, on_rows=step)

        losses = dict(_gather(work.state, list(zip(mine, together(work.state, measured), strict=True))))
    if work.asked:
        report(f"answering {len(work.asked)} prompts with the {which} model")
        mine = sorted(range(len(work.asked)), key=lambda index: len(work.asked[index].ids))[share::of]
        prompts = [work.asked[index].ids for index in mine]
        say = _stoppable(Countdown(f"answers of the {which} model", len(mine), report))

        def answered() -> list[generation.Answer | None]:
            return generation.answer(
                model, work.tokenizer, prompts, stop_ids=work.stop_ids, max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size, on_rows=say,
            )  # fmt: skip

        answers = dict(_gather(work.state, list(zip(mine, together(work.state, answered), strict=True))))
    tasks = _run_tasks(work, which, model) if settings.lm_eval is not None else {}
    return ModelResults(losses, answers, tasks, round(time.monotonic() - started, 3))


def _stoppable(countdown: Countdown) -> Callable[[int], None]:
    """Counts what is done, and is a place where each of several processes may stop."""

    def step(count: int) -> None:
        signals.check()
        countdown.step(count)

    return step


def together(state: PartialState, act: Callable[[], T]) -> T:
    """What `act` returns in this process; when it fails in one, it fails in all, so that nobody waits for nobody."""
    result: list[T] = []
    failure: BaseException | None = None
    try:
        result.append(act())
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    reasons = _gather(state, [None if failure is None else f"{type(failure).__name__}: {failure}"])
    if failure is not None:
        raise failure
    if others := [reason for reason in reasons if reason]:
        raise RunError(f"another process could not measure its part ({str(others[0]).splitlines()[0]})")
    return result[0]


def _run_tasks(work: Work, which: str, model: PreTrainedModel) -> dict[str, Any]:
    settings = work.recipe.evaluation.lm_eval
    assert settings is not None
    if work.state.num_processes > 1:
        if which == "tuned":
            work.problems.append("lm_eval: tasks need a single process; run `recipe-kit eval` on this folder with one")
        return {}
    work.report(f"running {', '.join(settings.tasks)} with the {which} model")
    try:
        return lm_tasks.run_tasks(
            model, work.tokenizer, settings.tasks, limit=settings.limit, num_fewshot=settings.num_fewshot,
            batch_size=work.recipe.evaluation.batch_size,
        )  # fmt: skip
    except RecipeKitError as error:
        work.problems.append(f"lm_eval: {error}")
        return {}


def _base_key(work: Work, tuned: PreTrainedModel) -> str:
    """Names the base model's results by everything they depend on."""
    recipe, settings = work.recipe, work.recipe.evaluation
    held: dict[str, int] = {}  # an adapter's base may hold some weights in float32 while it is trained
    for name, parameter in tuned.named_parameters():
        if work.base_is_inside and "lora_" not in name:
            held[str(parameter.dtype)] = held.get(str(parameter.dtype), 0) + parameter.numel()
    return baseline.key({
        "model": modeling.identity(recipe.model),
        "held": held or str(modeling.model_dtype(recipe, work.precision)),
        "autocast": work.base_is_inside and not isinstance(_autocast(tuned), nullcontext),
        "precision": work.label,
        "quantization": {key: str(value) for key, value in recipe.quantization.items()} if work.quantize else None,
        "attention": str(tuned.config._attn_implementation),
        "rows": hashlib.sha256(json.dumps([work.ids, work.labels]).encode()).hexdigest(),
        "prompts": [question.ids for question in work.asked],
        "stop_ids": work.stop_ids,
        "settings": [settings.perplexity, settings.max_new_tokens, work.packed],
        # In 16 bits an answer may depend on the batch it is in; base and tuned model get the same ones.
        "batches": None if work.label == "float32" else [settings.batch_size, work.state.num_processes],
        "lm_eval": settings.lm_eval.model_dump() if settings.lm_eval else None,
        "versions": provenance.versions(),
        "device": torch.cuda.get_device_name() if tuned.device.type == "cuda" else f"cpu x {torch.get_num_threads()}",
    })  # fmt: skip


def _known(state: PartialState, name: str) -> ModelResults | None:
    """The base model's results kept under a name; the first rank looks, and all hear what it found."""
    found: list[Any] = [baseline.load(name) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(found)
    try:
        return None if found[0] is None else ModelResults.from_dict(found[0])
    except (KeyError, TypeError, AttributeError):
        return None  # not a file of ours


def _models(work: Work, tuned: PreTrainedModel, *, base_is_known: bool) -> Iterator[tuple[str, PreTrainedModel]]:
    with inference(tuned):
        yield "tuned", tuned
        if base_is_known:
            return
        if work.base_is_inside:
            with tuned.disable_adapter():
                yield "base", tuned
            return
    if not work.quantize:  # 4-bit weights stay where they are, and are small
        tuned.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    base = modeling.load_model(work.recipe, work.tokenizer, work.precision, quantize=work.quantize)
    with inference(base):
        yield "base", base


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off, cache on, weights used in the precision they are computed in.

    FlashAttention computes in 16 bits. Where weights that were trained with it are float32, and have no autocast any
    more, PyTorch's own takes over, and stays: nothing is trained afterwards.
    """
    config = model.config.get_text_config()
    was_training, had_cache = model.training, config.use_cache
    model.eval()
    config.use_cache = True
    autocast = _autocast(model)
    in_float32 = isinstance(autocast, nullcontext) and model.dtype == torch.float32
    if in_float32 and model.config._attn_implementation in FLASH:
        model.set_attn_implementation("sdpa")
    try:
        with autocast:
            yield
    finally:
        model.train(was_training)
        config.use_cache = had_cache


def _autocast(model: PreTrainedModel) -> Any:
    """Mixed 16-bit base and float32 adapter need autocast, as in training."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    half = dtypes & {torch.bfloat16, torch.float16}
    if len(half) == 1 and torch.float32 in dtypes:
        return torch.autocast(model.device.type, dtype=half.pop())
    return nullcontext()


def _gather(state: PartialState, values: list[Any]) -> list[Any]:
    return list(gather_object(values)) if state.num_processes > 1 else values
