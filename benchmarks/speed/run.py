"""The kit against plain TRL and unsloth: the same rows, the same rows a step, one GPU, in turn.

    python benchmarks/speed/run.py --out result.json            # all works, all configurations, three rounds
    python benchmarks/speed/run.py --quick --out result.json    # one short round
    python benchmarks/speed/run.py --growth --out growth.json   # how speed and memory grow with length, size and step
    python benchmarks/speed/run.py --works lora-1b --only kit trl --out result.json --add
    python benchmarks/speed/run.py --table result.json          # print the table again

Prints a table in Markdown and writes every number of every round. Each configuration trains in a process of its own,
started ahead and let go when its turn comes; between the rounds the card's ceiling is measured. Packages that do not
go together are kept apart by `--path unsloth=FOLDER`, the PYTHONPATH of that configuration. A configuration that
cannot run is reported with its reason, and the others go on.
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
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import driver
import rows
import table
import works
from shapes import SHAPES
from works import Settings, Work

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "src"
Entry = dict[str, Any]  # of one work, in the result


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    if options.table:
        print(table.markdown(json.loads(options.table.read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory(prefix="speed-", dir=options.tmp) as folder:
        result = measure(options, Path(folder))
    print(table.markdown(result))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything that was asked for: candidates first, then rounds of all that ran, a ceiling before each."""
    session = Session(options, folder, _works(options))
    session.choose_candidates()
    for number in range(options.rounds):
        _remark(f"round {number + 1} of {options.rounds}")
        session.round()
    return session.result


