"""What a launch configuration means for a recipe: which strategy it trains by, and whether the two go together.

`check` is asked before processes are started, and by each of them (with what `here` finds) before the model is loaded,
since `accelerate launch -m recipe_kit` comes without the first. What it refuses does not work; it says what to change.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipe_kit import catalog
from recipe_kit.errors import LaunchError, first_line

if TYPE_CHECKING:
    from recipe_kit.recipe import Recipe

Strategy = Literal["none", "ddp", "fsdp2", "zero2", "zero3"]
WEIGHTS_SHARDED: tuple[Strategy, ...] = ("fsdp2", "zero3")
NAMES: dict[Strategy, str] = {
    "none": "one process", "ddp": "data parallelism", "fsdp2": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3",
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """How processes train together. `processes` are those of all machines; None where the file leaves them open."""

    name: str
    strategy: Strategy
    processes: int | None = None
    machines: int = 1
    offload: bool = False  # weights and optimiser wait in the machine's memory
    processes_of_a_row: int = 1  # context or sequence parallelism: each has a part of every row


def read(name_or_path: str | Path) -> Topology:
    """What an accelerate configuration says: one that ships, by name, or your own, by path. Raises LaunchError."""
    path = catalog.accelerate_config_path(name_or_path)
    import yaml

    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LaunchError(f"{path}: cannot be read as YAML ({first_line(error)})") from error
    if not isinstance(told, dict):
        raise LaunchError(f"{path}: expected what `accelerate config` writes; got {type(told).__name__}")
    kind = str(told.get("distributed_type", "NO")).upper()
    fsdp, deepspeed = told.get("fsdp_config") or {}, told.get("deepspeed_config") or {}
    parallel = told.get("parallelism_config") or {}
    offload = bool(fsdp.get("fsdp_offload_params"))
    if kind == "FSDP":
        strategy = _fsdp(fsdp.get("fsdp_version", 1), str(path))
    elif kind == "DEEPSPEED":
        strategy, offload = _deepspeed(deepspeed.get("deepspeed_config_file"), deepspeed, str(path))
    elif kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        strategy = "none" if kind == "NO" else "ddp"
    else:
        raise LaunchError(f"{path}: distributed_type {kind} is not known here; use NO, MULTI_GPU, FSDP or DEEPSPEED")
    count = told.get("num_processes", 1 if kind == "NO" else None)
    return Topology(
        path.stem, strategy, None if count in (None, -1) else int(count), int(told.get("num_machines", 1)), offload,
        max(int(parallel.get(f"parallelism_config_{part}_size", 1)) for part in ("cp", "sp")),
    )  # fmt: skip


def here(environment: Mapping[str, str] = os.environ) -> Topology:
    """What the launcher has told this process. Raises LaunchError for what is not known here."""
    processes = int(environment.get("WORLD_SIZE", 1))
    machines = max(1, processes // max(1, int(environment.get("LOCAL_WORLD_SIZE", processes))))
    row = max(int(environment.get(f"PARALLELISM_CONFIG_{part}_SIZE", 1)) for part in ("CP", "SP"))
    offload, place = False, "accelerate"
    strategy: Strategy = "ddp" if processes > 1 else "none"
    if environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        strategy = _fsdp(environment.get("FSDP_VERSION", 1), place)
        offload = environment.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true"
    elif environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        told = {
            key: environment.get(f"ACCELERATE_DEEPSPEED_{key.upper()}")
            for key in ("zero_stage", "offload_optimizer_device", "offload_param_device")
        }
        config = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        strategy, offload = _deepspeed(None if config == "none" else config, told, place)
    return Topology("accelerate", strategy, processes, machines, offload, row)


def strategy_here() -> Strategy:
    """The strategy of this process, from what accelerate's launcher has set."""
    return here().strategy


def forget() -> None:
    """Take back what the launcher has told this process, so that a model it loads is whole and its own."""
    for name in list(os.environ):
        if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_")):
            del os.environ[name]


def check(
    recipe: Recipe,
    topology: Topology,
    *,
    processes: int | None = None,
    gpus: int | None = None,
    precision: str | None = None,
) -> None:
    """Raises LaunchError, in one sentence, where a recipe cannot be trained this way.

    `processes` takes the place of the topology's. `gpus` are those of this machine, 0 for a CPU and None where nobody
    has counted. `precision` is what is computed in, once that is known.
    """
    processes = processes or topology.processes
    for problem in (*_machines(topology, processes, gpus), *_recipe(recipe, topology, precision)):
        raise LaunchError(problem)


