"""The proofs that use TRL's trainer: each passes as things are, and fails once the thing it proves is broken."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
import trl
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from transformers.models.llama.modeling_llama import LlamaModel

from recipe_kit import data, modeling, training, wiring
from recipe_kit.proofs import Verdict
from recipe_kit.recipe import load_recipe
from recipe_kit.trainer import Trainer
from recipe_kit.wiring.setup import KEPT_OPTIONS

pytestmark = pytest.mark.slow  # each builds several small trainers: about a second

LLAMA = transformers.LlamaConfig(  # the shape of Llama-3.2-1B
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, tie_word_embeddings=True,
)  # fmt: skip
ROWS = [  # prompts of -100, then what is learnt; one answer in the middle, one row trained whole
    {"input_ids": [10, 11, 12, 13, 14, 15], "labels": [-100, -100, -100, 13, 14, 15]},
    {"input_ids": [20, 21, 22, 23], "labels": [-100, -100, -100, 23]},
    {"input_ids": [30, 31, 32, 33, 34, 35, 36], "labels": [-100, 31, 32, -100, -100, 35, 36]},
    {"input_ids": [128000, 41, 42, 43, 44], "labels": [128000, 41, 42, 43, 44]},
    {"input_ids": [50, 51, 52, 53, 54, 55, 56, 57], "labels": [-100] * 5 + [55, 56, 57]},
]


def options(**values: Any) -> trl.SFTConfig:
    return trl.SFTConfig(
        **{
            "output_dir": "unused",
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "gradient_checkpointing": False,
            "max_length": 64,
            "per_device_train_batch_size": 2,
            **values,
        }
    )


@pytest.fixture
def prove(tiny_tokenizer: Callable[..., Any]) -> Callable[..., dict[str, Verdict]]:
    """Verdicts by name, for the rows above unless others are given."""

    def made(
        rows: Any = ROWS, config: Any = LLAMA, trainer: Any = trl.SFTTrainer, **values: Any
    ) -> dict[str, Verdict]:
        attention = values.pop("attention", "auto")
        verdicts = wiring.check(
            options(**values), rows, tiny_tokenizer("chatml"), config, attention=attention, trainer_class=trainer
        )
        assert [verdict.name for verdict in verdicts] == [
            "labels_reach_the_model", "packed_rows_isolated", "batch_size_does_not_matter"
        ]  # fmt: skip
        return {verdict.name: verdict for verdict in verdicts}

    return made


@pytest.mark.parametrize("name", ["samsum", "guanaco", "customer_support", "llama32_1b_full"])
def test_shipped_recipes_are_wired_right(name: str) -> None:
    recipe = load_recipe(name, profiles=["smoke"])
    tokenizer = modeling.load_tokenizer(recipe.model)
    rows = data.prepare(recipe.data, tokenizer, splits=["train"])["train"].rows
    rows = rows.select(range(min(64, len(rows))))
    config = transformers.AutoConfig.from_pretrained(modeling.local_folder(recipe.model.id))
    arguments = training.training_arguments(recipe, "float32")
    verdicts = wiring.check(arguments, rows, tokenizer, config, trainer_class=Trainer)
    assert [verdict.ok for verdict in verdicts] == [True, True, True]
    packed = " packed rows: logits within" in verdicts[1].detail
    assert packed == bool(recipe.training.get("packing"))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("trainer", [trl.SFTTrainer, Trainer], ids=["TRL's", "ours"])
def test_varlen_attention_and_the_kits_trainer_are_wired_right(prove: Any, packing: bool, trainer: Any) -> None:
    """trl #805, #1230: what a run on a capable card uses, on the miniature: sdpa's mask stands in for the kernel."""
    options = {"packing": True} if packing else {"padding_free": True}
    found = prove(attention="torch_varlen", trainer=trainer, **options)
    assert [verdict.ok for verdict in found.values()] == [True, True, True]
    assert "4 packed rows: logits within" in found["packed_rows_isolated"].detail


