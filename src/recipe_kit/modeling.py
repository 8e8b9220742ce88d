"""Tokenizer, model, quantisation and adapter, from plain values of the recipe.

What the kit decides here it says: each decision is a sentence appended to `notes`, which ends up in `run.json`.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

import recipe_kit.varlen  # noqa: F401, registers its attention with transformers
from recipe_kit.attention import unusable
from recipe_kit.errors import ModelError, first_line
from recipe_kit.local_models import local_folder
from recipe_kit.recipe import ModelSection, Recipe
from recipe_kit.topology import quant_storage, strategy_here

# Some templates write today's date (Llama 3.1 and later, gpt-oss): training one day and serving another would
# differ. This is the date that Llama's template itself falls back to.
PINNED_DATE = datetime.date(2024, 7, 26)
_CLOCK = re.compile(r"""strftime_now\((?P<quote>["'])(?P<format>.*?)(?P=quote)\)""")

# Tokens reserved for padding, or never written by a template, in the order we like them.
_PAD_CANDIDATES = (
    "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|reserved_special_token_0|>",
    "<|endoftext|>", "<unk>",
)  # fmt: skip

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The model's tokenizer, ready to train with and to be saved beside the weights.

    Its chat template is `model.chat_template` if given, with `model.chat_template_kwargs` (and a fixed date, where the
    template writes one) made part of it, so the saved template renders what was trained. Its pad token
    never ends a turn, unless `model.pad_token` names one that does. Raises ModelError.
    """
    tokenizer = _from_pretrained(AutoTokenizer, model)
    if not tokenizer.is_fast:
        raise ModelError(f"model.id: {model.id} has no fast tokenizer, which labels need to find each token's place")
    if model.chat_template:
        tokenizer.chat_template = _read_template(model.chat_template)
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if tokenizer.chat_template:
        tokenizer.chat_template = pin_template(tokenizer.chat_template, model.chat_template_kwargs)
    tokenizer.pad_token = choose_pad_token(tokenizer, model.pad_token)
    return tokenizer


def load_config(model: ModelSection) -> PretrainedConfig:
    """The model's configuration, without its weights. Raises ModelError."""
    return _from_pretrained(AutoConfig, model)


def pin_template(template: str, values: dict[str, Any]) -> str:
    """The template with `values` as its defaults, and a fixed date where it asks the clock.

    A caller that passes other values to the saved template still has its way.
    """
    template = _CLOCK.sub(lambda call: repr(PINNED_DATE.strftime(call["format"])), template)
    opening = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {value!r} %}}{{%- endif %}}"
        for name, value in values.items()
    )
    return template if template.startswith(opening) else opening + template


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, wanted: str | None) -> str:
    """A token for padding that no answer ends with. Raises ModelError when the vocabulary has none."""
    vocabulary = tokenizer.get_vocab()
    if wanted is not None:
        if wanted not in vocabulary:
            raise ModelError(f"model.pad_token: {wanted!r} is not in the vocabulary; name one of its reserved tokens")
        return wanted
    ends = {tokenizer.eos_token, "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"}
    candidates = (tokenizer.pad_token, *_PAD_CANDIDATES, tokenizer.unk_token)
    for token in candidates:
        if token is not None and token in vocabulary and token not in ends:
            return str(token)
    raise ModelError(
        f"model.pad_token: this tokenizer has no token to pad with apart from {tokenizer.eos_token}, which ends an "
        "answer; name an unused token of its vocabulary in model.pad_token"
    )


def choose_precision(recipe: Recipe, notes: list[str]) -> str:
    """`bfloat16`, `float16` or `float32` for computing: what the recipe asks, or what this machine can do instead."""
    wanted: str = recipe.model.dtype
    training = recipe.training
    if wanted == "auto":
        wanted = "bfloat16"
    if training.get("fp16"):
        wanted = "float16"
    if uses_cpu(recipe):
        if wanted == "float16":
            notes.append("float16 is too slow on a CPU: computing in float32")
            return "float32"
        return wanted
    if wanted == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        notes.append(f"{torch.cuda.get_device_name()} has no bfloat16: computing in float16")
        return "float16"
    return wanted


def uses_cpu(recipe: Recipe) -> bool:
    return bool(recipe.training.get("use_cpu")) or not torch.cuda.is_available()


