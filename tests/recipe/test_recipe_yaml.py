"""What a file's text turns into, and the sentences for text that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_text import BASE, Write, problems

from recipe_kit.recipe import load_recipe
from recipe_kit.recipe.yaml_source import read_document, read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 0.0002),
        ("2.0e-4", 0.0002),
        ("1e5", 100000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1_000", "1_000"),
        ("true", True),
        ("FALSE", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        (".inf", float("inf")),
        ("[a, 1, {b: false}]", ["a", 1, {"b": False}]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


def test_norwegian_stays_norwegian(write: Write) -> None:
    assert load_recipe(write(BASE + "card: {language: no}\n")).card.language == "no"


def test_every_key_and_list_item_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb:\n  c: [x,\n      y]\n")
    assert read_document(path, "a.yaml").lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", 0): 3,
        ("b", "c", 1): 4,
    }


def test_aliases_and_merge_keys_are_followed(write: Write) -> None:
    text = BASE + (
        "lora: &small {r: 4, lora_alpha: 8}\nprofiles:\n"
        "  a: {lora: {<<: *small, r: 16}}\n  b: {lora: {<<: [*small]}}\n"
    )
    path = write(text)
    assert load_recipe(path, profiles=["a"]).lora == {"r": 16, "lora_alpha": 8}
    assert load_recipe(path, profiles=["b"]).lora == {"r": 4, "lora_alpha": 8}


def test_an_alias_inside_its_own_anchor_is_refused(write: Write) -> None:
    path = write(BASE + "lora: &loop {rank_pattern: *loop}\n")
    assert problems(path) == ["base.yaml:7: lora.rank_pattern: this alias points to a value that contains it"]


def test_a_key_written_twice_names_both_lines(write: Write) -> None:
    path = write(BASE + "training:\n  seed: 1\n  packing: true\n  seed: 2\n")
    assert problems(path) == ["base.yaml:10: training.seed: written twice, here and on line 8; keep one of them"]


def test_duplicates_are_reported_with_everything_else(write: Write) -> None:
    path = write(BASE + "training:\n  seed: 1\n  seed: 2\n  sead: 3\n")
    assert problems(path) == [
        "base.yaml:9: training.seed: written twice, here and on line 8; keep one of them",
        "base.yaml:10: training.sead: not a field of SFTConfig; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\nmodel:\n\tid: b\n", "a.yaml:3: a tab indents this line; YAML takes spaces only"),
        ("training:\n  seed: 1\n\tpacking: true\n", "a.yaml:3: a tab indents this line; YAML takes spaces only"),
        ("", "a.yaml: the file is empty; a recipe starts with `name:`"),
        ("# only a comment\n", "a.yaml: the file is empty; a recipe starts with `name:`"),
        ("- a\n- b\n", "a.yaml:1: expected `key: value` lines, got a list"),
        ("name:samsum\n", "a.yaml:1: expected `key: value` lines, got plain text"),
        ("name: a\n---\nname: b\n", "a.yaml:2: a recipe file holds one document; remove the second `---`"),
        (
            "name: a\ndescription: one: two\n",
            "a.yaml:2: not valid YAML: a second `: ` on this line; put quotes around text that contains it, "
            "or fix the indent",
        ),
        ("name: a\n1: b\n", 'a.yaml:2: keys are text; write "1" in quotes'),
        ("name: a\n[b, c]: d\n", "a.yaml:2: keys are text"),
        ("{" * 5000, "a.yaml: not valid YAML: nested too deeply"),
        ("name: !!python/name:os.system x\n", "a.yaml:1: name: the tag !!python/name:os.system is not known here"),
        ("name: !!int x\n", "a.yaml:1: name: 'x' does not fit its tag !!int"),
        (
            "training: {learning_rate: .nan}\n",
            "a.yaml:1: training.learning_rate: not-a-number is no value for a recipe",
        ),
        ("name: a\x07\n", "a.yaml:1: not valid YAML: the character U+0007 is not allowed in it"),
    ],
)
def test_text_that_cannot_be_read_is_explained(write: Write, text: str, sentence: str) -> None:
    assert any(problem.startswith(sentence) for problem in problems(write(text, "a.yaml")))


def test_broken_yaml_gives_one_sentence_with_its_line(write: Write) -> None:
    found = problems(write("name: a\nlora: {r: 8\nmethod: lora\n", "a.yaml"))
    assert len(found) == 1
    assert found[0].startswith("a.yaml:3: not valid YAML: ")


def test_a_file_that_is_not_utf8_names_the_line(write: Write, tmp_path: Path) -> None:
    path = write("", "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"name: a\ndescription: caf\xe9\n")
    assert problems(path) == ["a.yaml:2: not UTF-8 text; save the file as UTF-8"]


def test_a_byte_order_mark_is_no_problem(write: Write) -> None:
    assert load_recipe(write("\ufeff" + BASE)).name == "base"


def test_a_missing_file_names_the_nearest_one(write: Write) -> None:
    write()
    assert problems("bace.yaml")[0].startswith(
        "bace.yaml: no such file, and no recipe of that name ships; did you mean base.yaml?"
    )


def test_a_missing_absolute_file_is_explained(tmp_path: Path) -> None:
    assert "no such file" in problems(tmp_path / "x" / "a.yaml")[0]


def test_a_folder_is_no_recipe(write: Write, tmp_path: Path) -> None:
    write()
    (tmp_path / "some").mkdir()
    assert problems("some") == ["some: is a folder; give a recipe file in it"]
