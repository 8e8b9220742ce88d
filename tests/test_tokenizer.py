"""Tokenizers made ready to train with: the tiny ones, and the real ones that stand beside the repository."""

from __future__ import annotations

import datetime
import json

import pytest

from recipe_kit.errors import LabelError, ModelError
from recipe_kit.formatters import format_row, get_formatter
from recipe_kit.labels import IGNORED, encode
from recipe_kit.modeling import load_tokenizer
from recipe_kit.recipe import ModelSection

CHAT = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye."},
]


def trained(encoded):
    return [label for label in encoded.labels if label != IGNORED]


def rendered(tokenizer, messages=CHAT, **variables):
    return tokenizer.apply_chat_template(messages, tokenize=False, **variables)


# The tiny tokenizers


@pytest.mark.parametrize(
    ("style", "pad", "end"),
    [
        ("llama3", "<|finetune_right_pad_id|>", "<|eot_id|>"),
        ("llama2", "<unk>", "</s>"),
        ("tinyllama", "<unk>", "</s>"),
        ("chatml", "<|endoftext|>", "<|im_end|>"),
    ],
)
def test_pad_token_is_not_the_end_token(tiny_tokenizer, style, pad, end):
    """alignment-handbook #127, TRL #2059: with pad = eos the end token was masked as padding."""
    tokenizer = tiny_tokenizer(style)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (pad, end)


@pytest.mark.parametrize("style", ["llama3", "llama2", "tinyllama", "chatml"])
def test_no_token_is_added_to_the_vocabulary(tiny_tokenizer, style):
    """unsloth #237, peft #1457: an added token has no trained embedding."""
    assert len(tiny_tokenizer(style)) == 768


def test_pad_token_of_the_recipe_is_taken():
    tokenizer = load_tokenizer(ModelSection(id="tiny:llama3", pad_token="<|begin_of_text|>"))
    assert tokenizer.pad_token == "<|begin_of_text|>"


def test_pad_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ModelError, match=r"model\.pad_token: '<extra>' is not in the vocabulary"):
        load_tokenizer(ModelSection(id="tiny:llama3", pad_token="<extra>"))


def test_chat_template_is_read_from_a_file(tmp_path):
    file = tmp_path / "turns.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}", encoding="utf-8")
    tokenizer = load_tokenizer(ModelSection(id="tiny:chatml", chat_template=str(file)))
    assert rendered(tokenizer, CHAT[:2]) == "user: Hi there<|im_end|>\nassistant: Hello!<|im_end|>\n"


def test_chat_template_that_is_no_file_is_refused():
    with pytest.raises(ModelError, match=r"turns\.jinja is neither a template nor a file that exists"):
        load_tokenizer(ModelSection(id="tiny:chatml", chat_template="turns.jinja"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("quotes ' and \"", "quotes ' and \""),
        ("a %} b {{ c }}", "a %} b {{ c }}"),
        ("नमस्ते 🐘", "नमस्ते 🐘"),
        (True, "True"),
        (None, "None"),
        ([1, {"a": None}], "[1, {'a': None}]"),
    ],
)
def test_variables_of_the_recipe_become_part_of_the_template(tmp_path, value, text):
    """ms-swift #6267: what was set for training was not set for serving."""
    from transformers import AutoTokenizer

    model = ModelSection(id="tiny:chatml", chat_template="{{ note }}", chat_template_kwargs={"note": value})
    load_tokenizer(model).save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    assert ascii(rendered(served)) == ascii(text)  # in ASCII, so that half a surrogate pair can be shown
    assert rendered(served, note="mine") == "mine"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        # Llama-3.x
        (
            "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
            "{{ date_string }}",
            "26 Jul 2024",
        ),
        # gpt-oss, SmolLM3, Mistral Small 3
        ('Current date: {{ strftime_now("%Y-%m-%d") }}', "Current date: 2024-07-26"),
    ],
)
def test_date_that_a_template_takes_from_the_clock_is_pinned(tmp_path, template, text):
    """What is trained on Monday and served on Tuesday is one prompt."""
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(ModelSection(id="tiny:chatml", chat_template=template))
    tokenizer.save_pretrained(tmp_path)
    assert rendered(tokenizer) == text
    assert rendered(AutoTokenizer.from_pretrained(tmp_path)) == text


# Real tokenizers

NAMES = ["llama3_2", "llama2", "tinyllama", "smollm2"]
END_IDS = {"llama3_2": 128009, "llama2": 2, "tinyllama": 2, "smollm2": 2}
LLAMA3_SYSTEM = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="session")
def real_tokenizer(reference):
    """Loads each of the reference tokenizers once, as training does."""
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = load_tokenizer(ModelSection(id=str(reference / "tokenizers" / name)))
        return loaded[name]

    return get


