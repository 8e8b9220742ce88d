"""What every rank runs: a recipe in, a run folder out.

The order is the message: everything that can be wrong is looked at before the model is loaded, and the run folder says
`finished` only after the weights, the tokenizer and the evaluation are in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # SFTTrainer pings when it is built
# Packed batches are of many sizes, and fixed segments would leave a fifth of a full card in gaps (seen on an H100).
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import datasets
import huggingface_hub
import trl
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedTokenizerBase

from recipe_kit import attention, data, evaluation, modeling, proofs, provenance, run_dir, topology, wiring
from recipe_kit import resume as resuming
from recipe_kit.arguments import check_method, training_arguments
from recipe_kit.data.lengths import row_lengths
from recipe_kit.errors import RecipeKitError, RunError, first_line
from recipe_kit.out_of_memory import Watch, explained
from recipe_kit.recipe import Recipe, dump_recipe
from recipe_kit.run_dir import RunInfo
from recipe_kit.running import Job, carry_out
from recipe_kit.secrets import blotted
from recipe_kit.speed.card import Card, card
from recipe_kit.speed.choose import Choice, as_begun, choose
from recipe_kit.trainer import Trainer

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
    if modeling.uses_cpu(recipe):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, if installed, says so on stdout
    if not state.is_main_process:
        report = _silent
    notes: list[str] = []
    runs_dir = Path(runs_dir)
    precision = modeling.choose_precision(recipe, notes)
    on_gpus = None if not modeling.uses_cpu(recipe) else 0
    topology.check(recipe, topology.here(), gpus=on_gpus, precision=precision)
    attention.check(recipe, modeling.capability(recipe))
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
    job = Job(run, recipe, arguments, tokenizer, splits, precision, choice, info, report, Counter())
    estimated = choice.estimate.peak if choice.estimate else None
    job.memory = Watch(
        recipe, arguments, estimated_peak_bytes=estimated, note=job.note,
        go_on=lambda remedy: resuming.advice(run, recipe, remedy),
    )  # fmt: skip
    try:
        with explained(job.memory):
            carry_out(job, state, resumed=continued is not None)
    except BaseException as error:
        if info["status"] == "finished":
            raise
        info["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        info["error"] = blotted(first_line(error))
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
    return choose(recipe, config, precision, arguments, lengths, share, here, how=topology.here())


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
