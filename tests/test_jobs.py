"""Job files: what stands in them, and what their shell code does, run by bash with a cluster's commands played."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from recipe_kit import cli, jobs, signals
from recipe_kit.errors import LaunchError

MINE = """
name: mine
model: {id: "tiny:chatml", dtype: bfloat16}
method: full
data: {train: {sample: support, limit: 8}, formatter: support}
training: {max_steps: 2}
"""
NASTY = 'it\'s "quoted" $HOME `id`; rm -rf x'


def slurm(**values: Any) -> str:
    options = {"file": "mine.sbatch", "time": "01:00:00", "partition": None, "account": None, "cpus_per_gpu": 8}
    return jobs.slurm(
        jobs.Job(**{"recipe": "mine.yaml", "name": "mine"} | {k: v for k, v in values.items() if k not in options}),
        **(options | {k: v for k, v in values.items() if k in options}),  # type: ignore[arg-type]
    )


def sky(**values: Any) -> dict[str, Any]:
    options = ("cloud", "spot", "bucket", "volume", "workdir")
    job = {"recipe": "mine.yaml", "name": "mine", "gpu": "H100"} | {
        k: v for k, v in values.items() if k not in options
    }
    text = jobs.sky(
        jobs.Job(**job), file="mine.sky.yaml", version="0.1.0", **{k: v for k, v in values.items() if k in options}
    )
    task: dict[str, Any] = yaml.safe_load(text)
    return task


def header(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return dict(line.partition("=")[::2] for line in lines)


def parses(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def run(folder: Path, *words: str) -> Result:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner().invoke(cli.main, ["launch", *words], prog_name="recipe-kit")
    finally:
        os.chdir(before)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(MINE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with `srun`, `scontrol` and `recipe-kit`, which write down how they were called."""
    played = {
        # one task for each node that was not asked for otherwise, and the highest exit code of them
        "srun": """
            case "$*" in *--nodes=1*) nodes=1 ;; *) nodes=$NODES ;; esac
            while case "$1" in --*) true ;; *) false ;; esac; do shift; done
            tasks=""
            trap 'for task in $tasks; do kill -s USR1 "$task"; done' USR1
            trap 'for task in $tasks; do kill -s TERM "$task"; done' TERM
            for node in $(seq 0 $((nodes - 1))); do SLURM_NODEID=$node "$@" & tasks="$tasks $!"; done
            highest=0
            for task in $tasks; do
              wait "$task"; code=$?
              while [ "$code" -gt 128 ]; do wait "$task"; code=$?; done
              [ "$code" -gt "$highest" ] && highest=$code
            done
            exit "$highest"
        """,
        "scontrol": """
            if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; else echo "scontrol $*" >>"$CALLS"; fi
        """,
        "recipe-kit": """
            echo "$1 rank=${NODE_RANK:-} of=${NNODES:-} at=${MASTER_ADDR:-}:${MASTER_PORT:-} $*" >>"$CALLS"
            [ "$1" = plan ] && exit "${PLANNED:-0}"
            trap 'sleep 0.2; exit 75' USR1
            trap 'exit 75' TERM
            [ -n "${CODE:-}" ] && exit "$CODE"
            echo ready >>"$CALLS.ready"
            for _ in $(seq 200); do sleep 0.05; done
        """,
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in played.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}", encoding="utf-8")
        (folder / name).chmod(0o755)
    return tmp_path


def start(cluster: Path, script: str, **environment: str) -> subprocess.Popen[str]:
    path = cluster / "job.sh"
    path.write_text(script, encoding="utf-8")
    told = {
        "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "CALLS": str(cluster / "calls"), "NODES": "2",
        "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_CPUS_PER_TASK": "8",
    }  # fmt: skip
    return subprocess.Popen(["bash", str(path)], env={**os.environ, **told, **environment}, text=True, cwd=cluster)


def calls(cluster: Path) -> list[str]:
    path = cluster / "calls"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def until_training(cluster: Path) -> None:
    for _ in range(200):
        ready = cluster / "calls.ready"
        if ready.exists() and len(ready.read_text().splitlines()) == 2:
            return
        time.sleep(0.05)
    raise AssertionError("the played training did not begin")