def llama3_2(messages):
    """The format in our own words: pieces of text, and whether the model writes them."""
    system, turns = _system(messages)
    yield (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{LLAMA3_SYSTEM}{system.strip()}<|eot_id|>",
        False,
    )
    for question, answer in turns:
        yield f"<|start_header_id|>user<|end_header_id|>\n\n{question.strip()}<|eot_id|>", False
        yield "<|start_header_id|>assistant<|end_header_id|>\n\n", False
        yield f"{answer.strip()}<|eot_id|>", True


def llama2(messages):
    system, turns = _system(messages)
    opening = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    for question, answer in turns:
        yield f"<s>[INST] {(opening + question).strip()} [/INST]", False
        yield f" {answer.strip()} </s>", True
        opening = ""


def tinyllama(messages):
    system, turns = _system(messages)
    if system:
        yield f"<|system|>\n{system}</s>\n", False
    for question, answer in turns:
        yield f"<|user|>\n{question}</s>\n<|assistant|>\n", False
        yield f"{answer}</s>", True
        yield "\n", False


def smollm2(messages):
    system, turns = _system(messages)
    yield f"<|im_start|>system\n{system or SMOLLM2_SYSTEM}<|im_end|>\n", False
    for question, answer in turns:
        yield f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False
        yield f"{answer}<|im_end|>", True
        yield "\n", False


def _system(messages):
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    contents = [message["content"] for message in rest]
    return messages[0]["content"] if rest is not messages else "", zip(contents[::2], contents[1::2], strict=True)


FORMATS = {"llama3_2": llama3_2, "llama2": llama2, "tinyllama": tinyllama, "smollm2": smollm2}


def oracle(name, messages, tokenizer):
    """Ids and labels from the growing text: new tokens belong to the piece that brought them."""
    text, ids, labels = "", [], []
    for piece, writes in FORMATS[name](messages):
        text += piece
        now = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert now[: len(ids)] == ids, f"the border before {piece!r} lies inside a token"
        new = now[len(ids) :]
        labels += new if writes else [IGNORED] * len(new)
        ids = now
    return ids, labels


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("llama3_2", [9906, 0, 128009, 15571, 29474, 13, 128009]),
        ("llama2", [15043, 29991, 29871, 2, 7197, 26966, 29889, 29871, 2]),
        ("tinyllama", [10994, 29991, 2, 18420, 26966, 29889, 2]),
        ("smollm2", [19556, 17, 2, 14229, 25257, 30, 2]),
    ],
)
def test_trained_ids_of_a_chat_with_two_answers(real_tokenizer, name, ids):
    """TRL #1623: the end of each turn (128009, or 2) is among them."""
    encoded = encode({"messages": CHAT}, real_tokenizer(name))
    assert trained(encoded) == ids


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "bos", "places"),
    [
        ("llama3_2", 128000, [0]),
        ("llama2", 1, [0, 14]),  # one for each question
        ("tinyllama", 1, []),
    ],
)
def test_bos_stands_where_the_template_writes_it_and_nowhere_else(real_tokenizer, name, bos, places):
    """alignment-handbook #127, OpenRLHF #393, vllm #27515: double BOS."""
    encoded = encode({"messages": CHAT}, real_tokenizer(name))
    assert [place for place, index in enumerate(encoded.input_ids) if index == bos] == places


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("llama3_2", [128000, 9906, 1917, 128009]),
        ("llama2", [1, 15043, 3186, 2]),
        ("tinyllama", [1, 15043, 3186, 2]),
        ("smollm2", [19556, 905, 2]),
    ],
)
@pytest.mark.parametrize("text", ["Hello world", "{bos}Hello world{eos}"])
def test_plain_text_has_the_bos_the_tokenizer_adds_and_one_end_token(real_tokenizer, name, ids, text):
    tokenizer = real_tokenizer(name)
    if name == "smollm2":  # it adds no BOS, so one in the text stays
        text = text.replace("{bos}", "")
    text = text.format(bos=tokenizer.bos_token, eos=tokenizer.eos_token)
    encoded = encode({"text": text}, tokenizer)
    assert encoded.input_ids == encoded.labels == ids


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "pad", "index"),
    [
        ("llama3_2", "<|finetune_right_pad_id|>", 128004),
        ("llama2", "<unk>", 0),
        ("tinyllama", "<unk>", 0),
        ("smollm2", "<|endoftext|>", 0),
    ],
)
def test_pad_token_is_none_that_ends_an_answer(real_tokenizer, name, pad, index):
    """TRL #2059, #696: Llama-2 chat padded with </s> never learnt it. SmolLM2 is published with pad = eos."""
    tokenizer = real_tokenizer(name)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (pad, index)
    assert tokenizer.pad_token_id not in trained(encode({"messages": CHAT}, tokenizer))


