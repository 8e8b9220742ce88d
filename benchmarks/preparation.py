"""Rows per second from stored chats to token ids and labels: the kit beside TRL and beside the bare tokenizer.

    python benchmarks/preparation.py speed  --tokenizer FOLDER --rows FILE... --count 50000 --out speed.json
    python benchmarks/preparation.py memory --tokenizer FOLDER --rows FILE... --count 100000 1000000 --out memory.json

FILE is a JSONL file with `messages`. Its chats are repeated until there are COUNT, each made different by a number in
its first message. Every measurement is a fresh process with empty caches; those that are compared are run in turn.
Reading the file is not counted, for anybody.

bare         the tokenizer on the rendered texts, a thousand at a time, on all cores: the limit
kit          recipe_kit.data.prepare: checked, formatted, rendered, tokenised, labelled, written to disk
kit again    the same once more, with nothing changed
trl          trl.SFTTrainer given the chats as prompt and completion, the form in which TRL trains answers only with a
             template that is not its own; the time of building the trainer, less that for eight rows
trl 2        the same with dataset_num_proc=2
trl all      trl.SFTTrainer given the chats as messages: every token is trained, no answer is looked for
trl all 2    the same with dataset_num_proc=2
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MEASURED = ("bare", "kit", "trl", "trl 2", "trl all", "trl all 2")
PACKAGES = ("datasets", "tokenizers", "torch", "transformers", "trl")


def chats_of(files: list[str]) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for file in files for line in Path(file).read_text("utf-8").splitlines()]


def write_rows(files: list[str], count: int, target: Path) -> None:
    chats, chance = chats_of(files), random.Random(0)
    with target.open("w", encoding="utf-8") as out:
        for number in range(count):
            first, *rest = chats[chance.randrange(len(chats))]
            varied = [{**first, "content": f"{first['content']} ({number})"}, *rest]
            out.write(json.dumps({"messages": varied}, ensure_ascii=False) + "\n")


def load_tokenizer(folder: str) -> Any:
    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.recipe import ModelSection

    return load_tokenizer(ModelSection(id=folder))


def bare(rows: str, folder: str) -> dict[str, float]:
    tokenizer = load_tokenizer(folder)
    chats = chats_of([rows])
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    started = time.perf_counter()
    for first in range(0, len(texts), 1000):
        tokenizer(texts[first : first + 1000], add_special_tokens=False)["input_ids"]
    return {"seconds": time.perf_counter() - started}


def kit(rows: str, folder: str) -> dict[str, float]:
    from recipe_kit.data import load_source, prepare
    from recipe_kit.recipe import DataSection

    data = DataSection.model_validate({"train": {"path": rows}, "formatter": "messages", "max_length": 8192})
    tokenizer = load_tokenizer(folder)
    load_source(data.train[0])
    watch = Watch()
    started = time.perf_counter()
    counts = prepare(data, tokenizer, splits=("train",))["train"].counts
    first = time.perf_counter() - started
    peaks = watch.stop()
    started = time.perf_counter()
    prepare(data, tokenizer, splits=("train",))
    again = time.perf_counter() - started
    return {"seconds": first, "again_seconds": again, "kept": counts.kept, "tokens": counts.tokens, **peaks}


def trl_(rows: str, folder: str, processes: int | None, *, answers_only: bool) -> dict[str, float]:
    import datasets
    import transformers
    import trl

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **size)
    if answers_only:
        chats = chats_of([rows])
        rows = f"{rows}.split"
        lines = (json.dumps({"prompt": chat[:-1], "completion": chat[-1:]}, ensure_ascii=False) for chat in chats)
        Path(rows).write_text("\n".join(lines), encoding="utf-8")
    stored = datasets.load_dataset("json", data_files=rows, split="train")

    def build(some: datasets.Dataset, workers: int | None) -> float:
        arguments = trl.SFTConfig(
            output_dir=tempfile.mkdtemp(), max_length=8192, dataset_num_proc=workers, report_to="none", use_cpu=True,
            bf16=False,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        started = time.perf_counter()
        trl.SFTTrainer(model, args=arguments, train_dataset=some, processing_class=tokenizer)
        return time.perf_counter() - started

    build(stored.select(range(8)), None)  # what is imported on first use
    fixed = build(stored.select(range(8, 16)), None)
    return {"seconds": build(stored, processes) - fixed}


class Watch:
    """The most memory resident at one time: in this process, and in it and its children together (bytes)."""

    def __init__(self) -> None:
        import psutil

        self.here = psutil.Process()
        self.own = self.tree = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self) -> None:
        import psutil

        while not self.done.wait(0.2):
            own = self.here.memory_info().rss
            below = 0
            for child in self.here.children(recursive=True):
                try:
                    below += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.own, self.tree = max(self.own, own), max(self.tree, own + below)

    def stop(self) -> dict[str, float]:
        self.done.set()
        self.thread.join()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"peak_bytes": max(self.own, peak), "peak_bytes_with_workers": max(self.tree, peak)}


def measure(what: str, rows: Path, folder: str) -> dict[str, float]:
    """One measurement in a process of its own, with caches of its own."""
    with tempfile.TemporaryDirectory() as caches:
        environment = {
            **os.environ, "RECIPE_KIT_CACHE": f"{caches}/kit", "HF_DATASETS_CACHE": f"{caches}/datasets",
            "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        argv = [sys.executable, __file__, "one", what, str(rows), folder]
        done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def speed(files: list[str], folder: str, count: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        rows = Path(temporary) / "rows.jsonl"
        write_rows(files, count, rows)
        found: dict[str, list[dict[str, float]]] = {what: [] for what in MEASURED}
        for _ in range(rounds):
            for what in MEASURED:
                found[what].append(measure(what, rows, folder))
                print(what, f"{count / found[what][-1]['seconds']:,.0f} rows/s", file=sys.stderr)
    seconds = {what: statistics.median(one["seconds"] for one in ones) for what, ones in found.items()}
    again = statistics.median(one["again_seconds"] for one in found["kit"])
    return {
        "rows": count,
        "tokens": found["kit"][0]["tokens"],
        "rounds": rounds,
        "rows_per_second": {what: round(count / value, 1) for what, value in seconds.items()},
        "kit_over": {what: round(value / seconds["kit"], 3) for what, value in seconds.items() if what != "kit"},
        "again_seconds": round(again, 3),
        "again_over_first": round(again / seconds["kit"], 4),
        "all": found,
    }


def memory(files: list[str], folder: str, counts: list[int]) -> dict[str, Any]:
    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as temporary:
            rows = Path(temporary) / "rows.jsonl"
            write_rows(files, count, rows)
            found[count] = measure("kit", rows, folder)
            print(count, found[count], file=sys.stderr)
    least, most = found[min(counts)], found[max(counts)]
    return {
        "rows": found,
        "peak_ratio": round(most["peak_bytes"] / least["peak_bytes"], 3),
        "peak_ratio_with_workers": round(most["peak_bytes_with_workers"] / least["peak_bytes_with_workers"], 3),
    }


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        what, rows, folder = sys.argv[2:]
        if what in ("bare", "kit"):
            found = {"bare": bare, "kit": kit}[what](rows, folder)
        else:
            found = trl_(rows, folder, 2 if what.endswith("2") else None, answers_only="all" not in what)
        print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--count", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.what == "speed":
        result = speed(options.rows, options.tokenizer, options.count[0], options.rounds)
    else:
        result = memory(options.rows, options.tokenizer, options.count)
    result["machine"] = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    result["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "all"}, indent=1))


if __name__ == "__main__":
    main()
