"""What each built-in makes of a row. Its output is a promise: a change here needs a new name."""

import pytest

from recipe_kit.formatters import (
    FormatError,
    SkipRow,
    assistant,
    describe_formatter,
    format_row,
    formatter_names,
    get_formatter,
    system,
    user,
)
from recipe_kit.testing import check_formatter

BUILT_INS = [
    *("alpaca", "dialogue_summary", "guanaco", "messages", "prompt_completion", "question_answer", "sharegpt"),
    *("support", "text"),
]


def made(name, row, **options):
    return format_row(get_formatter(name), row, options)


def refusal(name, row, **options):
    with pytest.raises(FormatError) as error:
        made(name, row, **options)
    return str(error.value)


def exchange(prompt, answer):
    return {"prompt": [user(prompt)], "completion": [assistant(answer)]}


@pytest.mark.parametrize("name", BUILT_INS)
def test_every_built_in_passes_the_checks_for_plugin_authors(name):
    info = describe_formatter(name)
    assert check_formatter(name, [info.example_row]) == [info.example_result]
    assert info.summary.endswith(".")
    assert info.origin.startswith("package recipe-kit ")


def test_all_built_ins_are_listed():
    assert set(BUILT_INS) <= set(formatter_names())


# messages


def test_messages_are_kept_with_their_roles():
    turns = [system("Be brief."), user("2+2?"), assistant("4"), {"role": "tool", "content": "{}"}]
    assert made("messages", {"messages": turns}) == {"messages": turns}


def test_text_parts_are_joined_with_nothing_between():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    row = {"messages": [user("?"), {"role": "assistant", "content": parts}]}
    assert made("messages", row) == {"messages": [user("?"), assistant("a b")]}


def test_an_image_part_is_refused():
    row = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, assistant("A cat.")]}
    assert refusal("messages", row) == "messages[0]: only text parts can be trained on, got str 'image_url'"


def test_weight_zero_becomes_train_false_and_train_is_kept():
    row = {"messages": [user("?"), {**assistant("no"), "weight": 0}, {**assistant("yes"), "weight": 1, "train": True}]}
    assert made("messages", row) == {
        "messages": [user("?"), {**assistant("no"), "train": False}, {**assistant("yes"), "train": True}]
    }


def test_keys_that_arrow_filled_with_none_count_as_absent():
    filled = {"weight": None, "train": None, "tool_calls": None, "name": None}
    row = {"messages": [{**user("?"), **filled}, {**assistant("!"), **filled}]}
    assert made("messages", row) == {"messages": [user("?"), assistant("!")]}


def test_tool_calls_are_refused_with_a_sentence():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert refusal("messages", {"messages": [user("?"), call]}) == (
        "messages[1] holds tool_calls, which recipe-kit cannot train on yet"
    )


def test_content_none_is_refused():
    row = {"messages": [user("?"), {"role": "assistant", "content": None}]}
    assert refusal("messages", row) == "messages[1]: content should be text, got None"


def test_an_unknown_role_is_refused():
    row = {"messages": [{"role": "developer", "content": "x"}, assistant("y")]}
    assert refusal("messages", row) == (
        "messages[0]: role should be one of system, user, assistant, tool, got str 'developer'"
    )


def test_a_conversation_without_an_answer_is_refused():
    for turns in ([user("?")], [user("?"), assistant(" ")], [user("?"), {**assistant("!"), "train": False}]):
        assert refusal("messages", {"messages": turns}) == (
            "column 'messages' has no assistant message with text to learn from"
        )


def test_json_in_a_string_is_not_read_as_messages():
    assert "should hold a list of turns, got str" in refusal("messages", {"messages": '[{"role": "user"}]'})


def test_sharegpt_turns_given_to_messages_are_pointed_to_sharegpt():
    row = {"messages": [{"from": "human", "value": "x"}]}
    assert refusal("messages", row).endswith(
        "use the sharegpt formatter with data.formatter.columns: {conversations: messages}"
    )


# sharegpt


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("user", "user"), ("gpt", "assistant"), ("assistant", "assistant"), ("model", "assistant"),
     ("system", "system")],
)  # fmt: skip
def test_sharegpt_speakers_become_roles(speaker, role):
    row = {"conversations": [{"from": speaker, "value": "x"}, {"from": "gpt", "value": "y"}]}
    assert made("sharegpt", row) == {"messages": [{"role": role, "content": "x"}, assistant("y")]}


def test_an_unknown_sharegpt_speaker_is_refused():
    row = {"conversations": [{"from": "observation", "value": "x"}, {"from": "gpt", "value": "y"}]}
    assert refusal("sharegpt", row).endswith("got str 'observation'")


def test_a_sharegpt_turn_of_weight_zero_is_not_trained():
    row = {"conversations": [{"from": "gpt", "value": "x", "weight": 0}, {"from": "gpt", "value": "y"}]}
    assert made("sharegpt", row) == {"messages": [{**assistant("x"), "train": False}, assistant("y")]}


