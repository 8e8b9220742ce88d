import itertools
from types import MappingProxyType

import pytest

from recipe_kit.formatters import FormatError, SkipRow, formatter, text_cell
from recipe_kit.testing import check_formatter, isolated_registry


@pytest.fixture(autouse=True)
def isolated():
    with isolated_registry():
        yield


def complaint(function, rows=({"a": "x"},)):
    with pytest.raises(AssertionError) as error:
        check_formatter(function, rows)
    return str(error.value)


def test_examples_come_back_in_order_and_skipped_rows_do_not():
    def plain(row):
        if text_cell(row, "a") == "skip":
            raise SkipRow("on purpose")
        return {"text": row["a"]}

    assert check_formatter(plain, [{"a": "x"}, {"a": "skip"}, {"a": "y"}]) == [{"text": "x"}, {"text": "y"}]


def test_a_formatter_is_found_by_name_and_gets_options():
    rows = [{"instruction": "q", "response": "a"}]
    assert check_formatter("support", rows, system="s")[0]["prompt"][0] == {"role": "system", "content": "s"}


def test_no_rows_is_no_check():
    assert complaint("support", []) == "check_formatter needs at least one row"


def test_a_result_that_changes_is_caught():
    numbers = itertools.count()
    assert complaint(lambda row: {"text": f"{next(numbers)}"}) == "row 0: two runs on the same row gave two results"


def test_a_changed_row_is_caught():
    def plain(row):
        row["a"].append("y")
        return {"text": "x"}

    assert complaint(plain, [{"a": ["x"]}]) == "row 0: the formatter changed the row it was given"


def test_an_undeclared_column_is_caught():
    @formatter("undeclared", columns=["a"])
    def undeclared(row):
        return {"text": text_cell(row, "a") + row.get("b", "")}

    assert complaint(undeclared, [{"a": "x", "b": "y"}]) == (
        "row 0: the result depends on a column that the formatter does not declare"
    )


def test_a_refused_row_is_caught():
    assert complaint(lambda row: {"text": ""}) == "row 0 was refused: column 'text' is blank"


def test_an_example_that_is_no_json_is_caught():
    assert complaint(lambda row: MappingProxyType({"text": text_cell(row, "a")})) == (
        "row 0: the example cannot be written as JSON: Object of type mappingproxy is not JSON serializable"
    )


def test_a_hostile_row_that_raises_something_else_is_caught():
    assert complaint(lambda row: {"text": row["a"].upper()}).startswith(
        "a row with no column 'a' raised KeyError: 'a'; a row that does not fit raises FormatError"
    )
    assert complaint(lambda row: {"text": row.get("a", "x").upper()}).startswith(
        "a row with 'a' holding None raised AttributeError"
    )


def test_a_crash_on_a_good_row_is_caught():
    assert complaint(lambda row: {"text": 1 / 0}) == "row 0 raised ZeroDivisionError: division by zero"


def test_refusing_hostile_rows_with_format_error_is_right():
    def strict(row):
        if row.get("a") != "x":
            raise FormatError("only x", column="a")
        return {"text": "x"}

    assert check_formatter(strict, [{"a": "x"}]) == [{"text": "x"}]
