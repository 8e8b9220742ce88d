"""Memory of one GPU among several: against what PyTorch cuts, against the papers' arithmetic, and in the docs."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llama_shapes import LLAMA_2_7B
from recipe_kit import catalog
from recipe_kit.recipe import Recipe, load_recipe
from recipe_kit.speed import memory, sharding, units
from recipe_kit.speed.memory import Estimate
from recipe_kit.speed.moments import Work
from recipe_kit.speed.parameters import Tensor
from recipe_kit.speed.sharding import Sharded
from recipe_kit.topology import Strategy, Topology

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "vocab_size": 90, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORK = Work(1, 512, 512, 256, 512)
WIDE = {**LLAMA_2_7B, "num_hidden_layers": 4}
VALUES = 2 * 32_000 * 4096 + 4 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096) + 4096


def config_of(**values: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**values)


def recipe_of(method: str, dtype: str, *, bf16: bool = False, **quantization: Any) -> Recipe:
    base = load_recipe("llama32_1b_lora" if method != "full" else "llama32_1b_full")
    model = base.model.model_copy(update={"dtype": dtype})
    lora = {"r": 8, "lora_dropout": 0.0, "target_modules": ALL} if method != "full" else {}
    training = {"bf16": True} if bf16 else {}
    changes = {"model": model, "method": method, "lora": lora, "quantization": quantization, "training": training}
    return base.model_copy(update=changes)


def estimated(recipe: Recipe, config: Any, strategy: str, processes: int, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "checkpointing": True, "optim": "adamw_torch_fused", "fused_layers": True, "in_place_adapters": False,
        "attention": "torch_varlen", "accumulates": False,
    }  # fmt: skip
    precision = str(recipe.model.dtype)
    found = sharding.estimate(
        recipe, config, precision, WORK, strategy=strategy, processes=processes, **(settings | options)
    )
    assert found is not None
    return found


FULL = recipe_of("full", "float32", bf16=True)
LORA = recipe_of("lora", "bfloat16")


@pytest.fixture
def four_processes() -> Iterator[Any]:
    """This process as the first of four that exist in name only: pieces are cut, and nothing is sent."""
    import torch.distributed as group
    from torch.testing._internal.distributed.fake_pg import FakeStore

    group.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield group.init_device_mesh("cpu", (4,))
    group.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_fsdp2_holds_the_pieces_that_pytorch_cuts(four_processes: Any, method: str, tied: bool) -> None:
    import peft
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    from recipe_kit import modeling

    recipe, config = (FULL if method == "full" else LORA), config_of(**SMALL, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, str(recipe.model.dtype)))
    if method == "lora":
        model = peft.get_peft_model(model, modeling.lora_config(recipe))
    inner = model.get_base_model() if method == "lora" else model
    for layer in inner.model.layers:  # the units of accelerate's fsdp2_prepare_model
        fully_shard(layer, mesh=four_processes)
    tail = [inner.model.norm, *([inner.model.embed_tokens] if tied else []), inner.lm_head]
    if not tied:
        fully_shard(inner.model.embed_tokens, mesh=four_processes)
    fully_shard(tail, mesh=four_processes, reshard_after_forward=False)
    fully_shard(model, mesh=four_processes)
    held = sum(value.to_local().numel() * value.dtype.itemsize for value in model.parameters())
    held += sum(buffer.numel() * buffer.dtype.itemsize for buffer in model.buffers())
    found = estimated(recipe, config, "fsdp2", 4)
    assert found.weights + found.adapter == held


def test_a_piece_is_the_largest_that_chunk_gives() -> None:
    for rows, processes in ((90, 4), (8, 8), (3, 8), (64, 2)):
        largest = max(len(piece) for piece in torch.zeros(rows, 5).chunk(processes))
        assert sharding._piece(Tensor("w", (rows, 5), "F32", 4), processes).shape == (largest, 5)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_parts_add_up_to_the_peak(method: str) -> None:
    recipe = FULL if method == "full" else recipe_of(method, "bfloat16")
    several = ({}, {"accumulates": True}, {"optim": "adamw_torch"}, {"checkpointing": False})
    for strategy, options in itertools.product(sharding.STRATEGIES, several):
        found: Estimate = estimated(recipe, config_of(**SMALL), strategy, 4, **options)
        assert sum(found.parts.values()) == found.peak == max(found.phases.values())


def test_data_parallelism_is_one_gpu_and_a_copy_of_the_gradients() -> None:
    config = config_of(**SMALL)
    one, two = estimated(FULL, config, "none", 1), estimated(FULL, config, "ddp", 2)
    values = sum(tensor.values for tensor in units.look(FULL, config, "float32").trained)
    assert two.peak == one.peak + 4 * values


def test_zero_divides_what_its_paper_divides() -> None:
    """Rajbhandari et al., 2020, figure 1: 2 and 2 bytes a value, 12 of optimiser; DeepSpeed sums gradients in 4."""
    config, processes = config_of(**WIDE), 8
    two, three = (estimated(FULL, config, strategy, processes) for strategy in ("zero2", "zero3"))
    assert two.optimizer == three.optimizer == 12 * VALUES / processes
    assert two.weights == pytest.approx(2 * VALUES, rel=1e-6)
    assert three.weights == pytest.approx(2 * VALUES / processes, rel=1e-3)
    assert {name: found.gradients for name, found in (("zero2", two), ("zero3", three))} == {
        "zero2": 4 * VALUES / processes,
        "zero3": 4 * VALUES / processes,
    }


def test_zero3_gathers_no_more_than_its_limit_and_fsdp2_two_units() -> None:
    config = config_of(**WIDE)
    model = units.look(LORA, config, "bfloat16")
    layer = 2 * sum(tensor.values for tensor in model.layers[0].tensors)
    tail = 2 * (32_000 * 4096 + 4096)
    assert estimated(LORA, config, "fsdp2", 2).gathered in (2 * layer, layer + tail)
    zero = estimated(LORA, config, "zero3", 8)
    assert zero.gathered + zero.weights + zero.adapter == pytest.approx(2 * (10**9 + 4096**2), rel=1e-3)


def sent_once_a_step(recipe: Recipe) -> Recipe:
    waits = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": False}}}
    return recipe.model_copy(update={"training": {**recipe.training, **waits}})


def test_micro_batches_under_fsdp2_sum_a_share_of_gradients_or_all_where_they_are_sent_once_a_step() -> None:
    """transformers' Trainer then goes through `no_sync` for all but the last micro-batch of a step."""
    config = config_of(**WIDE)
    once = estimated(FULL, config, "fsdp2", 8)
    each = estimated(FULL, config, "fsdp2", 8, accumulates=True)
    whole = estimated(sent_once_a_step(FULL), config, "fsdp2", 8, accumulates=True)
    assert whole.gradients == 4 * VALUES
    assert each.peak < once.peak + 4 * VALUES / 8 + 2**20 < whole.peak
    named = FULL.model_copy(update={"training": {**FULL.training, "accelerator_config": "settings.json"}})
    assert estimated(named, config, "fsdp2", 8, accumulates=True) == each


