"""Whatever a row holds, a built-in gives a valid example or a FormatError that names a column; never anything else."""

import copy
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_kit.errors import FormatError
from recipe_kit.formatters import check_example, describe_formatter, format_row, get_formatter

NAMES = [
    *("alpaca", "dialogue_summary", "guanaco", "messages", "prompt_completion", "question_answer", "sharegpt"),
    *("support", "text"),
]
FRAGMENTS = [
    *(
        "",
        " ",
        "\r\n",
        "\x00",
        "\x1b[31m",
        "\u200b",
        "\ufeff",
        "\ud83d",
        "👩‍👩‍👧‍👦",
        "é",
        "e\u0301",
        "שלום",
        "مرحبا \u202e",
    ),
    *('{"messages": [{"role": "user"}]}', "### Human:", "### Assistant:", "### Human: a ### Assistant: b", "###"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[INST] a [/INST] b", "ERROR:", "नमस्ते"),
]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), max_size=6).map("".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=3)
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool"]) | scalars,
        "content": texts | scalars | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts})),
        "from": st.sampled_from(["human", "gpt", "system"]) | scalars,
        "value": texts | scalars,
        "train": st.booleans() | scalars,
        "weight": st.sampled_from([0, 1, 2, None]) | scalars,
        "tool_calls": st.none() | st.just([{"id": 1}]),
    },
)
cells = texts | scalars | st.lists(turns | scalars, max_size=4) | st.dictionaries(texts, scalars, max_size=2)
conversations = st.lists(
    st.sampled_from(["user", "assistant"]).flatmap(
        lambda role: st.fixed_dictionaries(
            {"role": st.just(role), "content": texts, "from": st.just(role), "value": texts}
        )
    ),
    max_size=4,
)
marked = st.tuples(texts, texts).map(lambda pair: f"### Human: {pair[0]}### Assistant: {pair[1]}")
marked |= st.tuples(texts, texts).map(lambda pair: f"<s>[INST] {pair[0]} [/INST] {pair[1]} </s>")


@st.composite
def rows(draw):
    name = draw(st.sampled_from(NAMES))
    info = describe_formatter(name)
    row = {}
    for column in (*info.columns, *info.optional_columns):
        kind = draw(st.sampled_from(["fitting"] * 8 + ["any", "missing"]))
        if kind == "fitting":
            row[column] = draw(conversations if column in ("messages", "conversations") else marked | texts)
        elif kind == "any":
            row[column] = draw(cells)
    return name, row


def targets(example):
    """What is to be learnt: the text, or what the assistant says in turns that are trained."""
    if "text" in example:
        return [example["text"]]
    turns = example.get("messages") or example["completion"]
    return [turn["content"] for turn in turns if turn["role"] == "assistant" and turn.get("train", True)]


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(rows())
def test_a_hostile_row_gives_a_valid_example_or_names_the_column(case):
    name, row = case
    info, before = describe_formatter(name), copy.deepcopy(row)
    try:
        example = format_row(get_formatter(name), row)
    except FormatError as error:
        assert error.column in {*info.columns, *info.optional_columns}
        assert error.column in str(error) or "no turn is answered" in str(error)
    else:
        assert check_example(example) is example
        assert any(target.strip() for target in targets(example))
        assert format_row(get_formatter(name), row) == example
    assert repr(row) == repr(before)


tidy = st.lists(st.sampled_from([f for f in FRAGMENTS if f != "\ud83d"]) | st.text(max_size=8), min_size=1).map(
    "".join
)


@given(tidy.filter(str.strip), tidy.filter(str.strip))
def test_text_passes_through_character_for_character(question, answer):
    def contents(name, row, **options):
        example = format_row(get_formatter(name), row, options)
        turns = example.get("messages") or example["prompt"] + example["completion"]
        return [turn["content"] for turn in turns]

    both = [question, answer]
    assert contents("support", {"instruction": question, "response": answer}) == both
    assert contents("alpaca", {"instruction": question, "output": answer}) == both
    assert contents("prompt_completion", {"prompt": question, "completion": answer}) == both
    assert contents("question_answer", {"question": question, "response": answer}, error_markers=[]) == both
    conversation = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    assert contents("sharegpt", {"conversations": conversation}) == both
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert contents("messages", {"messages": messages}) == both
    summary = contents("dialogue_summary", {"dialogue": question, "summary": answer}, instruction="i")
    assert summary == [f"i\n\n{question}", answer]
    assert format_row(get_formatter("text"), {"text": answer}) == {"text": answer}


inside = tidy.filter(
    lambda text: (
        text.strip()
        and not any(mark in text for mark in ("###", "<s>", "</s>", "[INST]"))
        and not re.search(r"(?:^|[\s#])#$", text)  # with a marker behind it, a heading of four hashes
    )
)


@given(inside, inside)
def test_what_stands_between_the_markers_of_guanaco_is_kept_but_for_white_space_at_its_ends(question, answer):
    for text in (
        f"### Human: {question}### Assistant: {answer}",
        f"### Human:\r\n{question}\r\n### Assistant:\r\n{answer}\r\n",
        f"<s>[INST] {question.replace('[/INST]', '')} x [/INST] {answer} </s>",
    ):
        asked, answered = format_row(get_formatter("guanaco"), {"text": text})["messages"][-2:]
        assert answered["content"] == answer.strip()
        assert "[INST]" in text or asked["content"] == question.strip()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "cell",
    ["x" * 2_000_000, "🐘é" * 300_000, 10**300, [["x"] * 1000] * 50, {"a": {"b": ["c" * 10_000]}}, b"\x00" * 10_000],
)
def test_a_huge_cell_is_kept_whole_or_refused_in_one_short_sentence(name, cell):
    info = describe_formatter(name)
    columns = [*info.columns, *info.optional_columns]
    for column in columns:
        row = {**info.example_row, column: cell}
        try:
            example = format_row(get_formatter(name), row)
        except FormatError as error:
            assert error.column == column
            assert len(str(error)) < 250
        else:
            assert isinstance(cell, str)
            assert cell in str(example)


def test_a_chat_of_ten_thousand_turns_is_kept():
    turns = [{"role": ("user", "assistant")[n % 2], "content": str(n)} for n in range(10_000)]
    assert format_row(get_formatter("messages"), {"messages": turns}) == {"messages": turns}