class Session:
    """The works of one call and what is known of them; the result is written after every turn."""

    def __init__(self, options: argparse.Namespace, folder: Path, chosen: list[Work]) -> None:
        self.options, self.folder = options, folder
        self.works = {work.name: work for work in chosen}
        about = {"machine": _machine(), "recorded": datetime.now(UTC).strftime("%Y-%m-%d"), "options": _asked(options)}
        self.entries: dict[str, Entry] = {work.name: _entry(work, options) | about for work in chosen}
        earlier = options.add and options.out.exists()
        kept = json.loads(options.out.read_text(encoding="utf-8"))["works"] if earlier else []
        kept = [entry for entry in kept if entry["name"] not in self.entries]
        self.result = {"works": [*kept, *self.entries.values()]}

    def choose_candidates(self) -> None:
        """Try every candidate of those that have several, briefly."""
        tries = [
            (name, configuration, candidate)
            for name, entry in self.entries.items()
            for configuration, told in entry["configurations"].items()
            for candidate in told["candidates"]
            if len(told["candidates"]) > 1
        ]
        steps, seconds = max(2, self.options.steps // 3), self.options.seconds / 2
        tasks = [self._task(name, by, candidate["settings"], steps, seconds) for name, by, candidate in tries]
        for (name, by, candidate), turn in zip(tries, self._turns(tasks), strict=True):
            candidate["result"] = turn.result
            _take_fastest(self.entries[name]["configurations"][by])
            self._write()

    def round(self) -> None:
        """One turn of everything that has not failed."""
        turns = [
            (name, by, told["settings"])
            for name, entry in self.entries.items()
            for by, told in entry["configurations"].items()
            if not told["failed"]
        ]
        tasks = [self._task(*turn, self.options.steps, self.options.seconds) for turn in turns]
        done = self._turns([self._ceiling(), *tasks])
        first = next(done)
        for entry in self.entries.values():
            entry["ceilings"].append(first.result)
        for (name, by, _), turn in zip(turns, done, strict=True):
            _note_round(self.entries[name], by, turn.result)
            self._write()

    def _turns(self, tasks: list[driver.Task]) -> Iterator[driver.Turn]:
        options = self.options
        return driver.run(tasks, ahead=options.ahead, seconds=options.timeout, folder=self.folder, report=_remark)

    def _write(self) -> None:
        for entry in self.entries.values():
            table.summarise(entry)
        if self.options.out:
            self.options.out.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")

    def _task(self, name: str, configuration: str, settings: Settings, steps: int, seconds: float) -> driver.Task:
        job = {
            "work": dataclasses.asdict(self.works[name]),
            "configuration": configuration,
            "settings": settings,
            "steps": steps,
            "warmup": self.options.warmup,
            "seconds": seconds,
            "warmup_seconds": self.options.seconds / 2,
            "device": self.options.device,
            "folder": str(self.folder / "out"),
            "models": str(self.folder / "models"),
        }
        own, program = self.options.path, configuration.partition("-")[0]
        path = own.get(configuration) or own.get(program) or os.environ.get("PYTHONPATH", "")
        if program == "kit":
            path = f"{SOURCES}{os.pathsep}{path}"
        command = [sys.executable, str(HERE / works.PROGRAMS[configuration]), json.dumps(job)]
        return driver.Task(f"{name}: {configuration}", command, {"PYTHONPATH": path})

    def _ceiling(self) -> driver.Task:
        job = {"device": self.options.device, "work": dataclasses.asdict(next(iter(self.works.values())))}
        return driver.Task("ceiling", [sys.executable, str(HERE / "ceiling.py"), json.dumps(job)])


def _works(options: argparse.Namespace) -> list[Work]:
    if options.growth:
        known = works.growth(options.shapes) if options.shapes else works.growth()
    elif options.shapes:
        known = [work for shape in options.shapes for work in works.of_shape(shape)]
    else:
        known = list(works.WORKS)
    if options.works:
        unknown = set(options.works) - {work.name for work in known}
        if unknown:
            sys.exit(f"--works: {', '.join(sorted(unknown))}: known are {', '.join(work.name for work in known)}")
        known = [work for work in known if work.name in options.works]
    return known


def _entry(work: Work, options: argparse.Namespace) -> Entry:
    """What the result says of a work before anything has run."""
    made = work.lengths(options.warmup + options.steps)
    configurations = {}
    for name in options.only:
        choices = works.candidates(name, work)
        choices = choices[:1] if options.quick else choices
        configurations[name] = {
            "title": works.TITLES_OF_CONFIGURATIONS[name],
            "settings": choices[0],
            "candidates": [{"settings": settings} for settings in choices],
            "rounds": [],
            "failed": None,
        }
    told = dataclasses.asdict(work)
    return told | {
        "title": work.title,
        "parameters": SHAPES[work.shape].parameters,
        "flop_per_parameter": work.flop_per_parameter,
        "rows": {"count": len(made), "tokens": sum(made), "longest": max(made), "seed": rows.SEED, "sha256": None},
        "ceilings": [],
        "configurations": configurations,
    }


def _take_fastest(configuration: dict[str, Any]) -> None:
    """The fastest candidate so far gives the settings of the rounds; when all have failed, the configuration has."""
    tried = [each for each in configuration["candidates"] if "result" in each]
    ran = [each for each in tried if "failed" not in each["result"]]
    if ran:
        configuration["settings"] = max(ran, key=lambda each: each["result"]["tokens_per_second"])["settings"]
    elif len(tried) == len(configuration["candidates"]):
        configuration["failed"] = tried[-1]["result"]["failed"]


def _note_round(entry: Entry, name: str, found: dict[str, Any]) -> None:
    """Keep a round's numbers; a configuration that failed is not tried again."""
    configuration = entry["configurations"][name]
    configuration["rounds"].append(found)
    if "failed" in found:
        configuration["failed"] = found["failed"]
        return
    told = entry["rows"]["sha256"]
    if told not in (None, found["rows_sha256"]):
        raise SystemExit(f"{entry['name']}: {name} trained other rows than the rest")
    entry["rows"]["sha256"] = found["rows_sha256"]


def _machine() -> dict[str, Any]:
    """The host, and its cards as the driver sees them; nothing here holds GPU memory."""
    found: dict[str, Any] = {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=False)
        found["cards"] = told.stdout.strip().splitlines()
    return found


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """The options a number depends on."""
    return {name: getattr(options, name) for name in ("rounds", "warmup", "steps", "seconds", "device", "quick")}


def _remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the result, as JSON")
    parser.add_argument("--add", action="store_true", help="keep the other works of an earlier --out")
    parser.add_argument("--table", type=Path, help="print the table of this result and measure nothing")
    parser.add_argument("--only", nargs="+", choices=list(works.PROGRAMS), help="configurations; all, unless given")
    parser.add_argument("--works", nargs="+", help=f"works: {', '.join(work.name for work in works.WORKS)}")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="the works of these shapes")
    parser.add_argument("--growth", action="store_true", help="length of rows, size of the model, tokens of a step")
    parser.add_argument("--quick", action="store_true", help="one round of few steps, the first candidate only")
    parser.add_argument("--rounds", type=int, help="3; 2 with --growth")
    parser.add_argument("--steps", type=int, help="timed steps of a round: 12; 6 with --growth")
    parser.add_argument("--warmup", type=int, help="steps before the clock starts: 6; 4 with --growth")
    parser.add_argument("--seconds", type=float, default=10, help="a slow configuration is timed no longer than this")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a worker is ended")
    parser.add_argument("--ahead", type=int, default=min(8, os.cpu_count() or 1), help="workers started together")
    parser.add_argument("--path", action="append", default=[], metavar="NAME=FOLDER", help="a PYTHONPATH of its own")
    parser.add_argument("--tmp", type=Path, help="where random models are kept for unsloth; memory is fastest")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu proves that it works, no more")
    options = parser.parse_args(arguments)
    short, few = options.quick, options.growth
    options.rounds = options.rounds or (1 if short else 2 if few else 3)
    options.steps = options.steps or (4 if short else 6 if few else 12)
    options.warmup = options.warmup or (2 if short else 4 if few else 6)
    options.only = options.only or (["kit", "trl", "trl-best"] if few else list(works.PROGRAMS))
    options.path = dict(each.split("=", 1) for each in options.path)
    if options.tmp is None and Path("/dev/shm").is_dir():
        options.tmp = Path("/dev/shm")
    if options.add and not options.out:
        parser.error("--add needs --out")
    return options


if __name__ == "__main__":
    main()