@pytest.mark.parametrize("packing", [True, False])
def test_details_name_what_was_counted(prove: Any, packing: bool) -> None:
    found = prove(packing=packing)
    assert found["labels_reach_the_model"].detail.startswith("5 rows, 15 labels: equal in 8 batches, with packing on")
    assert found["packed_rows_isolated"].detail.startswith("4 packed rows: " if packing else "rows are not packed")
    assert found["batch_size_does_not_matter"].detail.startswith("8 rows with 1 to 34 trained tokens give loss 6.")


# --- labels


class ShiftsLabels(trl.SFTTrainer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        collate = self.data_collator

        def shifted(rows: Any) -> Any:
            batch = collate(rows)
            return batch | {"labels": batch["labels"].roll(-1, dims=1)}

        self.data_collator = shifted


class TrainsAllWithFusedKernels(trl.SFTTrainer):
    def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
        if self.args.use_liger_kernel:
            inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return super().compute_loss(model, inputs, **options)


class TrainsAllWhenPacking(trl.SFTTrainer):
    def _prepare_dataset(self, dataset: Any, processor: Any, args: Any, packing: bool, *rest: Any) -> Any:
        if packing:
            dataset = dataset.remove_columns("labels")
        return super()._prepare_dataset(dataset, processor, args, packing, *rest)


class TrainsTheFirstTokenOfPackedRows(trl.SFTTrainer):
    def get_batch_samples(self, *args: Any) -> Any:
        batches, count = super().get_batch_samples(*args)
        for batch in batches:
            if "position_ids" in batch:
                starts = batch["position_ids"] == 0
                batch["labels"][starts] = batch["input_ids"][starts]
        return batches, count


class LosesABoundary(trl.SFTTrainer):
    def get_batch_samples(self, *args: Any) -> Any:
        batches, count = super().get_batch_samples(*args)
        for batch in batches:
            if "cu_seq_lens_k" in batch:
                batch["cu_seq_lens_k"] = batch["cu_seq_lens_k"][[0, -1]]
        return batches, count


class LosesARow(trl.SFTTrainer):
    def __init__(self, *, train_dataset: Any, **options: Any) -> None:
        super().__init__(train_dataset=train_dataset.select(range(1, len(train_dataset))), **options)


@pytest.mark.parametrize(
    ("trainer", "packing", "detail"),
    [  # packing as the recipe has it, and where the failure is seen
        (ShiftsLabels, False, r"with packing: false.*row 1 of 5 reaches the model with 4 of 6 labels changed, first "),
        (
            TrainsAllWithFusedKernels,
            False,
            r"packing: false, use_liger_kernel: true in `training`, row 1 of 5 reaches",
        ),
        (TrainsAllWhenPacking, False, r"packing: true, .*row 1 of 5 reaches the model with 2 of 6 labels changed"),
        (TrainsTheFirstTokenOfPackedRows, True, r"with packing: true.* 1 of 6 labels changed, first that of token 1"),
        (LosesABoundary, True, r"with packing: true.*rows reach the model that were not prepared"),
        (LosesARow, True, r"row 1 of 5 \(6 tokens\) does not reach the model \(1 rows are missing\)"),
    ],
)
def test_labels_that_do_not_arrive_are_found(prove: Any, trainer: Any, packing: bool, detail: str) -> None:
    """TRL #3781 and #3484 (masks ignored with fused kernels), #3728 (masks void with packing)."""
    verdict = prove(trainer=trainer, packing=packing)["labels_reach_the_model"]
    assert (verdict.ok, verdict.fatal) == (False, True)
    assert verdict.remedy
    assert re.search(detail, verdict.detail), verdict.detail


def test_rows_longer_than_the_trainers_limit_are_found_cut(prove: Any) -> None:
    verdict = prove(max_length=7)["labels_reach_the_model"]
    assert verdict.ok is False
    assert "row 5 of 5 reaches the model cut: 7 of its 8 tokens arrive in one piece" in verdict.detail


def test_packing_that_wraps_rows_is_refused_twice(prove: Any) -> None:
    found = prove(packing=True, packing_strategy="wrapped", max_length=16)
    assert found["labels_reach_the_model"].ok is False
    assert found["packed_rows_isolated"].ok is False


def test_options_the_trainer_refuses_are_a_failure_in_its_own_words(prove: Any) -> None:
    verdict = prove(loss_type="other")["labels_reach_the_model"]
    assert verdict.ok is False
    assert "SFTTrainer refuses these options: Invalid `loss_type` other passed" in verdict.detail


@pytest.mark.parametrize(("max_length", "packing"), [(None, "as it is"), (64, "on and off")])
def test_padding_free_batches_without_packing_are_proved_too(prove: Any, max_length: int | None, packing: str) -> None:
    found = prove(padding_free=True, max_length=max_length)
    assert [verdict.ok for verdict in found.values()] == [True, True, True]
    assert "4 packed rows" in found["packed_rows_isolated"].detail
    assert f"with packing {packing}" in found["labels_reach_the_model"].detail


@pytest.mark.parametrize(
    "values",
    [
        {"loss_type": "dft"},
        {"label_smoothing_factor": 0.1},
        {"packing": True, "packing_strategy": "bfd_split"},
        {"packing": True, "pad_to_multiple_of": 16, "shuffle_dataset": True},
        {"pad_to_multiple_of": 16, "train_sampling_strategy": "group_by_length"},
    ],
)
def test_options_about_data_and_loss_are_kept_and_right(prove: Any, values: dict[str, Any]) -> None:
    assert [verdict.ok for verdict in prove(**values).values()] == [True, True, True]


def test_every_option_of_trl_is_kept_or_known_to_be_beside_the_point() -> None:
    inherited = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    own = {field.name for field in dataclasses.fields(trl.SFTConfig)} - inherited
    about_model_and_speed = {
        "activation_offloading", "chat_template_path", "dataset_num_proc", "eval_packing", "model_init_kwargs",
        "router_aux_loss_coef", "trust_remote_code",
    }  # fmt: skip
    assert own - set(KEPT_OPTIONS) == about_model_and_speed
    assert set(KEPT_OPTIONS) <= own | inherited


def test_rows_without_labels_prove_nothing(prove: Any) -> None:
    found = prove(rows=[{"input_ids": [5, 6, 7], "labels": [5, -100, -100]}])
    assert [verdict.ok for verdict in found.values()] == [None, None, None]
    assert found["labels_reach_the_model"].detail == "no row has a label after its first token"


# --- isolation


def sees_across_rows(forward: Any) -> Any:
    """A model that is given the boundaries of packed rows and does not heed them."""

    def blind(self: Any, *args: Any, **inputs: Any) -> Any:
        for name in ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"):
            inputs.pop(name, None)
        return forward(self, *args, **inputs)

    return blind


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_packed_rows_do_not_see_each_other(prove: Any, monkeypatch: Any, attention: str) -> None:
    """TRL #805, #1230 and #3067: do packed samples see each other?"""
    assert prove(packing=True, attention=attention)["packed_rows_isolated"].ok is True
    monkeypatch.setattr(LlamaModel, "forward", sees_across_rows(LlamaModel.forward))
    verdict = prove(packing=True, attention=attention)["packed_rows_isolated"]
    assert verdict.ok is False
    assert verdict.detail.startswith("packed rows see each other; 4 packed rows: logits within ")
    assert "packing: false" in verdict.remedy


def test_attention_that_needs_a_gpu_is_left_to_the_loaded_model(prove: Any) -> None:
    found = prove(packing=True, attention="flash_attention_2")
    assert [verdict.ok for verdict in found.values()] == [True, None, True]
    assert "no miniature of LlamaConfig" in found["packed_rows_isolated"].detail


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_isolation_of_a_loaded_model_with_an_adapter(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: Any, precision: str
) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=768, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    rows = [
        {"input_ids": [9, *range(start, start + 20)], "labels": [-100, *range(start, start + 20)]}
        for start in range(20, 180, 40)
    ]
    trainer = trl.SFTTrainer(
        model=transformers.LlamaForCausalLM(config).to(getattr(torch, precision)),
        args=options(output_dir=str(tmp_path), packing=True, bf16=precision == "bfloat16"),
        processing_class=tiny_tokenizer("chatml"),
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=peft.LoraConfig(target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False),
    )
    trainer.model.train()
    verdict = wiring.isolation(trainer.model, trainer, rows)
    assert verdict.ok is True, verdict.detail
    assert all(module.training for module in trainer.model.modules())
    assert wiring.isolation(trainer.model, trainer, rows, tolerance=-1.0).ok is False
    monkeypatch.setattr(LlamaModel, "forward", sees_across_rows(LlamaModel.forward))
    assert wiring.isolation(trainer.model, trainer, rows).ok is False
    monkeypatch.undo()
    trainer.model.get_output_embeddings().weight.data.zero_()
    assert wiring.isolation(trainer.model, trainer, rows).ok is None  # all logits are alike, whatever it reads


# --- loss


class AveragesEachMicroBatch(trl.SFTTrainer):
    def compute_loss(self, model: Any, inputs: Any, num_items_in_batch: Any = None, **options: Any) -> Any:
        loss = super().compute_loss(model, inputs, num_items_in_batch=None, **options)
        return loss / self.current_gradient_accumulation_steps


class HalvesTheLoss(trl.SFTTrainer):
    def compute_loss(self, *args: Any, **options: Any) -> Any:
        return super().compute_loss(*args, **options) / 2


@pytest.mark.parametrize("trainer", [AveragesEachMicroBatch, HalvesTheLoss])
@pytest.mark.parametrize("packing", [True, False])
def test_a_loss_that_is_not_the_mean_over_trained_tokens_is_found(prove: Any, trainer: Any, packing: bool) -> None:
    """TRL #2175 and #2604, transformers #35203 and #37766: gradient accumulation changed the loss."""
    verdict = prove(trainer=trainer, packing=packing)["batch_size_does_not_matter"]
    assert verdict.ok is False
    assert verdict.remedy
    together, one_by_one, by_hand = map(float, re.findall(r"\b\d\.\d{6}\b", verdict.detail))
    if trainer is HalvesTheLoss:
        assert together == pytest.approx(one_by_one, rel=1e-5) == pytest.approx(by_hand / 2, rel=1e-5)
    else:
        assert together == pytest.approx(by_hand, rel=1e-5) != pytest.approx(one_by_one, rel=1e-3)


# --- miniatures

ARCHITECTURES = {
    "llama": LLAMA,
    "qwen2": transformers.Qwen2Config(use_sliding_window=True, max_window_layers=16),
    "qwen3": transformers.Qwen3Config(),
    "gemma2": transformers.Gemma2Config(),
    "gemma3": transformers.Gemma3Config(),
    "mistral": transformers.MistralConfig(),
    "phi3": transformers.Phi3Config(
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 10000.0,
            "original_max_position_embeddings": 4096,
        },
    ),
    "mixtral": transformers.MixtralConfig(),
    "deepseek_v3": transformers.DeepseekV3Config(),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_miniatures_of_many_architectures_prove_their_wiring(prove: Any, name: str) -> None:
    found = prove(config=ARCHITECTURES[name], packing=True)
    assert {verdict.ok for verdict in found.values()} == {True}, found


def test_a_miniature_keeps_the_kind_and_drops_the_size() -> None:
    config = ARCHITECTURES["gemma2"]
    config.attention_dropout = 0.3
    model = wiring.miniature(config)
    assert type(model) is transformers.Gemma2ForCausalLM
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    small = model.config
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert (small.sliding_window, small.final_logit_softcapping, small.attn_logit_softcapping) == (4096, 30.0, 50.0)
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim) == (4, 2, 16)
    assert (small.attention_dropout, model.training) == (0.0, False)
    assert config.num_hidden_layers == 26
    assert wiring.miniature(LLAMA).config.num_attention_heads == 4 * wiring.miniature(LLAMA).config.num_key_value_heads


