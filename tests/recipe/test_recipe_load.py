"""Writing recipes down, comparing them, and what loading one costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_text import BASE, Write

from recipe_kit.recipe import ABSENT, Difference, Recipe, diff_recipes, dump_recipe, load_recipe, recipe_digest

RICH = """\
name: rich
model: {id: org/model}
method: qlora
data:
  train: [{id: a, weight: 1, where: {lang: no}}, {sample: b, weight: 3, formatter: {name: qa, columns: {q: question}}}]
  eval: {rows: 100}
  test: {path: rows.jsonl}
  formatter: chat
lora: {r: 8, target_modules: [q_proj]}
training: {learning_rate: 2e-5, run_name: "1e5", report_to: [tensorboard], optim_args: "on"}
card: {language: [en, no], limitations: "2024-01-01"}
profiles: {p: {training: {seed: 1}}}
"""


def test_a_dumped_recipe_loads_to_an_equal_one(write: Write) -> None:
    recipe = load_recipe(write(RICH, "rich.yaml"), profiles=["p"])
    text = dump_recipe(recipe)
    again = load_recipe(write(text, "elsewhere/again.yaml"))
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)
    assert "profiles" not in text
    assert dump_recipe(again) == text


def test_a_dumped_recipe_means_the_same_to_yaml_1_1(write: Write) -> None:
    data = yaml.safe_load(dump_recipe(load_recipe(write(RICH, "rich.yaml"))))
    assert data["training"]["optim_args"] == "on"
    assert data["training"]["run_name"] == "1e5"
    assert (data["card"]["language"], data["card"]["limitations"]) == (["en", "no"], "2024-01-01")


def test_a_source_names_only_the_place_it_has(write: Write) -> None:
    assert "path: null" not in dump_recipe(load_recipe(write()))
    assert "fraction: null" not in dump_recipe(load_recipe(write(RICH, "rich.yaml")))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@settings(database=None, deadline=None, max_examples=60)
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.text(min_size=1), st.text())
def test_any_value_survives_the_round_trip(options: dict[str, Any], pad_token: str, system: str) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "any",
            "method": "lora",
            "model": {"id": "org/model", "pad_token": pad_token},
            "data": {"train": {"id": "a", "where": options}, "formatter": "chat", "system": system},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "any.yaml")
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe


def test_the_digest_ignores_comments_order_and_spelling(write: Write) -> None:
    one = load_recipe(write(BASE + "training: {seed: 1, max_steps: 2} # why\n"))
    text = "training: {max_steps: 0x2, seed: 1}\ndescription: null\n" + BASE.replace(
        "chat", "{name: chat, options: null}"
    )
    two = load_recipe(write(text, "two.yaml"))
    assert recipe_digest(one) == recipe_digest(two)
    assert len(recipe_digest(one)) == 64


def test_the_digest_changes_with_any_value(write: Write) -> None:
    path = write()
    assert recipe_digest(load_recipe(path)) != recipe_digest(load_recipe(path, overrides=["data.split_seed=1"]))


def test_a_difference_is_of_meaning_not_of_text(write: Write) -> None:
    path = write(BASE + "lora: {r: 8}\n")
    other = load_recipe(path, overrides=["method=full", "lora=null", "data.eval.rows=5", "data.train.split=train"])
    assert diff_recipes(load_recipe(path), other) == [
        Difference("method", "lora", "full"),
        Difference("data.eval", None, ABSENT),
        Difference("lora.r", 8, ABSENT),
        Difference("data.eval.rows", ABSENT, 5),
    ]
    assert diff_recipes(other, other) == []


def test_loading_imports_no_heavy_library(write: Write) -> None:
    path = write(BASE + "training: {seed: 1}\nlora: {r: 1}\n")
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "numpy"}
    code = (
        "import sys\nfrom recipe_kit.recipe import load_recipe, recipe_json_schema, recipe_reference\n"
        f"load_recipe({str(path)!r})\nrecipe_json_schema()\nrecipe_reference()\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
