"""What wins, what merges, and where each value is said to come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_text import BASE, Write, problems

from recipe_kit import catalog
from recipe_kit.errors import RecipeError
from recipe_kit.recipe import HeldOut, Recipe, Source, check_profiles, load_recipe, resolve

PARENT = """\
name: parent
model: {id: org/model, revision: abc, chat_template: a, chat_template_kwargs: {b: c}, pad_token: d, dtype: float32}
method: qlora
data:
  train: {id: org/rows, revision: abc, limit: 5}
  eval: {id: org/rows, split: validation}
  formatter: {name: chat, options: {a: 1}}
  max_length: 512
lora: {r: 8, target_modules: [q_proj, k_proj]}
quantization: {bnb_4bit_quant_type: nf4}
training: {seed: 1, max_steps: 9, optim_args: a}
profiles:
  smoke: {training: {max_steps: 2, seed: 2}}
  quiet: {training: {report_to: none}}
"""


def child(write: Write, text: str) -> Recipe:
    write(PARENT, "parent.yaml")
    return load_recipe(write(f"extends: parent.yaml\n{text}\n", "child.yaml"))


def test_mappings_merge_and_lists_and_values_replace(write: Write) -> None:
    recipe = child(write, "name: child\nlora: {target_modules: [v_proj]}\ntraining: {seed: 3}")
    assert recipe.name == "child"
    assert recipe.lora == {"r": 8, "target_modules": ["v_proj"]}
    assert recipe.training == {"seed": 3, "max_steps": 9, "optim_args": "a"}


def test_null_clears_a_section(write: Write) -> None:
    recipe = child(write, "method: full\nlora: null\nquantization: null\ndata: {eval: null}")
    assert (recipe.lora, recipe.quantization, recipe.data.eval) == ({}, {}, None)


def test_null_takes_back_an_option_that_cannot_be_null(write: Write) -> None:
    assert child(write, "training: {max_steps: null, optim_args: null}").training == {"seed": 1, "optim_args": None}


def test_another_source_replaces_the_whole_source(write: Write) -> None:
    assert child(write, "data: {train: {sample: chats}}").data.train == (Source(sample="chats"),)
    assert child(write, "data: {train: {id: org/rows}}").data.train == (Source(id="org/rows"),)
    assert child(write, "data: {eval: {fraction: 0.1}}").data.eval == HeldOut(fraction=0.1)


def test_a_source_without_a_place_merges(write: Write) -> None:
    recipe = child(write, "data: {train: {limit: 2}}")
    assert recipe.data.train == (Source(id="org/rows", revision="abc", limit=2),)


@pytest.mark.parametrize(
    ("formatter", "name", "options"),
    [
        ("chat", "chat", {}),
        ("{name: other}", "other", {}),
        ("{name: chat, options: {b: 2}}", "chat", {"a": 1, "b": 2}),
        ("{options: {b: 2}}", "chat", {"a": 1, "b": 2}),
    ],
)
def test_a_formatter_of_another_name_replaces(write: Write, formatter: str, name: str, options: object) -> None:
    spec = child(write, f"data: {{formatter: {formatter}}}").data.formatter
    assert (spec.name, spec.options) == (name, options)


def test_options_can_be_added_to_a_formatter_given_by_name(write: Write) -> None:
    resolved = resolve(write(), overrides=["data.formatter.options.a=1"])
    assert resolved.recipe.data.formatter.options == {"a": 1}
    assert resolved.origins["data.formatter.name"].where == "base.yaml:6"


def test_another_model_forgets_what_belonged_to_the_first(write: Write) -> None:
    model = child(write, "model: {id: org/other}").model
    assert (model.revision, model.chat_template, model.chat_template_kwargs, model.pad_token) == (None, None, {}, None)
    assert model.dtype == "float32"


def test_another_model_forgets_the_licence_and_base_of_the_card_too(write: Write) -> None:
    write(PARENT + "card: {license: mit, base_model: org/base, language: en}\n", "parent.yaml")
    path = write("extends: parent.yaml\nname: child\n", "child.yaml")
    card = load_recipe(path, overrides=["model.id=tiny:llama3"]).card
    assert (card.license, card.base_model, card.language) == (None, None, "en")


def test_another_model_keeps_what_is_written_with_it(write: Write) -> None:
    model = child(write, "model: {id: org/other, revision: def}").model
    assert (model.revision, model.chat_template) == ("def", None)


def test_the_same_model_forgets_nothing(write: Write) -> None:
    assert child(write, "model: {id: org/model, dtype: auto}").model.revision == "abc"


def test_a_profile_or_a_flag_can_change_the_model_too(write: Write) -> None:
    path = write(PARENT, "parent.yaml")
    assert load_recipe(path, overrides=["model.id=tiny:llama3"]).model.revision is None


def test_profiles_are_inherited_and_extended(write: Write) -> None:
    write(PARENT, "parent.yaml")
    path = write("extends: parent.yaml\ntraining: {seed: 5}\nprofiles: {smoke: {training: {seed: 3}}}", "child.yaml")
    assert load_recipe(path).training["seed"] == 5
    assert load_recipe(path, profiles=["smoke"]).training == {"seed": 3, "max_steps": 2, "optim_args": "a"}
    assert load_recipe(path, profiles=["quiet", "smoke"]).training["report_to"] == "none"


def test_precedence_is_flag_profile_file_parent_default(write: Write) -> None:
    write(PARENT, "parent.yaml")
    path = write("extends: parent.yaml\ndata: {max_length: 2}\nprofiles: {p: {data: {max_length: 3}}}", "child.yaml")
    assert load_recipe("parent.yaml").data.max_length == 512
    assert load_recipe(path).data.max_length == 2
    assert load_recipe(path, profiles=["p"]).data.max_length == 3
    assert load_recipe(path, profiles=["p"], overrides=["data.max_length=4"]).data.max_length == 4


def test_later_profiles_and_flags_win(write: Write) -> None:
    path = write(BASE + "profiles: {a: {training: {seed: 1}}, b: {training: {seed: 2}}}")
    assert load_recipe(path, profiles=["a", "b"]).training["seed"] == 2
    assert load_recipe(path, profiles=["b", "a"]).training["seed"] == 1
    assert load_recipe(path, overrides=["training.seed=1", "training.seed=2"]).training["seed"] == 2


def test_parents_have_parents(write: Write) -> None:
    write(PARENT, "deep/parent.yaml")
    write("extends: parent.yaml\ntraining: {seed: 2}", "deep/middle.yaml")
    path = write("extends: deep/middle.yaml\nname: child", "child.yaml")
    assert load_recipe(path).training == {"seed": 2, "max_steps": 9, "optim_args": "a"}


def test_a_cycle_is_refused(write: Write) -> None:
    write("extends: b.yaml", "a.yaml")
    write("name: b\nextends: a.yaml", "b.yaml")
    assert problems("a.yaml") == [
        "b.yaml:2: extends: 'a.yaml' leads back to this recipe; one of them must stand alone"
    ]


def test_a_missing_parent_names_the_nearest_file(write: Write) -> None:
    write()
    path = write("name: a\nextends: bsae.yaml", "a.yaml")
    assert problems(path)[0].startswith("a.yaml:2: extends: no such file, and no recipe of that name ships; did you "
                                        "mean base.yaml?")  # fmt: skip


def test_extends_takes_text(write: Write) -> None:
    path = write("name: a\nextends: [b]", "a.yaml")
    assert problems(path) == ["a.yaml:2: extends: expected a path or the name of a recipe that ships"]


def test_a_shipped_recipe_goes_by_name(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path / "installed")
    write(PARENT, "installed/recipes/parent.yaml")
    assert load_recipe("parent").name == "parent"
    assert load_recipe(write("extends: parent\nname: child", "child.yaml")).training["seed"] == 1
    assert problems("parrent")[0].startswith(
        "parrent: no such file, and no recipe of that name ships; did you mean parent?"
    )


def test_a_problem_points_into_the_file_that_wrote_it(write: Write) -> None:
    write(PARENT.replace("seed: 1,", "sead: 1,"), "deep/parent.yaml")
    path = write("extends: deep/parent.yaml\nprofiles:\n  p:\n    lora: {rr: 1}\n", "child.yaml")
    assert problems(path, profiles=["p"], overrides=["data.max_lenght=5"]) == [
        "child.yaml:4: lora.rr: not a field of LoraConfig; did you mean r?",
        "deep/parent.yaml:11: training.sead: not a field of SFTConfig; did you mean seed?",
        "data.max_lenght: not a key of data; did you mean max_length? (from `--set data.max_lenght=5`)",
    ]


def test_a_problem_from_a_flag_has_no_file(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), overrides=["training.seed=x"])
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.key) == ("", 0, "training.seed")


def test_an_unknown_profile_names_the_nearest(write: Write) -> None:
    write(PARENT, "parent.yaml")
    assert problems("parent.yaml", profiles=["smok"]) == [
        "--profile smok: no profile in parent.yaml named 'smok'; did you mean smoke? There are: smoke, quiet"
    ]


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        ("[a]", "base.yaml:8: profiles.p: expected a mapping of the keys to override"),
        ("{extends: a}", "base.yaml:8: profiles.p.extends: belongs at the top level of the file, not in a profile"),
        ("{training: {sead: 1}}", "base.yaml:8: training.sead: not a field of SFTConfig; did you mean seed?"),
    ],
)
def test_a_wrong_profile_is_explained(write: Write, profile: str, sentence: str) -> None:
    assert problems(write(f"{BASE}profiles:\n  p: {profile}\n"), profiles=["p"]) == [sentence]


def test_an_empty_profile_changes_nothing(write: Write) -> None:
    assert load_recipe(write(f"{BASE}profiles:\n  p:\n"), profiles=["p"]).name == "base"


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("foo", "--set foo: expected key=value, such as `--set training.learning_rate=1e-4`"),
        ("=1", "--set =1: expected key=value, such as `--set training.learning_rate=1e-4`"),
        ("a..b=1", "--set a..b=1: expected key=value, such as `--set training.learning_rate=1e-4`"),
        ("extends=a", "--set extends=a: `extends` is read from the file only; it cannot be set here"),
    ],
)
def test_a_malformed_flag_is_explained(write: Write, flag: str, sentence: str) -> None:
    assert problems(write(), overrides=[flag]) == [sentence]


def test_a_flag_with_broken_yaml_is_explained(write: Write) -> None:
    (problem,) = problems(write(), overrides=["card.limitations=[a"])
    assert problem.startswith("--set card.limitations=[a: not valid YAML: ")
    assert problem.endswith("quote the value if it is text")


def test_flags_take_yaml_values(write: Write) -> None:
    flags = [
        "training.report_to=[]",
        "training.learning_rate=2e-4",
        "model.id=tiny:llama3",
        "lora={r: 4}",
        "description=",
    ]
    recipe = load_recipe(write(), overrides=flags)
    assert recipe.training == {"report_to": [], "learning_rate": 0.0002}
    assert (recipe.model.id, recipe.lora, recipe.description) == ("tiny:llama3", {"r": 4}, None)


def test_flags_for_a_source_count_together(write: Write) -> None:
    recipe = load_recipe(write(), overrides=["data.train.split=test", "data.train.id=org/other"])
    assert recipe.data.train == (Source(id="org/other", split="test"),)


def test_origins_say_where_each_value_comes_from(write: Write) -> None:
    write(PARENT, "parent.yaml")
    path = write("extends: parent.yaml\nname: child\nlora: null\nprofiles:\n  p: {training: {seed: 3}}", "child.yaml")
    resolved = resolve(path, profiles=["p"], overrides=["data.max_length=4"])
    origins = {key: (origin.kind, origin.where) for key, origin in resolved.origins.items()}
    assert origins["name"] == ("file", "child.yaml:2")
    assert origins["lora"] == ("file", "child.yaml:3")
    assert origins["model.revision"] == ("extends", "parent.yaml:2")
    assert origins["data.train.limit"] == ("extends", "parent.yaml:5")
    assert origins["data.train.split"] == ("default", "")
    assert origins["training.seed"] == ("profile", "profile p (child.yaml:5)")
    assert origins["data.max_length"] == ("set", "--set data.max_length=4")
    assert origins["evaluation.samples"] == ("default", "")
    assert (resolved.source, resolved.profiles) == ("child.yaml", ("p",))
    assert resolved.data["training"]["seed"] == 3


def test_a_list_of_one_source_is_that_source(write: Write) -> None:
    resolved = resolve(write(BASE.replace("{id: org/rows}", "[{id: org/rows, limit: 3}]")))
    assert resolved.origins["data.train.limit"].where == "base.yaml:5"
    assert resolved.recipe.data.train == (Source(id="org/rows", limit=3),)


def test_all_profiles_are_checked_and_each_problem_said_once(write: Write) -> None:
    path = write(BASE + "training: {sead: 1}\nprofiles:\n  a: {lora: {rr: 1}}\n  b: {lora: {r: 2}}\n")
    with pytest.raises(RecipeError) as caught:
        check_profiles(path)
    assert [str(problem) for problem in caught.value.problems] == [
        "base.yaml:7: training.sead: not a field of SFTConfig; did you mean seed?",
        "base.yaml:9: lora.rr: not a field of LoraConfig; did you mean r?",
    ]


def test_good_profiles_are_given_by_name(write: Write) -> None:
    found = check_profiles(write(BASE + "profiles:\n  a: {lora: {r: 1}}\n  b: {lora: {r: 2}}\n"))
    assert {name: recipe.lora.get("r") for name, recipe in found.items()} == {"": None, "a": 1, "b": 2}
