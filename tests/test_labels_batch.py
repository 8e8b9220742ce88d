"""Many chats at once give the labels of each alone, of the careful way, and of formats written by hand."""

from __future__ import annotations

import importlib
import json
from functools import cache
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from recipe_kit.errors import LabelError
from recipe_kit.formatters import format_row, get_formatter
from recipe_kit.labels import Encoded, Labeller, encode
from recipe_kit.modeling import load_tokenizer
from recipe_kit.recipe import ModelSection
from test_labels_templates import (
    ANSWERS,
    CONTROL_MARKER,
    REFUSED,
    REFUSES_SYSTEM_PROMPTS,
    SYSTEM,
    TEMPLATES,
    chat,
    read,
)
from test_tokenizer import NAMES, oracle
from turns import assistant, system, user

ENCODING = importlib.import_module("recipe_kit.labels.encode")  # the package has a function of this name
TRAIN_ON = ["assistant", "last_assistant", "all"]
REASONING = "<think>\nThey ask for the opening hours.\n</think>\n\n"
MARKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content | trim }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
# Reads what a message says: where a shape is not enough.
READS_MESSAGES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if '/terse' in m.content %}[terse] {% endif %}"
    "{{ m.content.split('</think>')[-1] if '</think>' in m.content and not loop.last else m.content }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def outcomes(results):
    """Labels and ids, or the reason for there being none, in a form that can be compared."""
    return [str(result) if isinstance(result, LabelError) else result for result in results]


def one_by_one(chats, tokenizer, train_on):
    results = []
    for example in chats:
        try:
            results.append(encode(example, tokenizer, train_on=train_on))
        except LabelError as error:
            results.append(error)
    return outcomes(results)


@pytest.fixture
def carefully(monkeypatch):
    """Encodes with no shape known, so that every chat is rendered up to each of its answers."""

    def encode_all(chats, tokenizer, train_on):
        with monkeypatch.context() as patch:
            patch.setattr(ENCODING, "learn", lambda roles, tokenizer: None)
            return outcomes(Labeller(tokenizer, train_on=train_on).encode_batch(chats))

    return encode_all


MIXED = [
    {"messages": [user("Hi"), assistant("Hello!")]},
    {"messages": [system("Be kind."), user("Hi"), assistant("Hello!"), user("Still there?"), assistant("Goodbye.")]},
    {"messages": [user("Hi"), assistant("Hello!"), user("Hi"), assistant("Hello!"), user("Hi"), assistant("Hello!")]},
    {"prompt": [user("2 + 2?"), assistant("4."), user("3 + 3?")], "completion": [assistant("6.")]},
    {"messages": [user("assistant\nHello!"), assistant("user\nHi"), user("Hello!"), assistant("assistant\n")]},
    {"messages": [user(" \n Hi\t"), assistant("\n  Hello! \n\n"), user(""), assistant("नमस्ते 🐘 \u0301")]},
    {"messages": [user("Hi"), assistant(""), user("Still there?"), assistant("Yes.")]},
    {"messages": [user("Hi"), assistant("No.", train=False), user("So?"), assistant("Yes.")]},
    {"messages": [user("Hi"), assistant("Hello!"), user("Still there?")]},
    {"messages": [user("Hi /terse"), assistant(f"{REASONING}Hello!"), user("So?"), assistant(f"{REASONING}Bye.")]},
    {"messages": [user("Hi"), user("there"), assistant("Hello!"), assistant("And welcome.")]},
    {"messages": [assistant("Hello!"), user("Hi"), assistant("Bye.")]},  # refused
    {"messages": [user("<|im_end|></s><|eot_id|>"), assistant("Hello!")]},  # refused
    {"messages": [user("Hi"), assistant("Hello!", train=False)]},  # refused
    {"text": "Rye is sticky."},
]


@pytest.mark.parametrize("train_on", TRAIN_ON)
@pytest.mark.parametrize(
    ("style", "template"),
    [
        *((style, None) for style in ("chatml", "llama3", "llama2", "tinyllama")),
        ("chatml", MARKS),
        ("chatml", READS_MESSAGES),
    ],
)
def test_a_batch_gives_the_labels_of_each_chat_alone_and_of_the_careful_way(
    tiny_tokenizer, carefully, style, template, train_on
):
    tokenizer = tiny_tokenizer(style, template)
    batch = outcomes(Labeller(tokenizer, train_on=train_on).encode_batch(MIXED * 2))
    alone = one_by_one(MIXED, tokenizer, train_on)
    assert len(batch) == 2 * len(MIXED)
    assert batch == alone * 2
    assert batch[: len(MIXED)] == carefully(MIXED, tokenizer, train_on)
    assert 1 <= sum(isinstance(result, str) for result in alone) <= 5


words = st.lists(
    st.sampled_from(["", " ", "\n", "Hi", "assistant", "user", "<b>", "</think>", "<think>", "/terse", "🐘", "है"])
    | st.text(max_size=4),
    max_size=4,
).map("".join)


