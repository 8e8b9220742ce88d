"""Adapters into whole weights: equal to PEFT's own arithmetic, checked against the adapter, all or nothing."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    pipeline,
)

from recipe_kit import modeling, run_dir
from recipe_kit.cli.merge import merge as command
from recipe_kit.errors import MergeError, ModelError, RunError
from recipe_kit.local_models import local_folder
from recipe_kit.merge import folder, merge, nf4, parity, rows, shards, weights, whole
from recipe_kit.merge import parity as gate
from recipe_kit.recipe import load_recipe

pytestmark = pytest.mark.slow

RECIPE = """
name: tiny
model: {{id: "{model}", dtype: float32}}
method: {method}
data:
  train: {{sample: support, limit: 48}}
  eval: {{rows: 6}}
  formatter: support
  max_length: 256
training: {{use_cpu: true, report_to: []}}
"""
# Every way to adapt a layer that the recipe's `lora` section passes on, on the tiny Llama.
WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 8, "down_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "embeddings_dora": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "mica": {"init_lora_weights": "mica"},
}


def adapter(base: Path, out: Path, *, scale: float = 0.05, tokens: int | None = None, **lora: Any) -> None:
    """An adapter of `base`, as training would save it, with random values in all that can be trained."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if tokens is not None:
        model.resize_token_embeddings(tokens)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "target_modules": "all-linear", **lora})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, settings)
        generator = torch.Generator().manual_seed(0)
        for parameter in adapted.parameters():
            if parameter.requires_grad or lora.get("init_lora_weights") == "mica":
                parameter.data += scale * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def no_sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for what can be freed takes half a second in a process as full as pytest's; tiny models need none."""
    monkeypatch.setattr("recipe_kit.merge.parity.gc.collect", lambda: 0)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a finished run whose adapter has random values: what `merge` reads, without a training."""

    def make(
        model: str = "tiny:chatml", method: str = "lora", *, tokenizer: Any = None, publish: str = "", **lora: Any
    ) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        text = RECIPE.format(model=model, method=method) + (f"publish: {publish}\n" if publish else "")
        if method != "full":
            saved = {key: lora[key] for key in ("modules_to_save",) if key in lora}
            text += f"lora: {json.dumps(saved)}\n"
        (run / "recipe.yaml").write_text(text, encoding="utf-8")
        base = local_folder(model) or Path(model)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(base)
        adapter(base, run / "adapter", **lora)
        tokenizer.save_pretrained(run / "adapter")
        info = {
            "schema_version": 1, "status": "finished", "name": "tiny", "method": method, "notes": [],
            "hardware": {"device": "cpu"}, "model": {"id": model, "revision": None, "dtype": "float32"},
            "data": {"splits": {}},
        }  # fmt: skip
        run_dir.write_json(run / "run.json", info)
        return run

    return make


def own_base(tmp_path: Path, config: Any, dtype: torch.dtype = torch.float32, **saving: Any) -> str:
    """A base model in a folder of its own, with the tiny tokenizer."""
    base = tmp_path / "base"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.to(dtype).save_pretrained(base, **saving)
    AutoTokenizer.from_pretrained(local_folder("tiny:chatml")).save_pretrained(base)
    return str(base)


def small(kind: type, **changes: Any) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return kind(**{**sizes, "num_key_value_heads": 2, "vocab_size": 768, "max_position_embeddings": 512, **changes})


def adapted(run: Path, model: str, dtype: torch.dtype = torch.float32) -> Any:
    """The adapter model of a run, by PEFT."""
    base = AutoModelForCausalLM.from_pretrained(local_folder(model) or model, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, run / "adapter").eval()


def merged_by_peft(run: Path, model: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(adapted(run, model, dtype).merge_and_unload().state_dict())


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return {
        name: value
        for path in sorted((run / "merged").glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(200)[None]).logits[0]


def nothing_is_left(run: Path) -> bool:
    names = {path.name for path in run.iterdir()}
    return names == {"adapter", "recipe.yaml", "run.json"} and "merge" not in run_dir.read(run)


# --- the same as PEFT -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_merged_tensors_are_pefts_own_in_float32_rounded_once(make_run: Any, way: str) -> None:
    """unsloth #1267, #1804, #5410, #3508, PEFT #1035, #2502: garbage after merging; PEFT #1457: rank patterns."""
    run = make_run(**WAYS[way])
    record = merge(run, dtype="float16")
    expected, found = merged_by_peft(run, "tiny:chatml"), tensors(run)
    assert set(found) == set(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name].half())] == []
    assert record["notes"] == [] and record["parity"]["ok"] and record["base"] == "original"
    touched = {"modules_to_save": 14 + 4, "embeddings": 4, "embeddings_dora": 3}.get(way, 14)
    assert record["tensors_changed"] == touched
    assert run_dir.read(run)["merge"] == record


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("way", ["lora", "dora", "rslora", "patterns"])
def test_merging_is_within_one_unit_in_the_last_place_of_merging_in_that_type(
    make_run: Any, tmp_path: Path, way: str, dtype: str
) -> None:
    """The unit is taken at the larger of what is added: a sum near zero has smaller ones than its parts."""
    kind = getattr(torch, dtype)
    base = own_base(tmp_path, small(LlamaConfig, tie_word_embeddings=False), kind)
    run = make_run(base, **WAYS[way])
    merge(run, dtype=dtype)
    stored = load_file(Path(base) / "model.safetensors")
    in_that_type, found = merged_by_peft(run, base, kind), tensors(run)
    for name, value in found.items():
        before = stored[name].float()
        larger = torch.maximum(before.abs(), (value.float() - before).abs()).to(kind)
        unit = torch.nextafter(larger, torch.full_like(larger, torch.inf)).float() - larger.float()
        assert ((value.float() - in_that_type[name].float()).abs() <= unit).all(), name


