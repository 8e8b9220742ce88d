"""A run whose folder is there: load, train, save, measure, in this order, in each of its processes."""

from __future__ import annotations

import gc
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
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
from recipe_kit.carry_over import RecipeDecides
from recipe_kit.errors import RecipeKitError, RunError, first_line
from recipe_kit.evaluation.work import together
from recipe_kit.gathering import parameter_count, split_models
from recipe_kit.out_of_memory import Watch, explained
from recipe_kit.progress import ProgressLog
from recipe_kit.recipe import Recipe
from recipe_kit.run_dir import RunInfo
from recipe_kit.speed.choose import Choice
from recipe_kit.stopping import StopAtStep
from recipe_kit.trainer import Trainer, make_trainer

Report = Callable[[str], None]


@dataclass
class Job:
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


def carry_out(job: Job, state: PartialState, *, resumed: bool) -> None:
    """Train, save and measure what the job says; called by every rank, and the last writes are the first rank's.

    `resumed` goes on from the newest whole checkpoint. Raises RunError where none is whole or the weights cannot be
    saved, ModelError where PEFT or TRL refuse the combination.
    """
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


def _prove_isolation(trainer: trl.SFTTrainer, job: Job) -> None:
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
    (recorded,) = proofs.require([verdict], report=(lambda text: None) if verdict.ok else job.report)
    job.info["proofs"] = [recorded if p["name"] == verdict.name else p for p in job.info["proofs"]]


def _trainer(job: Job) -> Trainer:
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


def _checkpoint(job: Job, state: PartialState) -> Path:
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


def _save(trainer: Trainer, job: Job) -> None:
    final_save.save(trainer, job.run, job.weights, lambda folder: _write(trainer, job, folder), job.report)


def _write(trainer: Trainer, job: Job, folder: Path) -> None:
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


def _evaluate(trainer: trl.SFTTrainer, job: Job) -> BaseException | None:
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


def _evaluate_saved(trainer: trl.SFTTrainer, job: Job, held_out: data.Split) -> BaseException | None:
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


def _measure(job: Job, held_out: data.Split, tuned: Callable[[], PreTrainedModel]) -> BaseException | None:
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


def _parameter_count(model: torch.nn.Module, *, trained_only: bool) -> int:
    """Parameters of the unquantised model: 4-bit weights hold two in each byte."""
    total = 0
    for parameter in model.parameters():
        if trained_only and not parameter.requires_grad:
            continue
        packed = parameter.__class__.__name__ == "Params4bit"
        total += parameter_count(parameter) * (2 * parameter.element_size() if packed else 1)
    return total
