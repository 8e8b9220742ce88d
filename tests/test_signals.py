"""A training that is asked to stop: where, with what kept, and what its exit code says to a scheduler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import forked
from recipe_kit import checkpoints, launch, run_dir, signals, trials

RECIPE = """
name: tiny
model: {id: "tiny:llama3", dtype: float32}
method: lora
data: {train: {sample: support, limit: 32}, eval: {rows: 8}, formatter: support, max_length: 128}
lora: {r: 4, target_modules: [q_proj, v_proj]}
training: {max_steps: 12, per_device_train_batch_size: 2, logging_steps: 1, save_strategy: "no", use_cpu: true,
           report_to: []}
evaluation: {samples: 0, max_new_tokens: 2, metrics: []}
"""


# The listener


def test_a_request_before_training_is_raised_where_the_process_is() -> None:
    with signals.listening(), pytest.raises(signals.Stopped, match="stopped by SIGUSR1") as stopped:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1)
    assert stopped.value.exit_code == 75
    assert stopped.value.sentence == "stopped by SIGUSR1 before training began; the same command begins again"


def test_a_request_during_a_step_is_noted_and_the_same_one_on_another_way_is_no_second(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with signals.listening() as listener:
        listener.waits = True
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        time.sleep(0.05)
        assert listener.asked is signal.SIGTERM
        with pytest.raises(signals.Stopped):
            listener.release()
    assert capfd.readouterr().err == "SIGTERM: training stops when this step has ended and its checkpoint is saved\n"


def test_a_second_request_ends_at_once_but_not_a_schedulers_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "AGAIN_SECONDS", 0.1)
    with signals.listening() as listener:
        listener.waits = True
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.15)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # the end of the time that SIGUSR1 warned of
        time.sleep(0.15)
        with pytest.raises(signals.Stopped, match="ended at once by a second SIGTERM") as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert stopped.value.exit_code == 143


def test_signals_that_were_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.listening() as listener:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            assert listener.asked is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("training", "code"), [(True, 7), (False, -signal.SIGTERM)])
def test_a_worker_that_loads_batches_outlives_what_is_sent_to_all_processes(training: bool, code: int) -> None:
    with signals.listening() as listener:
        listener.waits = training
        reading, writing = os.pipe()
        if not (pid := os.fork()):
            os.write(writing, b"1")
            time.sleep(0.3)
            os._exit(7)
        os.read(reading, 1)
        for number in (signal.SIGTERM, signal.SIGTERM):
            os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
        assert listener.asked is None  # what a worker hears is not what its owner hears


def test_exit_codes() -> None:
    assert [signals.exit_code(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == [75, 75, 130]
    assert signals.code_of(KeyboardInterrupt()) == 130
    assert signals.code_of(signals.Stopped(signal.SIGTERM)) == 75


def test_the_sentence_names_signal_step_and_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signals.COMMAND, "recipe-kit train a.yaml --num-processes 2")
    stopped = signals.Stopped(signal.SIGTERM, step=7, of=20, run=Path("runs/a/b"), saved=7)
    assert stopped.sentence == (
        "stopped by SIGTERM after step 7 of 20; the checkpoint is saved; go on with: "
        "recipe-kit train a.yaml --num-processes 2 --resume runs/a/b"
    )
    stopped.saved = 5
    assert stopped.sentence == (
        "stopped by SIGTERM after step 7 of 20; no checkpoint of this step could be saved, and the last one is of "
        "step 5; go on with: recipe-kit train a.yaml --num-processes 2 --resume runs/a/b"
    )


# The callback


@pytest.fixture
def callback() -> Any:
    from recipe_kit.stopping import StopAtStep

    handler = SimpleNamespace(ended=0)
    handler.on_train_end = lambda *args: setattr(handler, "ended", handler.ended + 1)
    trainer = SimpleNamespace(saved_step=None, is_in_train=True, model=None, callback_handler=handler)
    trainer._save_checkpoint = lambda model, trial: setattr(trainer, "saved_step", 3)
    return StopAtStep(signals.Listener(), trainer)


def arguments(**changes: Any) -> Any:
    given = {"world_size": 1, "eval_on_start": False, "eval_strategy": "steps", "eval_delay": 0}
    return SimpleNamespace(**{**given, "output_dir": "runs/a/b/checkpoints", **changes})


def state(**changes: Any) -> Any:
    return SimpleNamespace(
        **{"global_step": 3, "max_steps": 9, "eval_steps": 3, "epoch": 0.5, "log_history": [], **changes}
    )


def control() -> Any:
    return SimpleNamespace(should_save=False, should_training_stop=False, should_evaluate=True)


@pytest.mark.slow  # imports transformers
def test_a_step_in_which_a_request_came_is_the_last_and_is_saved_once(callback: Any) -> None:
    flow = control()
    callback.on_train_begin(arguments(), state(global_step=0), flow)
    callback.on_step_end(arguments(), state(global_step=2), flow)
    assert not flow.should_training_stop
    callback.listener.asked = signal.SIGTERM
    callback.on_step_end(arguments(), state(), flow)
    assert vars(flow) == {"should_save": True, "should_training_stop": True, "should_evaluate": False}
    callback.trainer.saved_step = 3  # which the trainer does then
    with pytest.raises(signals.Stopped, match="stopped by SIGTERM after step 3 of 9") as stopped:
        callback.on_epoch_end(arguments(), state(), flow)
    assert stopped.value.saved == 3 and stopped.value.run == Path("runs/a/b")
    assert callback.trainer.callback_handler.ended == 1  # trackers have written what they held back


@pytest.mark.slow  # imports transformers
def test_a_training_at_its_last_step_is_not_stopped(callback: Any) -> None:
    callback.listener.asked = signal.SIGTERM
    flow = control()
    callback.on_step_end(arguments(), state(global_step=9), flow)
    callback.on_prediction_step(arguments(), state(global_step=9), flow)
    assert vars(flow) == vars(control())


@pytest.mark.slow  # imports transformers
def test_an_evaluation_between_steps_is_cut_short_and_made_up_for(callback: Any) -> None:
    callback.listener.asked = signal.SIGUSR1
    with pytest.raises(signals.Stopped, match="after step 3") as stopped:
        callback.on_prediction_step(arguments(), state(), control())
    assert stopped.value.saved == 3
    for history, missing in (([], True), ([{"step": 3, "eval_loss": 1.0}], False)):
        resumed = arguments()
        callback.on_train_begin(resumed, state(log_history=history), control())
        assert resumed.eval_on_start is missing


# Whole runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("signals")
    (found / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return found


def stopped_at(run: Path) -> int:
    """The step of a run that was stopped, whose checkpoint can be loaded."""
    from safetensors.torch import load_file

    info = run_dir.read(run)
    assert info["status"] == "interrupted"
    newest = checkpoints.newest(run, print)
    assert newest is not None
    assert all(value.isfinite().all() for value in load_file(newest / "adapter_model.safetensors").values())
    step: int = json.loads((newest / "trainer_state.json").read_text())["global_step"]
    assert f"after step {step} of 12" in info["error"]
    return step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "number"),
    [(1, signal.SIGTERM), pytest.param(2, signal.SIGUSR1, marks=forked.several_go_on)],
)
def test_a_stopped_run_leaves_a_checkpoint_and_75_and_resume_ends_it(
    folder: Path, processes: int, number: signal.Signals
) -> None:
    runs = folder / f"runs{processes}"
    words = [folder / "tiny.yaml", "--runs-dir", runs, "--set", "evaluation.after_training=false"]
    began = forked.start(folder / "out", forked.train(*words), ranks=processes)
    began.wait_for("step 2/12")
    began.send(number, rank=processes - 1)  # to one of them, and both stop, at the same step
    assert began.codes() == [75] * processes
    (run,) = (path for path in (runs / "tiny").iterdir() if not path.is_symlink())
    step = stopped_at(run)
    assert 2 <= step <= 5
    assert began.said.count(f"stopped by {number.name} after step {step} of 12; the checkpoint is saved") == 1
    assert "Traceback" not in began.said and f"--resume {run}" in began.said
    resumed = forked.start(folder / "out", forked.train(*words, "--resume"), ranks=processes)
    assert resumed.codes() == [0] * processes, resumed.said
    info = run_dir.require_finished(run)
    assert info["training"]["steps"] == 12 and info["training"]["resumed_at_step"] == step


@pytest.mark.slow
def test_a_stop_whose_checkpoint_does_not_fit_says_that_nothing_is_left(folder: Path) -> None:
    def act() -> None:
        checkpoints.shortage = lambda place, needed: "the disk is full" if place.name == "checkpoints" else ""  # type: ignore[assignment]
        forked.train(folder / "tiny.yaml", "--runs-dir", folder / "full")()

    began = forked.start(folder / "out", act)
    began.wait_for("step 2/12")
    began.send(signal.SIGTERM)
    assert began.codes() == [75]
    assert "the disk is full; the run stops, and there is none yet. Free some space" in began.said
    assert "; no checkpoint could be saved, so the same command begins again" in began.said
    assert "--resume" not in began.said


@pytest.mark.slow
def test_a_second_signal_ends_at_once_also_where_python_does_not_come_to_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a call that waits for another process for ever."""
    monkeypatch.setattr(signals, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(signals, "UNWINDING_SECONDS", 0.5)

    def hang() -> None:
        from torch.distributed import HashStore

        with signals.listening() as listener:
            listener.waits = True
            print("hanging", flush=True)
            HashStore().wait(["what nobody sets"], timedelta(seconds=60))

    began = forked.start(folder / "hang", hang)
    began.wait_for("hanging")
    sent = time.monotonic()
    began.send(signal.SIGTERM)
    time.sleep(signals.AGAIN_SECONDS + 0.1)
    began.send(signal.SIGTERM)
    assert began.codes() == [143]
    assert time.monotonic() - sent < 8


@pytest.mark.slow
def test_a_second_signal_ends_a_step_and_the_run_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "AGAIN_SECONDS", 0.2)

    def act() -> None:
        from recipe_kit.trainer import Trainer

        step = Trainer.training_step

        def slow(*args: Any, **kwargs: Any) -> Any:
            listener = signals.listener()
            if listener is not None and listener.waits:  # and not in a proof before training
                print("in a step", flush=True)
                time.sleep(30)
            return step(*args, **kwargs)

        Trainer.training_step = slow  # type: ignore[method-assign]
        forked.train(folder / "tiny.yaml", "--runs-dir", folder / "ended")()

    began = forked.start(folder / "out", act)
    began.wait_for("in a step")
    began.send(signal.SIGTERM)
    time.sleep(signals.AGAIN_SECONDS + 0.1)
    began.send(signal.SIGTERM)
    assert began.codes(10) == [143]
    (run,) = (path for path in (folder / "ended" / "tiny").iterdir() if not path.is_symlink())
    info = run_dir.read(run)
    assert (info["status"], info["error"]) == ("interrupted", "ended at once by a second SIGTERM")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "reason"),
    [
        (1, "stopped by SIGTERM"),
        (2, "another process could not measure its part (Stopped: stopped by SIGTERM)"),
    ],
)
def test_an_evaluation_that_is_stopped_leaves_a_finished_run(folder: Path, processes: int, reason: str) -> None:
    runs = folder / f"measured{processes}"
    words = [folder / "tiny.yaml", "--runs-dir", runs, "--set", "training.max_steps=1"]

    def act() -> None:
        from recipe_kit.evaluation import work

        measured = work.perplexity.row_losses

        def slow(*args: Any, **kwargs: Any) -> Any:
            print("measuring now", flush=True)
            time.sleep(1)
            return measured(*args, **kwargs)

        work.perplexity.row_losses = slow
        forked.train(*words)()

    began = forked.start(folder / "out", act, ranks=processes)
    began.wait_for("measuring now\n" * processes)
    began.send(signal.SIGTERM, rank=processes - 1)
    assert began.codes() == [0] * processes
    info = run_dir.require_finished(run_dir.find(runs / "tiny"))
    assert f"not evaluated ({reason}); run `recipe-kit eval` on this folder" in info["notes"]


