"""The memory estimate against measured peaks, and whether recipes fit the cards they are meant for.

    python benchmarks/memory.py --out result.json                   # estimate and measurement, every method and size
    python benchmarks/memory.py --card-sizes --out cards.json       # shipped recipes on a card that is made smaller
    python benchmarks/memory.py --only lora-llama-3.2-1b --out result.json
    python benchmarks/memory.py --table result.json                 # print the table again
    python benchmarks/memory.py --cpu-smoke                         # proves that it works here; measures no memory

Models have random weights in the shapes of real ones, and rows are those of the speed benchmark; nothing is
downloaded. Each configuration trains a few steps in a process of its own with the trainer of a run. The peak is
`torch.cuda.max_memory_allocated()` from the first step on, and the estimate that of the largest micro-batch the steps
had; `planned` is the one made before, from the lengths of the rows. What a process takes of the card has CUDA itself
and the gaps between blocks in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "speed"))

import driver  # noqa: E402
import recipes_of  # noqa: E402
import rows  # noqa: E402
import worker  # noqa: E402
from shapes import SHAPES, TITLES  # noqa: E402
from works import Work  # noqa: E402

SOURCES = HERE.parent / "src"
Result = dict[str, Any]
WITHIN = 0.08  # relative error that is stated for the estimate
STEPS = 4
LONG_ROWS = 32  # on a card, one row in so many is as long as rows may be


@dataclass(frozen=True)
class Case:
    """A work, and how it is trained: packs of 1024 tokens, unless rows are joined without packing."""

    work: Work
    tokens: int  # of a micro-batch
    accumulation: int = 1
    packing: bool = True
    optim: str = "adamw_torch_fused"
    dtype: str | None = None  # of the weights; None for float32 in full fine-tuning, bfloat16 elsewhere

    @property
    def job(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"name": self.work.name}


@dataclass(frozen=True)
class CardCase:
    """A shipped recipe with a profile, on the memory of a card; the shape stands for its model."""

    recipe: str
    profile: str
    card: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.recipe}, {self.profile} on {self.card}"

    @property
    def job(self) -> dict[str, Any]:
        # The work tells shape and lengths of rows; method and batch are read from the recipe itself.
        work = Work(self.name, self.shape, "lora", median=360 if self.recipe == "guanaco" else rows.MEDIAN)
        return {"name": self.name, "card_case": dataclasses.asdict(self), "work": dataclasses.asdict(work)}


CARD_CASES = (
    CardCase("guanaco", "colab-t4", "t4", "llama-2-7b"),
    CardCase("guanaco", "8gb", "rtx-3070", "llama-2-7b"),
    CardCase("guanaco", "24gb", "l4", "llama-2-7b"),
    CardCase("customer_support", "colab-t4", "t4", "llama-3.2-3b"),
    CardCase("customer_support", "8gb", "rtx-3070", "llama-3.2-3b"),
    CardCase("customer_support", "24gb", "l4", "llama-3.2-3b"),
    CardCase("hinglish", "colab-t4", "t4", "tinyllama-1.1b"),
    CardCase("hinglish", "8gb", "rtx-3070", "tinyllama-1.1b"),
    CardCase("llama32_1b_full", "colab-t4", "t4", "llama-3.2-1b"),
    CardCase("llama32_1b_full", "8gb", "rtx-3070", "llama-3.2-1b"),
    CardCase("llama32_1b_full", "24gb", "l4", "llama-3.2-1b"),
    CardCase("llama32_1b_lora", "8gb", "rtx-3070", "llama-3.2-1b"),
    CardCase("llama32_1b_qlora", "8gb", "rtx-3070", "llama-3.2-1b"),
)


def cases() -> list[Case]:
    """Three methods, three sizes, with and without checkpointing; then some that differ in one thing, and a recipe."""
    found = []
    for shape, tokens in (("smollm2-135m", 16_384), ("llama-3.2-1b", 8_192), ("llama-3.2-3b", 8_192)):
        for method in ("full", "lora", "qlora"):
            dtype = "bfloat16" if (method, shape) == ("full", "llama-3.2-3b") else None
            for checkpointing in (False, True):
                found.append(Case(_work(method, shape, tokens, checkpointing), tokens, dtype=dtype))
    full, lora, qlora = (_work(method, "llama-3.2-1b", 8_192, False) for method in ("full", "lora", "qlora"))
    found += [
        Case(_named(full, "accumulated"), 8_192, accumulation=2),
        Case(_named(lora, "joined"), 8_192, packing=False),
        Case(_named(qlora, "paged"), 8_192, accumulation=2, optim="paged_adamw_8bit"),
    ]
    guanaco = Work(
        "recipe-llama-2-7b", "llama-2-7b", "qlora", rows_per_step=10, rank=64, alpha=16, targets=("q_proj", "v_proj"),
        checkpointing=True, median=360,
    )  # fmt: skip
    return [*found, Case(guanaco, 4_096)]


def smoke_cases() -> list[Case]:
    return [
        Case(_work(method, "tiny", 2_048, checkpointing), 2_048)
        for method in ("full", "lora", "qlora")
        for checkpointing in (False, True)
    ]


def _work(method: str, shape: str, tokens: int, checkpointing: bool) -> Work:
    name = f"{method}-{shape}" + ("-checkpointing" if checkpointing else "")
    return Work(name, shape, method, rows_per_step=tokens // 228, checkpointing=checkpointing)  # mean of the lengths


def _named(work: Work, addition: str) -> Work:
    return dataclasses.replace(work, name=f"{work.name}-{addition}")


# --- the parent -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    if arguments is None and len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        worker.serve(prepare, act)
        return
    options = read_options(arguments)
    if options.table:
        print(markdown(json.loads(options.table.read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        print(markdown(measure(options, Path(folder))))


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Every case's turn; the result is written after each."""
    device = "cpu" if options.cpu_smoke else "cuda"
    jobs = [job | {"device": device, "folder": str(folder / "out"), "steps": options.steps} for job in _jobs(options)]
    environment = {
        "PYTHONPATH": f"{SOURCES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PYTORCH_ALLOC_CONF": os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True"),  # as a run has it
    }
    tasks = [
        driver.Task(job["name"], [sys.executable, str(HERE / "memory.py"), json.dumps(job)], environment)
        for job in jobs
    ]
    result: Result = {
        "recorded": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"platform": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()},
        "steps": options.steps,
        "cases": [],
        "cards": [],
    }
    turns = driver.run(tasks, ahead=options.ahead, seconds=options.timeout, folder=folder)
    for job, turn in zip(jobs, turns, strict=True):
        told = turn.result
        _remark(f"{job['name']}: {told.get('failed') or _peaks(told)}")
        if "failed" not in told:
            result["versions"], result["machine"]["card"] = told.pop("versions"), told.pop("device")
        kept = {key: value for key, value in job.items() if key not in ("folder", "device")}
        result["cards" if "card_case" in job else "cases"].append(kept | told)
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    chosen: Sequence[Case | CardCase] = CARD_CASES if options.card_sizes else cases()
    if options.cpu_smoke:
        chosen = [*smoke_cases(), CardCase("customer_support", "smoke", "t4", "tiny")]
    jobs = [case.job for case in chosen]
    wanted = [job for job in jobs if not options.only or any(part in job["name"] for part in options.only)]
    if not wanted:
        sys.exit(f"--only: known are {', '.join(job['name'] for job in jobs)}")
    return wanted


