"""What a launch configuration means, and which recipes it cannot train; nothing is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import forked
from recipe_kit import catalog, launch, topology
from recipe_kit.errors import LaunchError
from recipe_kit.recipe import Recipe, load_recipe

STRATEGIES = {
    "cpu": "none", "single_gpu": "none", "multi_gpu": "ddp", "multi_node": "ddp",
    "fsdp2": "fsdp2", "fsdp2_offload": "fsdp2", "multi_node_fsdp2": "fsdp2",
    "zero2": "zero2", "zero3": "zero3", "zero3_offload": "zero3", "multi_node_zero3": "zero3",
}  # fmt: skip
LORA = ("method=lora", "quantization=null", "training.optim=adamw_torch_fused")


def recipe(*changes: str) -> Recipe:
    return load_recipe("samsum", overrides=changes)


def refusal(topology_name: str, *changes: str, **facts: Any) -> str:
    with pytest.raises(LaunchError) as caught:
        topology.check(recipe(*changes), topology.read(topology_name), **facts)
    return str(caught.value)


@pytest.fixture(autouse=True)
def deepspeed_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = topology.importlib.util.find_spec
    monkeypatch.setattr(
        topology.importlib.util, "find_spec", lambda name: object() if name == "deepspeed" else find(name)
    )


@pytest.mark.parametrize("name", catalog.accelerate_config_names())
def test_every_shipped_configuration_has_the_strategy_that_it_is_named_for(name: str) -> None:
    found = topology.read(name)
    assert found.strategy == STRATEGIES[name]
    assert found.offload == name.endswith("offload")
    assert found.machines == (2 if name.startswith("multi_node") else 1)


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.startswith("zero")])
def test_deepspeed_is_configured_in_the_file_itself_and_precision_by_the_recipe(name: str) -> None:
    told = yaml.safe_load(catalog.accelerate_config_path(name).read_text())
    config = json.loads(told["deepspeed_config"]["deepspeed_config_file"])
    assert config["bf16"] == config["fp16"] == {"enabled": "auto"}
    assert "mixed_precision" not in told  # accelerate 1.15 refuses it beside a configuration of DeepSpeed
    assert "optimizer" not in config  # torch's, from the recipe: DeepSpeed's own are compiled on first use
    if name == "zero3_offload":
        assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, strategy in STRATEGIES.items() if strategy in ("fsdp2", "zero2", "zero3")]
)
def test_a_rank_finds_the_strategy_of_the_file_in_what_accelerate_sets(name: str) -> None:
    environment = forked.launched_by(name)
    if STRATEGIES[name] == "fsdp2":
        assert environment["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"
    found = topology.here({**environment, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    assert (found.strategy, found.offload) == (STRATEGIES[name], name.endswith("offload"))
    assert (found.processes, found.machines) == (4, 2)


def test_a_process_without_a_launcher_is_alone() -> None:
    assert topology.here({}) == topology.Topology("accelerate", "none", 1)
    assert topology.here({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}).strategy == "ddp"


def test_a_deepspeed_configuration_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}')
    own = tmp_path / "own.yaml"
    own.write_text(
        f"distributed_type: DEEPSPEED\nnum_processes: 4\n"
        f"deepspeed_config: {{deepspeed_config_file: {tmp_path / 'ds.json'}}}\n"
    )
    assert topology.read(own) == topology.Topology("own", "zero3", 4, offload=True)
    own.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: nowhere.json}\n")
    with pytest.raises(LaunchError, match="neither a file nor JSON"):
        topology.read(own)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("distributed_type: FSDP\n", "FSDP version 1 is not known here; set fsdp_version: 2"),
        ("distributed_type: MEGATRON_LM\n", "distributed_type MEGATRON_LM is not known here"),
        ("- a list\n", "expected what `accelerate config` writes"),
        ("a: [\n", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(LaunchError, match=said.replace("[", r"\[")):
        topology.read(tmp_path / "own.yaml")


@pytest.mark.parametrize(("name", "wanted"), [("fsdp2", "float32"), ("zero3", "bfloat16")])
def test_split_4_bit_weights_are_kept_as_numbers_that_survive_it(name: str, wanted: str) -> None:
    """bitsandbytes #1040, accelerate #2268: uint8 shards cannot lie beside bfloat16 ones."""
    optim = "training.optim=adamw_torch"
    stored = "quantization.bnb_4bit_quant_storage="
    assert topology.quant_storage(topology.read(name).strategy, "bfloat16") == wanted
    topology.check(recipe(optim), topology.read(name))
    topology.check(recipe(stored + wanted, optim), topology.read(name))
    said = refusal(name, stored + "uint8", optim)
    assert f"only where they are kept as {wanted}; got uint8, leave the line out or write {wanted}" in said
    assert "got float16, leave the line out" in refusal(name, stored + "float16", optim)
    topology.check(recipe(), topology.read("zero2"))  # there every GPU keeps all of them