TWO_NODES = {"nodes": 2, "gpus_per_node": 8, "accelerate_config": "multi_node_fsdp2"}


def test_a_slurm_script_asks_for_the_machines_and_for_a_warning() -> None:
    script = slurm(**TWO_NODES, gpu="h100", partition="gpu", account="lab", time="2-00:00:00")
    assert parses(script) and script.startswith("#!/bin/bash\n")
    assert header(script) == {
        "job-name": "mine", "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "h100:8", "cpus-per-task": "64",
        "time": "2-00:00:00", "partition": "gpu", "account": "lab", "output": "mine-%j.log", "open-mode": "append",
        "signal": f"B:USR1@{jobs.GRACE_SECONDS}", "requeue": "",
    }  # fmt: skip


def test_rows_are_prepared_once_and_every_machine_is_told_its_place(cluster: Path) -> None:
    assert start(cluster, slurm(**TWO_NODES), CODE="0").wait(20) == 0
    first, *others = calls(cluster)
    assert first.startswith("plan rank= of=2 ") and "--accelerate-config multi_node_fsdp2 --num-processes 16" in first
    words = "train mine.yaml --accelerate-config multi_node_fsdp2 --num-processes 16 --runs-dir runs --resume auto"
    assert sorted(others) == [f"train rank={node} of=2 at=node-a:10077 {words}" for node in (0, 1)]


def test_a_job_that_is_restarted_does_not_prepare_again(cluster: Path) -> None:
    assert start(cluster, slurm(**TWO_NODES), CODE="0", SLURM_RESTART_COUNT="1").wait(20) == 0
    assert [line.split()[0] for line in calls(cluster)] == ["train", "train"]


def test_what_a_plan_refuses_is_not_trained(cluster: Path) -> None:
    assert start(cluster, slurm(**TWO_NODES), PLANNED="1").wait(20) == 1
    assert [line.split()[0] for line in calls(cluster)] == ["plan"]


@pytest.mark.parametrize(("code", "queued"), [(signals.EXIT_CODE, True), (1, False), (0, False)])
def test_only_the_code_of_a_stopped_run_queues_the_job_again(cluster: Path, code: int, queued: bool) -> None:
    assert start(cluster, slurm(**TWO_NODES), CODE=str(code)).wait(20) == code
    assert ("scontrol requeue 77" in calls(cluster)) is queued


def test_the_warning_before_the_end_reaches_the_training_which_saves_before_the_job_is_queued_again(
    cluster: Path,
) -> None:
    with start(cluster, slurm(**TWO_NODES)) as job:
        until_training(cluster)
        job.send_signal(signal.SIGUSR1)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(20) == signals.EXIT_CODE
    assert calls(cluster)[-1] == "scontrol requeue 77"


def test_a_job_that_is_cancelled_is_not_queued_again(cluster: Path) -> None:
    with start(cluster, slurm(**TWO_NODES)) as job:
        until_training(cluster)
        job.send_signal(signal.SIGTERM)
        assert job.wait(20) == signals.EXIT_CODE
    assert not [line for line in calls(cluster) if line.startswith("scontrol")]


def test_a_value_with_quotes_reaches_the_command_as_it_is(cluster: Path) -> None:
    script = slurm(**TWO_NODES, recipe="my recipe.yaml", overrides=(f"data.system={NASTY}",), profiles=("24gb",))
    assert parses(script)
    (folder := cluster / "bin" / "recipe-kit").write_text('#!/bin/bash\nprintf "%s\\n" "$@" >"$CALLS.$1"\n')
    assert folder.exists() and start(cluster, script, NODES="1").wait(20) == 0
    for command in ("plan", "train"):
        words = (cluster / f"calls.{command}").read_text(encoding="utf-8").splitlines()
        assert words[:6] == [command, "my recipe.yaml", "--profile", "24gb", "--set", f"data.system={NASTY}"]


