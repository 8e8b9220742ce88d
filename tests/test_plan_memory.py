"""What `recipe-kit plan` says of memory, time and cost: for a card by name or size, and after trying it here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from click.testing import CliRunner, Result

from llama_shapes import LLAMA_2_7B, LLAMA_32_1B, LLAMA_32_3B
from recipe_kit import cli, topology
from recipe_kit import plan as planning
from recipe_kit.errors import RecipeError
from recipe_kit.plan import judge, memory, on_card, text
from recipe_kit.plan.shape import Plan
from recipe_kit.recipe import load_recipe, resolve
from recipe_kit.speed import throughput
from recipe_kit.speed.card import CARDS
from recipe_kit.speed.choose import choose
from recipe_kit.speed.throughput import Load

datasets.disable_progress_bars()

TINY = """
name: tiny
model: {id: "tiny:chatml", dtype: float32}
method: lora
data:
  train: {sample: support, limit: 64}
  formatter: support
  max_length: 256
lora: {r: 4, target_modules: [q_proj, v_proj]}
training: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-2, use_cpu: true, report_to: []}
"""


def llama(shape: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**shape)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, caches_of_this_session: Path) -> dict[str, Path]:
    """Folders with a config of the real shape and a tiny tokenizer, and no weights."""
    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.recipe import ModelSection

    found = {}
    for name, style, shape in (("7b", "llama2", LLAMA_2_7B), ("3b", "llama3", LLAMA_32_3B)):
        found[name] = tmp_path_factory.mktemp(name)
        load_tokenizer(ModelSection(id=f"tiny:{style}")).save_pretrained(found[name])
        llama(shape).save_pretrained(found[name])
    return found


def planned(recipe: str, model: Path, sample: str, *changes: str, **options: Any) -> Plan:
    rows = [f"data.train={{sample: {sample}}}", "data.eval=null"]
    resolved = resolve(recipe, overrides=[f"model.id={model}", *rows, *changes])
    return planning.build(resolved, quality=False, sample=2, **options)


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ["plan", *words], prog_name="recipe-kit")


def tiny_file(folder: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_seven_billion_parameters_fit_a_t4_and_cost_what_its_hours_cost(models: dict[str, Path]) -> None:
    plan = planned("guanaco", models["7b"], "guanaco", card="t4", price_per_hour=0.5)
    assert plan["memory"] and plan["time"] and plan["steps"]
    found, time = plan["memory"], plan["time"]
    assert found["card"] == CARDS["t4"].name and found["fits"] is True and found["change"] is None
    assert sum(found["parts"].values()) == found["peak_bytes"] < found["needed_bytes"] < 15e9
    assert found["parts"]["adapter"] == 4 * 33_554_432
    assert (found["optim"], found["checkpointing"]) == ("paged_adamw_32bit", True)
    assert found["paged_bytes"] == 8 * 33_554_432
    assert time["source"] == "scaled" and "not measured on t4" in time["where"]
    assert time["hours"] == pytest.approx(time["seconds_per_step"] * plan["steps"]["steps"] / 3600)
    assert time["cost"] == pytest.approx(0.5 * time["hours"])
    assert judge.problems(plan) == []
    assert max(map(len, text.lines(plan))) <= 100
    shown = "\n".join(text.lines(plan))
    assert f"fits on {CARDS['t4'].name}: " in shown and "at 0.5 an hour" in shown


@pytest.mark.slow
def test_what_does_not_fit_says_which_lines_to_change_and_they_are_enough(models: dict[str, Path]) -> None:
    too_much = ["training.gradient_checkpointing=false", "training.per_device_train_batch_size=8"]
    plan = planned("customer_support", models["3b"], "support", *too_much, card="8GB")
    assert plan["memory"] and plan["memory"]["fits"] is False and plan["memory"]["hopeless"]
    change = plan["memory"]["change"]
    assert change and change["fits"] and change["lines"] == {"training.gradient_checkpointing": True}
    (problem,) = judge.problems(plan)
    assert problem.startswith("memory: about ") and "write `training.gradient_checkpointing: true`, which " in problem
    changed = planned("customer_support", models["3b"], "support", too_much[1], card="8GB")
    assert changed["memory"] and changed["memory"]["fits"]
    assert changed["memory"]["needed_bytes"] == change["needed_bytes"]
    assert judge.problems(changed) == []
    assert changed["time"] is None and "speed of a card of 8GB is not known" in changed["not_looked_at"]["time"]


@pytest.mark.slow
def test_a_card_that_is_far_too_small_gets_all_that_helps_and_is_told_so(models: dict[str, Path]) -> None:
    batch = ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1"]
    plan = planned("guanaco", models["7b"], "guanaco", "method=lora", "quantization=null", *batch, card="4GB")
    assert plan["memory"] and plan["memory"]["change"]
    change = plan["memory"]["change"]
    assert change["fits"] is False and change["lines"]["method"] == "qlora"
    assert change["lines"]["training.per_device_train_batch_size"] == 1
    assert change["lines"]["training.gradient_accumulation_steps"] == 4  # the effective batch stays
    assert "which is not enough: lower data.max_length too" in judge.problems(plan)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "launched", "optim"),
    [
        ("fsdp2", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "adamw_torch_fused"),
        ("multi_gpu", {}, "paged_adamw_8bit"),  # which the shards of FSDP2 would not take
    ],
)
def test_a_plan_chooses_what_each_process_will(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, launched: dict[str, str], optim: str
) -> None:
    asked: list[Any] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options, choose(*arguments, **options)))
        return asked[-1][-1]

    monkeypatch.setattr(on_card, "choose", noted)
    changes = ["model.dtype=float32", "training.bf16=true", "training.optim=auto"]
    plan = planned(
        "llama32_1b_full", models["7b"], "support", *changes, accelerate_config=name, processes=2, card="h100"
    )
    assert plan["memory"] and plan["errors"] == []
    assert (plan["memory"]["processes"], plan["memory"]["optim"]) == (2, optim)
    ((arguments, options, choice),) = asked
    here = topology.here({**launched, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})  # as `training.py` asks
    assert choose(*arguments, **{**options, "how": here}) == choice


def test_a_card_is_found_by_name_and_by_size() -> None:
    assert memory.find_card("T4") is CARDS["t4"]
    found = memory.find_card("15GB")
    assert found is not None and (found.name, found.memory_bytes) == ("a card of 15GB", 15_000_000_000)
    found = memory.find_card("7.5 GiB")
    assert found is not None and found.memory_bytes == int(7.5 * 2**30)


def test_a_wrong_card_is_one_sentence_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"^--card: no card 'rtx-4080' is known; did you mean rtx-4090\?; give one of"
    ):
        memory.find_card("rtx-4080")
    result = run(tiny_file(tmp_path), "--card", "h10")
    assert result.exit_code == 1
    assert "did you mean h100?" in result.stderr and result.stderr.count("\n") == 1


def test_a_recipe_that_trains_on_a_cpu_has_no_gpu_memory_and_says_so(tmp_path: Path) -> None:
    plan = planning.build(resolve(tiny_file(tmp_path)), quality=False, sample=2)
    assert plan["memory"] is None and plan["time"] is None
    assert plan["not_looked_at"]["memory"] == plan["not_looked_at"]["time"] == "the recipe trains on a CPU"


@pytest.mark.slow
def test_without_a_gpu_and_a_card_nothing_is_judged(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "card", lambda: None)
    plan = planned("guanaco", models["7b"], "guanaco")
    assert plan["memory"] is None and plan["time"] is None and judge.problems(plan) == []
    assert plan["not_looked_at"]["memory"].startswith("no GPU here; name one with --card NAME")


def test_precision_is_that_of_the_card_and_not_of_the_machine_that_plans() -> None:
    recipe = load_recipe("samsum")
    assert memory.precision_on(recipe, CARDS["h100"], "float32") == "bfloat16"
    assert memory.precision_on(recipe, CARDS["t4"], "bfloat16") == "float16"
    assert memory.precision_on(load_recipe("guanaco"), CARDS["h100"], "float32") == "float16"
    assert memory.precision_on(load_recipe("llama32_1b_full"), CARDS["t4"], "float32") == "float32"


# Time


def adapted(**lora: Any) -> Any:
    recipe = load_recipe("llama32_1b_lora")
    return recipe.model_copy(update={"lora": {"r": 16, "target_modules": "all-linear", **lora}})


@pytest.mark.parametrize(
    ("method", "tokens", "measured"), [("lora", 32_462, 92_161), ("qlora", 32_657, 91_821), ("full", 32_657, 76_349)]
)
def test_the_table_gives_back_what_was_measured(method: str, tokens: int, measured: float) -> None:
    recipe = adapted().model_copy(update={"method": method})
    load = Load(tokens, tokens, 0.3 * tokens)
    speed = throughput.predict(recipe, llama(LLAMA_32_1B), "bfloat16", load, "h100", checkpointing=False)
    assert speed is not None and speed.source == "measured"
    assert speed.tokens_per_second == pytest.approx(measured, rel=0.005)


def test_work_is_counted_in_passes_over_the_weights() -> None:
    config, load = llama(LLAMA_32_1B), Load(1000, 900, 300)
    layers, head = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192), 128256 * 2048
    once = layers * 1000 + head * 300
    full = adapted().model_copy(update={"method": "full"})
    assert throughput.flops(adapted(), config, "bfloat16", load, checkpointing=False) == 4 * once
    assert throughput.flops(adapted(), config, "bfloat16", load, checkpointing=True) == 6 * once
    assert throughput.flops(full, config, "bfloat16", load, checkpointing=False) == 6 * once


def test_small_micro_batches_are_bound_by_launches_and_padding_counts_for_nothing() -> None:
    config = llama(LLAMA_32_1B)
    small, smaller = (
        throughput.predict(adapted(), config, "bfloat16", Load(n, n, n), "h100", checkpointing=False)
        for n in (512, 256)
    )
    assert small is not None and smaller is not None
    assert small.seconds_per_micro_batch == smaller.seconds_per_micro_batch
    padded = throughput.predict(adapted(), config, "bfloat16", Load(65_536, 32_768, 9000), "h100", checkpointing=False)
    dense = throughput.predict(adapted(), config, "bfloat16", Load(65_536, 65_536, 9000), "h100", checkpointing=False)
    assert padded is not None and dense is not None
    assert padded.tokens_per_second == pytest.approx(dense.tokens_per_second / 2)


def test_a_card_that_was_not_measured_is_scaled_and_says_so_and_an_unknown_one_has_no_speed() -> None:
    config, load = llama(LLAMA_32_1B), Load(65_536, 65_536, 9000)
    there, here = (
        throughput.predict(adapted(), config, "bfloat16", load, name, checkpointing=False) for name in ("l4", "h100")
    )
    assert there is not None and here is not None
    assert here.tokens_per_second / there.tokens_per_second == pytest.approx(989.4 / 121)
    assert there.where == "not measured on l4: scaled from NVIDIA H100 by published speed, 0.12 of it"
    assert throughput.predict(adapted(), config, "bfloat16", load, "voodoo-2", checkpointing=False) is None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("Tesla T4", "t4"), ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("NVIDIA A100-PCIE-40GB", "a100-40gb"), ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", None), ("NVIDIA L4", "l4"), ("NVIDIA L40S", None),
    ],
)  # fmt: skip
def test_a_gpu_is_found_in_the_tables_by_what_it_calls_itself(name: str, key: str | None) -> None:
    assert throughput.known_card(name) == key


def test_every_named_card_has_a_speed() -> None:
    assert CARDS.keys() <= throughput.PUBLISHED.keys()


@pytest.mark.slow
def test_calibration_runs_real_steps_and_the_plan_is_told_from_them(tmp_path: Path) -> None:
    result = run(
        tiny_file(tmp_path), "--calibrate", "--price-per-hour", "2", "--no-quality", "--sample", "2", "--json"
    )
    assert result.exit_code == 0, result.output
    time = json.loads(result.stdout)["time"]
    assert (time["card"], time["source"], time["where"]) == ("CPU", "calibrated", "calibrated here, 6 steps")
    assert 0 < time["seconds_per_step"] < 10 and time["tokens_per_second"] > 100
    assert time["cost"] == pytest.approx(2 * time["hours"]) and time["hours"] > 0
    assert json.loads(result.stdout)["memory"] is None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_random_weights_are_trained_as_the_recipe_says(tmp_path: Path, tiny_tokenizer: Any, method: str) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    from recipe_kit import data, modeling
    from recipe_kit.arguments import training_arguments
    from recipe_kit.speed.choose import Choice
    from recipe_kit.trainer import make_trainer

    changes = [f"method={method}", *(["lora=null"] if method == "full" else [])]
    recipe = load_recipe(tiny_file(tmp_path), overrides=changes)
    tokenizer, config = tiny_tokenizer("chatml"), modeling.load_config(recipe.model)
    rows = data.prepare(recipe.data, tokenizer)["train"].rows
    arguments = training_arguments(recipe, "float32")
    arguments.report_to = []
    model = throughput.random_model(recipe, config, "float32")
    trainer = make_trainer(recipe, model, tokenizer, arguments, Choice(), "float32", rows)
    found = throughput.calibrate(lambda: trainer, steps=2, warm_up=1)
    assert found.steps == 2 and found.card == "CPU" and found.peak_memory_bytes is None
    assert trainer.state.global_step == 3 and found.seconds_per_step > 0
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert all(("lora_" in name) == (method == "qlora") for name in trained) and trained
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_calibration_without_a_gpu_is_refused_where_the_recipe_needs_one(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_kit import modeling

    monkeypatch.setattr(modeling, "uses_cpu", lambda recipe: True)
    plan = planned("customer_support", models["3b"], "support", calibrate=True, card="t4")
    assert "--calibrate: there is no GPU here to try it on" in judge.problems(plan)[0]
    assert plan["memory"] and plan["memory"]["calibrated_peak_bytes"] is None
