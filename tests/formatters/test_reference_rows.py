"""Every row of the reference data is formatted. The rows stay outside the repository."""

import json
import os
from pathlib import Path

import pytest

from recipe_kit.formatters import format_row, get_formatter

FOLDER = os.environ.get("RECIPE_KIT_REFERENCE")
pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(not FOLDER, reason="RECIPE_KIT_REFERENCE names no folder with data/ in it"),
]


def rows(file):
    with (Path(FOLDER or "") / "data" / file).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("guanaco", "guanaco_en.train.jsonl", 316),
        ("guanaco", "guanaco_en.test.jsonl", 404),
        ("dialogue_summary", "dialogue_summary_mts.train.jsonl", 1198),
        ("dialogue_summary", "dialogue_summary_mts.validation.jsonl", 100),
        ("dialogue_summary", "dialogue_summary_mts.test.jsonl", 200),
        ("support", "customer_support.train.jsonl", 1080),
        ("support", "customer_support.validation.jsonl", 135),
        ("support", "customer_support.test.jsonl", 135),
        ("messages", "hinglish_restaurant.train.jsonl", 800),
        ("messages", "hinglish_restaurant.validation.jsonl", 150),
        ("messages", "hinglish_restaurant.test.jsonl", 150),
    ],
)
def test_every_row_is_formatted(name, file, count):
    formatter = get_formatter(name)
    assert sum(1 for row in rows(file) if format_row(formatter, row)) == count


def test_turns_read_from_the_text_are_the_turns_it_was_written_from():
    guanaco, train = get_formatter("guanaco"), rows("guanaco_en.train.jsonl")
    for row in train:
        turns = format_row(guanaco, row)["messages"]
        assert turns == [{"role": turn["role"], "content": turn["content"].strip()} for turn in row["messages"]]
    assert len(train) == 316


def test_the_last_answer_is_the_completion_beside_the_text():
    guanaco, test = get_formatter("guanaco"), rows("guanaco_en.test.jsonl")
    for row in test:
        assert format_row(guanaco, row)["messages"][-1]["content"] == row["completion"].strip()
    assert len(test) == 404