@pytest.mark.parametrize(
    ("values", "flag"),
    [({"partition": "a b"}, "--partition"), ({"account": "x;y"}, "--account"), ({"gpu": "h100\n#SBATCH -N9"}, "--gpu"),
     ({"time": "soon"}, "--time")],
)  # fmt: skip
def test_what_cannot_stand_in_a_header_is_refused(values: dict[str, str], flag: str) -> None:
    with pytest.raises(LaunchError, match=f"^{flag}: expected"):
        slurm(**values)


def test_a_sky_task_has_its_machines_its_recovery_and_no_secret() -> None:
    task = sky(**TWO_NODES, cloud="runpod", spot=True, volume="kept", secrets=("HF_TOKEN",))
    assert task == {
        "name": "mine", "num_nodes": 2, "workdir": ".",
        "resources": {"infra": "runpod", "accelerators": "H100:8", "use_spot": True,
                      "job_recovery": {"recover_on_exit_codes": [signals.EXIT_CODE]}},
        "volumes": {"/runs": "kept"}, "secrets": {"HF_TOKEN": None}, "setup": task["setup"], "run": task["run"],
    }  # fmt: skip
    assert parses(task["setup"]) and parses(task["run"])
    assert "recipe-kit==0.1.0" in task["setup"] and "--runs-dir /runs --resume auto" in task["run"]


def test_a_sky_task_tells_each_machine_its_place(tmp_path: Path) -> None:
    task = sky(**TWO_NODES, overrides=(f"data.system={NASTY}",))
    run_part = task["run"].replace("source ~/recipe-kit-env/bin/activate\n", "")
    (tool := tmp_path / "recipe-kit").write_text(
        '#!/bin/bash\nprintf "%s\\n" "$NODE_RANK $NNODES $MASTER_ADDR $MASTER_PORT" "$@"\nexit 75\n'
    )
    tool.chmod(0o755)
    told = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", run_part], env=os.environ | told | path, text=True, capture_output=True)
    assert done.returncode == 75
    assert done.stdout.splitlines()[:5] == [
        "1 2 10.0.0.1 29500",
        "train",
        "mine.yaml",
        "--set",
        f"data.system={NASTY}",
    ]


def test_run_folders_in_a_bucket_are_cached_for_one_machine_only() -> None:
    assert sky(bucket="kept")["file_mounts"] == {"/runs": {"name": "kept", "mode": "MOUNT_CACHED"}}
    assert sky(**TWO_NODES, bucket="kept")["file_mounts"]["/runs"]["mode"] == "MOUNT"
    with pytest.raises(LaunchError, match="--bucket and --volume"):
        sky(bucket="kept", volume="kept")


def test_deepspeed_is_installed_where_the_strategy_is_its() -> None:
    assert "'recipe-kit[deepspeed]==0.1.0'" in sky(gpus_per_node=2, accelerate_config="zero2")["setup"]


def test_several_machines_take_the_configuration_of_the_same_strategy() -> None:
    assert jobs.config_for("fsdp2", 2, 8) == "multi_node_fsdp2"
    assert jobs.config_for("zero3", 4, 1) == "multi_node_zero3"
    assert jobs.config_for(None, 2, 1) == jobs.config_for("multi_gpu", 2, 8) == "multi_node"
    assert jobs.config_for(None, 1, 4) == jobs.config_for("single_gpu", 1, 4) == "multi_gpu"
    assert jobs.config_for(None, 1, 1) is None
    assert jobs.config_for("fsdp2", 1, 8) == "fsdp2"


def test_a_configuration_for_another_number_of_machines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LaunchError, match="zero2 is for one machine, and nothing like it ships for 2; take one of multi"
    ):
        jobs.config_for("zero2", 2, 8)
    with pytest.raises(LaunchError, match="multi_node is for several machines; give --nodes"):
        jobs.config_for("multi_node", 1, 8)
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\nnum_machines: 4\nnum_processes: 8\n")
    with pytest.raises(LaunchError, match="num_machines is 4, and --nodes 2; make them equal"):
        jobs.config_for(str(own), 2, 2)
    assert jobs.config_for(str(own), 4, 2) == str(own)


def test_neither_kind_is_a_usage_error_that_names_both(here: Path) -> None:
    for words in ((), ("--slurm", "--sky")):
        result = run(here, "mine.yaml", *words)
        assert result.exit_code == 2 and "give --slurm or --sky; got" in result.stderr


