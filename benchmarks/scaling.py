"""How much faster are several GPUs? One recipe on one process and on several, in turn, by `recipe-kit train` itself.

    python benchmarks/scaling.py --processes 1 2 --out result.json                          # 1B shape, LoRA, DDP
    python benchmarks/scaling.py --shape llama-2-7b --method full --configs fsdp2 zero3 --processes 2 --rounds 1
    python benchmarks/scaling.py --table result.json                                         # print the table again
    python benchmarks/scaling.py --cpu-smoke                        # proves that it works here; says nothing of speed

The model has the shape of a real one and random weights, and rows are made of words in the length spread of real
chats (`speed/rows.py`). Each process has as many rows a step whatever their number, so a step of two has twice the
rows. Tokens are those of the rows of all processes, without padding, between two logged steps after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "speed"))

import rows as lengths_of  # noqa: E402
from shapes import SHAPES, TITLES  # noqa: E402

Result = dict[str, Any]
WARMUP = 5  # steps, and the distance between logged ones
SOURCES = HERE.parent / "src"
COMMAND = "from recipe_kit.cli import main; main()"


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    if options.table:
        print(markdown(json.loads(options.table.read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory(prefix="scaling-", dir=options.tmp) as folder:
        print(markdown(measure(options, Path(folder))))


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Every round has a run of each configuration and number of processes; the result is written after every run."""
    model = make_model(options.shape, folder / "model", on_cpu=options.cpu_smoke)
    recipe = write_recipe(options, model, folder)
    result: Result = {
        "recorded": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"platform": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()},
        "shape": options.shape,
        "method": options.method,
        "rows_a_process": options.rows,
        "steps": options.steps,
        "runs": [],
    }
    wanted = [(config, count) for count in options.processes for config in (options.configs if count > 1 else ["one"])]
    for number in range(options.rounds):
        for config, count in wanted:
            told = run_one(recipe, config, count, folder / f"{number}-{config}-{count}", options)
            if "failed" not in told:
                result["versions"], result["machine"]["card"] = told.pop("versions"), told.pop("card")
            result["runs"].append({"round": number, "config": config, "processes": count} | told)
            print(f"{config}, {count}: {told.get('failed') or round(told['tokens_per_second'])}", file=sys.stderr)
            if options.out:
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def make_model(shape: str, folder: Path, *, on_cpu: bool) -> Path:
    """A model of this shape with random bfloat16 weights, and the tokenizer of the tiny one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipe_kit.local_models import local_folder

    tokenizer = AutoTokenizer.from_pretrained(str(local_folder("tiny:llama3")))
    config = SHAPES[shape].config()
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    torch.manual_seed(0)
    with torch.device("cpu" if on_cpu else "cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_recipe(options: argparse.Namespace, model: Path, folder: Path) -> Path:
    """The recipe of all runs, and its rows, as files."""
    steps = WARMUP + options.steps
    count = options.rows * max(options.processes) * (steps + 1)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in make_rows(count):
            file.write(json.dumps(row) + "\n")
    adapter = {"r": 16, "lora_alpha": 32}
    training = {
        "max_steps": steps,
        "per_device_train_batch_size": "auto",
        "gradient_accumulation_steps": options.rows,
        "learning_rate": 1e-4,
        "logging_steps": WARMUP,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 7,
    }
    if options.cpu_smoke:
        training |= {"use_cpu": True, "bf16": False}
    if options.checkpointing is not None:
        training["gradient_checkpointing"] = options.checkpointing
    recipe: dict[str, Any] = {
        "name": "scaling",
        "model": {
            "id": str(model),
            "dtype": "float32" if options.method == "full" or options.cpu_smoke else "bfloat16",
        },
        "method": options.method,
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "max_length": 1024, "formatter": {"name": "support"}},
        "training": training | ({"bf16": True} if options.method == "full" and not options.cpu_smoke else {}),
        "evaluation": {"after_training": False},
        **({} if options.method == "full" else {"lora": adapter}),
    }
    path = folder / "scaling.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def make_rows(count: int) -> list[dict[str, str]]:
    """Questions and answers without sense, in the length spread of the speed benchmark; no two alike."""
    words = (
        "basil",
        "seed",
        "order",
        "parcel",
        "Monday",
        "garden",
        "water",
        "price",
        "shelf",
        "letter",
        "green",
        "late",
    )
    generator = random.Random(lengths_of.SEED)
    made = []
    for number, length in enumerate(lengths_of.lengths(count)):
        said = generator.choices(words, k=max(4, length // 2))
        cut = max(1, round(len(said) * (1 - lengths_of.TRAINED_SHARE)))
        made.append(
            {"instruction": f"{number} " + " ".join(said[:cut]), "response": " ".join(said[cut:]) + f" {number}"}
        )
    return made


def run_one(recipe: Path, config: str, count: int, runs: Path, options: argparse.Namespace) -> Result:
    """One training: its speed and memory, or {"failed": reason}."""
    words = ["train", str(recipe), "--runs-dir", str(runs), "--num-processes", str(count)]
    if count > 1 and not options.cpu_smoke:
        words += ["--accelerate-config", config]
    environment = os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", COMMAND, *words]
    said = runs.with_suffix(".log")
    with said.open("w") as file:
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=file, timeout=options.timeout
            )
            problem = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"not finished in {options.timeout:g} s"
    if problem:
        last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        return {"failed": f"{problem}: {' | '.join(last)[-600:]}"}
    (run,) = (path.parent for path in runs.glob("scaling/2*/run.json"))
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = (next(line for line in log if line["step"] == step) for step in (WARMUP, WARMUP + options.steps))
    seconds = last["seconds"] - first["seconds"]
    return {
        "tokens_per_second": (last["num_tokens"] - first["num_tokens"]) / seconds,
        "step_seconds": seconds / options.steps,
        "peak_memory_bytes": info["training"]["peak_memory_bytes"],
        "loss": last["loss"] if math.isfinite(last["loss"]) else None,  # JSON has no NaN
        "speed": info["speed"],
        "versions": info["versions"],
        "card": info["hardware"].get("name", "none: CPU"),
    }


def markdown(result: Result) -> str:
    """Medians over rounds, and how many times one process."""
    lines = [
        f"{TITLES[result['shape']]} shape, {result['method']}, {result['rows_a_process']} rows a step and process, "
        f"{result['steps']} timed steps.",
        "",
        "| launched with | processes | tokens/s | lowest to highest | times one process | peak GiB of the first |",
        "|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys((run["config"], run["processes"]) for run in result["runs"])
    medians: dict[tuple[str, int], float] = {}
    for config, count in kinds:
        found = [run for run in result["runs"] if (run["config"], run["processes"]) == (config, count)]
        ran = [run for run in found if "failed" not in run]
        if not ran:
            lines.append(f"| {config} | {count} | did not run: {found[-1]['failed'].replace('|', '/')[:160]} | | | |")
            continue
        speeds = [run["tokens_per_second"] for run in ran]
        medians[config, count] = statistics.median(speeds)
        one = next((value for (_, processes), value in medians.items() if processes == 1), None)
        times = f"{medians[config, count] / one:.2f}" if one and count > 1 else ""
        peak = max(run["peak_memory_bytes"] for run in ran) / 2**30
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        lines.append(f"| {config} | {count} | {medians[config, count]:,.0f} | {spread} | {times} | {peak:.1f} |")
    about = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    return "\n".join([*lines, "", f"{result['machine'].get('card')}; {about}; {result['recorded']}"])


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the result, as JSON")
    parser.add_argument("--table", type=Path, help="print the table of this result and measure nothing")
    parser.add_argument("--shape", default="llama-3.2-1b", choices=list(SHAPES))
    parser.add_argument("--method", default="lora", choices=["lora", "qlora", "full"])
    parser.add_argument("--configs", nargs="+", default=["multi_gpu"], help="accelerate configs of several processes")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rows", type=int, default=144, help="of a step, on each process")
    parser.add_argument("--checkpointing", type=lambda text: text == "true", help="true or false; auto unless given")
    parser.add_argument("--steps", type=int, default=15, help="timed steps, a multiple of 5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a run is ended")
    parser.add_argument("--tmp", type=Path, help="where model and runs are kept; memory is fastest")
    parser.add_argument("--cpu-smoke", action="store_true", help="the tiny shape on a CPU")
    options = parser.parse_args(arguments)
    if options.cpu_smoke:
        options.shape, options.rows, options.steps, options.rounds = "tiny", 8, 5, 1
    return options


if __name__ == "__main__":
    main()