def _peaks(told: Result) -> str:
    measured = _gib(told["peak_bytes"]) or "nothing"
    return f"{_gib(told['estimated_bytes'])} GiB estimated, {measured} measured"


def _remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- one configuration ------------------------------------------------------------------------------------------


def prepare(job: worker.Job) -> None:
    """Import ahead of the turn, without touching the GPU."""
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import recipe_kit.trainer  # noqa: F401


def act(job: worker.Job) -> Result:
    """Build, train, and tell what was taken beside what was estimated."""
    from recipe_kit.out_of_memory import Watch
    from recipe_kit.trainer import make_trainer

    before = card_used() if job["device"] == "cuda" else 0
    recipe, lengths, card = _card_recipe(job) if "card_case" in job else _case_recipe(job)
    config = SHAPES[job["work"].shape].config()
    precision, choice, arguments = _settle(recipe, config, lengths, card, job)
    job["work"] = dataclasses.replace(job["work"], method=recipe.method)
    model = worker.random_model(job, recipes_of.attention_of(choice))
    as_the_recipe_has_it(model, recipe, precision)
    data = _dataset(job["work"], lengths)
    trainer = make_trainer(
        recipe, model, worker.tokenizer(SHAPES[job["work"].shape]), arguments, choice, precision, data
    )
    notes = list(choice.notes)
    if card is not None:
        planned = choice.estimate.peak if choice.estimate else None
        trainer.watch = Watch(recipe, arguments, estimated_peak_bytes=planned, note=notes.append)
    seen, taken = _watched(trainer, job["device"])
    held = _count_from_here() if job["device"] == "cuda" else None
    trainer.train()
    told = {
        **_memory(held, before, taken),
        **_estimated(recipe, config, precision, arguments, choice, seen),
        "chosen": _chosen(choice, arguments),
        "trained_dtypes": sorted({str(p.dtype)[6:] for p in trainer.model.parameters() if p.requires_grad}),
        "parts": trainer.watch.parts,
        "notes": notes,
        "versions": worker.versions(),
        "device": _device_name(job),
    }
    return told | ({"card_bytes": card.memory_bytes} if card is not None else {})


