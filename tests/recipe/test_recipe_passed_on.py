"""lora, quantization and training: checked against the installed libraries without importing them."""

from __future__ import annotations

import pytest
from recipe_text import BASE, Write, problems

from recipe_kit.recipe import checks, hints, load_recipe, upstream


def test_options_are_those_of_the_installed_classes() -> None:
    training, lora, quantization = (upstream.options(name) for name in ("training", "lora", "quantization"))
    assert training and lora and quantization
    assert training["packing"].types == frozenset({"bool"})  # trl
    assert training["bf16"].types == frozenset({"bool", "None"})  # trl's base class overrides transformers
    assert training["weight_decay"].types == frozenset({"float"})  # transformers
    assert training["lr_scheduler_kwargs"].types is None
    assert "cosine" in training["lr_scheduler_type"].choices
    assert "paged_adamw_8bit" in training["optim"].choices
    assert training["save_strategy"].choices == ("no", "steps", "epoch", "best")
    assert lora["r"].types == frozenset({"int"})
    assert lora["bias"].choices == ("none", "all", "lora_only")
    assert lora["target_modules"].types is None
    assert "task_type" in lora
    assert quantization["bnb_4bit_use_double_quant"].types == frozenset({"bool"})
    assert quantization["bnb_4bit_compute_dtype"].types is None


def test_every_refused_option_is_one_of_the_installed_classes() -> None:
    for section, names in hints.REFUSED.items():
        known = upstream.options(section)
        assert known is not None
        assert [name for name in names if name not in known and name != "hub_*"] == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("training: {learning_rat: 1}", "training.learning_rat: not a field of SFTConfig; did you mean "
         "learning_rate?"),
        ("training: {lora_alpha: 1}", "training.lora_alpha: not a field of SFTConfig; it belongs under lora: did you "
         "mean lora.lora_alpha?"),
        ("training: {zzz: 1}", "training.zzz: not a field of SFTConfig; see the options of the installed SFTConfig"),
        ("training: {max_seq_length: 1}", "training.max_seq_length: not a field of SFTConfig; did you mean "
         "data.max_length?"),
        ("training: {evaluation_strategy: no}", "training.evaluation_strategy: not a field of SFTConfig; did you mean "
         "training.eval_strategy?"),
        ("training: {tokenizer: a}", "training.tokenizer: not a field of SFTConfig; the tokenizer comes with "
         "model.id"),
        ("training: {no_cuda: true}", "training.no_cuda: not a field of SFTConfig; did you mean training.use_cpu?"),
        ("training: {use_liger: true}", "training.use_liger: not a field of SFTConfig; did you mean "
         "training.use_liger_kernel?"),
        ("training: {learning_rate: fast}", "training.learning_rate: expected a number; got 'fast'"),
        ('training: {learning_rate: "2e-4"}', "training.learning_rate: expected a number; '2e-4' is written as text: "
         "remove the quotes"),
        ("training: {max_steps: true}", "training.max_steps: expected a whole number; got true"),
        ("training: {max_steps: 1e2}", "training.max_steps: expected a whole number; got 100.0: write 100"),
        ("training: {packing: on}", "training.packing: write true or false; 'on' is text in YAML 1.2"),
        ("training: {packing: 1}", "training.packing: expected true or false; got 1"),
        ("training: {run_name: 5}", "training.run_name: expected text; got 5: put quotes around the text"),
        ("training: {lr_scheduler_type: cosin}", "training.lr_scheduler_type: expected one of "),
        ("training: {save_strategy: epochs}", "training.save_strategy: expected one of no, steps, epoch, best; got "
         "'epochs'; did you mean epoch?"),
        ("training: {save_strategy: false}", "training.save_strategy: expected one of no, steps, epoch, best; got "
         "false"),
        ("training: {fp16: true, bf16: true}", "training.fp16: fp16 and bf16 are both true; set one of them to false"),
        ("training: {eval_strategy: epoch}", "training.eval_strategy: 'epoch' needs rows to evaluate on; fill in "
         "data.eval, or set eval_strategy: no"),
        ("lora: {bias: some}", "lora.bias: expected one of none, all, lora_only; got 'some'"),
        ("lora: {rank: 8}", "lora.rank: not a field of LoraConfig; did you mean lora.r?"),
        ("lora: {r: 8.5}", "lora.r: expected a whole number; got 8.5"),
        ("lora: {task_type: SEQ_CLS}", "lora.task_type: expected CAUSAL_LM; got 'SEQ_CLS'"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_explained(write: Write, line: str, sentence: str) -> None:
    (problem,) = problems(write(f"{BASE}{line}\n"))
    assert problem.startswith(f"base.yaml:7: {sentence}")


def test_a_long_list_of_values_is_not_recited(write: Write) -> None:
    (problem,) = problems(write(BASE + "training: {optim: adamw_bnb}\n"))
    assert problem.endswith("values; did you mean one of adamw_bnb_8bit?")


@pytest.mark.parametrize(
    ("option", "pointer"),
    [
        ("output_dir: a", "`--runs-dir`"),
        ("max_length: 5", "data.max_length"),
        ("push_to_hub: true", "recipe-kit push"),
        ("hub_model_id: a", "recipe-kit push"),
        ("hub_token: a", "`hf auth login`"),
        ("do_train: true", "`recipe-kit train`"),
        ("do_eval: true", "training.eval_strategy"),
        ("resume_from_checkpoint: a", "--resume"),
        ("dataset_text_field: a", "data.formatter"),
        ("dataset_kwargs: {}", "data.formatter"),
        ("completion_only_loss: true", "data.train_on"),
        ("assistant_only_loss: true", "data.train_on"),
        ("chat_template_path: a", "model.chat_template"),
        ("model_init_kwargs: {}", "model.dtype"),
        ("trust_remote_code: true", "model.trust_remote_code"),
        ("eos_token: a", "model.chat_template"),
        ("pad_token: a", "model.pad_token"),
    ],
)
def test_options_the_kit_owns_are_refused_with_a_pointer(write: Write, option: str, pointer: str) -> None:
    (problem,) = problems(write(f"{BASE}training: {{{option}}}\n"))
    assert problem.startswith(f"base.yaml:7: training.{option.split(':')[0]}: not passed on: ")
    assert pointer in problem


@pytest.mark.parametrize(
    "option", ["base_model_name_or_path: a", "inference_mode: true", "peft_type: LORA", "revision: a"]
)
def test_lora_options_the_kit_owns_are_refused(write: Write, option: str) -> None:
    (problem,) = problems(write(f"{BASE}lora: {{{option}}}\n"))
    assert ": not passed on: " in problem


def test_good_options_pass_as_they_are(write: Write) -> None:
    training = (
        "{learning_rate: 1, warmup_steps: 0.1, eval_packing: false, report_to: [], fsdp: true, eval_strategy: no, "
        "lr_scheduler_kwargs: {num_cycles: 2}, bf16: null, optim: paged_adamw_8bit, seed: 7}"
    )
    recipe = load_recipe(
        write(f"{BASE}training: {training}\nlora: {{task_type: CAUSAL_LM, target_modules: all-linear}}\n")
    )
    assert recipe.training["learning_rate"] == 1
    assert recipe.training["bf16"] is None
    assert recipe.lora == {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("method", "lines", "sentences"),
    [
        ("full", "lora: {r: 8}", ["lora: method is full: lora is not used; remove it or set method: lora"]),
        ("full", "lora: {}\nquantization: null", []),
        ("full", "quantization: {load_in_4bit: true}", ["quantization: method is full: quantization is not used; "
         "remove it or set method: qlora"]),
        ("lora", "quantization: {load_in_4bit: true}", ["quantization: method is lora: quantization is not used; "
         "remove it or set method: qlora"]),
        ("qlora", "quantization: {load_in_4bit: true}", []),
        ("qlora", "lora: null", []),
        ("qlora", "quantization: {load_in_4bit: false}", ["quantization.load_in_4bit: qlora is 4-bit; remove this, or "
         "set method: lora"]),
        ("qlora", "quantization: {load_in_8bit: true}", ["quantization.load_in_8bit: qlora is 4-bit; remove this "
         "key"]),
        ("qlora", "quantization: {bnb_4bit_quant_typ: nf4}", ["quantization.bnb_4bit_quant_typ: not a field of "
         "BitsAndBytesConfig; did you mean bnb_4bit_quant_type?"]),
    ],
)  # fmt: skip
def test_sections_fit_the_method(write: Write, method: str, lines: str, sentences: list[str]) -> None:
    path = write(BASE.replace("method: lora", f"method: {method}") + lines)
    if not sentences:
        assert load_recipe(path).method == method
    else:
        assert problems(path) == [f"base.yaml:7: {sentence}" for sentence in sentences]


def test_names_go_unchecked_where_a_library_is_missing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "options", lambda section: None)
    assert load_recipe(write(BASE + "training: {anything: 1}\n")).training == {"anything": 1}


