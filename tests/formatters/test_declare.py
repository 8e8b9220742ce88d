import inspect
import pickle
import subprocess
import sys
from typing import Literal

import pytest

from recipe_kit.errors import RegistryError
from recipe_kit.formatters import (
    REQUIRED,
    FormatError,
    Option,
    SkipRow,
    assistant,
    check_columns,
    check_example,
    check_options,
    describe_formatter,
    format_row,
    formatter,
    formatter_names,
    get_formatter,
    user,
)
from recipe_kit.testing import isolated_registry

summary = get_formatter("dialogue_summary")


@pytest.fixture(autouse=True)
def isolated():
    with isolated_registry():
        yield


def refusal(call, *arguments):
    with pytest.raises(FormatError) as error:
        call(*arguments)
    return str(error.value)


def test_a_decorated_function_stays_a_function():
    assert inspect.isfunction(summary)
    assert pickle.loads(pickle.dumps(summary)) is summary


def test_importing_the_formatters_loads_nothing_heavy():
    code = (
        "import sys, recipe_kit.formatters, recipe_kit.testing;"
        "heavy = {'torch', 'transformers', 'datasets', 'pydantic', 'yaml', 'numpy', 'pytest'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


# columns


def test_a_missing_column_names_the_nearest_and_the_line_to_write():
    assert refusal(format_row, summary, {"dialog": "x", "summary": "y"}) == (
        "the dialogue_summary formatter needs column 'dialogue'; the rows have 'dialog', 'summary'; "
        "did you mean 'dialog'? Set data.formatter.columns: {dialogue: dialog}"
    )


def test_every_missing_column_is_named_at_once():
    assert refusal(check_columns, summary, ["id"]) == (
        "the dialogue_summary formatter needs columns 'dialogue', 'summary'; the rows have 'id'. "
        "Set data.formatter.columns: {dialogue: <your column>, summary: <your column>}"
    )


def test_columns_are_renamed():
    row = {"chat": "A: hi", "tldr": "Greeting.", "dialogue": "not this"}
    example = format_row(summary, row, {"instruction": "i"}, {"dialogue": "chat", "summary": "tldr"})
    assert example == {"prompt": [user("i\n\nA: hi")], "completion": [assistant("Greeting.")]}


def test_two_columns_can_be_swapped():
    row = {"instruction": "a", "response": "q"}
    example = format_row(get_formatter("support"), row, {}, {"instruction": "response", "response": "instruction"})
    assert example == {"prompt": [user("q")], "completion": [assistant("a")]}


def test_an_optional_column_can_be_renamed():
    row = {"instruction": "Add.", "context": "1, 2", "output": "3"}
    assert format_row(get_formatter("alpaca"), row, {}, {"input": "context"})["prompt"] == [user("Add.\n\n1, 2")]


def test_renaming_a_column_the_formatter_does_not_have_names_the_nearest():
    assert refusal(check_columns, summary, ["a"], {"dialog": "a"}) == (
        "the dialogue_summary formatter has no column 'dialog', named in data.formatter.columns; "
        "did you mean dialogue?"
    )


def test_renaming_from_a_column_the_data_does_not_have_names_the_nearest():
    assert refusal(check_columns, summary, ["chats", "summary"], {"dialogue": "chat"}) == (
        "data.formatter.columns reads 'dialogue' from column 'chat', which is missing; "
        "the rows have 'chats', 'summary'; did you mean chats?"
    )


def test_an_error_about_a_renamed_column_names_the_column_of_the_data():
    with pytest.raises(FormatError) as error:
        format_row(summary, {"dialogue": "d", "tldr": " "}, {}, {"summary": "tldr"})
    assert str(error.value) == "column 'summary' is blank (read from column 'tldr')"
    assert error.value.column == "tldr"


# options


def test_an_unknown_option_names_the_nearest():
    assert refusal(check_options, summary, {"instructions": "x"}) == (
        "the dialogue_summary formatter has no option 'instructions'; did you mean instruction?"
    )


def test_all_problems_with_options_are_reported_at_once():
    @formatter("picky")
    def picky(row, *, size: int, kind: Literal["a", "b"] = "a"):
        return {"text": "x"}

    assert refusal(check_options, picky, {"kind": "c", "colour": 1}) == (
        "option 'kind' of the picky formatter takes Literal['a', 'b'], got str 'c'; "
        "the picky formatter has no option 'colour'; it has 'size', 'kind'; "
        "the picky formatter needs option 'size'"
    )
    check_options(picky, {"size": 3, "kind": "b"})


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (str, "a", 1),
        (int, 1, True),
        (float, 1, "1"),
        (bool, False, 0),
        (str | None, None, 1),
        (list[str], ["a"], "a"),
        (tuple[int, ...], [1], ["a"]),
        (dict[str, int], {"a": 1}, REQUIRED),
        ("int", 1, "a"),
        ("Unimported", object(), REQUIRED),
    ],
)
def test_option_values_are_checked_against_annotations(annotation, good, bad):
    def plain(row, *, option=None):
        return {"text": "x"}

    plain.__annotations__["option"] = annotation
    check_options(plain, {"option": good})
    if bad is not REQUIRED:
        assert "option 'option' of the plain formatter takes" in refusal(check_options, plain, {"option": bad})