def test_a_miniature_depends_on_its_seed_only_and_takes_any_token() -> None:
    ids = torch.tensor([[1, 128255, 7]])
    with torch.no_grad():
        logits = [wiring.miniature(LLAMA, seed=seed)(input_ids=ids).logits for seed in (0, 0, 1)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(), "no miniature of T5Config: transformers has no causal language model for it"),
        (transformers.GPT2Config(n_positions=10_000_000), "no miniature of GPT2Config: made small it still has 32"),
    ],
)
def test_an_architecture_that_cannot_be_shrunk_is_said_not_guessed(prove: Any, config: Any, reason: str) -> None:
    found = prove(config=config, packing=True)
    assert [verdict.ok for verdict in found.values()] == [None, None, None]
    assert all(reason in verdict.detail for verdict in found.values())


@pytest.mark.reference
def test_real_configurations_prove_their_wiring(prove: Any, reference: Path) -> None:
    files = sorted((reference / "model_configs").glob("*/config.json"))
    assert len(files) >= 4
    for file in files:
        found = prove(config=transformers.AutoConfig.from_pretrained(file), packing=True)
        assert {verdict.ok for verdict in found.values()} == {True}, (file.parent.name, found)


# --- traces


def test_nothing_is_left_behind(prove: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("WORLD_SIZE", "1")
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    files = sorted(cache.rglob("*")) if cache.exists() else []
    PartialState()
    before = _global_state()
    prove(packing=True, seed=7)
    assert _global_state() == before
    assert list(tmp_path.iterdir()) == []
    assert (sorted(cache.rglob("*")) if cache.exists() else []) == files


def _global_state() -> Any:
    singletons = [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)]
    numpy = [value.tolist() if isinstance(value, np.ndarray) else value for value in np.random.get_state()]
    return (
        singletons, dict(os.environ), random.getstate(), numpy, torch.get_rng_state().tolist(),
        logging.root.manager.disable, transformers.logging.get_verbosity(), datasets.are_progress_bars_disabled(),
    )  # fmt: skip


