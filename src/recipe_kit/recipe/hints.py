"""Sentences for keys that are not known where they stand: moved, renamed, misspelled, or the kit's own business."""

from __future__ import annotations

from functools import cache

from recipe_kit.recipe.data_section import HeldOut
from recipe_kit.recipe.schema import CLOSED, FILE_KEYS, PASSED_ON
from recipe_kit.recipe.upstream import options
from recipe_kit.suggest import nearest

_FEW = 12  # values that still read well in one line
_PUBLISH = "write publish.repo_id, and publish with `recipe-kit push` or `recipe-kit train --push`"

# Options the kit decides itself: passing them on would contradict what the recipe says elsewhere.
REFUSED: dict[str, dict[str, str]] = {
    "training": {
        "output_dir": "the kit names run folders; use `--runs-dir`",
        "max_length": "write it as data.max_length",
        "truncation_mode": "write data.too_long",
        "push_to_hub": _PUBLISH,
        "hub_*": _PUBLISH,
        "hub_token": "a token has no place in a recipe; log in with `hf auth login`",
        "do_train": "`recipe-kit train` trains",
        "do_eval": "set training.eval_strategy, and data.eval for its rows",
        "do_predict": "use `recipe-kit eval`",
        "resume_from_checkpoint": "use `recipe-kit train --resume`",
        "enable_jit_checkpoint": "the kit saves a checkpoint when it is asked to stop",
        "dataset_text_field": "rows become conversations through data.formatter",
        "dataset_kwargs": "rows are prepared by data.formatter",
        "completion_only_loss": "write data.train_on",
        "assistant_only_loss": "write data.train_on: assistant",
        "chat_template_path": "write model.chat_template",
        "model_init_kwargs": "write the fields of model, such as model.dtype and model.attention",
        "trust_remote_code": "write model.trust_remote_code",
        "eos_token": "the end of a turn comes from the chat template; see model.chat_template",
        "pad_token": "write model.pad_token",
    },
    "lora": {
        "base_model_name_or_path": "write model.id",
        "revision": "write model.revision",
        "inference_mode": "the kit sets it: true only once the adapter is trained",
        "peft_type": "this section is LoRA; leave it out",
        "auto_mapping": "the kit sets it",
        "peft_version": "peft fills it in",
    },
    "quantization": {},
}
_QLORA = "method: qlora"
_LENGTH, _TRAIN, _ID, _TEMPLATE = "data.max_length", "data.train", "model.id", "model.chat_template"
_BATCH, _EPOCHS = "training.per_device_train_batch_size", "training.num_train_epochs"
_TOKENIZER = "the tokenizer comes with model.id"
# Names used by other tools and by earlier versions of the libraries, and where that thing is written here. Consulted
# only for names that are not known in their place, so an installed version that still has one is always right.
ALIASES: dict[str, dict[str, str]] = {
    "": {
        "base_model": _ID, "model_name": _ID, "model_name_or_path": _ID, "model_id": _ID, "tokenizer": _TOKENIZER,
        "adapter": "method", "finetuning_type": "method", "peft_type": "method", "load_in_4bit": _QLORA,
        "load_in_8bit": _QLORA, "lora_r": "lora.r", "lora_rank": "lora.r", "lora_target": "lora.target_modules",
        "lora_target_modules": "lora.target_modules", "datasets": _TRAIN, "dataset": _TRAIN, "dataset_name": _TRAIN,
        "train_dataset": _TRAIN, "eval_dataset": "data.eval", "val_set_size": "data.eval.fraction",
        "test_datasets": "data.test", "train_on_inputs": "data.train_on", "system_prompt": "data.system",
        "sequence_len": _LENGTH, "cutoff_len": _LENGTH, "max_seq_length": _LENGTH, "max_seq_len": _LENGTH,
        "max_length": _LENGTH, "template": _TEMPLATE, "chat_template": _TEMPLATE, "special_tokens": "model.pad_token",
        "attn_implementation": "model.attention", "flash_attention": "model.attention", "torch_dtype": "model.dtype",
        "flash_attn": "model.attention", "micro_batch_size": _BATCH, "batch_size": _BATCH, "num_epochs": _EPOCHS,
        "epochs": _EPOCHS, "lr": "training.learning_rate", "lr_scheduler": "training.lr_scheduler_type",
        "optimizer": "training.optim", "sample_packing": "training.packing", "warmup_ratio": "training.warmup_steps",
        "output_dir": "`recipe-kit train --runs-dir` says where runs go", "repo_id": "publish.repo_id",
        "hub_model_id": "publish.repo_id", "push_to_hub": _PUBLISH,
    },
    "model": {
        "name": _ID, "model_id": _ID, "path": _ID, "name_or_path": _ID, "model_name_or_path": _ID, "base_model": _ID,
        "torch_dtype": "model.dtype", "attn_implementation": "model.attention", "tokenizer": _TOKENIZER,
        "template": _TEMPLATE, "load_in_4bit": _QLORA,
    },
    "data": {
        "dataset": _TRAIN, "datasets": _TRAIN, "id": "data.train.id", "path": "data.train.path",
        "sample": "data.train.sample", "split": "data.train.split", "validation": "data.eval",
        "max_seq_length": _LENGTH, "template": "data.formatter", "system_prompt": "data.system",
        "packing": "training.packing",
    },
    "source": {"name": "config", "subset": "config", "dataset": "id", "file": "path", "filter": "where"},
    "data.formatter": {"args": "options", "kwargs": "options", "id": "name", "rename": "columns"},
    "evaluation": {
        "rouge": "evaluation.metrics, as `metrics: [rouge]`", "bleu": "evaluation.metrics, as `metrics: [chrf]`",
        "num_samples": "evaluation.samples", "max_tokens": "evaluation.max_new_tokens",
    },
    "lora": {
        "rank": "lora.r", "lora_r": "lora.r", "alpha": "lora.lora_alpha", "dropout": "lora.lora_dropout",
        "lora_target_modules": "lora.target_modules", "targets": "lora.target_modules",
    },
    "quantization": {
        "quant_type": "quantization.bnb_4bit_quant_type", "double_quant": "quantization.bnb_4bit_use_double_quant",
        "compute_dtype": "quantization.bnb_4bit_compute_dtype",
    },
    "training": {
        "max_seq_length": _LENGTH, "max_seq_len": _LENGTH, "evaluation_strategy": "training.eval_strategy",
        "tokenizer": _TOKENIZER, "processing_class": _TOKENIZER, "formatting_func": "data.formatter",
        "per_gpu_train_batch_size": _BATCH, "per_gpu_eval_batch_size": "training.per_device_eval_batch_size",
        "batch_size": _BATCH, "micro_batch_size": _BATCH, "epochs": _EPOCHS, "num_epochs": _EPOCHS,
        "lr": "training.learning_rate", "optimizer": "training.optim", "lr_scheduler": "training.lr_scheduler_type",
        "no_cuda": "training.use_cpu", "fp16_backend": "leave it out; training.fp16 is enough",
        "half_precision_backend": "leave it out; training.fp16 or training.bf16 is enough",
        "warmup_ratio": "write it as training.warmup_steps, where a number below 1 is a share of all steps",
        "group_by_length": "write training.train_sampling_strategy: group_by_length",
        "logging_dir": "logs go into the run folder", "overwrite_output_dir": "each run gets a folder of its own",
        "dataset_batch_size": "leave it out", "num_of_sequences": "leave it out",
        "use_liger": "training.use_liger_kernel", "neftune_alpha": "training.neftune_noise_alpha",
        "include_inputs_for_metrics": "training.include_for_metrics", "sample_packing": "training.packing",
        "save_safetensors": "leave it out; weights are always saved as safetensors",
        "use_mps_device": "leave it out; the device is found by itself",
        "push_to_hub_model_id": "publish.repo_id", "push_to_hub_token": _PUBLISH,
        "attn_implementation": "model.attention", "torch_dtype": "model.dtype",
    },
}  # fmt: skip