def test_buckets_of_zero2_are_those_of_the_file_that_ships() -> None:
    """Two are filled in turn, and what is sent is put together: the head, larger than a bucket, alone."""
    told = yaml.safe_load(catalog.accelerate_config_path("zero2").read_text(encoding="utf-8"))
    config = json.loads(told["deepspeed_config"]["deepspeed_config_file"])["zero_optimization"]
    assert config["reduce_bucket_size"] == sharding.REDUCE_VALUES == 50_000_000
    head, layer = 32_000 * 4096, 4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096
    full = estimated(FULL, config_of(**WIDE), "zero2", 8)
    assert full.buffers == 2 * (2 * 50_000_000 + head + layer)  # and the gradients of a layer, not yet in a bucket
    adapters = 8 * (4 * 2 * 4096 + 3 * (4096 + 11_008))  # of a layer
    small = estimated(LORA, config_of(**WIDE), "zero2", 8)
    assert small.buffers == 2 * (2 * 50_000_000 + 4 * adapters + adapters)


def test_a_plan_tells_what_it_costs_to_send_gradients_once_a_step() -> None:
    from types import SimpleNamespace

    from recipe_kit.plan.memory import Settings, notes
    from recipe_kit.speed.choose import Choice

    def told(recipe: Recipe, strategy: Strategy, accumulation: int) -> list[str]:
        arguments: Any = SimpleNamespace(gradient_accumulation_steps=accumulation)
        return notes(recipe, Settings(Choice(), arguments, Topology("some", strategy, 2)))

    once = sent_once_a_step(FULL)
    (note,) = told(once, "fsdp2", 8)
    assert note.startswith("training.accelerator_config: ") and "whole gradients over the 8 micro-batches" in note
    assert told(FULL, "fsdp2", 8) == told(once, "fsdp2", 1) == told(once, "zero3", 8) == []
    assert told(sent_once_a_step(LORA), "fsdp2", 8) == []


