"""What a recipe will do, told before anything is trained and without a GPU: rows, tokens, steps, sizes, proofs.

`build` looks, `problems` judges, `lines` shows. A stage that fails does not keep the others from being looked at, so a
user sees everything that is wrong at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recipe_kit import data, launch, modeling, topology
from recipe_kit.arguments import check_method, training_arguments
from recipe_kit.attention import check as check_attention
from recipe_kit.errors import RecipeKitError
from recipe_kit.plan import access, disk, evidence, memory, on_card, rows, sizes, steps
from recipe_kit.plan.judge import problems as problems
from recipe_kit.plan.shape import SCHEMA_VERSION, DiskPart, Plan, RecipePart, Value
from recipe_kit.plan.stages import Report, Stages, silent
from recipe_kit.plan.text import lines as lines
from recipe_kit.recipe import Origin, Recipe, Resolved, flatten, recipe_digest
from recipe_kit.secrets import blotted

if TYPE_CHECKING:
    import trl
    from transformers import PreTrainedTokenizerBase

    from recipe_kit.data import Split


def build(
    resolved: Resolved,
    *,
    runs_dir: str | Path = "runs",
    processes: int | None = None,
    accelerate_config: str | None = None,
    sample: int | None = None,
    quality: bool = True,
    card: str | None = None,
    price_per_hour: float | None = None,
    calibrate: bool = False,
    report: Report = silent,
) -> Plan:
    """Look at everything a training of this recipe would meet. Writes nothing but the cache of prepared rows.

    `processes` and `accelerate_config` count when they are given, else those of the recipe's `launch`. `sample` limits
    the proofs about rows and the search for near duplicates to so many rows of each split. Memory and time are told
    for the `card` of this name or size, or for this machine's; `calibrate` runs a few steps here, with random weights.
    `price_per_hour` is that of the whole machine. `report` receives remarks for a person. Whatever is wrong stands in
    the plan: a RecipeKitError is raised for a wrong `card` or `accelerate_config` alone.
    """
    judged = memory.find_card(card)
    recipe, stages = resolved.recipe, Stages(report)
    plan = _empty(resolved)
    config_name = accelerate_config or recipe.launch.accelerate_config
    given = processes or recipe.launch.num_processes
    gpus = launch.visible_gpus()
    shared = launch.resolve(config_name, given, gpus)
    processes = given or shared.processes or 1
    precision = modeling.choose_precision(recipe, plan["notes"] if on_card.trains_here(recipe) else [])
    arguments = stages.run("training section", lambda: training_arguments(recipe, precision))
    hub = access.check(recipe, report)
    plan["access"] = hub.findings
    with access.cache_only(hub):
        report(f"loading tokenizer and config of {recipe.model.id}")
        cause = "" if hub.gives("model") else "the Hub does not give the model"
        tokenizer = stages.run("tokenizer", lambda: modeling.load_tokenizer(recipe.model), cause=cause)
        cause = cause or ("" if tokenizer is not None else "the tokenizer could not be loaded")
        config = stages.run("config", lambda: modeling.load_config(recipe.model), cause=cause)
        cause = "" if hub.gives("dataset") else "the Hub does not give them"
        splits = _prepare(recipe, tokenizer, stages, cause=cause)
    tokens = len(tokenizer) if tokenizer is not None else 0
    weights = stages.run("parameters", lambda c: sizes.count(recipe, c, precision, tokens), {"config": config})

    target = memory.precision_on(recipe, judged, precision)
    stages.run("launch", lambda: topology.check(recipe, shared, processes=given, precision=target))
    chosen = None
    if splits is not None and config is not None and arguments is not None:
        chosen = stages.run(
            "choice",
            lambda: on_card.choose_for(recipe, config, target, arguments, splits, judged, shared, named=bool(card)),
        )
        if chosen is not None:
            plan["notes"] += memory.notes(recipe, chosen)
    if chosen is not None:
        arguments, plan["notes"] = chosen.arguments, plan["notes"] + chosen.choice.notes
    _look_at_rows(plan, recipe, stages, splits, arguments, processes)
    if weights:
        plan["parameters"] = weights.part
    needed = {"parameters": weights, "training section": arguments, "tokenizer": tokenizer}
    plan["disk"] = stages.run(
        "disk", lambda w, a, t: _disk(recipe, w, a, t, plan, hub.model_files, Path(runs_dir)), needed
    )
    tried = None
    if calibrate and chosen is not None and config is not None and splits is not None:
        tried = stages.run(
            "calibration", lambda: on_card.try_out(recipe, config, precision, chosen, tokenizer, splits, report)
        )
    on_card.memory_and_time(plan, recipe, stages, splits, config, target, chosen, judged, tried, price_per_hour)
    attention = chosen.choice.attention if chosen is not None else recipe.model.attention
    plan["proofs"] = evidence.prove(recipe, stages, splits, tokenizer, arguments, config, sample, processes, attention)
    if quality:
        plan["quality"] = stages.run(
            "quality", lambda splits: evidence.quality_of(splits, sample, report), {"rows": splits}
        )
    _check_method(recipe, plan, stages)
    if on_card.trains_here(recipe) and not card:
        stages.run("attention", lambda: check_attention(recipe, modeling.capability(recipe)))
    plan["notes"] += _notes(recipe, arguments, plan)
    if given is None and gpus == 0 and shared.strategy != "none":
        plan["notes"].append(f"{shared.name} starts a process for each GPU, and here is none: give --num-processes")
    plan["errors"], plan["not_looked_at"] = stages.errors, stages.not_looked_at
    return plan


def _empty(resolved: Resolved) -> Plan:
    """A plan in which only the recipe is known."""
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": _recipe(resolved),
        "splits": None,
        "lengths": None,
        "trained": None,
        "batches": None,
        "steps": None,
        "parameters": None,
        "disk": None,
        "access": None,
        "proofs": None,
        "quality": None,
        "memory": None,
        "time": None,
        "notes": [],
        "errors": [],
        "not_looked_at": {},
    }


def _recipe(resolved: Resolved) -> RecipePart:
    values: list[Value] = []
    for key, value in flatten(resolved.recipe).items():
        origin = resolved.origins.get(key, Origin("default"))
        shown = blotted(value) if isinstance(value, str) else value
        where = blotted(origin.where) or origin.kind
        values.append({"key": key, "value": shown, "kind": origin.kind, "origin": where})
    return {
        "name": resolved.recipe.name,
        "source": resolved.source,
        "profiles": list(resolved.profiles),
        "sha256": recipe_digest(resolved.recipe),
        "values": values,
    }


def _prepare(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, stages: Stages, *, cause: str
) -> dict[str, Split] | None:
    """The rows, prepared as training would; without a tokenizer at least the formatters and files are looked at."""
    if tokenizer is not None:
        return stages.run("rows", lambda: data.prepare(recipe.data, tokenizer, report=stages.report), cause=cause)
    stages.leave_out("rows", stages.not_looked_at.get("tokenizer", "the tokenizer could not be loaded"))
    stages.run("formatters", lambda: data.check_formatters(recipe.data))
    for split in ("train", "eval", "test"):
        for source in recipe.data.sources(split):
            if source.id is None:
                stages.run(f"data.{split}", data.load_source, {"source": source})
    return None


def _look_at_rows(
    plan: Plan,
    recipe: Recipe,
    stages: Stages,
    splits: dict[str, Split] | None,
    arguments: trl.SFTConfig | None,
    processes: int,
) -> None:
    """Fill in what the rows tell: counts, lengths, trained tokens, batches and steps."""
    if splits is None:
        return
    plan["splits"] = {
        name: {**split.counts.as_dict(), "content_sha256": split.content_sha256} for name, split in splits.items()
    }
    train, counts = splits["train"], splits["train"].counts
    lengths = rows.row_lengths(train.rows)
    plan["lengths"] = rows.lengths_part(lengths, recipe.data.max_length)
    plan["trained"] = rows.trained_part(counts.tokens, counts.trained_tokens, rows.turn_totals(train.details))
    plan["batches"] = stages.run("batches", lambda a: steps.batches_part(lengths, a), {"training section": arguments})
    if plan["batches"] and arguments is not None:
        if recipe.training.get("packing"):  # and what was chosen for the card is not to
            plan["batches"]["packed_instead"] = None
        tokens, streamed = (counts.tokens, counts.trained_tokens), recipe.data.streaming
        plan["steps"] = steps.steps_part(plan["batches"]["rows"], tokens, arguments, processes, streamed=streamed)


def _disk(
    recipe: Recipe,
    weights: sizes.Weights,
    arguments: trl.SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    model_files: list[tuple[str, int]] | None,
    runs_dir: Path,
) -> list[DiskPart]:
    tokenizer_bytes = len(tokenizer.backend_tokenizer.to_str().encode())
    counted = plan["steps"]
    run_steps, epochs = (counted["steps"], counted["epochs"]) if counted else (1, None)
    run = disk.run_uses(recipe, weights, arguments, run_steps, epochs, tokenizer_bytes)
    return disk.parts(runs_dir, run, disk.download_uses(recipe, weights.part["base"], model_files))


def _check_method(recipe: Recipe, plan: Plan, stages: Stages) -> None:
    """Whether this machine can run the method: a problem where it would be run, a note where there is no GPU."""
    if on_card.trains_here(recipe):
        stages.run("method", lambda: check_method(recipe))
        return
    try:
        check_method(recipe)
    except RecipeKitError as error:
        if not any(str(error) == earlier["message"] for earlier in stages.errors):
            plan["notes"].append(f"this machine has no GPU, and here training would stop: {error}")


def _notes(recipe: Recipe, arguments: trl.SFTConfig | None, plan: Plan) -> list[str]:
    """What is worth knowing and stops nothing."""
    notes = []
    if recipe.data.streaming:
        notes.append("data.streaming: counts, lengths and proofs are of the first rows of each training source")
    if arguments is not None and plan["steps"] and plan["steps"]["steps"]:
        warmup, run_steps = arguments.get_warmup_steps(plan["steps"]["steps"]), plan["steps"]["steps"]
        if warmup >= run_steps:
            notes.append(
                f"the learning rate warms up over {warmup} steps and the run has {run_steps}: it never gets to "
                f"{arguments.learning_rate:g}; lower training.warmup_steps"
            )
    if not disk.has_weights(recipe):
        notes.append(f"{recipe.model.id} holds no weights: enough for a plan, and not for training")
    if arguments is not None and arguments.train_sampling_strategy == "batch_rebalance":
        notes.append("batch_rebalance makes batches of other sizes: steps and padding are told for random batches")
    return notes