def capability(recipe: Recipe) -> tuple[int, int] | None:
    """CUDA's number for the generation of this process's GPU, such as (9, 0) for Hopper; None on a CPU."""
    return None if uses_cpu(recipe) else torch.cuda.get_device_capability()


def load_model(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
    *,
    quantize: bool | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """The base model on this process's device: in 4 bits for QLoRA, else in the precision that `model_dtype` gives.

    `attention` takes the place of the recipe's; `auto` leaves it to transformers. Without it the recipe's is used
    where it can be had: weights may be asked elsewhere than they were trained. Raises ModelError, also when the
    tokenizer has more tokens than the model has embeddings.
    """
    quantize = recipe.method == "qlora" if quantize is None else quantize
    if quantize:
        check_quantization(recipe)
    options: dict[str, Any] = {"dtype": model_dtype(recipe, precision)}
    if attention is None:
        attention = "auto" if unusable(recipe.model.attention, capability(recipe)) else recipe.model.attention
    if attention != "auto":
        options["attn_implementation"] = attention
    if recipe.model.kernels == "hub" and not uses_cpu(recipe):
        check_kernels()
        options["use_kernels"] = True
    if quantize:
        options["quantization_config"] = quantization_config(recipe, precision)
    if (quantize or not uses_cpu(recipe)) and not _read_in_shares(quantize):
        # Straight to its device, a file at a time: a 7B model in 16 bits does not fit into a free machine's memory.
        options["device_map"] = {"": "cpu" if uses_cpu(recipe) else int(os.environ.get("LOCAL_RANK", 0))}
    model: PreTrainedModel = _from_pretrained(AutoModelForCausalLM, recipe.model, **options)
    weight = model.get_input_embeddings().weight
    embeddings = getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 leaves weights empty, and notes their shapes
    if len(tokenizer) > embeddings:
        if not recipe.trains_embeddings:
            raise ModelError(
                f"model.id: the tokenizer has {len(tokenizer)} tokens and the model {embeddings} embeddings; "
                "the two do not belong together, unless the new ones are trained and saved: "
                "lora: {modules_to_save: [embed_tokens, lm_head]}"
            )
        model.resize_token_embeddings(len(tokenizer))
    return model


def _read_in_shares(quantize: bool) -> bool:
    """Whether no GPU gets all of the weights: ZeRO-3 splits them while they are read, FSDP2 from the machine's memory.

    Not 4-bit ones under FSDP2: bitsandbytes makes them on the GPU, all of them on each, before they are split.
    """
    strategy = strategy_here()
    from_memory = os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "").lower() == "true"
    return strategy == "zero3" or (strategy == "fsdp2" and from_memory and not quantize)


def model_dtype(recipe: Recipe, precision: str) -> torch.dtype:
    """In what the base weights are held. Full fine-tuning in float16 keeps float32 weights, as its scaler requires."""
    if recipe.method == "full" and precision == "float16":
        return torch.float32
    return _DTYPES[precision]


def quantization_config(recipe: Recipe, precision: str) -> transformers.BitsAndBytesConfig:
    """NF4 with double quantisation (Dettmers et al., 2023, arXiv:2305.14314) unless the recipe says otherwise."""
    values: dict[str, Any] = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": quant_storage(strategy_here(), precision),
    }
    values |= {key: value for key, value in recipe.quantization.items() if key != "load_in_4bit" and value is not None}
    compute = values.get("bnb_4bit_compute_dtype")
    if compute is None or (compute == "bfloat16" and precision == "float16"):
        values["bnb_4bit_compute_dtype"] = precision
    return transformers.BitsAndBytesConfig(load_in_4bit=True, **values)


def check_quantization(recipe: Recipe) -> None:
    """Raises ModelError where 4-bit weights cannot be used on this machine; loads no model."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("method: qlora needs bitsandbytes; `pip install bitsandbytes`, or set method: lora")
    import bitsandbytes

    device = "cpu" if uses_cpu(recipe) else "cuda"
    supported = getattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    if device not in supported:
        raise ModelError(
            f"method: qlora needs a 4-bit backend, and bitsandbytes {bitsandbytes.__version__} has none for {device}; "
            "set method: lora"
        )


def check_kernels() -> None:
    """Raises ModelError where the Hub's kernels cannot be loaded: transformers wants certain versions of a package."""
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION, is_kernels_available

    if not is_kernels_available():
        wanted = f"kernels>={KERNELS_MIN_VERSION},<{KERNELS_MAX_VERSION}"
        raise ModelError(f"model.kernels: hub needs another package; `pip install '{wanted}'`, or set it to auto")