def _case_recipe(job: worker.Job) -> tuple[Any, list[int], None]:
    """The recipe of a case with its batch written out, and the lengths of its rows."""
    work: Work = job["work"]
    size = job["tokens"] // work.longest_row if job["packing"] else work.rows_per_step
    recipe = recipes_of.recipe_of(
        work,
        rows=max(1, size),
        accumulation=job["accumulation"],
        packing=job["packing"],
        optim=job["optim"],
        dtype=job["dtype"],
        steps=job["steps"],
        device=job["device"],
        folder=job["folder"],
    )
    return recipe, work.lengths(job["steps"] * job["accumulation"]), None


def _card_recipe(job: worker.Job) -> tuple[Any, list[int], Any]:
    """The shipped recipe, lengths as long as it allows, and its card, to which PyTorch's memory is limited."""
    import torch

    from recipe_kit.recipe import load_recipe
    from recipe_kit.speed import card as cards

    case = CardCase(**job["card_case"])
    training = {"max_steps": job["steps"], "save_strategy": '"no"', "logging_strategy": '"no"', "report_to": "none"}
    overrides = [f"training.{key}={value}" for key, value in training.items()]
    recipe = load_recipe(case.recipe, profiles=[case.profile], overrides=overrides)
    card = cards.CARDS[case.card]
    if job["device"] == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, card.memory_bytes / total))
    accumulation = int(recipe.training["gradient_accumulation_steps"])
    each = 8 if recipe.training.get("packing") else 1  # rows in a pack, and some more
    count = each * accumulation * (job["steps"] + 1)
    longest = recipe.data.max_length
    lengths = rows.lengths(count, median=job["work"].median, longest=longest)
    return recipe, [longest if number % LONG_ROWS == 0 else length for number, length in enumerate(lengths)], card


def _settle(recipe: Any, config: Any, lengths: list[int], card: Any, job: worker.Job) -> tuple[str, Any, Any]:
    """As `recipes_of.settle`; for a card older than this machine's, what that card can do."""
    import numpy as np

    from recipe_kit import modeling
    from recipe_kit.arguments import training_arguments
    from recipe_kit.speed.choose import choose

    if card is None or card.varlen or job["device"] == "cpu":
        return recipes_of.settle(recipe, config, lengths, folder=job["folder"])
    precision = modeling.choose_precision(recipe, [])
    first = training_arguments(recipe, precision)
    spread = np.asarray(lengths, np.int64)
    choice = choose(recipe, config, precision, first, spread, rows.TRAINED_SHARE, card, planned=True)
    arguments = training_arguments(recipe, precision, choice.training)
    arguments.output_dir = job["folder"]
    return precision, choice, arguments


