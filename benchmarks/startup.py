"""How long the command line takes to answer, beside TRL's, in one run on one machine.

    python benchmarks/startup.py --out benchmarks/results/startup.json

Each command is started ten times in a fresh process, the two tools in turn; the median counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
COMMANDS = {
    "recipe-kit --help": [BIN / "recipe-kit", "--help"],
    "trl --help": [BIN / "trl", "--help"],
    "recipe-kit validate samsum": [BIN / "recipe-kit", "validate", "samsum"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(10):
        for name, words in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: importlib.metadata.version(name) for name in ("recipe-kit", "trl", "torch")},
        "median_seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
    }
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