# The launcher

WAITS = """
import os, signal, sys, time
def stop(number, frame):
    os.write(2, f"rank {os.environ['RANK']} got {signal.Signals(number).name}\\n".encode())  # in one piece
    time.sleep(float(sys.argv[1]))
    sys.exit(75)
for name in ("SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), stop)
os.write(2, b"ready\\n")
time.sleep(20)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "waits.py").write_text(WAITS)
    return tmp_path / "waits.py"


@pytest.mark.slow
def test_a_signal_to_the_first_process_reaches_each_rank_once_and_its_code_comes_out(script: Path) -> None:
    run = "import sys; from recipe_kit import launch; sys.exit(launch.run(sys.argv[1:]))"
    words = [sys.executable, "-c", run, "torchrun", "--standalone", "--nproc_per_node=2", str(script), "0.5"]
    said = []
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.strip())
            if said.count("ready") == 2 and line == "ready\n":
                os.killpg(process.pid, signal.SIGUSR1)  # to both launchers at once
    assert process.returncode == 75
    assert sorted(said) == ["rank 0 got SIGUSR1", "rank 1 got SIGUSR1", "ready", "ready"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a signal when the parent dies")
@pytest.mark.parametrize("killed", ["the command", "its launcher"])
def test_ranks_whose_parent_was_killed_are_told_to_stop(script: Path, killed: str) -> None:
    """They would train on unseen, and hold their GPUs."""
    waits = f"from recipe_kit import signals; signals.end_with_parent(); exec(open({str(script)!r}).read())"
    (script.parent / "rank.py").write_text(waits)
    run = "import sys; from recipe_kit import launch; sys.exit(launch.run(sys.argv[1:]))"
    words = [
        sys.executable,
        "-c",
        run,
        "torchrun",
        "--standalone",
        "--nproc_per_node=2",
        str(script.parent / "rank.py"),
    ]
    said = []
    with subprocess.Popen([*words, "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # to the end: until nobody is left who could write
            said.append(line.strip())
            if said.count("ready") == 2 and line == "ready\n":
                (launcher,) = psutil.Process(process.pid).children()
                (process if killed == "the command" else launcher).kill()
    assert {"rank 0 got SIGTERM", "rank 1 got SIGTERM"} < set(said)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a signal when the parent dies")
@pytest.mark.parametrize(
    ("asked", "group", "status"), [(signal.SIGTERM, False, "SIGUSR1"), (signal.SIGINT, True, "SIGINT")]
)
def test_a_training_whose_plain_launcher_is_ended_stops_with_a_checkpoint(
    tmp_path: Path, asked: signal.Signals, group: bool, status: str
) -> None:
    """accelerate's launcher of one process passes nothing on, and the training went on unseen.

    Ctrl-C goes to the whole group: what the launcher's end adds to it is not a second request.
    """
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    words = ["-m", "recipe_kit", str(tmp_path / "tiny.yaml"), "--runs-dir", str(tmp_path), "--set"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
    with subprocess.Popen(
        [*launcher, *words, "training.max_steps=20000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        until(lambda: any(len(run_dir.read_lines(log)) > 2 for log in tmp_path.glob(f"tiny/*/{run_dir.LOG}")))
        (training,) = psutil.Process(process.pid).children()
        (os.killpg if group else os.kill)(process.pid, asked)
        assert training.wait(timeout=60) is None
    run = next(tmp_path.glob(f"tiny/*/{run_dir.RUN}")).parent
    info = run_dir.read(run)
    assert info["status"] == "interrupted" and status in info["error"]
    assert checkpoints.last_step(run)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.1)


@pytest.mark.parametrize("code", [75, 130])
def test_a_trial_that_was_asked_to_stop_has_not_failed(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_TRAIN", f"import sys; sys.exit({code})")
    trial = trials.load("samsum", ["smoke"], [])
    with pytest.raises(KeyboardInterrupt) as stopped:
        trials.train(trial, tmp_path)
    assert signals.code_of(stopped.value) == code


@pytest.mark.parametrize(
    ("code", "heard", "expected"),
    [
        (0, [], 0), (75, [], 75), (1, [], 1), (130, [signal.SIGINT], 130), (1, [signal.SIGINT], 130),
        (-15, [signal.SIGTERM], 75), (-9, [], 1),
    ],
)  # fmt: skip
def test_what_a_childs_exit_code_means(code: int, heard: list[signal.Signals], expected: int) -> None:
    assert launch._exit_code(code, heard, "process 1") == expected


def test_a_process_that_a_signal_ended_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    launch._exit_code(-9, [], "process 1")
    assert capsys.readouterr().err == (
        "recipe-kit: process 1 was ended by SIGKILL: the system does this when memory runs out, and a job scheduler "
        "at the end of a job's time; --resume continues from the last checkpoint\n"
    )
