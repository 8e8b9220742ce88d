"""Which tokens are trained, in chats of the four formats our recipes use and in templates that set traps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from recipe_kit import labels
from recipe_kit.errors import LabelError
from recipe_kit.labels import IGNORED, encode, render_spans
from recipe_kit.labels.shapes import learn, outline
from turns import assistant, system, user

SHORT = {"messages": [user("Hi"), assistant("Hello!")]}
LONG = {
    "messages": [system("Be kind."), user("Hi"), assistant("Hello!"), user("Still there?"), assistant("Goodbye.")],
}

# Answers are marked, and the token that ends the turn stands outside the marks, as in the templates of TRL #5988.
MARKS_WITHOUT_THE_END = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen3's: an empty reasoning block before an answer, dropped once a later question follows.
DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEVER_ENDS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
# The opening of an answer is no generation prompt but part of the answer, and no token ends it.
OPENS_BUT_NEVER_ENDS = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
SPACE_AT_THE_BORDER = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def learnt(example, tokenizer, **options):
    """The text of each trained turn."""
    encoded = encode(example, tokenizer, **options)
    ids = [label for label in encoded.labels if label != IGNORED]
    assert ids == [i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != IGNORED]
    turns = []
    for length in encoded.turn_lengths:
        turns.append(tokenizer.decode(ids[:length]))
        ids = ids[length:]
    assert not ids
    return turns


def unlearnt(example, tokenizer):
    """The text of the tokens that are not trained, with a `…` where trained ones were left out."""
    encoded = encode(example, tokenizer)
    pieces, ids = [], []
    for index, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label == IGNORED:
            ids.append(index)
        elif ids:
            pieces.append(tokenizer.decode(ids))
            ids = []
    return "…".join([*pieces, tokenizer.decode(ids)])


@pytest.mark.parametrize(
    ("style", "turns"),
    [
        ("llama3", ["Hello!<|eot_id|>", "Goodbye.<|eot_id|>"]),
        ("llama2", [" Hello! </s>", " Goodbye. </s>"]),
        ("tinyllama", ["Hello!</s>", "Goodbye.</s>"]),
        ("chatml", ["Hello!<|im_end|>", "Goodbye.<|im_end|>"]),
    ],
)
def test_end_of_turn_token_is_trained_in_every_turn(tiny_tokenizer, style, turns):
    """TRL #1623: Guanaco runs never learnt to stop. axolotl #1761: only the last turn was trained."""
    assert learnt(LONG, tiny_tokenizer(style)) == turns


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n…"
            "<|start_header_id|>user<|end_header_id|>\n\nStill there?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n…",
        ),
        ("llama2", "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]…<s>[INST] Still there? [/INST]…"),
        (
            "tinyllama",
            "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\n…\n"
            "<|user|>\nStill there?</s>\n<|assistant|>\n…\n",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n…\n"
            "<|im_start|>user\nStill there?<|im_end|>\n<|im_start|>assistant\n…\n",
        ),
    ],
)
def test_system_text_questions_and_headers_are_not_trained(tiny_tokenizer, style, text):
    """axolotl #3098: system text was left in the loss. Nor is the opening of the turn after an answer trained."""
    assert unlearnt(LONG, tiny_tokenizer(style)) == text


def test_system_prompt_that_a_template_inserts_is_not_trained(tiny_tokenizer):
    tokenizer = tiny_tokenizer(
        "chatml",
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are SmolLM.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    assert learnt(SHORT, tokenizer) == ["Hello!<|im_end|>"]
    assert unlearnt(SHORT, tokenizer) == (
        "<|im_start|>system\nYou are SmolLM.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n…\n"
    )


@pytest.mark.parametrize("style", ["llama3", "llama2", "tinyllama", "chatml"])
def test_training_sees_the_tokens_that_serving_sees(tiny_tokenizer, style):
    """axolotl #1832, #2014: the format that was trained was not the tokenizer's template."""
    tokenizer = tiny_tokenizer(style)
    encoded = encode(LONG, tokenizer)
    prompt = tokenizer.apply_chat_template(LONG["messages"][:-1], add_generation_prompt=True, return_dict=False)
    assert encoded.input_ids == tokenizer.apply_chat_template(LONG["messages"], return_dict=False)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt)] != IGNORED