@pytest.mark.reference
def test_date_of_llama_3_2_is_pinned(real_tokenizer):
    tokenizer = real_tokenizer("llama3_2")
    today = datetime.date.today().strftime("%d %b %Y")
    assert "Today Date: 26 Jul 2024\n" in rendered(tokenizer)
    assert today not in rendered(tokenizer)
    assert "Today Date: 01 Jan 2030\n" in rendered(tokenizer, date_string="01 Jan 2030")


@pytest.mark.reference
@pytest.mark.parametrize("name", NAMES)
def test_saved_tokenizer_serves_what_was_trained(real_tokenizer, name, tmp_path):
    """axolotl #1832, LLaMA-Factory #10596 and #8399: the served template was another one, or was missing."""
    from transformers import AutoTokenizer

    tokenizer = real_tokenizer(name)
    tokenizer.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    encoded = encode({"messages": CHAT}, tokenizer)
    prompt = served.apply_chat_template(CHAT[:-1], add_generation_prompt=True, return_dict=False)
    assert rendered(served) == rendered(tokenizer)
    assert served.apply_chat_template(CHAT, return_dict=False) == encoded.input_ids
    assert encoded.input_ids[: len(prompt)] == prompt
    assert set(encoded.labels[:-10]) > {IGNORED}
    assert encoded.labels[len(prompt)] == encoded.input_ids[len(prompt)]
    assert served.pad_token == tokenizer.pad_token


@pytest.mark.reference
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answer",
    [
        "Hello!",
        "👋🏽",
        "👩‍👩‍👧 family",
        "नमस्ते दुनिया",
        "مرحبا بالعالم",
        "cafe\u0301",
        "1. one\n2. two\n\n```\n  x = 1\n```",
    ],
)
@pytest.mark.parametrize("opening", [[], [{"role": "system", "content": "Be kind 🙂."}]])
def test_tokens_are_those_of_the_format_written_by_hand(real_tokenizer, name, answer, opening):
    tokenizer = real_tokenizer(name)
    messages = [*opening, *CHAT[:3], {"role": "assistant", "content": answer}]
    encoded = encode({"messages": messages}, tokenizer)
    assert (encoded.input_ids, encoded.labels) == oracle(name, messages, tokenizer)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("llama3_2", [9906, 128009]),  # the template strips the answer
        ("llama2", [15043, 29871, 2]),
        ("tinyllama", [259, 15043, 2]),  # `▁▁`, `▁Hello`, `</s>`
        ("smollm2", [38699, 2]),  # ` Hello`: two spaces are one token with the line break of the prompt
    ],
)
def test_answer_that_starts_with_spaces(real_tokenizer, name, ids):
    messages = [CHAT[0], {"role": "assistant", "content": "   Hello"}]
    assert trained(encode({"messages": messages}, real_tokenizer(name))) == ids


@pytest.mark.reference
def test_roles_that_do_not_alternate_are_refused_in_the_words_of_llama_2s_template(real_tokenizer):
    messages = [CHAT[0], CHAT[2], CHAT[3]]
    with pytest.raises(LabelError, match="Conversation roles must alternate user/assistant/user/assistant/"):
        encode({"messages": messages}, real_tokenizer("llama2"))


@pytest.mark.reference
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("formatter", "file"),
    [
        ("guanaco", "guanaco_en.train.jsonl"),
        ("guanaco", "guanaco_en.test.jsonl"),
        ("dialogue_summary", "dialogue_summary_mts.train.jsonl"),
        ("dialogue_summary", "dialogue_summary_mts.validation.jsonl"),
        ("dialogue_summary", "dialogue_summary_mts.test.jsonl"),
        ("support", "customer_support.train.jsonl"),
        ("support", "customer_support.validation.jsonl"),
        ("support", "customer_support.test.jsonl"),
        ("messages", "hinglish_restaurant.train.jsonl"),
        ("messages", "hinglish_restaurant.validation.jsonl"),
        ("messages", "hinglish_restaurant.test.jsonl"),
    ],
)
def test_fifty_rows_are_trained_on_their_answers_and_the_end_of_each(real_tokenizer, reference, name, formatter, file):
    tokenizer = real_tokenizer(name)
    lines = (reference / "data" / file).read_text(encoding="utf-8").splitlines()[:50]
    assert len(lines) == 50
    for line in lines:
        example = format_row(get_formatter(formatter), json.loads(line))
        messages = example.get("messages") or [*example["prompt"], *example["completion"]]
        encoded = encode(example, tokenizer)
        assert (encoded.input_ids, encoded.labels) == oracle(name, messages, tokenizer)
        ids = trained(encoded)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        for answer, length in zip(answers, encoded.turn_lengths, strict=True):
            turn, ids = ids[:length], ids[length:]
            assert turn[-1] == END_IDS[name]
            assert tokenizer.decode(turn[:-1]).strip() == answer.strip()