def test_a_missing_library_or_file_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert upstream._module("a_library_that_is_not_there", "config.py") is None
    assert upstream._module("yaml", "moved/away.py") is None


def test_fields_that_cannot_be_given_are_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    option = upstream.Option("derived", settable=False)
    monkeypatch.setattr(checks, "options", lambda section: {"derived": option})
    assert problems(write(BASE + "training: {derived: 1}\n")) == [
        "base.yaml:7: training.derived: SFTConfig works this out by itself; leave it out"
    ]


@pytest.mark.parametrize("key", ["per_device_train_batch_size", "gradient_checkpointing", "optim"])
def test_auto_is_a_value_where_the_kit_can_choose(write: Write, key: str) -> None:
    recipe = load_recipe(write(BASE + f"training: {{{key}: auto}}\n"))
    assert recipe.training[key] == "auto"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("training: {gradient_checkpointing: automatic}", "training.gradient_checkpointing: expected true or false "
         "or auto; got 'automatic'"),
        ("training: {per_device_train_batch_size: automatic}", "training.per_device_train_batch_size: expected a "
         "whole number or auto; got 'automatic'"),
        ("training: {gradient_accumulation_steps: auto}", "training.gradient_accumulation_steps: expected a whole "
         "number; got 'auto'"),
        ("training: {optim: Auto}", "training.optim: 'Auto' is not among its 42 values; did you mean one of auto?"),
    ],
)  # fmt: skip
def test_what_only_looks_like_auto_is_refused(write: Write, line: str, sentence: str) -> None:
    (problem,) = problems(write(BASE + line + "\n"))
    assert problem.startswith("base.yaml:7: " + sentence), problem