def test_the_tokenizer_keeps_its_tokens(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer("chatml")
    before = (tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template)
    arguments = options(eos_token="<|im_start|>", packing=True)
    assert wiring.check(arguments, ROWS, tokenizer, LLAMA)[0].ok is True
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template) == before


# --- several processes

TWO_RANKS = """
import sys, torch, transformers, trl
from accelerate import PartialState
from accelerate.utils import gather_object
from recipe_kit import modeling, wiring
from recipe_kit.recipe import ModelSection
state = PartialState(cpu=True)
assert state.num_processes == 2 and torch.distributed.is_initialized()
rank = state.process_index
equal, different = wiring.processes_agree("a" * 64), wiring.processes_agree("ab"[rank] * 64)
verdicts = []
if rank == 1:  # one rank alone: a collective call in there would wait for ever
    rows = [{"input_ids": list(range(n, 2 * n)), "labels": [-100, *range(n + 1, 2 * n)]} for n in range(10, 15)]
    arguments = trl.SFTConfig("unused", use_cpu=True, bf16=False, report_to="none", packing=True, max_length=64)
    tokenizer = modeling.load_tokenizer(ModelSection(id="tiny:chatml"))
    verdicts = [v.ok for v in wiring.check(arguments, rows, tokenizer, transformers.LlamaConfig())]
state.wait_for_everyone()
found = gather_object([[equal.ok, different.ok, different.detail, verdicts, PartialState().num_processes]])
if rank == 0:
    import json; print(json.dumps(found), flush=True)
state.destroy_process_group()  # else the one that leaves first may end the other (SIGABRT)
"""


def test_two_processes_agree_or_not_and_a_check_on_one_does_not_wait_for_the_other(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(TWO_RANKS)
    done = subprocess.run(
        [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", "2", script],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    zero, one = json.loads(done.stdout.splitlines()[-1])
    assert zero[:3] == one[:3]
    detail = "1 of 2 processes hold other rows than rank 0 (aaaaaaaaaaaa): rank 1 has bbbbbbbbbbbb"
    assert zero[:3] == [True, False, detail]
    assert (zero[3], one[3]) == ([], [True, True, True])
    assert zero[4] == one[4] == 2


def test_one_process_agrees_with_itself() -> None:
    assert wiring.processes_agree("a" * 64) == Verdict("processes_agree", True, "one process")