def test_a_formatter_that_takes_any_keyword_gets_any_option():
    def plain(row, **options):
        return {"text": options["x"]}

    assert format_row(plain, {}, {"x": "y"}) == {"text": "y"}


# finding and describing


def test_describe_formatter_tells_all():
    info = describe_formatter("dialogue_summary")
    assert info.columns == ("dialogue", "summary")
    assert info.options == (Option("instruction", "str", "Summarise the dialogue."),)
    assert info.summary == "A `dialogue` to read, under an `instruction`, and the `summary` to learn."
    assert info.doc.startswith(info.summary)
    assert info.origin.endswith("(recipe_kit.formatters.exchange:dialogue_summary)")
    assert info.example_result == format_row(summary, info.example_row)


def test_a_plain_function_is_a_formatter_by_module_and_attribute(tmp_path, monkeypatch):
    (tmp_path / "my_own.py").write_text("def shout(row, *, mark='!'):\n    return {'text': row['a'] + mark}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert format_row(get_formatter("my_own:shout"), {"a": "hey"}, {"mark": "?"}) == {"text": "hey?"}
    info = describe_formatter("my_own:shout")
    assert (info.origin, info.columns, info.options) == ("my_own.py:1", (), (Option("mark", "Any", "!"),))


def test_something_that_is_no_function_is_refused():
    with pytest.raises(RegistryError, match="formatter 'sys:path' should be a function of one row, got list"):
        get_formatter("sys:path")


def test_an_unknown_formatter_names_the_nearest():
    with pytest.raises(RegistryError, match="unknown formatter 'guanco'; did you mean guanaco"):
        get_formatter("guanco")


def test_formatters_registered_in_isolation_are_forgotten():
    with isolated_registry():
        formatter("temporary")(lambda row: {"text": "x"})
        assert "temporary" in formatter_names()
    assert "temporary" not in formatter_names()


# results


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (None, "got None"),
        ("text", "got str 'text'"),
        ({}, "got keys none"),
        ({"text": "x", "id": 1}, "got keys 'id', 'text'"),
        ({"prompt": [user("x")]}, "got keys 'prompt'"),
        ({"text": 3}, "column 'text' should hold text, got int 3"),
        ({"messages": "x"}, "column 'messages' should hold a list of messages, got str 'x'"),
        ({"messages": []}, "column 'messages' holds no messages"),
        ({"messages": ["x"]}, "messages[0] should be a message with 'role' and 'content', got str 'x'"),
        ({"messages": [user("x")]}, "column 'messages' has no assistant message with text to learn from"),
        ({"messages": [{**assistant("x"), "id": 1}]}, "messages[0] has key str 'id'"),
        (
            {"messages": [{**assistant("x"), "train": "no"}]},
            "messages[0]: train should be true or false, got str 'no'",
        ),
        ({"prompt": [], "completion": [assistant("x")]}, "column 'prompt' holds no messages"),
        ({"prompt": [user("x")], "completion": [assistant("")]}, "column 'completion' has no assistant message"),
    ],
)
def test_an_example_that_cannot_be_trained_on_is_refused(example, reason):
    assert reason in refusal(check_example, example)


def test_a_skipped_row_stays_a_skipped_row_when_columns_are_renamed():
    row = {"question": "q", "answer": "ERROR: 500"}
    with pytest.raises(SkipRow):
        format_row(get_formatter("question_answer"), row, {}, {"response": "answer"})
