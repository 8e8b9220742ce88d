"""Is a GGUF file the model it was made from? Its metadata, tensors and answers against the folder of weights."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe_kit.errors import MergeError
from recipe_kit.gguf.tokens import ADD_SPACE, quietly, space_prefix

PROMPT = "The capital of France is"
NEW_TOKENS = 16
_CONTROL, _UNKNOWN = 3, 2  # token types


def require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MergeError("--gguf checks the file with the gguf package: `pip install 'recipe-kit[demo]'`")


def open_file(file: Path) -> Any:
    """The gguf package's reader, through which flags can be set. It reads every token one by one: open a file once."""
    import gguf

    try:
        return gguf.GGUFReader(file, "r+")
    except (ValueError, IndexError) as error:
        raise MergeError(f"{file.name}: not a GGUF file ({error}); update llama.cpp") from error


def compare(
    reader: Any, file: Path, weights: Path, tokenizer: Any, *, kind: str, report: Callable[[str], None]
) -> None:
    """Raises MergeError, naming everything that differs, unless the file is the model in `weights`.

    `kind` is the type of the file's weights. It decides how far its logits may be from the folder's: what is more
    than rounding to that type is another model. Beyond 8 bits that cannot be told, and is only reported.
    """
    values = {key: field.contents() for key, field in reader.fields.items() if key != "tokenizer.ggml.merges"}
    wrong = [*_metadata(values, tokenizer), *_vocabulary(values, reader.tensors, tokenizer)]
    wrong += _tensors(reader.tensors, values, weights, report)
    if not wrong:
        wrong += _answers(file, weights, tokenizer, _allowed(kind, weights), report)
    if wrong:
        raise MergeError(
            f"the GGUF file is not the model in {weights} and is not kept: {'; '.join(wrong)}; "
            "update llama.cpp and try again"
        )


def _allowed(kind: str, weights: Path) -> float | None:
    """How far logits may be apart, as a share of their spread. Measured: 0 where the type holds the weights exactly,
    0.04 % for float32 in f16, 1.5 % for float32 in bf16, 4 % for q8_0; 140 % for unrelated weights.
    """
    own = json.loads((weights / "config.json").read_text(encoding="utf-8")).get("dtype")
    if kind in ("f32", "f16") or (kind in ("bf16", "auto") and own == "bfloat16"):
        return 0.002
    return {"bf16": 0.05, "auto": 0.05, "q8_0": 0.3}.get(kind)


def _metadata(values: dict[str, Any], tokenizer: Any) -> list[str]:
    wrong = []
    template = tokenizer.chat_template
    if (values.get("tokenizer.chat_template") or "") != (template or ""):
        got = values.get("tokenizer.chat_template")
        wrong.append(f"its chat template is {'missing' if not got else 'another one'}")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        trained = getattr(tokenizer, f"{name}_token_id")
        got = values.get(f"tokenizer.ggml.{key}_token_id")
        if trained is not None and got != trained:
            wrong.append(f"its {name} token is {got}, trained was {trained}")
    if values.get("tokenizer.ggml.model") == "llama" and (space := space_prefix(tokenizer)) is not None:
        got = values.get(ADD_SPACE, True)
        if got != space[1]:
            wrong.append(f"{ADD_SPACE} is {got}, trained was {space[1]}")
    return wrong


def _vocabulary(values: dict[str, Any], tensors: Any, tokenizer: Any) -> list[str]:
    tokens, types = values.get("tokenizer.ggml.tokens", []), values.get("tokenizer.ggml.token_type", [])
    wrong = []
    rows = [int(tensor.shape[1]) for tensor in tensors if tensor.name == "token_embd.weight"]
    if rows != [len(tokens)]:
        wrong.append(f"it has {len(tokens)} tokens and {rows[0] if rows else 'no'} embeddings")
    if len(tokens) < len(tokenizer):
        wrong.append(f"it has {len(tokens)} tokens, the tokenizer {len(tokenizer)}")
        return wrong
    for index, token in tokenizer.added_tokens_decoder.items():
        if tokens[index] != token.content.replace("▁", " "):
            wrong.append(f"its token {index} is {tokens[index]!r}, trained was {token.content!r}")
        elif token.special and types[index] not in (_CONTROL, _UNKNOWN):
            wrong.append(f"its token {token.content!r} is no control token")
    return wrong


def _tensors(tensors: Any, values: dict[str, Any], weights: Path, report: Callable[[str], None]) -> list[str]:
    """What the file lacks, has too much, or has in another size, by the names that the gguf package knows."""
    import gguf

    arch = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == values["general.architecture"]), None)
    sizes = _folder_sizes(weights)
    expected: dict[str, int] = {}
    if arch is not None:
        names = gguf.get_tensor_name_map(arch, int(values.get(f"{values['general.architecture']}.block_count", 0)))
        expected = {str(names.get_name(name, try_suffixes=(".weight", ".bias"))): size for name, size in sizes.items()}
    if not expected or "None" in expected:
        report(f"{len(tensors)} tensors in the file, {len(sizes)} in the folder: not compared one by one")
        return []
    if json.loads((weights / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"):
        expected.pop("output.weight", None)  # the same numbers as token_embd.weight, stored by some and not by others
    got = {tensor.name: int(tensor.n_elements) for tensor in tensors}
    extra = set(got) - set(expected) - {"output.weight", "rope_freqs.weight"}  # rope_freqs: computed by the converter
    lists = [
        ("lacks", sorted(set(expected) - set(got))),
        ("has besides", sorted(extra)),
        ("has in another size", sorted(name for name in got.keys() & expected if got[name] != expected[name])),
    ]
    return [f"it {what} {', '.join(names[:3])} ({len(names)} in all)" for what, names in lists if names]


def _folder_sizes(weights: Path) -> dict[str, int]:
    """Elements of each tensor in the folder's safetensors, from their headers."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for shard in sorted(weights.glob("*.safetensors")):
        with safe_open(shard, framework="np") as tensors:
            sizes |= {name: math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return sizes


def _answers(
    file: Path, weights: Path, tokenizer: Any, allowed: float | None, report: Callable[[str], None]
) -> list[str]:
    """The logits of the folder's model and of the file's, where the folder's model answers greedily."""
    import psutil
    import torch
    from transformers import AutoModelForCausalLM

    needed = 8 * sum(_folder_sizes(weights).values())  # transformers unpacks a file beside the model it fills
    free = psutil.virtual_memory().available
    if needed > free:
        report(f"answers not compared: that takes {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB are free")
        return []
    prompt = tokenizer(PROMPT)["input_ids"]
    with torch.inference_mode(), quietly():
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
        ids = list(prompt)
        for _ in range(NEW_TOKENS):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        own = model(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        del model
        try:
            packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        except (ValueError, NotImplementedError) as error:
            report(f"answers not compared: transformers does not read this file ({str(error).splitlines()[0]})")
            return []
        its = packed(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
    same = int((its.argmax(-1) == own.argmax(-1)).sum())
    apart = float(((its - own).std(-1) / own.std(-1)).max())
    report(
        f"{same} of {NEW_TOKENS} greedy tokens are those of {weights.name}; logits {apart:.2%} of their spread apart"
    )
    if allowed is not None and not apart <= allowed:  # `not`, so that NaN fails
        return [f"its logits are {apart:.2%} of their spread apart, rounding makes less than {allowed:.2%}"]
    return []
