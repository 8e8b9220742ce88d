"""Does fine-tuning a small model help, on four kinds of rows, and how sure is that?

    python benchmarks/evidence.py --rows FOLDER --runs-dir runs/evidence --out result.json

FOLDER holds customer_support, dialogue_summary_mts, hinglish_restaurant and guanaco_en, each as `.train.jsonl` and
`.test.jsonl`. Every recipe of benchmarks/evidence is a run of its own; customer support is run with three seeds. With
several GPUs each process gets one of its own, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

HERE = Path(__file__).parent / "evidence"
ROWS = {
    "support": "customer_support",
    "summaries": "dialogue_summary_mts",
    "hinglish": "hinglish_restaurant",
    "guanaco": "guanaco_en",
}
RUNS = [("summaries", 42), ("guanaco", 42), ("support", 42), ("hinglish", 42), ("support", 43), ("support", 44)]


def run_one(name: str, seed: int, rows: Path, runs_dir: Path, gpu: str | None) -> dict[str, object]:
    """Train and measure one recipe; what its run folder says."""
    changes = [f"name=evidence-{name}-{seed}", f"training.seed={seed}", "data.eval=null"]
    changes += [f"data.train={{path: {rows}/{ROWS[name]}.train.jsonl}}"]
    changes += [f"data.test={{path: {rows}/{ROWS[name]}.test.jsonl}}"]
    overrides = [word for change in changes for word in ("--set", change)]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})}
    log = runs_dir / f"{name}-{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "recipe_kit", str(HERE / f"{name}.yaml"), "--runs-dir", str(runs_dir), *overrides],
            check=True, env=environment, stdout=file, stderr=file,
        )  # fmt: skip
    run = (runs_dir / f"evidence-{name}-{seed}" / "latest").resolve()
    info, metrics = (json.loads((run / file).read_text()) for file in ("run.json", "metrics.json"))
    return {
        "data": name,
        "seed": seed,
        "method": info["method"],
        "machine": info["hardware"],
        "versions": info["versions"],
        "training": info["training"],
        "proofs": {proof["name"]: proof["ok"] for proof in info["proofs"]},
        "metrics": {key: value for key, value in metrics.items() if key != "versions"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--gpus", nargs="*", default=[], help="GPU numbers to share the runs among")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    gpus: Queue[str | None] = Queue()
    for gpu in arguments.gpus or [None]:
        gpus.put(gpu)

    def take_turns(run: tuple[str, int]) -> dict[str, object]:
        gpu = gpus.get()
        try:
            return run_one(*run, arguments.rows.resolve(), arguments.runs_dir.resolve(), gpu)
        finally:
            gpus.put(gpu)

    with ThreadPoolExecutor(gpus.qsize()) as pool:
        results = list(pool.map(take_turns, RUNS))
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
