import json
from pathlib import Path

import pytest
from recipe_kit_faq import faq

from recipe_kit.formatters import FormatError, format_row, get_formatter
from recipe_kit.testing import check_formatter

PAGES = Path(__file__).parent.parent / "faq.jsonl"


def test_every_page_of_the_sample_is_formatted():
    rows = [json.loads(line) for line in PAGES.read_text(encoding="utf-8").splitlines()]
    assert len(check_formatter(faq, rows)) == 12


def test_paragraphs_are_set_apart_by_an_empty_line():
    assert faq({"heading": "Is it loud?", "paragraphs": ["No.", "It hums."]}) == {
        "prompt": [{"role": "user", "content": "Is it loud?"}],
        "completion": [{"role": "assistant", "content": "No.\n\nIt hums."}],
    }


def test_the_product_is_named_before_the_question():
    example = faq({"heading": "Is it loud?", "paragraphs": ["No."]}, product="Kiln 20")
    assert example["prompt"] == [{"role": "user", "content": "[Kiln 20] Is it loud?"}]


def test_a_page_without_text_is_refused():
    with pytest.raises(FormatError, match="'paragraphs' is blank"):
        format_row(faq, {"heading": "Is it loud?", "paragraphs": [""]})


def test_recipe_kit_finds_it_by_name_once_installed():
    assert get_formatter("faq") is faq