def test_openai_turns_given_to_sharegpt_are_pointed_to_messages():
    assert refusal("sharegpt", {"conversations": [user("x")]}).endswith(
        "use the messages formatter with data.formatter.columns: {messages: conversations}"
    )


# one question, one answer


@pytest.mark.parametrize("blank", [{}, {"input": ""}, {"input": "  \n"}, {"input": None}])
def test_alpaca_without_input_is_the_instruction_alone(blank):
    assert made("alpaca", {"instruction": "Sing.", "output": "La."} | blank) == exchange("Sing.", "La.")


def test_alpaca_joins_instruction_and_input():
    row = {"instruction": "Add.", "input": " 2, 3\r\n", "output": "5"}
    assert made("alpaca", row) == exchange("Add.\n\n 2, 3\r\n", "5")
    assert made("alpaca", row, separator="\n") == exchange("Add.\n 2, 3\r\n", "5")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca", {"instruction": "q", "output": "a"}),
        ("prompt_completion", {"prompt": "q", "completion": "a"}),
        ("question_answer", {"question": "q", "response": "a"}),
        ("support", {"instruction": "q", "response": "a"}),
    ],
)
def test_the_system_option_adds_a_system_turn(name, row):
    assert made(name, row) == exchange("q", "a")
    assert made(name, row, system="s")["prompt"] == [system("s"), user("q")]


def test_prompt_and_completion_may_be_messages():
    row = {"prompt": [system("s"), user("q")], "completion": [assistant("a")]}
    assert made("prompt_completion", row) == row
    assert made("prompt_completion", {**row, "completion": "a"}) == row


def test_a_completion_without_assistant_is_refused():
    assert "no assistant message" in refusal("prompt_completion", {"prompt": "q", "completion": [user("a")]})


def test_support_keeps_placeholders_and_outer_spaces():
    row = {"instruction": " where is {{Order Number}}\r\n", "response": "At {{Depot}}.\n"}
    assert made("support", row) == exchange(" where is {{Order Number}}\r\n", "At {{Depot}}.\n")


def test_dialogue_summary_puts_the_instruction_first():
    row = {"dialogue": "A: hi\nB: bye", "summary": "They met."}
    assert made("dialogue_summary", row) == exchange("Summarise the dialogue.\n\nA: hi\nB: bye", "They met.")
    assert made("dialogue_summary", row, instruction="Sum up.") == exchange("Sum up.\n\nA: hi\nB: bye", "They met.")


@pytest.mark.parametrize(
    "response",
    [
        "ERROR: 503",
        "error: quota",
        " \nError: timeout",
        "Sorry. no api keys available!",
        "No API keys available for x",
    ],
)
def test_error_messages_of_a_data_service_are_left_out(response):
    with pytest.raises(SkipRow, match="response is an error message"):
        made("question_answer", {"question": "q", "response": response})


@pytest.mark.parametrize(
    "response",
    ["An error: you divide by zero.", "Errors happen.", "ERROR 404 ka matlab page nahi mila.", "Use a valid API key."],
)
def test_answers_that_speak_of_errors_are_kept(response):
    assert made("question_answer", {"question": "q", "response": response}) == exchange("q", response)


def test_error_markers_can_be_changed_or_emptied():
    row = {"question": "q", "response": "ERROR: 503"}
    assert made("question_answer", row, error_markers=[]) == exchange("q", "ERROR: 503")
    with pytest.raises(SkipRow):
        made("question_answer", {"question": "q", "response": "I was rate limited."}, error_markers=["Rate limited"])


def test_one_marker_given_as_text_is_refused_and_not_read_letter_by_letter():
    assert refusal("question_answer", {"question": "q", "response": "a"}, error_markers="ERROR:") == (
        "option 'error_markers' of the question_answer formatter takes Sequence[str], got str 'ERROR:'"
    )


def test_text_is_kept_as_it_is():
    assert made("text", {"text": " ¶\r\n\ttwo "}) == {"text": " ¶\r\n\ttwo "}


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("support", {"instruction": "q", "response": ""}, "response"),
        ("support", {"instruction": None, "response": "a"}, "instruction"),
        ("dialogue_summary", {"dialogue": "d", "summary": "\n"}, "summary"),
        ("question_answer", {"question": 7, "response": "a"}, "question"),
        ("alpaca", {"instruction": "i", "input": 3, "output": "o"}, "input"),
        ("text", {"text": "\t"}, "text"),
    ],
)
def test_a_cell_without_text_names_its_column(name, row, column):
    with pytest.raises(FormatError, match=f"column '{column}'") as error:
        made(name, row)
    assert error.value.column == column


def test_half_a_surrogate_pair_is_refused_before_a_tokenizer_meets_it():
    assert refusal("text", {"text": "ok \ud83d"}) == (
        "column 'text' holds half of a surrogate pair at character 3: not valid Unicode text"
    )


def test_a_formatter_called_without_format_row_refuses_a_missing_column_too():
    for name in BUILT_INS:
        with pytest.raises(FormatError):
            get_formatter(name)({})