def refused(section: str, key: str) -> str:
    """Why an option is not passed on, and what to write instead; empty when it is."""
    reason = REFUSED[section].get(key) or (REFUSED[section].get("hub_*") if key.startswith("hub_") else None)
    return f"not passed on: {reason}" if reason else ""


@cache
def known_keys() -> dict[str, tuple[str, ...]]:
    """Dotted section -> the keys it takes, refused options left out."""
    known = {section: tuple(model.model_fields) for section, model in CLOSED.items()}
    known[""] += tuple(FILE_KEYS)
    known["data.eval"] += tuple(HeldOut.model_fields)
    for section in PASSED_ON:
        known[section] = tuple(passed_on_names(section))
    return known


def passed_on_names(section: str) -> list[str]:
    """Options of an installed config class that a recipe may set; empty when they cannot be told."""
    found = options(section) or {}
    return [name for name, option in found.items() if option.settable and not refused(section, name)]


def unknown_key(section: str, key: str) -> str:
    """A sentence for a key that `section` (dotted, empty for the top level) does not take."""
    what = f"not a field of {PASSED_ON[section]}" if section in PASSED_ON else f"not a key of {section or 'a recipe'}"
    return f"{what}; {_advice(section, key)}"


def _advice(section: str, key: str) -> str:
    known = known_keys()
    is_source = section in ("data.train", "data.eval", "data.test")
    alias = ALIASES.get("source" if is_source else section, {}).get(key)
    if alias:
        return _offer(alias)
    elsewhere = [
        place for place, keys in known.items() if key in keys and place not in (section, "data.train.formatter")
    ]
    if elsewhere:
        return (
            f"it belongs under {elsewhere[0]}: did you mean {elsewhere[0]}.{key}?"
            if elsewhere[0]
            else (f"did you mean {key} at the top level?")
        )
    near = nearest(key, known.get(section, ()))
    if near:
        return f"did you mean {near}?"
    everywhere = {name: place for place, names in reversed(known.items()) for name in names}
    near = nearest(key, everywhere, cutoff=0.8)
    if near:
        place = everywhere[near]
        return f"did you mean {place}.{near}?" if place else f"did you mean {near} at the top level?"
    if section in PASSED_ON:
        return f"see the options of the installed {PASSED_ON[section]}"
    return f"it takes {', '.join(known.get(section, ()))}"


def _offer(alias: str) -> str:
    """Another name is offered; a whole sentence is given as it is."""
    return alias if " " in alias and not alias.startswith("method:") else f"did you mean {alias}?"


def expected_one_of(known: tuple[str, ...], value: object, shown: str) -> str:
    """A sentence for a value that is not among the known ones, with the nearest of them."""
    text = value if isinstance(value, str) else shown
    longer = [name for name in known if text in name]
    near = nearest(text, known)
    if len(known) > _FEW:
        some = (longer or ([near] if near else list(known)))[:_FEW]
        return f"{shown} is not among its {len(known)} values; did you mean one of {', '.join(some)}?"
    guess = f"; did you mean {near}?" if near else ""
    return f"expected one of {', '.join(known)}; got {shown}{guess}"