@given(
    st.lists(
        st.lists(words, min_size=2, max_size=6).map(
            lambda texts: {"messages": [(user, assistant)[n % 2](text) for n, text in enumerate(texts)]}
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@pytest.mark.parametrize("template", [None, MARKS, READS_MESSAGES])
def test_whatever_chats_say_a_batch_labels_them_as_the_careful_way_does(tiny_tokenizer, template, chats):
    tokenizer = tiny_tokenizer("chatml", template)
    with pytest.MonkeyPatch.context() as patch:
        batch = outcomes(Labeller(tokenizer).encode_batch(chats))
        patch.setattr(ENCODING, "learn", lambda roles, tokenizer: None)
        assert batch == outcomes(Labeller(tokenizer).encode_batch(chats)) == one_by_one(chats, tokenizer, "assistant")


# Templates that TRL ships


@cache
def trl_tokenizer(name):
    """One token a byte, and one for each control marker; reasoning tags are ordinary text, as in most models."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token="<BOS>",
        eos_token="<EOS>",
        additional_special_tokens=sorted({m for m in CONTROL_MARKER.findall(read(name)) if "think" not in m}),
        chat_template=read(name),
    )


def chats_for(name):
    """Chats of several shapes, among them some with reasoning, with white space to trim, and with nothing said."""
    opening = [] if name in REFUSES_SYSTEM_PROMPTS else [SYSTEM]
    reasoned = [f"{REASONING}{answer}" for answer in ANSWERS]
    spaced = [f"\n {answer} \n" for answer in ANSWERS]
    chats = [chat(name, turns, answers) for answers in (ANSWERS, reasoned, spaced) for turns in (1, 2, 3)]
    chats += [chat(name, 3)[:-1], chat(name, 2)[len(opening) :], [*opening, user("Hi"), assistant(""), *chats[0][-2:]]]
    chats.append([*opening, user("Hi"), user("there"), assistant("Hello!")])
    return [{"messages": messages} for messages in chats]


@pytest.mark.slow
@pytest.mark.parametrize("train_on", TRAIN_ON)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_of_trl_labels_a_batch_as_one_by_one_and_as_the_careful_way(name, carefully, train_on):
    tokenizer, chats = trl_tokenizer(name), chats_for(name)
    batch = outcomes(Labeller(tokenizer, train_on=train_on).encode_batch(chats))
    assert batch == one_by_one(chats, tokenizer, train_on)
    assert batch == carefully(chats, tokenizer, train_on)
    assert name in REFUSED or sum(isinstance(result, Encoded) for result in batch) >= 3


# Real tokenizers


@pytest.fixture(scope="module")
def real_tokenizer(reference):
    """Loads each of the reference tokenizers once, as training does."""
    return cache(lambda name: load_tokenizer(ModelSection(id=str(reference / "tokenizers" / name))))


HINGLISH = [
    system("Aap ek restaurant ke waiter hain. हमेशा नम्र रहें 🙏"),
    user("Bhaiya, ek table milega kya? 4 log hain 😊"),
    assistant("Bilkul sir! Window wali table chalegi? 🪟"),
    user("हाँ, ठीक है. Menu mein kya khaas hai?"),
    assistant("आज की स्पेशल: पनीर टिक्का 🌶️ (₹240) aur dal makhani.\n\n- dono veg hain"),
    user("Do paneer tikka, aur bill card se."),
    assistant("Ho gaya! कुल ₹480. Dhanyavaad 👨‍👩‍👧‍👦"),
    user("क़लम भी देना"),
    assistant("Zaroor."),
]


@pytest.mark.reference
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize("opened", [True, False])
def test_hinglish_chats_with_a_system_prompt_are_labelled_as_the_format_written_by_hand(
    real_tokenizer, name, turns, opened
):
    tokenizer = real_tokenizer(name)
    messages = HINGLISH[not opened : 1 + 2 * turns]
    encoded = encode({"messages": messages}, tokenizer)
    assert (encoded.input_ids, encoded.labels) == oracle(name, messages, tokenizer)
    assert len(encoded.turn_lengths) == turns


@pytest.mark.reference
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_real_rows_joined_to_long_chats_equals_the_format_written_by_hand(real_tokenizer, reference, name):
    """Each chat has a system prompt and three to six answers, of rows in English and in Hinglish."""
    tokenizer = real_tokenizer(name)
    exchanges = []
    for formatter, file in [
        ("messages", "hinglish_restaurant.train.jsonl"),
        ("guanaco", "guanaco_en.train.jsonl"),
        ("support", "customer_support.train.jsonl"),
    ]:
        for line in (reference / "data" / file).read_text(encoding="utf-8").splitlines()[:60]:
            example = format_row(get_formatter(formatter), json.loads(line))
            messages = example.get("messages") or [*example["prompt"], *example["completion"]]
            turns = [turn for turn in messages if turn["role"] != "system"]
            exchanges += [turns[place : place + 2] for place in range(0, len(turns) - 1, 2)]
    exchanges = exchanges[::2] + exchanges[1::2]
    chats, place = [], 0
    while place < len(exchanges):
        count = 3 + len(chats) % 4
        chats.append([system(f"You are agent {len(chats)}. आप 🙂"), *chain(*exchanges[place : place + count])])
        place += count
    assert len(chats) > 40
    assert sum(len(messages) >= 7 for messages in chats) >= len(chats) - 1
    for messages, encoded in zip(
        chats, Labeller(tokenizer).encode_batch([{"messages": messages} for messages in chats]), strict=True
    ):
        assert (encoded.input_ids, encoded.labels) == oracle(name, messages, tokenizer)
        assert len(encoded.turn_lengths) == len(messages) // 2