def test_an_option_of_the_other_kind_is_a_usage_error(here: Path) -> None:
    result = run(here, "mine.yaml", "--sky", "--partition", "gpu")
    assert result.exit_code == 2 and "--partition is of --slurm" in result.stderr


def test_print_writes_nothing_and_without_it_a_changed_file_is_left_alone(here: Path) -> None:
    shown = run(here, "mine.yaml", "--slurm", "--print")
    assert shown.exit_code == 0 and parses(shown.stdout) and [path.name for path in here.iterdir()] == ["mine.yaml"]
    written = run(here, "mine.yaml", "--slurm")
    assert written.stdout == "mine.sbatch\n" and "nothing was started" in written.stderr
    assert (here / "mine.sbatch").read_text() == shown.stdout
    assert run(here, "mine.yaml", "--slurm").exit_code == 0  # the same text again
    (here / "mine.sbatch").write_text("mine")
    refused = run(here, "mine.yaml", "--slurm")
    assert refused.exit_code == 1 and "mine.sbatch: there is another file of this name" in refused.stderr
    assert (here / "mine.sbatch").read_text() == "mine"


def test_a_wrong_recipe_and_a_wrong_combination_fail_here(here: Path) -> None:
    wrong = run(here, "mine.yaml", "--slurm", "--print", "--set", "training.learning_rat=1")
    assert wrong.exit_code == 1 and "learning_rate" in wrong.stderr
    eight_bits = ("--set", "training.optim=paged_adamw_8bit", "--accelerate-config", "fsdp2", "--gpus-per-node", "2")
    refused = run(here, "mine.yaml", "--slurm", "--print", *eight_bits)
    assert refused.exit_code == 1 and "training.optim: paged_adamw_8bit" in refused.stderr
    on_cpu = run(here, "samsum", "--profile", "smoke", "--slurm", "--print")
    assert on_cpu.exit_code == 1 and "training.use_cpu" in on_cpu.stderr


def test_a_recipe_from_elsewhere_is_not_in_the_folder_that_sky_sends(here: Path) -> None:
    (here / "inside").mkdir()
    refused = run(here / "inside", "../mine.yaml", "--sky", "--print", "--gpu", "L4")
    assert refused.exit_code == 1 and "SkyPilot sends the current folder" in refused.stderr
    task = yaml.safe_load(run(here, "samsum", "--sky", "--print", "--gpu", "L4").stdout)
    assert "workdir" not in task and task["secrets"] == {"HF_TOKEN": None}
    own = yaml.safe_load(run(here, str(here / "mine.yaml"), "--sky", "--print", "--gpu", "L4").stdout)
    assert own["workdir"] == "." and "recipe-kit train mine.yaml " in own["run"]


def test_a_token_in_the_environment_is_in_no_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    for words in (("--slurm",), ("--sky", "--gpu", "L4")):
        result = run(here, "samsum", *words, "--print")
        assert result.exit_code == 0 and "HF_TOKEN" in result.stdout and "hf_x" not in result.stdout


def test_sky_needs_the_type_of_gpu(here: Path) -> None:
    result = run(here, "mine.yaml", "--sky", "--print")
    assert result.exit_code == 1 and "--gpu: SkyPilot rents by the type of GPU" in result.stderr


def test_the_words_of_a_job_are_those_of_the_command_line() -> None:
    job = jobs.Job("mine.yaml", "mine", 2, 4, accelerate_config="multi_node", profiles=("24gb",), overrides=("a.b=1",))
    for words in (job.train(), job.plan()):
        command = cli.main.commands[words[1]]
        assert command.make_context(words[1], shlex.split(shlex.join(words[2:])))


def test_the_pages_show_what_is_printed(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    lines = [line.removeprefix("$ recipe-kit launch ") for line in page.splitlines() if " --print" in line]
    shown = [run(tmp_path, *shlex.split(line)).stdout for line in lines if line.startswith("llama32")]
    assert len(shown) == 2
    assert all(f"```text\n{text.strip()}\n```" in page for text in shown)
