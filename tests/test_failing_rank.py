"""One of two processes that fails, crashes, is killed or hangs: said once, by its number, and the run ends quickly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import forked
from recipe_kit import ranks

pytestmark = pytest.mark.slow
QUICK_SECONDS = 12  # torch's launcher waits 30 for processes that do not end, and gloo 1800 for one that hangs


def together(act: Callable[[int], object], *, timeout: float = 1800) -> Callable[[], object]:
    """What two ranks do: `act`, then step after step in which they wait for one another."""

    def run() -> None:
        import torch

        from recipe_kit import signals
        from recipe_kit.cli._common import Sentence

        ranks.FIRST_SPEAKS_SECONDS = 0.5

        def body() -> None:
            with signals.listening():
                torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout))
                print("ready", flush=True)
                for step in range(200):
                    if step == 5:
                        act(int(os.environ["RANK"]))
                    torch.distributed.all_reduce(torch.zeros(1))
                    time.sleep(0.05)

        Sentence(name="rank", callback=body).main([], prog_name="rank")

    return run


def fails(who: set[int], error: Exception) -> Callable[[int], None]:
    def act(rank: int) -> None:
        if rank in who:
            raise error

    return act


def ended(out: Path, act: Callable[[int], object], *, timeout: float = 1800) -> tuple[list[int], str]:
    running = forked.start(out, together(act, timeout=timeout), ranks=2)
    running.wait_for("ready\nready")
    started = time.monotonic()
    codes = running.codes()
    assert time.monotonic() - started < QUICK_SECONDS
    return codes, running.said.replace("ready\n", "")


def test_a_sentence_of_one_rank_is_said_with_its_number_and_nothing_of_the_other(tmp_path: Path) -> None:
    from recipe_kit.errors import DataError

    codes, said = ended(tmp_path / "out", fails({1}, DataError("rows.jsonl: no such file")))
    assert codes == [1, 1]
    assert said == "recipe-kit, process 1: rows.jsonl: no such file\n"


def test_a_sentence_of_all_ranks_is_said_once_and_without_a_number(tmp_path: Path) -> None:
    from recipe_kit.errors import DataError

    codes, said = ended(tmp_path / "out", fails({0, 1}, DataError("rows.jsonl: no such file")))
    assert codes == [1, 1]
    assert said == "recipe-kit: rows.jsonl: no such file\n"


def test_a_bug_in_one_rank_keeps_its_traceback_and_the_other_has_none(tmp_path: Path) -> None:
    codes, said = ended(tmp_path / "out", fails({1}, ZeroDivisionError("of ours")))
    assert codes == [1, 1]
    assert said.startswith("recipe-kit, process 1:\nTraceback (most recent call last)")
    assert said.endswith("ZeroDivisionError: of ours\n\n") and said.count("Traceback") == 1


def test_a_rank_that_hangs_is_named_when_the_others_give_up(tmp_path: Path) -> None:
    def act(rank: int) -> None:
        ranks.NEWS_SECONDS = 1.0
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    running = forked.start(tmp_path / "out", together(act, timeout=1), ranks=2)
    running.wait_for("did not answer", 30)
    running.send(signal.SIGKILL, rank=1)  # as the launcher does with what does not end
    assert running.codes() == [1, -9]
    assert "recipe-kit: process 1 did not answer (Timed out waiting 1000ms" in running.said
    assert "training.ddp_timeout" in running.said and "Traceback" not in running.said


LAUNCHED = """
import os, signal, sys, time
from recipe_kit import signals
if os.environ["RANK"] == "1":
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.02)
    print(time.time(), file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
try:
    with signals.listening():
        open(sys.argv[1], "w").close()
        time.sleep(60)  # for an answer of the other, which will not come
except signals.PeerEnded:
    sys.exit(1)
"""


def test_a_killed_rank_is_named_by_the_launcher_and_the_other_does_not_wait(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED)
    words = [sys.executable, "-m", "recipe_kit.launch", "torchrun", "--standalone", "--nproc_per_node=2"]
    words += [str(script), str(tmp_path / "listening")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    took = time.time() - float(done.stderr.splitlines()[0])
    assert done.returncode == 1
    assert "recipe-kit: process 1 was ended by SIGKILL" in done.stderr and "Traceback" not in done.stderr
    assert took < QUICK_SECONDS


def test_only_words_of_the_libraries_that_talk_count_as_another_processs_end() -> None:
    assert ranks._of_communication(RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:9")) == "gone"
    assert ranks._of_communication(RuntimeError("Timed out waiting 1000ms for recv operation")) == "silent"
    assert ranks._of_communication(RuntimeError("shapes do not fit")) is None
    assert ranks._of_communication(ConnectionResetError("Connection reset by peer")) is None  # of the Hub, say
