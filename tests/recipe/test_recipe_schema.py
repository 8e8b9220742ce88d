"""The closed sections: what they take, and the sentence for what they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from recipe_text import BASE, Write, problems

from recipe_kit.recipe import HeldOut, Source, load_recipe
from recipe_kit.recipe.schema import CLOSED


def test_the_shortest_recipe_fills_in_every_default(write: Write) -> None:
    recipe = load_recipe(write())
    assert recipe.model.dtype == "bfloat16"
    assert recipe.data.train == (Source(id="org/rows", split="train"),)
    assert recipe.data.formatter.name == "chat"
    assert recipe.data.formatter.options == {}
    assert (recipe.data.max_length, recipe.data.too_long, recipe.data.train_on) == (1024, "drop", "assistant")
    assert recipe.evaluation.samples == 8
    assert recipe.lora == recipe.quantization == recipe.training == {}


def test_a_recipe_cannot_be_changed(write: Write) -> None:
    with pytest.raises(ValidationError):
        load_recipe(write()).name = "other"  # type: ignore[misc]


def test_held_out_rows_and_mixtures(write: Write) -> None:
    text = BASE.replace("train: {id: org/rows}", "train: [{id: a, weight: 2}, {sample: b, weight: 1, formatter: qa}]")
    recipe = load_recipe(write(text.replace("formatter: chat", "formatter: chat\n  eval: {fraction: 0.1}")))
    assert [source.weight for source in recipe.data.train] == [2.0, 1.0]
    assert recipe.data.train[1].formatter is not None
    assert recipe.data.train[1].formatter.name == "qa"
    assert recipe.data.eval == HeldOut(fraction=0.1)


def test_missing_keys_say_what_they_are_for(write: Write) -> None:
    assert problems(write("method: lora\nmodel:\n  dtype: auto\n", "a.yaml")) == [
        "a.yaml:1: name: is required: Names the experiment and its run folders: small letters, digits, `-` and `_`",
        "a.yaml:1: data: is required: Rows, and how they become tokens to learn",
        "a.yaml:2: model.id: is required: Hub id `org/name`, a local folder, `package:NAME` for a model inside an "
        "installed Python package, or `tiny:FAMILY` for a tiny random one made on the spot",
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("modell: {}", "modell: not a key of a recipe; did you mean model?"),
        ("trainig: {}", "trainig: not a key of a recipe; did you mean training?"),
        ("extend: a", "extend: not a key of a recipe; did you mean extends?"),
        ("zzz: 1", "zzz: not a key of a recipe; it takes name, description, model, method, data, lora, quantization, "
         "training, proofs, evaluation, launch, publish, card, extends, profiles"),
        ("evaluation: {sample: 1}", "evaluation.sample: not a key of evaluation; it belongs under data.train: did you "
         "mean data.train.sample?"),
        ("evaluation: {sampels: 1}", "evaluation.sampels: not a key of evaluation; did you mean samples?"),
        ("evaluation: {dtype: auto}", "evaluation.dtype: not a key of evaluation; it belongs under model: did you "
         "mean model.dtype?"),
        ("evaluation: {max_lenght: 1}", "evaluation.max_lenght: not a key of evaluation; did you mean "
         "data.max_length?"),
        ("publish: {learning_rate: 1}", "publish.learning_rate: not a key of publish; it belongs under training: did "
         "you mean training.learning_rate?"),
        ("evaluation: {samples: -1}", "evaluation.samples: expected 0 or more; got -1"),
        ("evaluation: {limit: 0}", "evaluation.limit: expected more than 0; got 0"),
        ('evaluation: {limit: "5"}', "evaluation.limit: expected a whole number; '5' is written as text: remove the "
         "quotes"),
        ("evaluation: {limit: 1e3}", "evaluation.limit: expected a whole number; got 1000.0: write 1000"),
        ("evaluation: {limit: 1_000}", "evaluation.limit: expected a whole number; got '1_000': write the digits "
         "without separators"),
        ("evaluation: {limit: true}", "evaluation.limit: expected a whole number; got true"),
        ("evaluation: {samples: null}", "evaluation.samples: expected a whole number; got null"),
        ("evaluation: {perplexity: on}", "evaluation.perplexity: write true or false; 'on' is text in YAML 1.2"),
        ("evaluation: {perplexity: 1}", "evaluation.perplexity: expected true or false; got 1"),
        ("evaluation: 5", "evaluation: expected a mapping; got 5"),
        ("card: {license: true}", "card.license: expected text; got true: put quotes around the text"),
        ("card: {language: 5}", "card.language: expected a language code such as en, or a list of them; got 5"),
        ("publish: {what: adaptor}", "publish.what: expected one of adapter, merged, both; got 'adaptor'; did you "
         "mean adapter?"),
        ("publish: {repo_id: a/b/c}", "publish.repo_id: expected owner/name; got 'a/b/c'"),
        ("lora: [r]", "lora: expected a mapping; got a list"),
        ("profiles: [a]", "profiles: expected a mapping of profile names to the keys they override"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_explained(write: Write, line: str, sentence: str) -> None:
    assert problems(write(f"{BASE}{line}\n")) == [f"base.yaml:7: {sentence}"]


@pytest.mark.parametrize(
    ("key", "value", "there"),
    [
        ("base_model", "a", "model.id"),
        ("datasets", "a", "data.train"),
        ("learning_rate", 1, "training.learning_rate"),
        ("lora_r", 8, "lora.r"),
        ("lora_alpha", 8, "lora.lora_alpha"),
        ("adapter", "lora", "method"),
        ("load_in_4bit", "true", "method: qlora"),
        ("sequence_len", 8, "data.max_length"),
        ("cutoff_len", 8, "data.max_length"),
        ("template", "a", "model.chat_template"),
        ("micro_batch_size", 8, "training.per_device_train_batch_size"),
        ("num_epochs", 8, "training.num_train_epochs"),
        ("bnb_4bit_quant_type", "nf4", "quantization.bnb_4bit_quant_type"),
    ],
)
def test_keys_of_other_tools_are_led_home(write: Write, key: str, value: object, there: str) -> None:
    (problem,) = problems(write(f"{BASE}{key}: {value}\n"))
    assert problem.startswith(f"base.yaml:7: {key}: not a key of a recipe; ")
    assert problem.endswith(f"did you mean {there}?")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("train: org/rows", "data.train: expected a mapping, such as `train: {id: org/name}`; got 'org/rows'"),
        ("train: []", "data.train: the list is empty; give at least one source"),
        ("train: {split: a}", "data.train: does not say where its rows come from; give one of id, path or sample"),
        ("train: {id: a, sample: b}", "data.train.sample: id and sample exclude each other; keep one"),
        ("train: {idd: a, id: b}", "data.train.idd: not a key of data.train; did you mean id?"),
        ("train: {id: b, name: c}", "data.train.name: not a key of data.train; did you mean config?"),
        ("train: [{id: a}, {id: b, limt: 1}]", "data.train.1.limt: not a key of data.train; did you mean limit?"),
        ("train: {path: a.json, revision: b}", "data.train.revision: belongs to a data set on the Hub (id); remove it "
         "for a path"),
        ("train: {id: a}\n  eval: {id: b, weight: 1}", "data.eval.weight: only training rows are weighed: "
         "held-out rows count once; remove it"),
        ("train: [{id: a}, b]", "data.train.1: expected a mapping, such as `train: {id: org/name}`; got 'b'"),
        ("train: {id: a}\n  eval: {fraction: 1.5}", "data.eval.fraction: expected less than 1; got 1.5"),
        ("train: {id: a}\n  eval: {fraction: 0.5, rows: 2}", "data.eval.rows: fraction and rows exclude each other; "
         "keep one"),
        ("train: {id: a}\n  eval: {fraction: 0.5, id: b}", "data.eval.fraction: id and fraction exclude each other; "
         "keep one"),
        ("train: {id: a}\n  eval: {fractoin: 0.5, rows: 2}", "data.eval.fractoin: not a key of data.eval; did you "
         "mean fraction?"),
        ("train: {id: a}\n  test: {id: b, fraction: 0.5}", "data.test.fraction: not a key of data.test; it belongs "
         "under data.eval: did you mean data.eval.fraction?"),
    ],
)  # fmt: skip
def test_wrong_rows_are_explained(write: Write, rows: str, sentence: str) -> None:
    text = BASE.replace("train: {id: org/rows}", rows)
    assert [problem.partition(": ")[2] for problem in problems(write(text))] == [sentence]


def test_a_wrong_formatter_is_explained(write: Write) -> None:
    text = BASE.replace("formatter: chat", "formatter: {name: chat, option: {}}")
    assert problems(write(text)) == [
        "base.yaml:6: data.formatter.option: not a key of data.formatter; did you mean options?"
    ]


def test_every_problem_is_reported_at_once_in_file_order(write: Write) -> None:
    path = write("name: Bad\nmethod: loro\nmodel: {id: a, dtypo: auto}\ndata: {train: {id: a}, formatter: f}\n"
                 "training: {learning_rat: 1, packing: on}\nlora: {rank: 8}\n", "a.yaml")  # fmt: skip
    assert [problem.split(": ")[:2] for problem in problems(path)] == [
        ["a.yaml:1", "name"],
        ["a.yaml:2", "method"],
        ["a.yaml:3", "model.dtypo"],
        ["a.yaml:5", "training.learning_rat"],
        ["a.yaml:5", "training.packing"],
        ["a.yaml:6", "lora.rank"],
    ]


def test_every_field_has_a_description() -> None:
    models: list[type[BaseModel]] = [*CLOSED.values(), HeldOut]
    fields = [
        (model.__name__, name, field.description) for model in models for name, field in model.model_fields.items()
    ]
    assert len(fields) > 50
    assert [field for field in fields if not field[2]] == []


@pytest.mark.parametrize("place", ["path: rows/a.jsonl", "path: ./rows/a.jsonl", "path: ../recipes/rows/a.jsonl"])
def test_a_relative_path_starts_from_the_recipe(write: Write, tmp_path: Path, place: str) -> None:
    path = write(BASE.replace("id: org/rows", place), "recipes/a.yaml")
    assert load_recipe(path).data.train[0].path == str(tmp_path / "recipes/rows/a.jsonl")


def test_addresses_names_and_templates_are_no_paths(write: Write, tmp_path: Path) -> None:
    text = BASE.replace("{id: org/model}", "{id: org/model, chat_template: '{{ x }}'}")
    recipe = load_recipe(
        write(text.replace("id: org/rows", "path: https://a.b/c.jsonl") + "launch: {accelerate_config: cpu}")
    )
    assert recipe.model.id == "org/model"
    assert recipe.model.chat_template == "{{ x }}"
    assert recipe.data.train[0].path == "https://a.b/c.jsonl"
    assert recipe.launch.accelerate_config == "cpu"


def test_local_models_templates_and_topologies_start_from_the_recipe_too(write: Write, tmp_path: Path) -> None:
    text = BASE.replace("{id: org/model}", "{id: ./model, chat_template: chat.jinja}")
    recipe = load_recipe(write(text + "launch: {accelerate_config: two.yaml}", "recipes/a.yaml"))
    assert recipe.model.id == str(tmp_path / "recipes/model")
    assert recipe.model.chat_template == str(tmp_path / "recipes/chat.jinja")
    assert recipe.launch.accelerate_config == str(tmp_path / "recipes/two.yaml")