def as_the_recipe_has_it(model: Any, recipe: Any, precision: str) -> None:
    """Types of weights, and constants of 4-bit blocks quantised once or twice, as loading the recipe's model gives."""
    import torch
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.nn import Linear4bit

    from recipe_kit import modeling

    dtype = modeling.model_dtype(recipe, precision)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    twice = recipe.quantization.get("bnb_4bit_use_double_quant", True)
    for layer in model.modules():
        if not isinstance(layer, Linear4bit):
            continue
        layer.compute_dtype = dtype
        state = layer.weight.quant_state
        state.dtype = dtype
        if state.nested and not twice:
            state.absmax = (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()
            state.nested, state.state2, state.offset = False, None, None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _dataset(work: Work, lengths: list[int]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows.rows(lengths, SHAPES[work.shape].vocab_size))


def _watched(trainer: Any, device: str) -> tuple[set[tuple[int, ...]], list[int]]:
    """The sizes of all micro-batches to come, and the bytes of the card that are in use after each."""
    import torch

    seen: set[tuple[int, ...]] = set()
    taken: list[int] = []
    step = trainer.training_step

    def training_step(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        seen.add(sizes_of(inputs))
        loss = step(model, inputs, *arguments, **options)
        if device == "cuda":
            free, total = torch.cuda.mem_get_info()
            taken.append(total - free)
        return loss

    trainer.training_step = training_step
    return seen, taken


def _count_from_here() -> int:
    """Forget the peaks of building, and tell the bytes that are held: weights and adapter."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def sizes_of(inputs: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """The fields of the estimate's `Work`: rows, tokens of a row, tokens, trained tokens, longest row."""
    count, width = inputs["input_ids"].shape
    trained = int((inputs["labels"][:, 1:] != -100).sum())
    if inputs.get("attention_mask") is not None:
        longest = int(inputs["attention_mask"].sum(dim=1).max())
    elif inputs.get("position_ids") is not None:
        longest = int(inputs["position_ids"].max()) + 1
    else:
        longest = width
    return count, width, count * width, trained, longest


def _memory(held: int | None, before: int, taken: list[int]) -> Result:
    """Bytes that PyTorch allocated and reserved, and that the process took of the card; nothing on a CPU."""
    import torch

    if held is None:
        return dict.fromkeys(("held_bytes", "peak_bytes", "reserved_bytes", "taken_bytes"))
    return {
        "held_bytes": held,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "taken_bytes": max(taken) - before,
        "used_before_bytes": before,  # by others: workers that wait should hold nothing
    }


def card_used() -> int:
    """Bytes of the card that are in use, as its driver says without this process touching it."""
    if not shutil.which("nvidia-smi"):
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, check=True)
    return int(told.stdout.split()[0]) * 2**20


def _estimated(
    recipe: Any, config: Any, precision: str, arguments: Any, choice: Any, seen: set[tuple[int, ...]]
) -> Result:
    """The estimate of the micro-batch that needs most, and what a card must have for it."""
    from recipe_kit.speed import memory
    from recipe_kit.speed.moments import Work

    found = [
        memory.estimate(
            recipe,
            config,
            precision,
            Work(*sizes),
            checkpointing=bool(arguments.gradient_checkpointing),
            optim=str(getattr(arguments.optim, "value", arguments.optim)),
            fused_layers=choice.fused_layers,
            in_place_adapters=choice.together,
            attention="sdpa" if choice.attention == "auto" else choice.attention,
            accumulates=arguments.gradient_accumulation_steps > 1,
        )
        for sizes in sorted(seen)
    ]
    known = [(each, sizes) for each, sizes in zip(found, sorted(seen), strict=True) if each is not None]
    largest, sizes = max(known, key=lambda pair: pair[0].peak)
    return {
        "micro_batch": dict(zip(("rows", "row_tokens", "tokens", "trained_tokens", "longest"), sizes, strict=True)),
        "estimated_bytes": largest.peak,
        "estimated_phase": largest.phase,
        "estimated_parts": largest.parts,
        "estimated_phases": largest.phases,
        "estimated_paged_bytes": largest.paged,
        "needs_bytes": memory.card_needs(largest),
        "planned_bytes": choice.estimate.peak if choice.estimate else None,
    }


def _chosen(choice: Any, arguments: Any) -> Result:
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "packing")
    return {
        **{key: getattr(arguments, key) for key in (*keys, "padding_free")},
        "optim": str(getattr(arguments.optim, "value", arguments.optim)),
        "attention": choice.attention,
        "kernels": choice.kernels,
        "together": choice.together,
    }