def _machines(topology: Topology, processes: int | None, gpus: int | None) -> Iterator[str]:
    sharded = topology.strategy not in ("none", "ddp")
    if gpus == 0 and (sharded or topology.machines > 1):
        yield (
            f"{topology.name}: {NAMES[topology.strategy]} needs GPUs, and this machine has none; leave the accelerate "
            "config out, and give --num-processes for several processes on the CPU"
        )
    here = gpus is not None  # a plan or a job for other machines knows nothing of what they have
    if here and topology.strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        yield f"{topology.name}: the package deepspeed is not installed; `pip install 'recipe-kit[deepspeed]'`"
    if processes is None:
        return
    each, left = divmod(processes, topology.machines)
    if left or not each:
        yield (
            f"--num-processes: {processes} processes cannot be shared out evenly among {topology.machines} machines; "
            f"give a multiple of {topology.machines}"
        )
    if gpus and each > gpus:
        where = "this machine has" if topology.machines == 1 else "each machine would need them: this one has"
        yield f"--num-processes: {each} processes need {each} GPUs, and {where} {gpus}"
    if processes % topology.processes_of_a_row:
        yield (
            f"{topology.name}: {processes} processes do not divide by the {topology.processes_of_a_row} that share a "
            "row; change --num-processes or the size of context parallelism"
        )


def _recipe(recipe: Recipe, topology: Topology, precision: str | None) -> Iterator[str]:
    strategy, training = topology.strategy, recipe.training
    if topology.processes_of_a_row > 1 and (training.get("packing") or training.get("padding_free")):
        key = "packing" if training.get("packing") else "padding_free"
        yield (
            f"training.{key}: rows of a pack see each other where each row is cut over {topology.processes_of_a_row} "
            f"processes (context parallelism); set it to false, or take another accelerate config than {topology.name}"
        )
    if recipe.method == "qlora" and strategy in WEIGHTS_SHARDED:
        yield from _storage(recipe, strategy, precision or _precision(recipe))
    optim = str(training.get("optim", ""))
    from_bitsandbytes = "8bit" in optim or "paged" in optim
    if from_bitsandbytes and strategy == "fsdp2":
        yield f"training.optim: {optim} cannot update the shards of FSDP2; write adamw_torch_fused, or take zero3"
    if from_bitsandbytes and strategy.startswith("zero") and topology.offload:
        yield f"training.optim: {optim} works on a GPU, and {topology.name} keeps weights off it; write adamw_torch"
    if strategy == "fsdp2" and training.get("save_only_model"):
        yield "training.save_only_model: the checkpoints of FSDP2 are shards, to go on from; set it to false"


def quant_storage(strategy: Strategy, precision: str) -> str:
    """As numbers of which type 4-bit weights are kept where a strategy splits them, and as bytes where none does.

    Under ZeRO-3 it is the type of the other weights, beside which they lie. FSDP2 puts weights together with
    `torch._foreach_copy_`, and on CUDA that takes 16-bit numbers through float32: each pattern that is no number
    becomes another one (torch 2.11, H100), for 0.1 % of NF4 weights and a loss 2.6 % higher. Float32 stays as it is.
    """
    return {"fsdp2": "float32", "zero3": precision}.get(strategy, "uint8")


def _storage(recipe: Recipe, strategy: Strategy, precision: str) -> Iterator[str]:
    told, wanted = recipe.quantization.get("bnb_4bit_quant_storage"), quant_storage(strategy, precision)
    stored = str(told).removeprefix("torch.")
    if told is not None and stored != wanted:
        yield (
            f"quantization.bnb_4bit_quant_storage: {NAMES[strategy]} splits 4-bit weights without changing them only "
            f"where they are kept as {wanted}; got {stored}, leave the line out or write {wanted}"
        )


def _precision(recipe: Recipe) -> str:
    """What the recipe computes in, on a card that has it."""
    if recipe.training.get("fp16"):
        return "float16"
    return "bfloat16" if recipe.model.dtype == "auto" else str(recipe.model.dtype)


def _fsdp(version: Any, place: str) -> Strategy:
    if str(version) != "2":
        raise LaunchError(f"{place}: FSDP version {version} is not known here; set fsdp_version: 2")
    return "fsdp2"


def _deepspeed(config: Any, told: Mapping[str, Any], place: str) -> tuple[Strategy, bool]:
    """Strategy and whether it offloads, from a DeepSpeed configuration (file, JSON or base64) or accelerate's keys."""
    if config is not None:
        zero = _ds_config(str(config), place).get("zero_optimization") or {}
        stage: Any = zero.get("stage", 0)
        devices = [(zero.get(key) or {}).get("device") for key in ("offload_optimizer", "offload_param")]
    else:
        stage = told.get("zero_stage") or 2
        devices = [told.get("offload_optimizer_device"), told.get("offload_param_device")]
    return "zero3" if int(stage) == 3 else "zero2", any(device not in (None, "none") for device in devices)


def _ds_config(text: str, place: str) -> dict[str, Any]:
    try:
        if not text.lstrip().startswith("{"):
            path = Path(text)
            text = path.read_text(encoding="utf-8") if path.is_file() else base64.urlsafe_b64decode(text).decode()
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise LaunchError(f"{place}: deepspeed_config_file is neither a file nor JSON ({error})") from error
    return found if isinstance(found, dict) else {}
