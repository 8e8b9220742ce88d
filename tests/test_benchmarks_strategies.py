"""The benchmark of strategies: its tables, and that its runs differ in nothing but the strategy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import strategies  # noqa: E402


def run(strategy: str, losses: list[float], answers: Any, **more: Any) -> dict[str, Any]:
    return {
        "method": "full", "strategy": strategy, "processes": 1 if strategy == "one" else 2, "losses": losses,
        "held_out_loss": losses[-1] * 2, "tokens_per_second": 1234.4, "peak_memory_bytes": 3 * 2**29,
        "answers": answers, **more,
    }  # fmt: skip


RESULT = {
    "recorded": "2026-01-02", "machine": {"card": "H100"}, "versions": {"torch": "2.13.0"}, "model": "smol",
    "rows_a_step": 16, "steps": 2, "jobs": 1, "stop_after": 1,
    "runs": [
        run("one", [2.0, 1.0], [[1, 2], [3]]),
        run("ddp", [2.0, 0.995], [[1, 2], [3]],
            stopped={"exit_code": 75, "seconds_to_leave": 1.5, "step": 1, "losses": [2.0, 0.995]}),
        run("fsdp2", [2.02, 1.001], [[1, 5], [3]], stopped={"exit_code": 1, "seconds_to_leave": 9, "failed": "a | b"}),
        run("zero2", [2.0, 1.0], "OSError: no file"),
        {"method": "full", "strategy": "zero3", "processes": 2, "failed": "recipe-kit: no | deepspeed"},
    ],
}  # fmt: skip


def test_each_run_is_told_beside_that_of_one_process() -> None:
    lines = strategies.markdown(RESULT).splitlines()
    assert lines[4:9] == [
        "| full | one | 1 |  |  |  | 1,234 | 1.50 |",
        "| full | ddp | 2 | -0.50% | -0.50% | 2 of 2 (3 of 3 tokens) | 1,234 | 1.50 |",
        "| full | fsdp2 | 2 | +1.00% | +0.10% | 1 of 2 (2 of 3 tokens) | 1,234 | 1.50 |",
        "| full | zero2 | 2 | +0.00% | +0.00% | not loaded: OSError: no file | 1,234 | 1.50 |",
        "| full | zero3 | 2 | did not run: recipe-kit: no / deepspeed | | | | |",
    ]
    assert lines[-1] == "H100; torch 2.13.0; 2026-01-02"


def test_what_was_stopped_is_told_beside_what_was_not() -> None:
    table = strategies.markdown(RESULT).split("resumed:\n\n")[1].splitlines()
    assert table[2:4] == [
        "| full | ddp | 75 | 1.5 | 1 | +0.00% |",
        "| full | fsdp2 | 1 | 9 |  | did not go on: a / b |",
    ]


def test_runs_that_are_stopped_come_first_since_they_take_three_times_as_long() -> None:
    words = ["--rows", "rows.jsonl", "--only", "full-ddp", "full-zero3", "--stop-after", "8"]
    named = strategies.read_options([*words, "--stopped", "full-zero3"])
    assert strategies.wanted(named) == [("full", "zero3"), ("full", "one"), ("full", "ddp")]
    assert strategies.wanted(strategies.read_options(words)) == [("full", "one"), ("full", "ddp"), ("full", "zero3")]


def test_weights_that_were_not_asked_are_said_to_be_so() -> None:
    first, second = ({k: v for k, v in one.items() if k != "answers"} for one in RESULT["runs"][:2])
    table = strategies.markdown(RESULT | {"runs": [first, second]}).splitlines()
    assert table[5] == "| full | ddp | 2 | -0.50% | -0.50% | not asked | 1,234 | 1.50 |"


def test_runs_of_other_lengths_are_not_compared() -> None:
    with pytest.raises(ValueError, match="longer"):
        strategies.largest_gap([1.0], [1.0, 2.0])


def test_all_runs_of_a_method_have_the_same_rows_a_step(tmp_path: Path) -> None:
    options = strategies.read_options(["--rows", "rows.jsonl", "--processes", "4", "--only", "lora-zero3", "full-ddp"])
    assert strategies.wanted(options) == [("lora", "one"), ("lora", "zero3"), ("full", "one"), ("full", "ddp")]
    one, four = (strategies.command(tmp_path, "lora", name, tmp_path, options) for name in ("one", "zero3"))
    assert [word for word in one if "train_batch" in word or "accumulation" in word] == [
        "training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=2",
    ]  # fmt: skip
    assert [word for word in four if "train_batch" in word or "accumulation" in word] == [
        "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1",
    ]  # fmt: skip
    named = {"train_batch", "accumulation", "accelerate-config", "zero3", "single_gpu"}
    assert {word for word in set(one) ^ set(four) if not any(name in word for name in named)} == {"1", "4"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--rows: give a file of rows"),
        (["--rows", "a.jsonl", "--processes", "3"], "--processes: expected a number that divides 16, got 3"),
        (["--rows", "a.jsonl", "--only", "lora-zero4"], "got lora-zero4"),
        (["--rows", "a.jsonl", "--go-on"], "--go-on: name the result to go on with by --out"),
        (["--rows", "a.jsonl", "--stopped", "lora"], "--stopped: expected some of lora-one, lora-ddp"),
    ],
)
def test_what_cannot_be_compared_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        strategies.read_options(words)
    assert said in capsys.readouterr().err


def test_a_sitting_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    words = ["--rows", "rows.jsonl", "--model", "smol", "--steps", "2", "--go-on", "--out", str(tmp_path / "a.json")]
    options = strategies.read_options([*words, "--stop-after", "1"])
    assert strategies.begun(options)["runs"] == []
    strategies.write(RESULT | {"processes": 2, "changes": []}, tmp_path / "a.json")
    found = strategies.begun(options)
    assert found["runs"] == RESULT["runs"][:4]  # the one that failed is run again
    assert found["recorded"].startswith("2026-01-02, 20") and found["versions"] == RESULT["versions"]
    with pytest.raises(SystemExit, match=r"a\.json was made with stop_after 1, not 0"):
        strategies.begun(strategies.read_options(words))


def test_a_result_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategies.write(RESULT, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == RESULT
    strategies.main(["--table", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.strip() == strategies.markdown(RESULT)
