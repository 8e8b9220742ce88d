"""Every chat template that TRL ships: trained are the answers and what ends them, or the reason to refuse is known.

What each template is expected to do stands in the tables. A template that TRL adds and that behaves differently fails
here until somebody has looked at it.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from recipe_kit.errors import LabelError
from recipe_kit.labels import IGNORED, encode

FOLDER = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

SYSTEM = {"role": "system", "content": "Be kind to visitors."}
QUESTIONS = ("Is the zoo open?", "क्या हाथी हैं? 🐘", "Thanks!")
ANSWERS = ("Yes, until six.\n\n  - daily", "हाँ, दो हाथी हैं 🐘🐘", "You are <b>welcome</b> & safe.")

# Control tokens: <|im_end|>, <end_of_turn>, <tool_call|>, </think>, [INST], [gMASK], <<SYS>>, <｜Assistant｜>.
CONTROL_MARKER = re.compile(
    r"<\|[^<>|\s]*\|>|<[a-zA-Z/|][^<>\s{}'+]*>|\[/?[a-zA-Z]*[A-Z]{3,}\]|<</?SYS>>|<｜[^｜]*｜>"
)

REWRITES_EARLIER_TURNS = "differently once later messages follow"
OPENS_OTHERWISE = "opens message 3 with other text than it gives the model to answer from"
NO_END_TOKEN = "trained assistant turn 1 does not end with a special token"
TAKES_PARTS = "does not write message 3 as it is"
TAKES_PARTS_AND_STOPS = "cannot render this chat: 'str object' has no attribute 'text'"

REFUSED = {
    "deepseek_r1_distill": OPENS_OTHERWISE,  # generation prompt `<think>\n`, answers without it
    "deepseekv3": OPENS_OTHERWISE,  # the same
    "glm4moe": NO_END_TOKEN,  # the `<|user|>` of the next question is the stop token
    "idefics3": TAKES_PARTS,
    "idefics3_training": TAKES_PARTS,
    "llava_next": TAKES_PARTS_AND_STOPS,
    "llava_next_training": TAKES_PARTS_AND_STOPS,
    "nemotron_3_5_lightning": OPENS_OTHERWISE,  # generation prompt `<think>\n`, answers start with `<think></think>`
    "nemotron_3_nano": OPENS_OTHERWISE,
    "nemotron_3_super": OPENS_OTHERWISE,
    "nemotron_3_ultra": OPENS_OTHERWISE,
    "smolvlm": TAKES_PARTS,
    "smolvlm_training": TAKES_PARTS,
}
# Fine for one question and answer, and for `train_on: last_assistant`.
REFUSED_WITH_LATER_TURNS = {
    "gptoss": REWRITES_EARLIER_TURNS,  # `<|return|>` ends the last answer, `<|end|>` the ones before
    "phi3": REWRITES_EARLIER_TURNS,  # eos_token once, after the last message
    "phi3_5": REWRITES_EARLIER_TURNS,  # the same
    "qwen3": REWRITES_EARLIER_TURNS,  # the reasoning block stands in the last answer only
    "qwen3_5_nothink": REWRITES_EARLIER_TURNS,
    "qwen3_5_think": REWRITES_EARLIER_TURNS,
    "qwen3_6": REWRITES_EARLIER_TURNS,
}
REFUSES_SYSTEM_PROMPTS = ("gemma", "gemma_training")

# What the model writes after an answer, by the longest prefix of the template's name that stands here.
ENDINGS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe_training": "<|user|>",
    "gptoss": "<|end|>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
}
LAST_ENDINGS = {"gptoss": "<|return|>", "phi3": "<|end|>\n<EOS>"}

# What is trained before an answer, because the generation prompt stops short of it or the marks start before it.
EMPTY_REASONING = "<think>\n\n</think>\n\n"
OPENINGS = {
    "deepseek_r1_distill_training": "<｜Assistant｜>",
    "deepseekv3_training": "<｜Assistant｜>",
    "glm4moe_training": "\n<think></think>\n",
    "gptoss": "<|channel|>final<|message|>",
    "gptoss_training": "<|start|>assistant<|channel|>final<|message|>",
    "muse_glimmer": " to=user<|message|>",
    "muse_glimmer_training": "<|start|>assistant to=user<|message|>",
    "nemotron_3_5_lightning_training": "<think></think>",
    "nemotron_3_nano_training": "<think></think>",
    "nemotron_3_super_training": "<think></think>",
    "nemotron_3_ultra_training": "<think></think>",
    "qwen2_5_training": "\n",
    "qwen3": EMPTY_REASONING,
    "qwen3_5_nothink_training": EMPTY_REASONING,
    "qwen3_5_think": "\n</think>\n\n",
    "qwen3_5_think_training": EMPTY_REASONING,
    "qwen3_6": "\n</think>\n\n",
    "qwen3_6_training": EMPTY_REASONING,
    "qwen3_8": "\n</think>\n\n",
    "qwen3_8_training": EMPTY_REASONING,
    "qwen3_training": EMPTY_REASONING,
}


def read(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


MARKED = [name for name in TEMPLATES if re.search(r"\{%-?\s*generation\s*-?%\}", read(name))]


@pytest.fixture
def tokenizer(name):
    """One token a byte, and one for each control marker of the template."""
    from transformers import PreTrainedTokenizerFast

    markers = sorted(set(CONTROL_MARKER.findall(read(name))))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token="<BOS>",
        eos_token="<EOS>",
        additional_special_tokens=markers,
        chat_template=read(name),
    )


def chat(name, turns, answers=ANSWERS):
    opening = [] if name in REFUSES_SYSTEM_PROMPTS else [SYSTEM]
    for question, answer in zip(QUESTIONS[:turns], answers[:turns], strict=True):
        opening += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return opening


def runs(ids, wanted, tokenizer):
    """The text of each run of wanted tokens."""
    texts, run = [], []
    for index, keep in [*zip(ids, wanted, strict=True), (None, False)]:
        if keep:
            run.append(index)
        elif run:
            texts.append(tokenizer.decode(run))
            run = []
    return texts


def learnt(messages, tokenizer, **options):
    encoded = encode({"messages": messages}, tokenizer, **options)
    return runs(encoded.input_ids, [label != IGNORED for label in encoded.labels], tokenizer)


def expected(name, turns):
    """What each of the answers is written as, from the tables."""
    family = max((prefix for prefix in ENDINGS if name.startswith(prefix)), key=len)
    endings = [ENDINGS[family]] * (turns - 1) + [LAST_ENDINGS.get(family, ENDINGS[family])]
    return [f"{OPENINGS.get(name, '')}{answer}{end}" for answer, end in zip(ANSWERS[:turns], endings, strict=True)]


def test_the_templates_were_found():
    assert len(TEMPLATES) > 50
    assert len(MARKED) > 30


def test_the_tables_name_templates_that_exist():
    named = REFUSED.keys() | REFUSED_WITH_LATER_TURNS.keys() | OPENINGS.keys() | set(REFUSES_SYSTEM_PROMPTS)
    assert named <= set(TEMPLATES)


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in REFUSED])
def test_exactly_the_answers_and_their_ends_are_trained(name, turns, tokenizer):
    if turns > 1 and name in REFUSED_WITH_LATER_TURNS:
        with pytest.raises(LabelError, match=REFUSED_WITH_LATER_TURNS[name]):
            encode({"messages": chat(name, turns)}, tokenizer)
    else:
        assert learnt(chat(name, turns), tokenizer) == expected(name, turns)


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_the_reason_in_the_table(name, turns, tokenizer):
    with pytest.raises(LabelError, match=re.escape(REFUSED[name])):
        encode({"messages": chat(name, turns)}, tokenizer)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in REFUSED])
def test_last_answer_alone_is_trained_with_every_template_that_is_not_refused(name, tokenizer):
    assert learnt(chat(name, 3), tokenizer, train_on="last_assistant") == expected(name, 3)[-1:]


@pytest.mark.parametrize("name", REFUSES_SYSTEM_PROMPTS)
def test_refused_system_prompt_is_an_error_and_is_not_dropped(name, tokenizer):
    with pytest.raises(LabelError, match="System role not supported"):
        encode({"messages": [SYSTEM, *chat(name, 1)]}, tokenizer)


@pytest.mark.parametrize("name", [name for name in MARKED if name not in REFUSED])
def test_marked_templates_train_what_transformers_marks_up_to_the_end_of_the_turn(name, tokenizer):
    """The oracle is `return_assistant_tokens_mask`; only a line break after the end-of-turn token is left out.

    The answers end with a full stop here: the oracle loses all but the first byte of a last character.
    """
    messages = chat(name, 3, [f"{answer}." for answer in ANSWERS])
    oracle = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    encoded = encode({"messages": messages}, tokenizer)
    trained = [label != IGNORED for label in encoded.labels]
    marked = [bool(mark) for mark in oracle["assistant_masks"]]
    assert encoded.input_ids == oracle["input_ids"]
    assert not any(ours and not theirs for ours, theirs in zip(trained, marked, strict=True))
    left_out = [theirs and not ours for ours, theirs in zip(trained, marked, strict=True)]
    assert set(runs(encoded.input_ids, left_out, tokenizer)) <= {"\n"}
