"""The launch line: what is decided, without starting anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe_kit import launch
from recipe_kit.errors import LaunchError


def words(argv: list[str]) -> str:
    return " ".join(Path(word).name if word.endswith(".yaml") else word for word in argv)


def test_a_cpu_gets_accelerate_launch_with_the_cpu_configuration() -> None:
    argv = launch.build_argv(["r.yaml", "--profile", "smoke"], on_cpu=True)
    assert words(argv) == "accelerate launch --quiet --config_file cpu.yaml -m recipe_kit r.yaml --profile smoke"


def test_two_cpu_processes_are_started_by_torch_since_accelerate_starts_one() -> None:
    argv = launch.build_argv(["r.yaml"], on_cpu=True, num_processes=2)
    assert words(argv) == "torchrun --standalone --nproc_per_node=2 -m recipe_kit r.yaml"


def test_one_gpu_is_the_default_even_where_there_are_more() -> None:
    argv = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=4)
    assert Path(argv[argv.index("--config_file") + 1]).name == "single_gpu.yaml"


def test_two_processes_take_the_multi_gpu_configuration() -> None:
    argv = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=4, num_processes=2)
    assert "--num_processes=2" in argv and Path(argv[argv.index("--config_file") + 1]).name == "multi_gpu.yaml"


def test_a_multi_gpu_configuration_takes_all_gpus_unless_told() -> None:
    assert "--num_processes=4" in launch.build_argv(
        ["r.yaml"], on_cpu=False, gpu_count=4, accelerate_config="multi_gpu"
    )


def test_single_gpu_gives_way_to_more_processes() -> None:
    argv = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=2, accelerate_config="single_gpu", num_processes=2)
    assert Path(argv[argv.index("--config_file") + 1]).name == "multi_gpu.yaml"


def test_a_file_of_your_own_decides_the_number_of_processes(tmp_path: Path) -> None:
    own = tmp_path / "nodes.yaml"
    own.write_text("num_processes: 16\n")
    argv = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=8, accelerate_config=str(own))
    assert not [word for word in argv if word.startswith("--num_processes")]


def test_more_processes_than_gpus_is_refused() -> None:
    with pytest.raises(LaunchError, match="3 processes need 3 GPUs, and this machine has 2"):
        launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=2, num_processes=3)


def test_zero_processes_is_refused() -> None:
    with pytest.raises(LaunchError, match="expected 1 or more, got 0"):
        launch.build_argv(["r.yaml"], on_cpu=True, num_processes=0)


def test_an_unknown_configuration_names_those_there_are() -> None:
    with pytest.raises(LaunchError, match="did you mean multi_gpu"):
        launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=2, accelerate_config="multigpu")


def test_hidden_gpus_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.visible_gpus() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert launch.visible_gpus() == 2


@pytest.mark.parametrize(("visible", "one"), [("3,1", {"CUDA_VISIBLE_DEVICES": "3"}), ("2", {}), ("", {})])
def test_one_process_is_shown_the_first_of_several_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str, one: dict[str, str]
) -> None:
    """With two GPUs in sight one process fails: TRL does not train under DataParallel."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launch.one_gpu() == one


@pytest.mark.slow
def test_a_launcher_that_fails_ends_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.run(["torchrun", "--standalone", "--nproc_per_node=1", "-m", "recipe_kit", "no-such-recipe"]) == 1
    said = capfd.readouterr().err
    assert "no-such-recipe" in said and "Traceback" not in said