@pytest.mark.parametrize("lora", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}], ids=str)
def test_trained_biases_are_merged(make_run: Any, tmp_path: Path, lora: dict[str, Any]) -> None:
    base = own_base(tmp_path, small(LlamaConfig, attention_bias=True, mlp_bias=True))
    run = make_run(base, **lora)
    assert merge(run)["tensors_changed"] == 28
    expected, found = merged_by_peft(run, base), tensors(run)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_stored_the_other_way_round_are_merged(make_run: Any, tmp_path: Path) -> None:
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=768, n_positions=512)
    base = own_base(tmp_path, config)
    run = make_run(base, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    assert not any("in memory" in note for note in merge(run, dtype="float16")["notes"])
    expected, found = merged_by_peft(run, base), tensors(run)
    assert all(torch.equal(found[name], expected[name].half()) for name in found)


# --- tied embeddings and added tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "tied"),
    [
        ({}, True),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["embed_tokens", "q_proj"]}, False),
        ({"target_modules": ["lm_head", "q_proj"]}, False),
        ({"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}, True),
        ({"trainable_token_indices": [5, 6]}, True),
        ({"target_modules": ["lm_head"], "target_parameters": ["mlp.down_proj.weight"]}, False),
    ],
    ids=str,
)
def test_a_merged_model_shares_weights_only_where_the_adapter_model_does(
    make_run: Any, lora: dict[str, Any], tied: bool
) -> None:
    """PEFT #2777: merging into one of two shared weights changes the other; the last two go PEFT's way, in memory."""
    run = make_run("tiny:llama3", **lora)
    record = merge(run, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(run / "merged")
    assert torch.allclose(logits(model), logits(adapted(run, "tiny:llama3")), atol=1e-5)
    assert model.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in tensors(run)) is not tied
    assert any("share no weights any more" in note for note in record["notes"]) is not tied


def test_a_base_that_is_not_as_tied_as_its_configuration_says_stays_so(make_run: Any, tmp_path: Path) -> None:
    base = own_base(tmp_path, small(LlamaConfig, tie_word_embeddings=False))
    config = json.loads((Path(base) / "config.json").read_text())
    (Path(base) / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    run = make_run(base)
    merge(run)
    model = AutoModelForCausalLM.from_pretrained(run / "merged")
    assert model.config.tie_word_embeddings is False
    assert torch.allclose(logits(model), logits(adapted(run, base)), atol=1e-5)


def test_added_tokens_reload_in_a_fresh_process(make_run: Any) -> None:
    """unsloth #237, #978, #3428, #3444, PEFT #1457, #2898, LLaMA-Factory #7997: size mismatch, or a bad merge."""
    tokenizer = AutoTokenizer.from_pretrained(local_folder("tiny:llama3"))
    size = len(tokenizer)
    tokenizer.add_tokens(["<|note|>", "<|end_of_note|>"], special_tokens=True)
    run = make_run("tiny:llama3", tokenizer=tokenizer, modules_to_save=["embed_tokens", "lm_head"], tokens=size + 2)
    record = merge(run, dtype="float32")
    assert record["parity"]["ok"]
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        "m, t = M.from_pretrained(sys.argv[1]), T.from_pretrained(sys.argv[1]); ids = t('<|note|>a')['input_ids']; "
        "print(m.config.vocab_size, len(t), m(torch.tensor([ids])).logits.shape[-1], ids[0])"
    )
    told = subprocess.run([sys.executable, "-c", code, run / "merged"], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(size + 2)] * 3 + [str(size)]


# --- 4-bit training ---------------------------------------------------------------------------------------------


