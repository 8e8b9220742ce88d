"""How to load what is published, as code that runs when pasted: the real repository, a real prompt, the right type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipe_kit import quality
from recipe_kit.card.facts import Facts
from recipe_kit.card.markdown import code, details, fenced
from recipe_kit.card.private import is_private
from recipe_kit.report import words
from recipe_kit.report.files import section

SUBFOLDER = "adapter"  # of a repository that holds the merged weights too
_SHORT = 600  # characters of a prompt that is good to read in a snippet
_NO_QUESTION = "Hello! What can you do?"


def usage(facts: Facts) -> str:
    """The code blocks, each with the sentence that says what it is for."""
    parts = []
    if facts.what != "adapter":
        parts.append(fenced(whole_model(facts), "python"))
    if facts.what == "both":
        parts.append(f"The adapter alone, in the folder {code(SUBFOLDER + '/')} of this repository, on its base:")
    if facts.what != "merged":
        parts.append(adapter_blocks(facts))
    parts.append(_conditions(facts))
    return "\n\n".join(part for part in parts if part)


def adapter_blocks(facts: Facts) -> str:
    own_base = facts.base_id is None or facts.what == "both"  # PEFT would look for the base in the subfolder too
    first = fenced(on_base(facts) if own_base else auto_adapter(facts), "python")
    if facts.base_id is None:
        where = {
            "package": "It is built from an installed Python package, which recipe-kit does here.",
            "tiny": "It is a tiny random model for wiring checks, which recipe-kit builds here.",
        }.get(facts.base_kind, "The code expects its folder beside it.")
        return f"The base model {code(facts.base_name)} is not on the Hub. {where}\n\n{first}"
    if own_base and facts.recipe.method != "qlora":
        return first
    quantised = facts.recipe.method == "qlora"
    told = ["at the commit it was trained on"] if facts.base_revision else []
    told += ["in 4 bits, as it was trained"] if quantised else []
    second = fenced(on_base(facts, quantised=quantised), "python")
    summary = f"With the base {words.listed(told) or 'loaded by its name'}"
    return f"{first}\n\n{details(summary, second)}"


def whole_model(facts: Facts) -> str:
    """A pipeline of merged or full weights."""
    content = prompt(facts) if facts.has_chat_template() else _as_text(prompt(facts))
    name = "messages" if facts.has_chat_template() else "text"
    reply = '["generated_text"][-1]["content"]' if facts.has_chat_template() else '["generated_text"]'
    only_new = "" if facts.has_chat_template() else ", return_full_text=False"
    tokens = facts.recipe.evaluation.max_new_tokens
    options = f'dtype="{facts.dtype}", device_map="auto"{_remote(facts)}'
    return f"""\
from transformers import pipeline

generator = pipeline("text-generation", model={_text(repository(facts))}, {options})
{name} = {_literal(content)}
print(generator({name}, max_new_tokens={tokens}, do_sample=False{only_new})[0]{reply})"""


def auto_adapter(facts: Facts) -> str:
    """PEFT finds the base by itself."""
    options = f'dtype="{_adapter_dtype(facts)}", device_map="auto"{_remote(facts)}'
    return f"""\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

repository = {_text(repository(facts))}{_where(facts)}
tokenizer = AutoTokenizer.from_pretrained(repository)
model = AutoPeftModelForCausalLM.from_pretrained(repository, {options})

{_answer(facts)}"""


def on_base(facts: Facts, *, quantised: bool = False) -> str:
    """The base by its own name, and the adapter on it."""
    subfolder = f', subfolder="{SUBFOLDER}"' if facts.what == "both" else ""
    imports, base = "", _text(facts.base_id or facts.base_name)
    if facts.base_id is None and facts.base_kind != "folder":
        imports, base = "from recipe_kit.local_models import local_folder\n", f"local_folder({base})"
    options = [base, *([f"revision={_text(facts.base_revision)}"] if facts.base_revision else [])]
    options += [f'dtype="{_adapter_dtype(facts)}"', 'device_map="auto"']
    options += ["quantization_config=in_4_bits"] if quantised else []
    options += ["trust_remote_code=True"] if facts.recipe.model.trust_remote_code else []
    arguments = "".join(f"    {option},\n" for option in options)
    setup = f"in_4_bits = {_quantization(facts)}\n" if quantised else ""
    names = "AutoModelForCausalLM, AutoTokenizer" + (", BitsAndBytesConfig" if quantised else "")
    return f"""\
from peft import PeftModel
{imports}from transformers import {names}

repository = {_text(repository(facts))}{_where(facts)}
tokenizer = AutoTokenizer.from_pretrained(repository)
{setup}base = AutoModelForCausalLM.from_pretrained(
{arguments})
model = PeftModel.from_pretrained(base, repository{subfolder})