def lora_config(recipe: Recipe) -> peft.LoraConfig:
    """PEFT's configuration of the recipe's `lora` section; all linear layers unless it names targets."""
    values: dict[str, Any] = {"target_modules": "all-linear", **recipe.lora}
    try:
        return peft.LoraConfig(task_type="CAUSAL_LM", **{k: v for k, v in values.items() if k != "task_type"})
    except (TypeError, ValueError) as error:
        raise ModelError(f"lora: {error}") from error


def check_targets(model: PreTrainedModel, config: peft.LoraConfig) -> None:
    """Raises ModelError when a named target module is not in the model, before PEFT trains without it."""
    targets = config.target_modules
    if not isinstance(targets, list | set | tuple):
        return
    leaves = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    names = [name for name, _ in model.named_modules()]
    missing = sorted(t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names))
    if missing:
        raise ModelError(
            f"lora.target_modules: {', '.join(missing)} not in this model; "
            f"its linear layers are {', '.join(sorted(leaves))}"
        )


def load_tuned(
    recipe: Recipe,
    weights: Path,
    tokenizer: PreTrainedTokenizerBase,
    precision: str,
    *,
    quantize: bool | None = None,
) -> PreTrainedModel:
    """The model of a finished run: the base with its adapter attached, or the full weights.

    `quantize` says whether in 4 bits; None as it was trained.
    """
    if recipe.method == "full":
        tuned = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"id": str(weights), "revision": None})}
        )
        return load_model(tuned, tokenizer, precision, quantize=quantize)
    base = load_model(recipe, tokenizer, precision, quantize=quantize)
    try:
        return peft.PeftModel.from_pretrained(base, weights)
    except torch.cuda.OutOfMemoryError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{weights}: the adapter cannot be read ({first}); it is damaged, or of another base"
        ) from error


def identity(model: ModelSection) -> str:
    """Says the same for the same weights: the commit of a Hub model, or names, sizes and times of a folder's files."""
    folder = local_folder(model.id) or (Path(model.id) if Path(model.id).is_dir() else None)
    if folder is None:
        return f"{model.id}@{commit(model)}"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{model.id}@{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def commit(model: ModelSection) -> str | None:
    """The commit of a Hub model that its files are read at; None for any other model. Raises ModelError.

    transformers keeps it in no configuration since 5.23; the cache keeps each commit in a folder of that name.
    """
    if local_folder(model.id) or Path(model.id).is_dir():
        return None
    load_config(model)  # puts the file into the cache, or says why not
    file = cached_file(model.id, "config.json", revision=model.revision or "main")
    found: str | None = extract_commit_hash(file, None)
    return found


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(str(tokenizer.chat_template or "").encode()).hexdigest()


def _read_template(value: str) -> str:
    if "{" in value:
        return value
    path = Path(value)
    if not path.is_file():
        raise ModelError(f"model.chat_template: {value} is neither a template nor a file that exists")
    return path.read_text(encoding="utf-8")


def _from_pretrained(factory: Any, model: ModelSection, **options: Any) -> Any:
    """Load from the Hub, a folder or the local model cache, with the failures of all three as one sentence."""
    folder = local_folder(model.id)
    where = str(folder or model.id)
    if folder is None and ("/" not in where or where.startswith((".", "/", "~"))) and not Path(where).is_dir():
        raise ModelError(
            f"model.id: {model.id} is neither a folder nor a Hub id; expected `owner/name`, a folder, "
            "`package:NAME` or `tiny:STYLE`"
        )
    try:
        return factory.from_pretrained(
            where, revision=model.revision or "main", trust_remote_code=model.trust_remote_code, **options
        )
    except torch.cuda.OutOfMemoryError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        first = first_line(error)
        if isinstance(error, ImportError):
            raise ModelError(f"model.id: cannot load {model.id}, a package is missing or broken ({first})") from error
        if folder is not None or Path(where).is_dir():
            raise ModelError(
                f"model.id: cannot load {model.id} ({first}); its folder is damaged or incomplete"
            ) from error
        raise ModelError(
            f"model.id: cannot load {model.id} ({first}); check the id and the network, and for a gated model accept "
            "its licence on the Hub and run `hf auth login`"
        ) from error