def test_text_starts_with_one_bos_even_if_the_tokenizer_adds_its_own(tiny_tokenizer):
    """alignment-handbook #127, vllm #27515: the template writes BOS, and the tokenizer wrote another before it."""
    tokenizer = tiny_tokenizer("llama3")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    assert tokenizer("<|begin_of_text|>Hi")["input_ids"][:2] == [bos, bos]
    encoded = encode(LONG, tokenizer)
    assert encoded.input_ids[0] == bos
    assert encoded.input_ids.count(bos) == 1


@pytest.mark.parametrize(
    ("train_on", "turns"),
    [
        ("assistant", ["Hello!<|im_end|>", "Goodbye.<|im_end|>"]),
        ("last_assistant", ["Goodbye.<|im_end|>"]),
        (
            "all",
            [
                "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nStill there?<|im_end|>\n"
                "<|im_start|>assistant\nGoodbye.<|im_end|>\n"
            ],
        ),
    ],
)
def test_train_on_chooses_the_trained_turns(tiny_tokenizer, train_on, turns):
    assert learnt(LONG, tiny_tokenizer("chatml"), train_on=train_on) == turns


def test_turn_with_train_false_is_context_only(tiny_tokenizer):
    chat = [user("Hi"), assistant("Hello!", train=False), user("Bye"), assistant("Goodbye.")]
    assert learnt({"messages": chat}, tiny_tokenizer("chatml")) == ["Goodbye.<|im_end|>"]


def test_last_assistant_means_the_last_one_that_may_be_trained(tiny_tokenizer):
    chat = [user("Hi"), assistant("Hello!"), user("Bye"), assistant("Goodbye.", train=False)]
    assert learnt({"messages": chat}, tiny_tokenizer("chatml"), train_on="last_assistant") == ["Hello!<|im_end|>"]


def test_chat_without_a_trained_turn_is_refused(tiny_tokenizer):
    with pytest.raises(LabelError, match="no assistant turn of this chat is trained"):
        encode({"messages": [user("Hi"), assistant("Hello!", train=False)]}, tiny_tokenizer("chatml"))


def test_answer_before_an_unanswered_question_is_trained(tiny_tokenizer):
    chat = [user("Hi"), assistant("Hello!"), user("Still there?")]
    assert learnt({"messages": chat}, tiny_tokenizer("chatml")) == ["Hello!<|im_end|>"]


def test_completion_is_trained_and_the_answers_in_its_prompt_are_not(tiny_tokenizer):
    example = {
        "prompt": [user("2 + 2?"), assistant("4."), user("3 + 3?")],
        "completion": [assistant("6.")],
    }
    assert learnt(example, tiny_tokenizer("llama3")) == ["6.<|eot_id|>"]
    assert "4.<|eot_id|>" in unlearnt(example, tiny_tokenizer("llama3"))


def test_plain_text_is_trained_whole_and_ends_with_one_end_token(tiny_tokenizer):
    tokenizer = tiny_tokenizer("tinyllama")
    assert learnt({"text": "Rye is sticky."}, tokenizer) == ["Rye is sticky.</s>"]
    assert learnt({"text": "Rye is sticky.</s>"}, tokenizer) == ["Rye is sticky.</s>"]
    assert learnt({"text": "Rye is sticky.</s></s>"}, tokenizer) == ["Rye is sticky.</s>"]


def test_plain_text_has_the_tokenizers_own_bos_once(tiny_tokenizer):
    tokenizer = tiny_tokenizer("tinyllama")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert learnt({"text": "Rye is sticky."}, tokenizer) == ["<s>Rye is sticky.</s>"]
    assert learnt({"text": "<s>Rye is sticky."}, tokenizer) == ["<s>Rye is sticky.</s>"]