def test_4_bit_weights_are_divided_only_where_they_are_kept_in_a_type_that_can_be() -> None:
    config = config_of(**WIDE)
    as_bytes = recipe_of("qlora", "bfloat16", bnb_4bit_quant_storage="uint8")
    as_numbers = recipe_of("qlora", "bfloat16")
    packed = (VALUES - 2 * 32_000 * 4096) / 2
    whole, divided = (estimated(recipe, config, "fsdp2", 8).weights for recipe in (as_bytes, as_numbers))
    assert whole > packed
    assert whole - divided == pytest.approx(7 / 8 * packed, rel=1e-3)
    alone = memory.estimate(as_bytes, config, "bfloat16", WORK, checkpointing=True, optim="adamw_torch_fused",
                            fused_layers=True, in_place_adapters=False, attention="torch_varlen")  # fmt: skip
    assert alone is not None and alone.weights > whole  # embeddings and head, at least, are divided


@pytest.mark.parametrize("strategy", sharding.SHARDED)
def test_offloading_moves_what_is_divided_to_the_host(strategy: str) -> None:
    config = config_of(**WIDE)
    on_card: Sharded = estimated(FULL, config, strategy, 4)
    off: Sharded = estimated(FULL, config, strategy, 4, offload=True)
    assert on_card.host == 0 and off.optimizer == 0
    assert off.host > 12 * VALUES / 4 > 0
    assert off.peak < on_card.peak
    stays = 2 * VALUES if strategy == "zero2" else 0
    assert off.weights == pytest.approx(stays, abs=2**20)


@pytest.mark.parametrize("strategy", sharding.SHARDED)
def test_more_gpus_need_less_each(strategy: str) -> None:
    config = config_of(**WIDE)
    peaks = [estimated(FULL, config, strategy, processes).peak for processes in (1, 2, 4, 8, 16)]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 5


def test_of_models_that_are_not_known_nothing_is_said() -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(**SMALL, num_local_experts=4)
    how = {"checkpointing": True, "optim": "adamw_torch", "fused_layers": False, "attention": "sdpa"}
    found = sharding.estimate(
        LORA, config, "bfloat16", WORK, strategy="fsdp2", processes=2, in_place_adapters=False, **how
    )
    assert found is None


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_its_script_prints() -> None:
    spec = importlib.util.spec_from_file_location("scaling_table", ROOT / "benchmarks" / "scaling_table.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    assert script.HEAD in page
    rows = [line for line in page if line.split(" | ")[0] in {f"| {size}" for size in script.SHAPES}]
    assert len(rows) == len(script.SHAPES) * len(script.METHODS)
    for size, method in (("1B", "full"), ("13B", "full"), ("3B", "qlora")):  # all of them take half a minute
        assert script.row(size, method) in rows


@pytest.mark.slow
def test_a_plan_tells_the_memory_of_each_gpu_and_what_does_not_go_together(tmp_path: Path) -> None:
    from recipe_kit import plan as planning
    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.plan import judge, text
    from recipe_kit.recipe import ModelSection, resolve

    load_tokenizer(ModelSection(id="tiny:llama2")).save_pretrained(tmp_path)
    config_of(**WIDE).save_pretrained(tmp_path)
    changes = [
        f"model.id={tmp_path}", "model.dtype=float32", "training.bf16=true", "training.optim=paged_adamw_8bit",
        "training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=1",
        "training.gradient_checkpointing=true", "data.train={sample: support, limit: 32}", "data.eval=null",
    ]  # fmt: skip
    resolved = resolve("llama32_1b_full", overrides=changes)
    plan = planning.build(
        resolved, accelerate_config="fsdp2", processes=4, card="h100", quality=False, sample=2, runs_dir=tmp_path
    )
    assert plan["memory"] and plan["steps"] and plan["time"]
    found = plan["memory"]
    assert (found["strategy"], found["processes"], found["error"]) == ("fsdp2", 4, sharding.ERROR)
    assert found["fits"] and found["parts"]["gathered"] > 0
    assert plan["steps"]["effective_batch_size"] == 4
    assert "4 GPUs are as many times as fast is assumed" in plan["time"]["where"]
    shown = text.lines(plan)
    assert "    on each of 4 GPUs, strategy fsdp2" in shown and max(map(len, shown)) <= 100
    assert any("paged_adamw_8bit cannot update the shards" in problem for problem in judge.problems(plan))
    told = judge.does_not_fit({**found, "change": None})
    assert "needed on each GPU" in told and told.endswith("more GPUs, a smaller model or data.max_length is needed")
