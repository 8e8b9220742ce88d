import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_kit.formatters import FormatError, SkipRow, assistant, get_formatter, system, user


def turns(text):
    return get_formatter("guanaco")({"text": text})["messages"]


@pytest.mark.parametrize(
    "text",
    [
        "### Human: Hi ### Assistant: Hello",
        "### Human: Hi### Assistant: Hello",
        "### Human: Hi\n### Assistant: Hello\n",
        "\r\n### Human:Hi\r\n\r\n### Assistant:\r\nHello\r\n",
        "<s>### Human: Hi ### Assistant: Hello</s>",
        "<s>[INST] Hi [/INST] Hello </s>",
        "[INST]Hi[/INST]Hello",
        "<s> [INST] Hi [/INST] Hello",
    ],
)
def test_one_question_and_answer_in_each_spelling(text):
    assert turns(text) == [user("Hi"), assistant("Hello")]


def test_a_longer_conversation():
    assert turns("### Human: a### Assistant: b### Human: c### Assistant: d") == [
        user("a"), assistant("b"), user("c"), assistant("d"),
    ]  # fmt: skip


@pytest.mark.parametrize("between", ["</s><s>", "</s>", "</s> <s> ", " </s>\n<s>", "<s>"])
def test_a_longer_inst_conversation(between):
    assert turns(f"<s>[INST] a [/INST] b{between}[INST] c [/INST] d </s>") == [
        user("a"), assistant("b"), user("c"), assistant("d"),
    ]  # fmt: skip


def test_a_system_block_becomes_a_system_turn():
    text = "<s>[INST] <<SYS>>\nBe kind.\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s>"
    assert turns(text) == [system("Be kind.\nBe brief."), user("Hi"), assistant("Hello")]


def test_an_empty_system_block_is_left_out():
    assert turns("[INST] <<SYS>>\n\n<</SYS>>\n\nHi [/INST] Hello") == [user("Hi"), assistant("Hello")]


def test_inner_text_is_kept_and_outer_white_space_is_not():
    assert turns("### Human:  a\r\n\r\n  b\t### Assistant:\n```\n  x = 1\n```\n") == [
        user("a\r\n\r\n  b"), assistant("```\n  x = 1\n```"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "### Human: a### Assistant: b### Human: c",
        "### Human: a### Assistant: b### Human: c### Assistant: ",
        "[INST] a [/INST] b </s><s>[INST] c [/INST] </s>",
        "[INST] a [/INST] b </s><s>[INST] c [/INST]",
    ],
)
def test_a_last_question_without_an_answer_is_dropped(text):
    assert turns(text) == [user("a"), assistant("b")]


@pytest.mark.parametrize("text", ["### Human: a", "### Human: a### Assistant:", "<s>[INST] a [/INST] </s>"])
def test_a_row_without_any_answer_is_skipped(text):
    with pytest.raises(SkipRow, match="no turn is answered"):
        turns(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Once upon a time", "begins with neither '### Human:' nor"),
        ("Chat: ### Human: a### Assistant: b", "begins with neither"),
        ("### Assistant: b### Human: a", "begins with neither"),
        ("### human: a### assistant: b", "begins with neither"),
        ("### Human: a### Human: b### Assistant: c", "has two user turns in a row"),
        ("### Human: a### Assistant: b### Assistant: c", "has two assistant turns in a row"),
        ("### Human: ### Assistant: b", "has an empty user turn"),
        ("### Human: a### Assistant: ### Human: b### Assistant: c", "has an empty assistant turn"),
        ("[INST] a", "has '[INST]' without '[/INST]'"),
        ("[INST] a [/INST] b [INST] c [/INST] d", "'</s>' should stand before it"),
    ],
)
def test_a_text_that_is_no_conversation_is_refused(text, reason):
    with pytest.raises(FormatError) as error:
        turns(text)
    assert reason in str(error.value)
    assert error.value.column == "text"
    assert not isinstance(error.value, SkipRow)


@pytest.mark.parametrize("answer", ["#### Human: rights", "### Humans:", "###Human: x", "### human: x", "# Human: x"])
def test_headings_that_look_like_markers_stay_in_the_answer(answer):
    assert turns(f"### Human: a### Assistant: b\n{answer}") == [user("a"), assistant(f"b\n{answer}")]


@pytest.mark.parametrize("question", ["Is it C#", "Write hello world in F#", "Which key has A#"])
def test_a_word_that_ends_in_a_hash_does_not_hide_the_marker_behind_it(question):
    """It made four hashes of three, and the row was left out as one without an answer."""
    text = f"### Human: {question}### Assistant: Yes### Human: And {question}### Assistant: No"
    assert turns(text) == [user(question), assistant("Yes"), user(f"And {question}"), assistant("No")]


def test_a_marker_quoted_inside_an_answer_cannot_be_told_from_a_turn():
    text = "### Human: What marks a turn?### Assistant: The words ### Human: do.### Human: Ok### Assistant: Bye"
    with pytest.raises(FormatError, match="two user turns in a row"):
        turns(text)


def test_inst_inside_a_question_is_text():
    assert turns("<s>[INST] What is [INST]? [/INST] A marker. </s>") == [
        user("What is [INST]?"),
        assistant("A marker."),
    ]
    assert turns("### Human: [INST] or <s>?### Assistant: [/INST].") == [user("[INST] or <s>?"), assistant("[/INST].")]


def test_hash_markers_inside_an_inst_conversation_are_text():
    assert turns("[INST] a [/INST] ### Human: b") == [user("a"), assistant("### Human: b")]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="#[]<"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4), st.sampled_from(["", " ", "\n", "\r\n\r\n"]))
def test_turns_written_with_markers_are_read_back(pairs, gap):
    hashes = "".join(f"### Human: {q}{gap}### Assistant: {a}{gap}" for q, a in pairs)
    inst = "".join(f"<s>[INST] {q} [/INST] {a} </s>{gap}" for q, a in pairs)
    expected = [turn for q, a in pairs for turn in (user(q.strip()), assistant(a.strip()))]
    assert turns(hashes) == turns(inst) == expected
