"""What every rank runs: a recipe in, a run folder out.

The order is the message: everything that can be wrong is looked at before the model is loaded, and the run folder says
`finished` only after the weights, the tokenizer and the evaluation are in it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # SFTTrainer pings when it is built
# Packed batches are of many sizes, and fixed segments would leave a fifth of a full card in gaps (seen on an H100).
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import datasets
import huggingface_hub
import torch
import trl
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe_kit import (
    checkpoints,
    data,
    evaluation,
    final_save,
    modeling,
    proofs,
    provenance,
    run_dir,
    signals,
    topology,
    wiring,
)
from recipe_kit import resume as resuming
from recipe_kit.arguments import check_method, training_arguments
from recipe_kit.carry_over import RecipeDecides
from recipe_kit.data.lengths import row_lengths
from recipe_kit.errors import RecipeKitError, RunError, first_line
from recipe_kit.evaluation.work import together
from recipe_kit.gathering import parameter_count, split_models
from recipe_kit.out_of_memory import Watch, explained
from recipe_kit.progress import ProgressLog
from recipe_kit.recipe import Recipe, dump_recipe
from recipe_kit.run_dir import RunInfo
from recipe_kit.speed.card import Card, card
from recipe_kit.speed.choose import Choice, as_begun, choose
from recipe_kit.stopping import StopAtStep
from recipe_kit.trainer import Trainer, make_trainer

T = TypeVar("T")
Report = Callable[[str], None]
DDP_TIMEOUT = 1800  # seconds that processes wait for one another before they give up; transformers' own default
WIRING_ROWS = 64  # rows that the trainer's own loader is watched with


def train(
    recipe: Recipe,
    *,
    runs_dir: str | Path = "runs",
    resume: bool | str | Path = False,
    accept_changes: bool = False,
    command: Sequence[str] = (),
    on_info: Callable[[RunInfo], None] = lambda info: None,
    report: Report = lambda text: None,
) -> Path:
    """Train what the recipe says and return its run folder; called by every rank.

    `resume` continues the newest unfinished run of this recipe below `runs_dir`, or the run folder it names; "auto"
    begins a new one where there is none, and trains nothing where this recipe's run is finished. What changed since
    the run began is refused, or with `accept_changes` recorded in `run.json`. `on_info` sees what `run.json` will say
    before the model is loaded, and may add to it. `report` receives remarks for a person, on the first rank only.
    Raises a RecipeKitError for anything the user can correct, before the model is loaded wherever that can be known.
    """
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # read at import, which a notebook may have done before
    patience = timedelta(seconds=recipe.training.get("ddp_timeout") or DDP_TIMEOUT)
    state = PartialState(cpu=modeling.uses_cpu(recipe), timeout=patience)
    if not state.is_main_process:
        report = _silent
    notes: list[str] = []
    runs_dir = Path(runs_dir)
    precision = modeling.choose_precision(recipe, notes)
    on_gpus = None if not modeling.uses_cpu(recipe) else 0
    topology.check(recipe, topology.here(), gpus=on_gpus, precision=precision)
    arguments = training_arguments(recipe, precision)
    check_method(recipe)
    evaluation.check(recipe)
    if state.is_main_process:
        run_dir.check_writable(runs_dir)
    continued = _from_first_rank(state, lambda: resuming.find(recipe, runs_dir, resume, report))
    before = run_dir.read(continued) if continued else None
    if continued and before and before["status"] == "finished":
        return continued
    if recipe.method == "qlora" and modeling.uses_cpu(recipe) and recipe.training.get("eval_strategy", "no") != "no":
        notes.append(
            "training.eval_strategy: on a CPU, 4-bit weights change a little each time they are evaluated, and "
            "training goes on from there (bitsandbytes 0.50); set it to no"
        )
    if recipe.model.id.startswith("tiny:"):
        notes.append("wiring check: a tiny random model, whose scores and answers mean nothing")
    for note in notes:
        report(note)

    report(f"reading rows for {recipe.name}")
    tokenizer = modeling.load_tokenizer(recipe.model)
    evaluation.check_prompts(recipe, tokenizer)
    splits = data.prepare(recipe.data, tokenizer, report=report)
    for split in splits.values():
        report(_counts_line(split))
    choice = _choose(recipe, precision, arguments, splits, state)
    arguments = training_arguments(recipe, precision, choice.training)
    if continued and before:
        processes = before.get("processes", 1), state.num_processes
        set_anew = resuming.set_anew(continued, before, recipe)
        choice = as_begun(choice, arguments, before.get("speed") or {}, processes=processes, set_anew=set_anew)
        arguments = training_arguments(recipe, precision, choice.training)
    for note in choice.notes:
        report(note)
    notes += choice.notes
    info = provenance.run_info(recipe, splits, tokenizer, command, state.num_processes, notes)
    info["speed"] = _speed(arguments, choice)
    accepted: list[resuming.Change] = []
    if continued and before:
        info["model"]["revision"] = modeling.commit(recipe.model) or recipe.model.revision
        accepted = _from_first_rank(state, lambda: resuming.check_unchanged(
            continued, before, info, recipe, accepted=accept_changes, report=report
        ))  # fmt: skip
    proved = prove(recipe, arguments, tokenizer, splits, attention=choice.attention, report=report)

    run = continued or _from_first_rank(state, lambda: run_dir.create(runs_dir, recipe.name))
    info["proofs"] = proved
    info["process"] = run_dir.process()
    on_info(info)
    if state.is_main_process:
        if before:
            resuming.record(run, before, info, accepted)
        run_dir.write_text(run / run_dir.RECIPE, dump_recipe(recipe))
        run_dir.write_json(run / run_dir.RUN, info)
    report(f"run folder {run}")
    job = _Job(run, recipe, arguments, tokenizer, splits, precision, choice, info, report, Counter())
    estimated = choice.estimate.peak if choice.estimate else None
    job.memory = Watch(
        recipe, arguments, estimated_peak_bytes=estimated, note=job.note,
        go_on=lambda remedy: resuming.advice(run, recipe, remedy),
    )  # fmt: skip
    try:
        with explained(job.memory):
            _run(job, state, resumed=continued is not None)
    except BaseException as error:
        if info["status"] == "finished":
            raise
        info["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        info["error"] = provenance.without_tokens(first_line(error))
        if state.is_main_process:
            with suppress(RunError):  # the first error is the one to show
                run_dir.write_json(run / run_dir.RUN, info)
        raise
    return run


def prove(
    recipe: Recipe,
    arguments: trl.SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, data.Split],
    *,
    attention: str = "auto",
    report: Report = lambda text: None,
) -> list[dict[str, Any]]:
    """Every proof that can be made before the model is loaded, as recorded in `run.json`; called by every rank.

    Raises ProofError, with a sentence for each that failed, unless the recipe names them in `proofs.warn`.
    """
    config = modeling.load_config(recipe.model)
    train = splits["train"]
    verdicts = proofs.check(recipe, splits, tokenizer, vocab_size=config.get_text_config().vocab_size)
    sample = train.rows.select(proofs.spread(len(train.rows), WIRING_ROWS))
    wired = wiring.check(arguments, sample, tokenizer, config, attention=attention, trainer_class=Trainer)
    agreed = wiring.processes_agree(_digest(train, sample))
    return proofs.require([*verdicts, *proofs.with_fatality([*wired, agreed], recipe)], report)


def _choose(
    recipe: Recipe, precision: str, arguments: trl.SFTConfig, splits: dict[str, data.Split], state: PartialState
) -> Choice:
    """What the recipe leaves open, decided alike on every rank: for the smallest card there is."""
    here = None if modeling.uses_cpu(recipe) else card()
    if here is not None and state.num_processes > 1:
        cards: list[Card] = gather_object([here])
        here = min(cards, key=lambda one: one.memory_bytes)
    train = splits["train"]
    share = train.counts.trained_tokens / max(train.counts.tokens, 1)
    config = modeling.load_config(recipe.model)
    lengths = row_lengths(train.rows)
    return choose(recipe, config, precision, arguments, lengths, share, here, processes=state.num_processes)


def _speed(arguments: trl.SFTConfig, choice: Choice) -> dict[str, Any]:
    """What `run.json` says of how the steps are computed."""
    keys = (
        *("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "packing"),
        *("padding_free", "train_sampling_strategy"),
    )
    return {
        "attention": choice.attention,
        "kernels": choice.kernels,
        "together": choice.together,
        "strategy": topology.strategy_here(),
        **{key: getattr(arguments, key) for key in keys},
        "optim": str(getattr(arguments.optim, "value", arguments.optim)),
        "estimated_peak_bytes": choice.estimate.peak if choice.estimate else None,
    }


def _digest(train: data.Split, sample: datasets.Dataset) -> str:
    """Says the same on every rank that has the same rows, in the same order, as the same token ids."""
    ids = json.dumps(sample["input_ids"][:])
    return hashlib.sha256(train.digests.tobytes() + ids.encode()).hexdigest()


@dataclass
class _Job:
    """What a run consists of once everything that can be checked has been."""

    run: Path
    recipe: Recipe
    arguments: trl.SFTConfig
    tokenizer: PreTrainedTokenizerBase
    splits: dict[str, data.Split]
    precision: str
    choice: Choice
    info: RunInfo
    report: Report
    streamed: Counter[str]  # rows of a stream, as they come by
    memory: Watch = field(default_factory=Watch)

    def note(self, text: str) -> None:
        """Say it to the person, and in `run.json`."""
        self.info["notes"].append(text)
        self.report(text)

    @property
    def train_rows(self) -> datasets.Dataset | datasets.IterableDataset:
        if self.recipe.data.streaming:
            return data.stream_rows(self.recipe.data, self.tokenizer, self.splits, self.streamed)
        return self.splits["train"].rows

    @property
    def weights(self) -> Path:
        return run_dir.weights(self.run, self.recipe.method)


def _run(job: _Job, state: PartialState, *, resumed: bool) -> None:
    run, recipe, arguments, info, report = job.run, job.recipe, job.arguments, job.info, job.report
    arguments.output_dir = str(run / run_dir.CHECKPOINTS)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run / run_dir.TENSORBOARD)
    started = time.monotonic()
    checkpoint = _checkpoint(job, state) if resumed else None
    report(f"loading {recipe.model.id}")
    trainer = _trainer(job)
    trainer.loaded_from = started
    model = trainer.accelerator.unwrap_model(trainer.model)
    _prove_isolation(trainer, job)
    info["model"] |= {
        "revision": modeling.commit(recipe.model) or recipe.model.revision,
        "parameters": _parameter_count(model, trained_only=False),
        "trainable_parameters": _parameter_count(model, trained_only=True),
        "trainable_dtype": str(next(p.dtype for p in model.parameters() if p.requires_grad)).removeprefix("torch."),
        "dtype": "nf4" if recipe.method == "qlora" else str(modeling.model_dtype(recipe, job.precision))[6:],
    }
    report(
        f"{info['model']['trainable_parameters']:,} of {info['model']['parameters']:,} parameters are trained "
        f"({info['model']['trainable_dtype']}), base in {info['model']['dtype']}"
    )
    del model  # the trainer's alone, which lets it go before saved weights are loaded
    if state.is_main_process:
        info["model"]["license"] = provenance.base_license(recipe.model, info["model"]["revision"])
        provenance.keep_license_texts(recipe.model, info["model"]["revision"], run / run_dir.LICENSE)
    trainer.rehearsal = lambda: final_save.rehearse(trainer, run, lambda folder: _write(trainer, job, folder), report)
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    training_seconds = trainer.seconds
    progress = next(c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressLog))
    tokens = int(trainer._total_train_tokens)
    info["training"] = {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "effective_batch_size": arguments.per_device_train_batch_size
        * arguments.gradient_accumulation_steps
        * state.num_processes,
        "train_loss": outcome.training_loss,
        "final_loss": next((line["loss"] for line in reversed(trainer.state.log_history) if "loss" in line), None),
        "tokens": tokens,
        "seconds": round(training_seconds, 3),
        "tokens_per_second": round(tokens / training_seconds, 1),
        "peak_memory_bytes": trainer.peak_memory_bytes,
        "rehearsal_seconds": round(trainer.rehearsal_seconds, 3),
        "resumed_at_step": progress.first_step if resumed else None,
        "counted_from_step": trainer.counted_from_step,
    }
    if job.memory.parts > 1:
        info["speed"]["parts"] = job.memory.parts
    if recipe.data.streaming:
        info["training"]["streamed_rows"] = dict(job.streamed)
    report(f"saving to {job.weights}")
    _save(trainer, job)
    bug = _evaluate(trainer, job)
    info["training"]["wall_seconds"] = round(trainer.wall_seconds, 3)
    info["status"] = "finished"
    info["finished_at"] = provenance.now()
    if state.is_main_process:
        run_dir.write_json(run / run_dir.RUN, info)
        run_dir.point_latest(run)
    state.wait_for_everyone()
    if bug is not None:
        raise bug


def _prove_isolation(trainer: trl.SFTTrainer, job: _Job) -> None:
    """Packed rows of the loaded model, on this device and in this precision, do not see each other.

    Not asked of 4-bit weights on a CPU: bitsandbytes 0.50 repacks them when a model is evaluated, and back with loss.
    """
    if job.recipe.method == "qlora" and modeling.uses_cpu(job.recipe):
        return
    if topology.strategy_here() in topology.WEIGHTS_SHARDED:
        return  # no process has the weights to compute with: the verdict on the miniature stands
    rows = job.splits["train"].rows.select(range(min(4, len(job.splits["train"].rows))))
    verdict = wiring.isolation(trainer.model, trainer, rows)
    if verdict.ok is None:
        return  # the verdict on the miniature stands
    (verdict,) = proofs.with_fatality([verdict], job.recipe)
    (recorded,) = proofs.require([verdict], report=_silent if verdict.ok else job.report)
    job.info["proofs"] = [recorded if p["name"] == verdict.name else p for p in job.info["proofs"]]


def _trainer(job: _Job) -> Trainer:
    split_models(job.arguments.deepspeed_plugin)
    model = modeling.load_model(job.recipe, job.tokenizer, job.precision, attention=job.choice.attention)
    eval_rows = job.splits["eval"].rows if "eval" in job.splits else None
    trainer = make_trainer(
        job.recipe, model, job.tokenizer, job.arguments, job.choice, job.precision, job.train_rows, eval_rows
    )
    trainer.watch, trainer.report = job.memory, job.note
    trainer.add_callback(ProgressLog(job.run / run_dir.LOG))
    trainer.add_callback(RecipeDecides())
    if (listener := signals.listener()) is not None:
        trainer.add_callback(StopAtStep(listener, trainer))  # the last: it overrules what the others want
    return trainer


def _checkpoint(job: _Job, state: PartialState) -> Path:
    """The checkpoint to go on from, the same on all ranks. Raises RunError where none is whole."""
    if state.is_local_main_process:
        checkpoints.clear(job.run)
    found: list[Any] = [checkpoints.newest(job.run, job.report) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(found)
    if found[0] is None:
        raise RunError(f"{job.run}: none of its checkpoints is whole; start anew without --resume")
    if job.arguments.save_only_model:
        job.note(
            "training.save_only_model: the optimiser begins anew here, so the run is not what it would have been "
            "without the interruption"
        )
    job.report(f"going on from {found[0]}")
    return Path(found[0])


def _save(trainer: Trainer, job: _Job) -> None:
    final_save.save(trainer, job.run, job.weights, lambda folder: _write(trainer, job, folder), job.report)


def _write(trainer: Trainer, job: _Job, folder: Path) -> None:
    """The weights as others load them, with their tokenizer; called by every rank."""
    trainer.save_model(str(folder))
    if not trainer.accelerator.is_main_process:
        return
    job.tokenizer.save_pretrained(folder)
    for leftover in ("training_args.bin", "README.md"):  # a pickle with local paths, and PEFT's empty card
        (folder / leftover).unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    if config.is_file():  # PEFT reads `revision` as that of the base, and leaves it empty
        told = json.loads(config.read_text(encoding="utf-8"))
        run_dir.write_json(config, told | {"revision": job.info["model"]["revision"]})


def _evaluate(trainer: trl.SFTTrainer, job: _Job) -> BaseException | None:
    """Measure what was trained; a bug on the way is returned, to be raised once the run is finished."""
    held_out = job.splits.get(evaluation.split_name(job.recipe))
    if held_out is None or not job.recipe.evaluation.after_training:
        return None
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return _evaluate_saved(trainer, job, held_out)
    # Without mixed precision's wrapper, which full weights would keep and their base does not have.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    return _measure(job, held_out, lambda: model)


def _evaluate_saved(trainer: trl.SFTTrainer, job: _Job, held_out: data.Split) -> BaseException | None:
    """Measure the weights that were saved, as `recipe-kit eval` does: each process loads all of them anew."""
    state = PartialState()
    state.wait_for_everyone()
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.deepspeed = trainer.optimizer = trainer.lr_scheduler = None
    for name in ("model", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader"):
        setattr(trainer.callback_handler, name, None)
    topology.forget()
    split_models(None)
    gc.collect()
    torch.cuda.empty_cache()
    job.report("loading the saved weights to measure them")
    return _measure(job, held_out, lambda: modeling.load_tuned(job.recipe, job.weights, job.tokenizer, job.precision))


def _measure(job: _Job, held_out: data.Split, tuned: Callable[[], PreTrainedModel]) -> BaseException | None:
    train = None if job.recipe.data.streaming else job.splits["train"]
    try:
        signals.release()
        with explained(replace(job.memory, phase="evaluation", arguments=None, step=0)):
            evaluation.measure(
                job.run, job.recipe, job.tokenizer, together(PartialState(), tuned), held_out, job.precision,
                train=train, report=job.report,
            )  # fmt: skip
    except (Exception, KeyboardInterrupt) as error:  # what was trained is saved, and not lost by this
        reason = first_line(error)
        job.note(f"not evaluated ({reason}); run `recipe-kit eval` on this folder")
        known = isinstance(error, RecipeKitError | KeyboardInterrupt)
        return None if known else error
    return None


def _from_first_rank(state: PartialState, decide: Callable[[], T]) -> T:
    """What the first rank decides, known to all; its failure is everybody's, so that nobody waits."""
    answer: list[Any] = [None]
    if state.is_main_process:
        try:
            answer = [decide()]
        except RecipeKitError as error:
            answer = [error]
    if state.num_processes > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], RecipeKitError):
        raise answer[0]
    found: T = answer[0]
    return found


def _parameter_count(model: torch.nn.Module, *, trained_only: bool) -> int:
    """Parameters of the unquantised model: 4-bit weights hold two in each byte."""
    total = 0
    for parameter in model.parameters():
        if trained_only and not parameter.requires_grad:
            continue
        packed = parameter.__class__.__name__ == "Params4bit"
        total += parameter_count(parameter) * (2 * parameter.element_size() if packed else 1)
    return total


def _counts_line(split: data.Split) -> str:
    counts = split.counts
    held_out = f", {counts.held_out} held out" if counts.held_out else ""
    dropped = "".join(f", {number} dropped: {reason}" for reason, number in counts.dropped.most_common())
    cut = f", {counts.truncated} truncated" if counts.truncated else ""
    cut += f", {counts.merged_turns} with turns merged" if counts.merged_turns else ""
    cut += "".join(f", {number} × {kind} replaced" for kind, number in counts.redacted.items())
    share = counts.trained_tokens / max(counts.tokens, 1)
    rows = f"{split.name}: {counts.kept} of {counts.read} rows{held_out}{dropped}{cut}"
    return f"{rows}; {counts.tokens:,} tokens, {share:.0%} trained"


def _silent(text: str) -> None:
    return None