{_answer(facts)}"""


def repository(facts: Facts) -> str:
    """What to load: the repository, or its name where the owner is not known yet."""
    return facts.repo_id or facts.title


def _where(facts: Facts) -> str:
    return "" if "/" in repository(facts) else "  # its folder, or its id on the Hub"


def prompt(facts: Facts) -> list[dict[str, str]]:
    """The messages of the example: a prompt that was answered in the evaluation, the recipe's own first."""
    candidates = list(_candidates(facts))
    short = [messages for messages in candidates if sum(len(m["content"]) for m in messages) <= _SHORT]
    return (short or sorted(candidates, key=lambda messages: len(str(messages))))[0]


def _candidates(facts: Facts) -> Iterator[list[dict[str, str]]]:
    system = facts.recipe.data.system
    for kind in ("prompt", "held_out"):
        for line in facts.record.samples:
            if line.get("kind", "held_out") == kind and (messages := _messages(line["prompt"], system)):
                yield messages
    for text in [*facts.recipe.evaluation.prompts, _NO_QUESTION]:
        told = [{"role": "system", "content": system}] if system else []
        if messages := _messages([*told, {"role": "user", "content": text}], system):
            yield messages
    yield [{"role": "user", "content": _NO_QUESTION}]


def _messages(prompt: Sequence[Any], system: str | None) -> list[dict[str, str]]:
    """The turns, without what the template does not need; [] where they are not all text, or not for everybody.

    The recipe's own system prompt may hold an address: it is part of what is published.
    """
    found = [
        {"role": str(turn["role"]), "content": turn["content"]}
        for turn in prompt
        if isinstance(turn, Mapping) and isinstance(turn.get("content"), str) and "role" in turn
    ]
    texts = [turn["content"] for turn in found]
    hidden = any(is_private(text) or (text != system and quality.find_personal(text)) for text in texts)
    return [] if hidden or len(found) < len(prompt) else found


def _answer(facts: Facts) -> str:
    tokens = facts.recipe.evaluation.max_new_tokens
    stop = section(facts.metrics, "generation").get("stop_token_ids")  # the base's own settings may not know them all
    ends = f", eos_token_id={stop}" if stop else ""
    if facts.has_chat_template():
        ask = f"messages = {_literal(prompt(facts))}\n" + (
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
            ").to(model.device)"
        )
    else:
        ask = f'inputs = tokenizer({_text(_as_text(prompt(facts)))}, return_tensors="pt").to(model.device)'
    return f"""\
{ask}
output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False{ends})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def _remote(facts: Facts) -> str:
    return ", trust_remote_code=True" if facts.recipe.model.trust_remote_code else ""


def _adapter_dtype(facts: Facts) -> str:
    """The adapter goes on the base as it was trained, also where merged weights of another type lie beside it."""
    trained = facts.info["model"].get("dtype")
    told = facts.recipe.model.dtype if trained in (None, "nf4") else str(trained)
    return "bfloat16" if told == "auto" else told


def _quantization(facts: Facts) -> str:
    given = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, **facts.recipe.quantization}
    given.setdefault("bnb_4bit_compute_dtype", _adapter_dtype(facts))
    given.pop("load_in_4bit", None)
    options = ", ".join(f"{key}={value!r}".replace("'", '"') for key, value in given.items())
    return f"BitsAndBytesConfig(\n    load_in_4bit=True, {options}\n)"


def _conditions(facts: Facts) -> str:
    """What somebody else needs to know to get the same behaviour."""
    said = []
    if prompt(facts)[0] == {"role": "system", "content": facts.recipe.data.system}:
        said.append("The system prompt is the one it was trained with; leave it in.")
    if facts.has_chat_template():
        said.append("The chat template is saved with the tokenizer and renders what was trained.")
    needs = ["transformers", *(["peft"] if facts.what != "merged" else []), "accelerate"]
    if facts.what != "merged":
        needs += ["bitsandbytes"] if facts.recipe.method == "qlora" and facts.base_id else []
        needs += ["recipe-kit"] if facts.base_id is None and facts.base_kind != "folder" else []
    said.append(f"Needs {code('pip install ' + ' '.join(needs))}.")
    return " ".join(said)


def _literal(messages: list[dict[str, str]] | str) -> str:
    """Messages as Python, a turn a line."""
    if isinstance(messages, str):
        return _text(messages)
    turns = [f'    {{"role": {_text(turn["role"])}, "content": {_text(turn["content"])}}},' for turn in messages]
    return "\n".join(["[", *turns, "]"])


def _text(text: Any) -> str:
    return json.dumps(str(text), ensure_ascii=False)


def _as_text(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"]