def test_the_round_trip_is_what_the_loaded_4_bit_model_computes_with(make_run: Any) -> None:
    import bitsandbytes

    run = make_run(method="qlora")
    recipe = load_recipe(run / "recipe.yaml", overrides=["quantization={bnb_4bit_use_double_quant: true}"])
    for precision in ("float32", "bfloat16"):
        tokenizer = modeling.load_tokenizer(recipe.model)
        loaded = modeling.load_model(whole.in_precision(recipe, precision), tokenizer, precision, quantize=True)
        quantised = nf4.quantised(recipe, modeling.load_config(recipe.model), precision)
        stored = load_file(Path(str(local_folder("tiny:chatml"))) / "model.safetensors")
        packed = {n: m for n, m in loaded.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
        assert {f"{name}.weight" for name in packed} == set(quantised.names) and len(packed) == 14
        for name, module in packed.items():
            seen = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(quantised.round_trip(f"{name}.weight", stored[f"{name}.weight"]), seen)
        assert torch.equal(quantised.round_trip("lm_head.weight", stored["lm_head.weight"]), stored["lm_head.weight"])


@pytest.mark.parametrize("base", ["original", "nf4"])
def test_a_qlora_adapter_goes_into_either_16_bit_base_and_never_into_4_bits(make_run: Any, base: str) -> None:
    """transformers #31293, PEFT #2321: merging into a 4-bit base ruins the model."""
    run = make_run(method="qlora")
    record = merge(run, base=base, dtype="bfloat16")
    assert (record["base"], record["choice"], record["parity"]["ok"]) == (base, None, True)
    found = tensors(run)
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert "quantization_config" not in json.loads((run / "merged/config.json").read_text())
    original = merged_by_peft(run, "tiny:chatml")
    same = [name for name in found if torch.equal(found[name], original[name].bfloat16())]
    assert len(same) == (len(found) if base == "original" else len(found) - 14)
    assert "lm_head.weight" in same


def test_both_bases_are_measured_and_the_better_kept(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """unsloth-zoo #810: sometimes the 16-bit base is right, sometimes the dequantised one."""
    run = make_run(method="qlora", scale=0.3)
    chosen = merge(run, dtype="float32")["choice"]
    losses = chosen["loss"]
    assert set(losses) == {"as_trained", "original", "nf4"} and chosen["rows"] == 6 and chosen["tokens"] > 50
    assert losses["nf4"] == pytest.approx(losses["as_trained"], abs=1e-5)  # the same weights, merged and not
    better = "nf4" if losses["nf4"] < losses["original"] - 1e-4 else "original"
    assert run_dir.read(run)["merge"]["base"] == better
    other = {"original": "nf4", "nf4": "original"}[better]
    measured = iter([1.0, *(2.0 if name == better else 1.0 for name in ("original", "nf4"))])
    monkeypatch.setattr("recipe_kit.merge.choice._loss", lambda *args: next(measured))
    assert merge(run, dtype="float32")["base"] == other
    monkeypatch.setattr("recipe_kit.merge.choice._loss", lambda *args: 1.0)
    record = merge(run, dtype="float32")
    assert record["base"] == "original" and "the same loss" in record["choice"]["reason"]


def test_without_held_out_rows_a_qlora_run_takes_the_original_weights(make_run: Any) -> None:
    run = make_run(method="qlora")
    text = (run / "recipe.yaml").read_text().replace("  eval: {rows: 6}\n", "")
    (run / "recipe.yaml").write_text(text)
    record = merge(run)
    assert record["base"] == "original" and "no held-out rows" in record["choice"]["reason"]
    assert record["parity"]["rows_from"] == "built-in prompts" and record["parity"]["rows"] == 8


def test_nf4_is_refused_where_nothing_was_trained_in_4_bits(make_run: Any) -> None:
    with pytest.raises(MergeError, match="--base nf4: this run was not trained on 4-bit weights"):
        merge(make_run(), base="nf4")


# --- what cannot be done tensor by tensor -----------------------------------------------------------------------


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_merged_in_memory(make_run: Any, start: str) -> None:
    run = make_run(init_lora_weights=start)
    record = merge(run)
    assert record["notes"] == [
        f"merged by PEFT in memory, for init_lora_weights: {start} changes the base beneath the adapter"
    ]
    model = AutoModelForCausalLM.from_pretrained(run / "merged")
    assert torch.allclose(logits(model), logits(adapted(run, "tiny:chatml")), atol=1e-5)


def test_fused_experts_are_merged_in_memory(make_run: Any, tmp_path: Path) -> None:
    base = own_base(tmp_path, small(MixtralConfig, num_local_experts=4))
    run = make_run(base, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    record = merge(run)
    assert "mixtral is held in another form than it is stored in" in record["notes"][0]
    model = AutoModelForCausalLM.from_pretrained(run / "merged")
    assert torch.allclose(logits(model), logits(adapted(run, base)), atol=1e-4)


def test_a_base_in_another_format_is_merged_in_memory(make_run: Any, tmp_path: Path) -> None:
    base = Path(own_base(tmp_path, small(LlamaConfig)))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    run = make_run(str(base))
    assert merge(run)["notes"][0] == "merged by PEFT in memory, for the base has no weights in safetensors"
    expected, found = merged_by_peft(run, str(base)), tensors(run)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_base_whose_files_name_tensors_another_way_is_merged_in_memory(make_run: Any, tmp_path: Path) -> None:
    base = Path(own_base(tmp_path, small(LlamaConfig)))
    stored = load_file(base / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in stored.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    run = make_run(str(base))
    assert "its files name tensors another way than the model (embed_tokens.weight" in merge(run)["notes"][0]
    expected, found = merged_by_peft(run, str(base)), tensors(run)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_a_model_computes_in_float32_stays_float32(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["norm", "q_proj"])
    run = make_run()
    merge(run, dtype="bfloat16")
    kept = {name for name, value in tensors(run).items() if value.dtype == torch.float32}
    assert kept == {"model.norm.weight", *(f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1))}


def test_several_files_are_read_and_written(make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = own_base(tmp_path, small(LlamaConfig), max_shard_size="100KB")
    assert len(list(Path(base).glob("model-*.safetensors"))) > 3
    extra = sorted(Path(base).glob("model-*.safetensors"))[0]  # as old Llama checkpoints have it
    save_file({**load_file(extra), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, extra)
    run = make_run(base)
    monkeypatch.setattr(shards.Writer.__init__, "__defaults__", (150_000,))
    merge(run)
    index = json.loads((run / "merged/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list((run / "merged").glob("*.safetensors"))) > 2
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors(run).values())
    expected = merged_by_peft(run, base)
    model = AutoModelForCausalLM.from_pretrained(run / "merged").state_dict()
    assert all(torch.equal(model[name], expected[name]) for name in expected)


# --- beside the weights -----------------------------------------------------------------------------------------


def test_a_merged_folder_holds_all_a_model_needs_and_no_path_of_this_machine(make_run: Any) -> None:
    run = make_run(publish="{merged_dtype: float16}")
    record = merge(run)
    names = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
             "tokenizer_config.json"]  # fmt: skip
    assert sorted(path.name for path in (run / "merged").iterdir()) == names == sorted(record["files"])
    assert json.loads((run / "merged/config.json").read_text())["dtype"] == record["dtype"] == "float16"
    for path in (run / "merged").glob("*.json"):
        assert str(local_folder("tiny:chatml")) not in path.read_text(), path.name
    assert record["adapter_sha256"] == weights_sha256(run / "adapter/adapter_model.safetensors")
    assert record["files"]["model.safetensors"] == weights_sha256(run / "merged/model.safetensors")
    assert (run / "merged/chat_template.jinja").read_text() == (run / "adapter/chat_template.jinja").read_text()
    assert all(path.stat().st_mode & 0o777 == (run / "run.json").stat().st_mode & 0o777
               for path in (run / "merged").iterdir())  # fmt: skip


def weights_sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_generation_also_stops_where_the_run_ends_its_answers(make_run: Any, tmp_path: Path) -> None:
    base = Path(own_base(tmp_path, small(LlamaConfig, eos_token_id=7)))
    tokenizer = AutoTokenizer.from_pretrained(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    record = merge(make_run(str(base)))
    told = json.loads((tmp_path / "run/merged/generation_config.json").read_text())
    assert told["eos_token_id"] == sorted({7, end})
    assert record["notes"] == ["generation_config.json also stops at <|im_end|>, which ends the answers of this run"]


# --- the gate ---------------------------------------------------------------------------------------------------

MISTAKES: dict[str, Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "scaled by 0.9": lambda name, base, merged: base + 0.9 * (merged - base),
    "merged twice": lambda name, base, merged: base + 2 * (merged - base),
    "one layer left out": lambda name, base, merged: base if name.endswith("1.self_attn.v_proj.weight") else merged,
    "nothing merged": lambda name, base, merged: base,
    "another base": lambda name, base, merged: merged - base + base.flip(0),
    "a norm forgotten": lambda name, base, merged: merged * 0.8 if name == "model.norm.weight" else merged,
}


def test_an_update_that_rounding_loses_is_told_from_a_wrong_merge() -> None:
    """Seen with SmolLM2 after 2 steps: every weight right to its last place, and the update smaller than that."""
    verdict = {
        "ok": False, "positions": 1250, "mean_kl": 0.0047, "greedy_agreement": 0.978, "layers": 210,
        "worst_layer": "v_proj", "layer_error": 0.24, "allowed": {"mean_kl": 5e-4, "greedy_agreement": 0.97,
        "layer_error": 1.0},
    }  # fmt: skip

    def said(dtype: str, **changes: Any) -> str:
        with pytest.raises(MergeError, match="the merged model is not the adapter model") as error:
            gate.require(verdict | changes, dtype)
        return str(error.value).rpartition("nothing was kept: ")[2]

    hint = "if the update is too small for bfloat16, merge with --dtype float16 or float32; else use the adapter"
    assert said("bfloat16").startswith(hint)
    assert said("bfloat16", mean_kl=0.5) == "use the adapter as it is"
    assert said("bfloat16", layer_error=1.2) == "use the adapter as it is"
    assert said("float32") == "use the adapter as it is"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_gate_lets_rounding_pass_and_nothing_else(make_run: Any, dtype: str) -> None:
    run = make_run()
    model = adapted(run, "tiny:chatml")
    ids = [list(range(start, start + 90)) for start in range(0, 600, 100)]
    seen = gate.observe(model, ids)
    merged = merged_by_peft(run, "tiny:chatml")
    other = AutoModelForCausalLM.from_pretrained(local_folder("tiny:chatml"))
    base = {name: value.clone() for name, value in other.state_dict().items()}

    def verdict(change: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        kind = getattr(torch, dtype)
        other.load_state_dict({name: change(name, base[name], merged[name]).to(kind).float() for name in merged})
        return gate.compare(seen, other.eval(), ids, dtype)

    honest = verdict(lambda name, base, merged: merged)
    assert honest["ok"] and honest["positions"] == 540 and honest["layers"] == 14
    gate.require(honest, dtype)
    for mistake, change in MISTAKES.items():
        wrong = verdict(change)
        assert not wrong["ok"], mistake
        with pytest.raises(MergeError, match="the merged model is not the adapter model"):
            gate.require(wrong, dtype)


def test_a_failed_gate_leaves_nothing_and_an_older_merge_of_the_same_adapter_as_it_was(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    right = weights._merged_layer

    def twice(*args: Any) -> Any:
        return {name: part._replace(merged=2 * part.merged) for name, part in right(*args).items()}

    monkeypatch.setattr(weights, "_merged_layer", twice)
    with pytest.raises(MergeError, match="nothing was kept: use the adapter as it is"):
        merge(run)
    assert nothing_is_left(run)

    monkeypatch.setattr(weights, "_merged_layer", right)
    record = merge(run)
    before = tensors(run)
    monkeypatch.setattr(weights, "_merged_layer", twice)
    with pytest.raises(MergeError):
        merge(run, dtype="bfloat16")
    assert run_dir.read(run)["merge"] == record
    assert all(torch.equal(value, before[name]) for name, value in tensors(run).items())

    path = run / "adapter/adapter_model.safetensors"  # another adapter now: the older merge tells nothing of it
    save_file({name: 2 * value for name, value in load_file(path).items()}, path)
    with pytest.raises(MergeError):
        merge(run)
    assert nothing_is_left(run)


def test_a_token_that_rounding_sends_to_another_expert_is_no_mistake() -> None:
    """Seen with a tiny Mixtral: one position of 515, of a merge that was right. Many positions are a mistake."""
    experts, dense = (SimpleNamespace(config=small(kind)) for kind in (MixtralConfig, LlamaConfig))
    one_elsewhere = [3.4e-4, *[4e-15] * 514]
    assert gate._mean_kl(one_elsewhere, experts) < 1e-14 < 1e-7 < gate._mean_kl(one_elsewhere, dense)
    assert gate._mean_kl([1e-3] * 20 + [4e-15] * 480, experts) > 1e-7
    assert math.isnan(gate._mean_kl([math.nan, *[4e-15] * 514], experts))


def test_logits_are_compared_at_as_many_positions_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "LOGIT_BYTES", 4 * 1000 * 30)
    places = parity._positions([list(range(40)), list(range(20))], 1000)
    assert [len(kept) for kept in places] == [20, 10]
    assert places[0][:4] == [0, 2, 4, 6] and places[1][-1] == 18


@pytest.mark.parametrize("change", ["norm missing", "one too many"])
def test_weights_that_a_loader_would_make_up_or_leave_out_are_refused(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """transformers fills a missing norm with ones, which is what a norm of a young model holds."""
    run = make_run()
    add = shards.Writer.add

    def wrong(self: shards.Writer, name: str, tensor: torch.Tensor) -> None:
        if name != "model.norm.weight" or change != "norm missing":
            add(self, name, tensor)
        if name == "model.norm.weight" and change == "one too many":
            add(self, "model.layers.9.input_layernorm.weight", tensor.clone())

    monkeypatch.setattr(shards.Writer, "add", wrong)
    with pytest.raises(ModelError, match="the merged weights are not those of the model: model.*norm.weight"):
        merge(run)
    assert nothing_is_left(run)


def test_a_merge_that_changes_nothing_is_refused(make_run: Any) -> None:
    """LLaMA-Factory #6105: merged nothing, and did not say so."""
    run = make_run()
    path = run / "adapter/adapter_model.safetensors"
    values = load_file(path)
    save_file({name: torch.zeros_like(value) if "lora_B" in name else value for name, value in values.items()}, path)
    with pytest.raises(MergeError, match="merging changes nothing: every update is zero or lost in rounding"):
        merge(run)
    save_file({name: value * 1e-9 if "lora_B" in name else value for name, value in values.items()}, path)
    with pytest.raises(MergeError, match="lost in rounding to bfloat16"):
        merge(run, dtype="bfloat16")
    assert nothing_is_left(run)


def test_rows_that_cannot_be_had_any_more_are_replaced_by_prompts_of_our_own(make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    text = (run / "recipe.yaml").read_text().replace("sample: support", f"path: {tmp_path / 'gone.jsonl'}")
    (run / "recipe.yaml").write_text(text)
    said: list[str] = []
    record = merge(run, report=said.append)
    assert record["parity"]["rows_from"] == "built-in prompts" and record["parity"]["ok"]
    assert record["notes"] == ["checked on built-in prompts, for the rows of data.eval cannot be had any more"]
    assert any("gone.jsonl: no such file" in text for text in said)
    assert len(rows.OWN_PROMPTS) == record["parity"]["rows"]


# --- refusals ---------------------------------------------------------------------------------------------------


def changed_config(run: Path, **values: Any) -> None:
    path = run / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_full_run_has_nothing_to_merge(make_run: Any) -> None:
    run = make_run()
    run_dir.update(run, method="full")
    with pytest.raises(MergeError, match="nothing to merge: a run with method full has whole weights in model/"):
        merge(run)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\0" * 40, lambda data: b""])
def test_a_damaged_adapter_is_refused_in_one_sentence(make_run: Any, damage: Callable[[bytes], bytes]) -> None:
    run = make_run()
    path = run / "adapter/adapter_model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MergeError, match=r"cannot be read \(.*\); the adapter is damaged") as caught:
        merge(run)
    assert "\n" not in str(caught.value) and nothing_is_left(run)


def test_missing_parts_of_an_adapter_are_refused(make_run: Any) -> None:
    run = make_run()
    config = (run / "adapter/adapter_config.json").read_text()
    (run / "adapter/adapter_config.json").write_text("{")
    with pytest.raises(MergeError, match=r"adapter_config.json: cannot be read"):
        merge(run)
    (run / "adapter/adapter_config.json").write_text(config)
    (run / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(MergeError, match="cannot be read"):
        merge(run)
    shutil.rmtree(run / "adapter")
    with pytest.raises(MergeError, match="what this run learnt is gone"):
        merge(run)


def test_numbers_that_are_not_finite_are_refused(make_run: Any) -> None:
    run = make_run()
    path = run / "adapter/adapter_model.safetensors"
    values = load_file(path)
    first = next(iter(values))
    values[first][0, 0] = float("nan")
    save_file(values, path)
    with pytest.raises(MergeError, match=f"{first} holds numbers that are not finite; train again"):
        merge(run)


def test_numbers_too_large_for_float16_are_refused(make_run: Any, tmp_path: Path) -> None:
    base = Path(own_base(tmp_path, small(LlamaConfig)))
    values = load_file(base / "model.safetensors")
    values["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(values, base / "model.safetensors", metadata={"format": "pt"})
    run = make_run(str(base))
    with pytest.raises(MergeError, match=r"up_proj.weight reaches 1e\+05, more than float16 can hold; merge"):
        merge(run, dtype="float16")
    assert nothing_is_left(run)
    assert merge(run, dtype="bfloat16")["parity"]["ok"]


def test_an_adapter_of_another_base_is_refused(make_run: Any, tmp_path: Path) -> None:
    """LLaMA-Factory #6105: an adapter merged into a base it was not trained on."""
    run = make_run()
    adapter(Path(str(local_folder("tiny:llama3"))), run / "adapter")
    with pytest.raises(MergeError, match="the adapter was trained on tiny-llama3-.*, and the recipe's model is tiny"):
        merge(run)
    name = str(local_folder("tiny:chatml"))
    adapter(Path(own_base(tmp_path, small(LlamaConfig, hidden_size=32))), run / "adapter")
    changed_config(run, base_model_name_or_path=name)
    with pytest.raises(MergeError, match=r"has shape \(4, 96\) and the base needs \(4, 128\); the adapter is dam"):
        merge(run)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=768)
    shutil.rmtree(tmp_path / "base")
    adapter(Path(own_base(tmp_path, config)), run / "adapter", target_modules=["c_attn"])
    changed_config(run, base_model_name_or_path=name)
    with pytest.raises(MergeError, match="c_attn.* of another base than the recipe's model"):
        merge(run)
    assert nothing_is_left(run)


def test_settings_that_are_not_the_recipes_are_refused(make_run: Any) -> None:
    """No tensor shows them: with another alpha every update is scaled, adapter model and merged model alike."""
    run = make_run()
    text = (run / "recipe.yaml").read_text().replace("lora: {}", "lora: {lora_alpha: 8, use_rslora: false}")
    (run / "recipe.yaml").write_text(text)
    for key, value, trained in (("lora_alpha", 80, 8), ("use_rslora", True, False)):
        changed_config(run, **{"lora_alpha": 8, key: value})
        with pytest.raises(MergeError, match=f"{key} is {value}, and this run was trained with {trained}; restore"):
            merge(run)
    assert nothing_is_left(run)


def test_a_template_that_is_not_the_trained_one_is_refused(make_run: Any) -> None:
    run = make_run()
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    told = run_dir.read(run)["model"] | {"chat_template_sha256": modeling.template_hash(tokenizer)}
    run_dir.update(run, model=told)
    assert merge(run)["parity"]["ok"]
    (run / "adapter/chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(MergeError, match="its chat template is not the one that this run was trained with; restore"):
        merge(run)


@pytest.mark.parametrize(
    ("name", "text"), [(shards.INDEX, "[]"), ("generation_config.json", "{"), ("generation_config.json", "[1]")]
)
def test_a_damaged_file_of_the_base_is_a_sentence(make_run: Any, tmp_path: Path, name: str, text: str) -> None:
    base = Path(own_base(tmp_path, small(LlamaConfig), max_shard_size="100KB"))
    run = make_run(str(base))
    (base / name).write_text(text)
    with pytest.raises(ModelError, match="cannot be read .*; load the model anew") as caught:
        merge(run)
    assert "\n" not in str(caught.value) and nothing_is_left(run)


def test_an_adapter_with_layers_missing_or_too_many_is_refused(make_run: Any) -> None:
    run = make_run()
    path = run / "adapter/adapter_model.safetensors"
    values = load_file(path)
    first = next(iter(values))
    save_file({name: value for name, value in values.items() if name != first}, path)
    with pytest.raises(MergeError, match=f"{first} not in it; the adapter is damaged"):
        merge(run)
    save_file({**values, "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": values[first].clone()}, path)
    with pytest.raises(MergeError, match=r"the base has no place for .*layers\.9\.mlp"):
        merge(run)


def test_another_commit_of_the_base_is_refused(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    run_dir.update(run, model={"id": "tiny:chatml", "revision": "a" * 40})
    changed_config(run, revision="b" * 40)
    with pytest.raises(MergeError, match="trained on commit bbbbbbbbbbbb of its base, and run.json records aaa"):
        merge(run)
    changed_config(run, revision="a" * 40)
    load = modeling.load_config

    def moved(section: Any) -> Any:
        config = load(section)
        config._commit_hash = "c" * 40
        return config

    monkeypatch.setattr(modeling, "load_config", moved)
    with pytest.raises(MergeError, match="trained on commit aaaaaaaaaaaa of tiny:chatml, and its revision .* is ccc"):
        merge(run)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication lets several layers share one base weight"),
        ({"alora_invocation_tokens": [1, 2]}, "works from its invocation tokens on, which merged weights cannot"),
        ({"init_lora_weights": "pissa_niter_4"}, "took a part out of the base that cannot be computed again"),
        ({"init_lora_weights": "corda"}, "took a part out of the base that cannot be computed again"),
        ({"lora_bias": True}, r"lora_bias adds a bias to model\.layers\.0\.self_attn\.q_proj, which has none"),
        ({"peft_type": "IA3"}, "expected a LoRA adapter, got .*IA3"),
    ],
    ids=str,
)
def test_what_merged_weights_cannot_be_is_refused(make_run: Any, values: dict[str, Any], sentence: str) -> None:
    run = make_run()
    changed_config(run, **values)
    if "lora_bias" in values:
        path = run / "adapter/adapter_model.safetensors"
        held = load_file(path)
        biases = {n.replace("weight", "bias"): v[:, 0].clone() for n, v in held.items() if "lora_B" in n}
        save_file(held | biases, path)
    with pytest.raises(MergeError, match=sentence) as caught:
        merge(run)
    assert "\n" not in str(caught.value) and nothing_is_left(run)


def test_a_4_bit_residual_is_refused(make_run: Any) -> None:
    run = make_run(method="qlora")
    changed_config(run, init_lora_weights="olora")
    with pytest.raises(MergeError, match="changed the 4-bit base this adapter belongs to, and no 16-bit base"):
        merge(run)


def test_a_base_that_is_stored_quantised_is_refused(make_run: Any, tmp_path: Path) -> None:
    base = Path(own_base(tmp_path, small(LlamaConfig)))
    run = make_run(str(base))
    config = json.loads((base / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(MergeError, match="is stored quantised, and merging into such weights loses what was learnt"):
        merge(run)


@pytest.mark.parametrize("gone", ["base", "weights", "one file"])
def test_a_base_that_cannot_be_had_is_a_sentence(make_run: Any, tmp_path: Path, gone: str) -> None:
    base = Path(own_base(tmp_path, small(LlamaConfig), max_shard_size="100KB"))
    run = make_run(str(base))
    files = sorted(base.glob("model-*"))
    for path in {"base": [], "weights": [*files, base / shards.INDEX], "one file": files[1:2]}[gone]:
        path.unlink()
    if gone == "base":
        shutil.rmtree(base)
    sentence = {"base": "neither a folder nor a Hub id", "weights": "cannot load", "one file": "which its index names"}
    with pytest.raises(ModelError, match=sentence[gone]) as caught:
        merge(run)
    assert "\n" not in str(caught.value) and nothing_is_left(run)


def test_a_gated_or_unreachable_base_is_a_sentence(make_run: Any) -> None:
    run = make_run()
    text = (run / "recipe.yaml").read_text().replace("tiny:chatml", "acme/gated-model")
    (run / "recipe.yaml").write_text(text)
    changed_config(run, base_model_name_or_path="acme/gated-model")
    with pytest.raises(ModelError, match="cannot load acme/gated-model .* run `hf auth login`") as caught:
        merge(run)
    assert "\n" not in str(caught.value)


# --- all or nothing ---------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_refused_before_anything_is_written(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    usage = shutil.disk_usage(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(MergeError, match=r"merging needs 0\.0 GB of disk, and 0\.0 GB are free; make room"):
        merge(run)
    assert nothing_is_left(run)


@pytest.mark.parametrize("way", [{}, {"init_lora_weights": "pissa"}], ids=["by tensor", "in memory"])
def test_a_disk_that_fills_up_while_merging_leaves_nothing(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    run = make_run(**way)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(MergeError, match="the disk is full, and nothing was kept of this merge; make room"):
        merge(run)
    assert nothing_is_left(run)


def test_a_limit_on_file_sizes_is_the_same_sentence(make_run: Any) -> None:
    """What the safetensors library itself raises when it cannot write on."""
    run = make_run()
    code = (
        "import resource, signal, sys; from recipe_kit.merge import merge\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: merge(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    told = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("MergeError") and "the disk is full" in told.stdout
    assert nothing_is_left(run)


def test_an_interrupted_merge_leaves_nothing(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parity, "observe", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge(run)
    assert nothing_is_left(run)


def test_a_killed_merge_leaves_nothing_that_looks_finished_and_the_next_one_completes(make_run: Any) -> None:
    run = make_run()
    code = (
        "import sys, time; from recipe_kit.merge import merge, parity; "
        "parity.require = lambda verdict, dtype: time.sleep(600); merge(sys.argv[1])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, run])
    deadline = time.monotonic() + 120
    while not list(run.glob(".merged.part-*/original/tokenizer.json")) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.05)
    with pytest.raises(MergeError, match="another process is merging this run; wait for it, or stop it"):
        merge(run)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (run / "merged").exists() and "merge" not in run_dir.read(run)
    assert list(run.glob(".merged.part-*"))
    assert merge(run)["parity"]["ok"]
    names = {path.name for path in run.iterdir()}
    assert names == {"adapter", "merged", "recipe.yaml", "run.json"}


def test_wherever_a_merge_is_cut_off_merged_weights_have_their_own_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each change of a name, and at last before none: what is in `merged/` is what the record lists."""
    info = {"name": "tiny", "status": "finished", "method": "lora", "model": {}, "data": {}}
    for steps in range(10):
        run = tmp_path / str(steps)
        for folder_of in ("merged", ".merged.part-1/original"):
            (run / folder_of).mkdir(parents=True)
            (run / folder_of / folder_of[-6:]).touch()
        run_dir.write_json(run / "run.json", info | {"merge": {"files": ["merged"]}})
        left = iter(range(steps))

        def stop_in_time(path: Path, target: Path, real: Any, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return Path(real(path, target))

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            for name in ("rename", "replace"):
                patch.setattr(Path, name, functools.partialmethod(stop_in_time, real=getattr(Path, name)))
            folder.keep(run / ".merged.part-1/original", run, {"files": ["iginal"]})
            break
        there = [path.name for path in (run / "merged").glob("*")]
        assert there in ([], run_dir.read(run)["merge"]["files"])
    assert steps == 3 and [path.name for path in (run / "merged").iterdir()] == ["iginal"]


def test_a_record_that_cannot_be_written_leaves_the_older_merge(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    record = merge(run, dtype="float32")

    def full(run: Path, **values: Any) -> None:
        raise RunError(f"cannot write {run}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "update", full)
        with pytest.raises(RunError, match="No space left on device"):
            merge(run, dtype="bfloat16")
    assert run_dir.read(run)["merge"] == record
    assert {value.dtype for value in tensors(run).values()} == {torch.float32}


def test_an_older_merge_is_replaced_at_the_end(make_run: Any) -> None:
    run = make_run()
    merge(run, dtype="float32")
    (run / "merged/leftover").touch()
    record = merge(run, dtype="bfloat16")
    assert not (run / "merged/leftover").exists()
    assert {value.dtype for value in tensors(run).values()} == {torch.bfloat16}
    assert run_dir.read(run)["merge"] == record and record["dtype"] == "bfloat16"


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def told(make_run: Any) -> Iterator[tuple[Path, Callable[..., Any]]]:
    run = make_run()

    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(command, [str(run), *arguments])

    yield run, invoke


def test_the_command_says_what_was_merged_and_where_it_is(told: Any) -> None:
    run, invoke = told
    result = invoke("--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "merged in bfloat16, 14 tensors changed, base: original"
    assert lines[1].startswith("parity: ") and lines[-1] == str(run / "merged")
    assert "comparing the merged model with the adapter model" in result.stderr
    record = json.loads(invoke("--json").stdout)
    assert record == run_dir.read(run)["merge"] and record["dtype"] == "float32"


def test_the_command_fails_in_one_sentence(told: Any) -> None:
    run, invoke = told
    (run / "adapter/adapter_model.safetensors").write_bytes(b"")
    result = invoke()
    assert result.exit_code == 1 and result.stderr.startswith("recipe-kit: ") and "Traceback" not in result.output
    assert CliRunner().invoke(command, [str(run), "--dtype", "int8"]).exit_code == 2


def test_gguf_is_asked_for_before_merging_and_written_after(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="the extra demo is not installed: pip install gguf")
    run, invoke = told
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    result = invoke("--gguf", "f16", "--llama-cpp", str(run))
    assert result.exit_code == 1 and "convert_hf_to_gguf.py" in result.stderr and not (run / "merged").exists()
    calls: list[Any] = []

    def export(weights: Path, out: Path, **options: Any) -> list[Path]:
        calls.append((weights, out, options))
        return [out / "tiny-f16.gguf", out / "Modelfile"]

    monkeypatch.setattr("recipe_kit.gguf.find_tools", lambda outtype, path: None)
    monkeypatch.setattr("recipe_kit.gguf.export", export)
    result = invoke("--gguf", "f16", "--llama-cpp", "llama.cpp")
    assert result.exit_code == 0, result.output
    ((source, out, options),) = calls
    assert (source, out, options["outtype"]) == (run / "merged", run / "gguf", "f16")
    assert options["llama_cpp"] == Path("llama.cpp") and options["name"] == "tiny" and options["system"] is None
    assert str(run / "gguf/Modelfile") in result.stdout


# --- a whole run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guanaco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged smoke run of the Guanaco recipe, trained here."""
    from recipe_kit.training import train

    changes = ["evaluation.after_training=false", "training.report_to=[]", "training.save_strategy=no"]
    recipe = load_recipe("guanaco", profiles=["smoke"], overrides=changes)
    run = train(recipe, runs_dir=tmp_path_factory.mktemp("runs"))
    merge(run)
    return run


def test_the_merged_guanaco_run_is_float16_and_answers_through_a_pipeline(guanaco: Path) -> None:
    record = run_dir.read(guanaco)["merge"]
    assert record["dtype"] == "float16" and record["base"] in ("original", "nf4") and record["parity"]["ok"]
    assert set(record["choice"]["loss"]) == {"as_trained", "original", "nf4"}
    generate = pipeline("text-generation", model=str(guanaco / "merged"), dtype=torch.float32, device="cpu")
    messages = [{"role": "user", "content": "Name three rivers."}]
    prompt = generate.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<s>[INST] Name three rivers. [/INST]"
    answer = generate(messages, max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert answer[:-1] == messages and answer[-1]["role"] == "assistant"
    merged = AutoModelForCausalLM.from_pretrained(guanaco / "merged", dtype="auto")
    assert merged.dtype == torch.float16


def test_the_merged_run_can_be_chatted_with(guanaco: Path) -> None:
    from recipe_kit.chat import target

    chat = target.load(str(guanaco / "merged"))
    assert not chat.is_adapter and not chat.quantize
    with chat.answering("tuned") as model:
        assert isinstance(model, LlamaForCausalLM) and model.get_parameter("lm_head.weight").numel() > 0