def test_zero3_keeps_4_bit_weights_as_what_is_computed_in() -> None:
    stored = "quantization.bnb_4bit_quant_storage=bfloat16"
    said = refusal("zero3", stored, "training.optim=adamw_torch", precision="float16")
    assert "got bfloat16, leave the line out or write float16" in said


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("fsdp2", ["training.optim=paged_adamw_8bit"], "cannot update the shards of FSDP2; write adamw_torch_fused"),
        ("zero3_offload", ["training.optim=adamw_8bit"], "zero3_offload keeps weights off it; write adamw_torch"),
        ("fsdp2", ["training.save_only_model=true"], "the checkpoints of FSDP2 are shards"),
    ],
)
def test_what_a_strategy_cannot_do_is_said_with_what_to_write(name: str, changes: list[str], said: str) -> None:
    assert said in refusal(name, *LORA, *changes)
    topology.check(recipe(*LORA, *changes), topology.read("multi_gpu"))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_ordinary_recipe_is_refused_by_none(name: str, method: str) -> None:
    changes = [*LORA, f"method={method}", *(["lora=null"] if method == "full" else [])]
    topology.check(recipe(*changes), topology.read(name), processes=2, gpus=2)


def test_packed_rows_are_not_cut_over_processes(tmp_path: Path) -> None:
    own = tmp_path / "long.yaml"
    own.write_text(
        "distributed_type: FSDP\nnum_processes: 4\nfsdp_config: {fsdp_version: 2}\n"
        "parallelism_config: {parallelism_config_cp_size: 2}\n"
    )
    said = refusal(str(own), *LORA)
    assert "training.packing: rows of a pack see each other" in said and "2 processes" in said
    plain = recipe(*LORA, "training.packing=false")
    topology.check(plain, topology.read(own))
    with pytest.raises(LaunchError, match="3 processes do not divide by the 2 that share a row"):
        topology.check(plain, topology.read(own), processes=3)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    topology.check(recipe(*LORA), topology.read("zero2"))  # planned here, for machines elsewhere
    assert refusal("zero2", *LORA, gpus=2) == (
        "zero2: the package deepspeed is not installed; `pip install 'recipe-kit[deepspeed]'`"
    )


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "multi_node"])
def test_a_machine_without_a_gpu_is_told_what_to_do(name: str) -> None:
    assert "needs GPUs, and this machine has none; leave the accelerate config out" in refusal(name, *LORA, gpus=0)


def test_processes_are_counted_for_each_machine() -> None:
    nodes = topology.read("multi_node")
    topology.check(recipe(*LORA), nodes, processes=16, gpus=8)
    with pytest.raises(LaunchError, match="15 processes cannot be shared out evenly among 2 machines"):
        topology.check(recipe(*LORA), nodes, processes=15, gpus=8)
    with pytest.raises(
        LaunchError, match="16 processes need 16 GPUs, and each machine would need them: this one has 8"
    ):
        topology.check(recipe(*LORA), nodes, processes=32, gpus=8)


# --- the launch line --------------------------------------------------------------------------------------------


def test_a_strategy_takes_all_gpus_unless_told() -> None:
    argv = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=4, accelerate_config="fsdp2")
    assert "--num_processes=4" in argv
    argv = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=4, accelerate_config="zero3", num_processes=1)
    assert "--num_processes=1" in argv


def test_each_of_several_machines_is_told_its_place_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NNODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    argv = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=8, accelerate_config="multi_node_fsdp2")
    assert argv[5:10] == [
        "--num_processes=32", "--num_machines=4", "--machine_rank=3", "--main_process_ip=10.0.0.1",
        "--main_process_port=1234",
    ]  # fmt: skip
    alone = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=8, accelerate_config="fsdp2")
    assert "--num_processes=8" in alone and not [word for word in alone if "machine" in word]


def test_a_machine_that_does_not_know_its_place_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchError, match="set NNODES, NODE_RANK, MASTER_ADDR on each of them"):
        launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=8, accelerate_config="multi_node")


def test_a_file_of_your_own_is_taken_though_a_shipped_one_has_its_name(tmp_path: Path) -> None:
    own = tmp_path / "fsdp2.yaml"
    own.write_text("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 2}\n")
    argv = launch.build_argv(["r.yaml"], on_cpu=False, gpu_count=4, accelerate_config=str(own))
    assert str(own) in argv and not [word for word in argv if word.startswith("--num_processes")]