def test_plain_text_without_an_end_token_is_refused(tiny_tokenizer):
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.eos_token = None
    with pytest.raises(LabelError, match="plain text needs an end-of-text token"):
        encode({"text": "Rye is sticky."}, tokenizer)


@pytest.mark.parametrize(
    "answer",
    [
        "\nHello",
        "\n\n\nHello",
        "  Hello",
        "\tHello",
        "👋🏽 Hello",
        "👩‍👩‍👧",
        "\u0301Hello",  # a combining accent with nothing before it but the prompt
        "नमस्ते दुनिया",
        "مرحبا بالعالم",
        "שלום",
        "Hello \n",
    ],
)
def test_answer_is_trained_from_its_first_character_to_its_last(tiny_tokenizer, answer):
    assert learnt({"messages": [user("Hi"), assistant(answer)]}, tiny_tokenizer("chatml")) == [f"{answer}<|im_end|>"]


@pytest.mark.parametrize(
    ("answer", "turn"), [("Hello!", "ello!<|im_end|>"), ("  Hello!", " Hello!<|im_end|>"), ("?", "?<|im_end|>")]
)
def test_token_across_the_border_belongs_to_the_prompt(tiny_tokenizer, answer, turn):
    """The prompt ends with a space, and ` H` and two spaces are one token: half of it is the prompt's."""
    tokenizer = tiny_tokenizer("chatml", SPACE_AT_THE_BORDER)
    assert tokenizer.tokenize(" Hello!")[0] == "ĠH"
    assert tokenizer.tokenize("   Hello!")[:2] == ["ĠĠ", "ĠH"]
    assert learnt({"messages": [user("Hi"), assistant(answer)]}, tokenizer) == [turn]


@given(answer=st.text(min_size=1, max_size=30), question=st.text(max_size=10))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_whatever_the_text_one_turn_is_trained_through_its_end_token(tiny_tokenizer, answer, question):
    tokenizer = tiny_tokenizer("chatml")
    example = {"messages": [user(question), assistant(answer)]}
    encoded = encode(example, tokenizer)
    prompt = len(tokenizer.apply_chat_template([user(question)], add_generation_prompt=True, return_dict=False))
    trained = [index for index, label in enumerate(encoded.labels) if label != IGNORED]
    assert trained == list(range(trained[0], trained[-1] + 1))
    assert trained[0] >= prompt - 1
    assert encoded.labels[trained[-1]] == tokenizer.eos_token_id
    assert len(encoded.labels) - trained[-1] == 2  # the line break after <|im_end|> is left


def test_end_token_that_swallows_the_line_break_after_it_is_trained(tiny_tokenizer):
    """Phi-3's control tokens take the white space after them with them: past the end of a marked answer, too."""
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|end|>", rstrip=True), AddedToken("<|user|>", rstrip=True)]}
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n{% else %}<|assistant|>\n"
        "{% generation %}{{ m.content }}<|end|>{% endgeneration %}\n{% endif %}{% endfor %}"
    )
    assert learnt({"messages": [user("Hi"), assistant("Hello!"), user("Bye"), assistant("Bye.")]}, tokenizer) == [
        "Hello!<|end|>",
        "Bye.<|end|>",
    ]


def test_empty_answer_in_the_middle_is_trained_to_stop_at_once(tiny_tokenizer):
    chat = {"messages": [user("Hi"), assistant(""), user("Still there?"), assistant("Yes.")]}
    assert learnt(chat, tiny_tokenizer("chatml")) == ["<|im_end|>", "Yes.<|im_end|>"]
    assert learnt(chat, tiny_tokenizer("llama2")) == ["  </s>", " Yes. </s>"]
    assert learnt(chat, tiny_tokenizer("chatml", MARKS_WITHOUT_THE_END)) == ["<|im_end|>", "Yes.<|im_end|>"]


def test_chat_that_starts_with_an_answer_is_refused(tiny_tokenizer):
    with pytest.raises(LabelError, match="the chat starts with an assistant turn"):
        encode({"messages": [assistant("Hello!"), user("Hi"), assistant("Bye.")]}, tiny_tokenizer("chatml"))


