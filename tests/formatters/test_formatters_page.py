"""docs/formatters.md says what the code does."""

import json
import re
from pathlib import Path

import pytest
import yaml

from recipe_kit import formatters
from recipe_kit.errors import FormatError
from recipe_kit.formatters import describe_formatter, format_row, get_formatter
from recipe_kit.testing import isolated_registry

PAGE = (Path(__file__).parents[2] / "docs" / "formatters.md").read_text(encoding="utf-8")


def blocks(language, text=PAGE):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def built_ins():
    names = formatters.formatter_names()
    return [name for name in names if describe_formatter(name).origin.startswith("package recipe-kit ")]


def section(name):
    return PAGE.partition(f"\n### {name}\n")[2].partition("\n#")[0]


def test_python_blocks_run_in_order():
    found = blocks("python")
    assert len(found) >= 4
    namespace = {"__name__": "formatters_page"}
    with isolated_registry():
        for block in found:
            exec(compile(block, "docs/formatters.md", "exec", dont_inherit=True), namespace)


def test_yaml_blocks_are_yaml_and_name_formatters_that_exist():
    found = [yaml.safe_load(block)["data"]["formatter"] for block in blocks("yaml")]
    names = [entry if isinstance(entry, str) else entry["name"] for entry in found]
    assert names == ["dialogue_summary", "dialogue_summary", "my_formatters:recipe_steps"]
    formatters.check_options(get_formatter("dialogue_summary"), found[1]["options"])
    formatters.check_columns(get_formatter("dialogue_summary"), ["transcript", "minutes"], found[1]["columns"])


def test_the_error_shown_is_the_error_raised():
    with pytest.raises(FormatError) as error:
        format_row(get_formatter("dialogue_summary"), {"dialog": "x", "summary": "y"})
    assert blocks("text") == [f"{error.value}\n"]


def test_every_public_name_is_mentioned():
    assert [name for name in formatters.__all__ if f"`{name}" not in PAGE] == []


def test_the_table_has_a_line_for_every_built_in():
    assert len(built_ins()) == 9
    for name in built_ins():
        info = describe_formatter(name)
        assert re.search(rf"^\| \[`{name}`\]\(#{name}\) \|.*\| {re.escape(info.summary)} \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", built_ins())
def test_every_built_in_has_its_doc_its_options_and_its_example(name):
    info, text = describe_formatter(name), section(name)
    assert info.doc in text
    for option in info.options:
        assert f"| `{option.name}` |" in text
        assert f"`{json.dumps(option.default)}`" in text
    assert [json.loads(block) for block in blocks("json", text)] == [info.example_row, info.example_result]