def _device_name(job: worker.Job) -> str:
    import torch

    return torch.cuda.get_device_name() if job["device"] == "cuda" else "none: CPU"


# --- the tables -------------------------------------------------------------------------------------------------


def markdown(result: Result) -> str:
    """The table of estimates, that of cards, and where both were measured."""
    parts = [_estimates(result["cases"])] if result["cases"] else []
    parts += [_cards(result["cards"])] if result["cards"] else []
    words = [f"{name} {number}" for name, number in result.get("versions", {}).items()]
    where = f"{result['machine'].get('card', '')}; {', '.join(words)}; {result['recorded']}"
    return "\n\n".join([*parts, where])


def _estimates(found: list[Result]) -> str:
    lines = [
        "| configuration | micro-batch | estimated | measured | error | planned | card needs | taken of the card |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_estimate_line(each) for each in found]
    errors = [error for each in found if (error := error_of(each)) is not None]
    if errors:
        largest = max(errors, key=abs)
        verdict = "within" if abs(largest) <= WITHIN else "not within"
        lines += ["", f"GiB. Largest error {largest:+.1%} of {len(errors)} configurations: {verdict} {WITHIN:.0%}."]
    return "\n".join(lines)


def _estimate_line(each: Result) -> str:
    if "failed" in each:
        return f"| {each['name']} | did not run: {each['failed'].replace('|', '/')[:160]} |" + " |" * 6
    batch, error = each["micro_batch"], error_of(each)
    cells = [
        each["name"],
        f"{batch['tokens']:,} tokens, {batch['trained_tokens']:,} trained",
        _gib(each["estimated_bytes"]),
        _gib(each["peak_bytes"]),
        "" if error is None else f"{error:+.1%}",
        _gib(each["planned_bytes"]),
        _gib(each["needs_bytes"]),
        _gib(each["taken_bytes"]),
    ]
    return "| " + " | ".join(cells) + " |"


def error_of(each: Result) -> float | None:
    """Of the estimate, relative to the measured peak; None where nothing was measured."""
    if "failed" in each or not each["peak_bytes"]:
        return None
    return float(each["estimated_bytes"] / each["peak_bytes"] - 1)


def _cards(found: list[Result]) -> str:
    lines = [
        "| recipe and card | model | memory | batch | checkpointing | optimiser | planned | measured | reserved "
        "| fits |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_card_line, found)])


def _card_line(each: Result) -> str:
    if "failed" in each:
        return f"| {each['name']} | did not run: {each['failed'].replace('|', '/')[:160]} |" + " |" * 7 + " no |"
    chosen = each["chosen"]
    rows_of = "packs" if chosen["packing"] else "rows"
    batch = f"{chosen['per_device_train_batch_size']} {rows_of} × {chosen['gradient_accumulation_steps']}"
    cells = [
        each["name"],
        TITLES[each["card_case"]["shape"]],
        _gib(each["card_bytes"]),
        batch,
        "yes" if chosen["gradient_checkpointing"] else "no",
        chosen["optim"],
        _gib(each["planned_bytes"]),
        _gib(each["peak_bytes"]),
        _gib(each["reserved_bytes"]),
        fits(each),
    ]
    return "| " + " | ".join(cells) + " |"


def fits(each: Result) -> str:
    """`yes` where the steps ran as chosen, and what PyTorch held of the GPU leaves room for CUDA on the card."""
    if each["parts"] > 1:
        return f"in {each['parts']} parts"
    if each["reserved_bytes"] is None:
        return ""
    from recipe_kit.speed import memory

    return "yes" if each["reserved_bytes"] + memory.CONTEXT_BYTES <= each["card_bytes"] else "no"


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f}"


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the result, as JSON")
    parser.add_argument("--card-sizes", action="store_true", help="shipped recipes on the memory of smaller cards")
    parser.add_argument("--only", nargs="+", metavar="PART", help="configurations with one of these in their name")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a worker is ended")
    parser.add_argument("--ahead", type=int, default=min(8, os.cpu_count() or 1), help="workers started together")
    parser.add_argument("--table", type=Path, help="print the table of this result and measure nothing")
    parser.add_argument("--cpu-smoke", action="store_true", help="the tiny shape on a CPU, without measured memory")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