def test_chat_whose_opening_the_template_does_not_write_is_refused(tiny_tokenizer):
    """The Llama-2 format has no place for a system prompt without a question after it."""
    with pytest.raises(LabelError, match="the chat starts with an assistant turn"):
        encode({"messages": [system("Be kind."), assistant("Hello!")]}, tiny_tokenizer("llama2"))


def test_template_that_rewrites_earlier_turns_is_refused_for_them(tiny_tokenizer):
    with pytest.raises(LabelError, match=r"writes message 3 differently once later messages follow.*last_assistant"):
        encode(LONG, tiny_tokenizer("chatml", DROPS_REASONING))


def test_template_that_rewrites_earlier_turns_is_fine_for_the_last_one(tiny_tokenizer):
    tokenizer = tiny_tokenizer("chatml", DROPS_REASONING)
    last = ["<think>\n\n</think>\n\nGoodbye.<|im_end|>"]
    assert learnt(LONG, tokenizer, train_on="last_assistant") == last
    assert learnt({"prompt": LONG["messages"][:-1], "completion": LONG["messages"][-1:]}, tokenizer) == last


def test_template_with_another_opening_than_its_generation_prompt_is_refused(tiny_tokenizer):
    """The model would answer after `<think>` and be trained without it."""
    tokenizer = tiny_tokenizer(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    )
    with pytest.raises(LabelError, match=r"opens message 2 with other text.*training and serving would disagree"):
        encode(SHORT, tokenizer)


@pytest.mark.parametrize("template", [NEVER_ENDS, OPENS_BUT_NEVER_ENDS])
@pytest.mark.parametrize("train_on", ["assistant", "last_assistant", "all"])
def test_template_without_an_end_of_turn_token_is_refused(tiny_tokenizer, template, train_on):
    """TRL #2059, unsloth #416: such a model never stops."""
    with pytest.raises(LabelError, match=r"does not end with a special token.*would never learn to stop"):
        encode(SHORT, tiny_tokenizer("chatml", template), train_on=train_on)


def test_template_that_leaves_out_the_answer_is_refused(tiny_tokenizer):
    """Templates of vision models loop over parts; given text, they loop over its characters and write none of them."""
    tokenizer = tiny_tokenizer(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    with pytest.raises(LabelError, match="does not write message 2 as it is"):
        encode(SHORT, tokenizer)


def test_marked_turns_are_trained_with_the_end_token_outside_the_marks(tiny_tokenizer):
    """TRL #5988: the end of the turn fell outside the marks, seen only once the model would not stop."""
    tokenizer = tiny_tokenizer("chatml", MARKS_WITHOUT_THE_END)
    assert learnt(LONG, tokenizer) == ["Hello!<|im_end|>", "Goodbye.<|im_end|>"]


def test_last_character_of_a_marked_turn_is_trained_with_all_its_bytes(tiny_tokenizer):
    """The mask of transformers 5.23 ends at the first of the tokens that make up the last character."""
    tokenizer = tiny_tokenizer("chatml", MARKS_WITHOUT_THE_END)
    assert len(tokenizer.tokenize("🐘")) > 1
    assert learnt({"messages": [user("Hi"), assistant("🐘")]}, tokenizer) == ["🐘<|im_end|>"]


def test_marked_turns_are_trained_without_the_opening_of_the_next_turn(tiny_tokenizer):
    tokenizer = tiny_tokenizer(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}",
    )
    assert learnt(LONG, tokenizer) == ["Hello!<|im_end|>", "Goodbye.<|im_end|>"]
    assert learnt(LONG, tokenizer, train_on="last_assistant") == ["Goodbye.<|im_end|>"]


def test_marks_choose_what_is_trained_where_a_template_rewrites_turns(tiny_tokenizer):
    """The way out that the refusal names: a template with marks says itself what the model writes."""
    tokenizer = tiny_tokenizer(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}",
    )
    assert learnt(LONG, tokenizer) == ["Hello!<|im_end|>", "<think>\n\n</think>\n\nGoodbye.<|im_end|>"]


def test_two_marks_that_touch_are_one_turn(tiny_tokenizer):
    """TRL's own template for Phi-3 marks the end-of-text token apart from the answer before it."""
    tokenizer = tiny_tokenizer(
        "tinyllama",
        "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\n"
        "{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
        "{% generation %}{{ eos_token }}{% endgeneration %}",
    )
    assert learnt(SHORT, tokenizer) == ["Hello!\n</s>"]


def test_marks_that_do_not_match_the_answers_are_refused(tiny_tokenizer):
    tokenizer = tiny_tokenizer(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% endfor %}",
    )
    with pytest.raises(LabelError, match="marks give 5 spans for 2 assistant turns"):
        encode(LONG, tokenizer)


def test_marked_template_without_an_end_of_turn_token_is_refused(tiny_tokenizer):
    tokenizer = tiny_tokenizer(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}: "
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}"
        "{% endif %}\n{% endfor %}",
    )
    with pytest.raises(LabelError, match="trained assistant turn 1 does not end with a special token"):
        encode({"messages": [user("Hi"), assistant("Hello!"), user("Still there?")]}, tokenizer)


@pytest.mark.parametrize("example", [SHORT, LONG])
@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_tokenizer_without_a_chat_template_is_refused(tiny_tokenizer, example, train_on):
    """LlamaFactory #8399: the template was missing from a saved tokenizer."""
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(LabelError, match=r"has no chat template; give one in model\.chat_template"):
        encode(example, tokenizer, train_on=train_on)


def test_of_several_templates_the_default_one_is_used(tiny_tokenizer):
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = {"default": MARKS_WITHOUT_THE_END, "tool_use": "{{ raise_exception('not this one') }}"}
    assert learnt(SHORT, tokenizer) == ["Hello!<|im_end|>"]


@pytest.mark.parametrize("marks", ["", "{% generation %}{% endgeneration %}"])
def test_refusal_of_a_template_is_passed_on_in_its_own_words(tiny_tokenizer, marks):
    template = marks + "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    with pytest.raises(LabelError, match="cannot render this chat: Conversation roles must alternate user/assistant/"):
        encode(SHORT, tiny_tokenizer("chatml", template))


def test_spans_are_places_in_the_rendered_text(tiny_tokenizer):
    text, spans = render_spans(LONG["messages"], tiny_tokenizer("chatml"))
    assert [text[start:end] for start, end in spans] == ["Hello!<|im_end|>\n", "Goodbye.<|im_end|>\n"]


def test_special_tokens_are_those_that_end_or_open_something(tiny_tokenizer):
    assert sorted(labels.special_tokens(tiny_tokenizer("llama3"))) == [
        "<|begin_of_text|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
    ]


TRIMS_EARLIER_TURNS_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last else m.content.strip() }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("question", [" Hi", "Hi ", "\nHi\n"])
def test_template_that_serves_a_question_otherwise_than_it_trains_it_is_refused(tiny_tokenizer, question):
    tokenizer = tiny_tokenizer("chatml", TRIMS_EARLIER_TURNS_ONLY)
    with pytest.raises(LabelError, match="training and serving would disagree"):
        encode({"messages": [user(question), assistant("Hello!")]}, tokenizer)
    assert learnt(SHORT, tokenizer) == ["Hello!<|im_end|>"]


@pytest.mark.parametrize("style", ["llama3", "llama2", "tinyllama", "chatml"])
def test_white_space_around_messages_goes_the_quick_way_and_gives_what_the_careful_way_gives(tiny_tokenizer, style):
    tokenizer = tiny_tokenizer(style)
    labeller = labels.Labeller(tokenizer)
    for opening, closing in ((" ", ""), ("", "\n\n"), ("\t", " \n"), ("", "")):
        chat = [user(f"{opening}Hi{closing}"), assistant(f"{opening}Hello!{closing}"), user("Bye"), assistant("Bye. ")]
        text, spans = render_spans(chat, tokenizer)
        shape = learn(outline(chat), tokenizer)
        assert shape is not None and shape.spans(text, chat, [1, 3]) == spans
        assert len(labeller.encode({"messages": chat}).turn_lengths) == 2
