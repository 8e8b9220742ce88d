"""The commands as a user types them, except the ones that train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from recipe_kit import catalog, cli

RECIPE = """
name: mine
model: {id: "tiny:chatml"}
method: lora
data: {train: {sample: support}, formatter: support}
training: {learning_rat: 1.0e-4, max_seq_length: 512}
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, list(words), prog_name="recipe-kit")


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"recipe-kit {name}" in result.output.replace("Usage: recipe-kit", "")


def test_list_shows_every_shipped_recipe() -> None:
    shown = [entry["name"] for entry in json.loads(run("list", "--json").output)]
    assert shown == catalog.recipe_names() and len(shown) == 8
    assert "samsum" in run("list").output


def test_validate_names_every_mistake_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    result = run("validate", str(path))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert len(lines) == 2
    assert ":6: training.learning_rat: " in lines[0] and "did you mean learning_rate?" in lines[0]
    assert ":6: training.max_seq_length: " in lines[1] and "data.max_length" in lines[1]


def test_validate_of_a_good_recipe_says_ok_and_exits_zero() -> None:
    result = run("validate", "samsum", "quickstart")
    assert (result.exit_code, result.output) == (0, "samsum: ok\nquickstart: ok\n")


def test_validate_checks_the_formatter_and_its_options(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    good = RECIPE.replace("training: {learning_rat: 1.0e-4, max_seq_length: 512}\n", "")
    path.write_text(good.replace("formatter: support", "formatter: suport"))
    unknown = run("validate", str(path)).output
    assert "did you mean support?" in unknown and "mine.yaml:5: data.formatter: " in unknown
    path.write_text(good.replace("formatter: support", "formatter: {name: support, options: {sytem: hi}}"))
    assert "did you mean 'system'?" in run("validate", str(path)).output.replace("system?", "'system'?")


def test_validate_names_the_line_of_each_sources_own_formatter(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        'name: mine\nmodel: {id: "tiny:chatml"}\nmethod: lora\ndata:\n'
        "  formatter: {name: support, options: {systm: a}}\n"
        "  train:\n  - {sample: support}\n  - {sample: support, formatter: {name: support, options: {sytem: b}}}\n"
    )
    lines = run("validate", str(path)).output.splitlines()
    assert ":5: data.formatter: " in lines[0] and "'systm'" in lines[0]
    assert ":8: data.train.1.formatter: " in lines[1] and "'sytem'" in lines[1]


def test_no_message_sends_a_user_to_a_command_that_does_not_exist() -> None:
    import re

    package = Path(catalog.__file__).parent
    named = {m for path in package.rglob("*.py") for m in re.findall(r"`recipe-kit ([a-z]+)", path.read_text("utf-8"))}
    assert len(named) > 4
    assert named <= set(cli.main.commands)


def test_validate_json_is_for_scripts(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    problems: list[dict[str, Any]] = json.loads(run("validate", "--json", str(path)).output)[str(path)]
    assert [problem["key"] for problem in problems] == ["training.learning_rat", "training.max_seq_length"]


def test_an_unknown_recipe_names_the_nearest() -> None:
    result = run("validate", "samsun")
    assert result.exit_code == 1 and "samsum" in result.output


def test_an_unknown_profile_names_the_nearest() -> None:
    result = run("show", "samsum", "--profile", "smok")
    assert result.exit_code == 1 and "did you mean smoke" in result.output


def test_new_writes_a_copy_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "mine.yaml"
    assert run("new", str(path), "--from", "samsum").exit_code == 0
    assert "name: samsum" in path.read_text()
    assert run("validate", str(path)).exit_code == 0
    again = run("new", str(path))
    assert again.exit_code == 1 and "exists already" in again.output


def test_new_points_the_editor_at_the_installed_schema(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    run("new", str(path))
    schema = path.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert json.loads(Path(schema).read_text())["title"] == "recipe-kit recipe"


def test_show_says_where_a_value_comes_from() -> None:
    entries = {
        e["key"]: e for e in json.loads(run("show", "samsum", "--profile", "smoke", "--origins", "--json").output)
    }
    assert entries["lora.r"]["value"] == 8 and "samsum.yaml:" in entries["lora.r"]["origin"]
    assert entries["model.id"]["origin"].startswith("profile smoke")
    assert entries["data.too_long"]["value"] == "drop"


def test_set_wins_over_profile_and_file() -> None:
    shown = json.loads(run("show", "samsum", "--profile", "smoke", "--set", "training.max_steps=3", "--json").output)
    assert shown["training"]["max_steps"] == 3


def test_diff_shows_only_what_differs() -> None:
    keys = [entry["key"] for entry in json.loads(run("diff", "llama32_1b_lora", "llama32_1b_qlora", "--json").output)]
    assert keys == ["name", "description", "method", "quantization.bnb_4bit_quant_type",
                    "quantization.bnb_4bit_use_double_quant", "quantization.bnb_4bit_compute_dtype"]  # fmt: skip


def test_the_three_methods_share_rows_seed_and_batch() -> None:
    for left, right in (("llama32_1b_full", "llama32_1b_lora"), ("llama32_1b_lora", "llama32_1b_qlora")):
        keys = {entry["key"] for entry in json.loads(run("diff", left, right, "--json").output)}
        assert not [key for key in keys if key.startswith(("data.", "evaluation."))]
        assert {key for key in keys if key.startswith("training.")} <= {"training.learning_rate"}


def test_formatters_lists_and_explains() -> None:
    assert "guanaco" in run("formatters").output
    shown = run("formatters", "support").output
    assert "instruction, response" in shown and "becomes:" in shown
    missing = run("formatters", "suport")
    assert missing.exit_code == 1 and "support" in missing.output


def test_schema_is_json_schema() -> None:
    assert json.loads(run("schema").output)["title"] == "recipe-kit recipe"


def test_train_print_command_starts_nothing() -> None:
    result = run("train", "samsum", "--profile", "smoke", "--set", "training.max_steps=1", "--print-command")
    assert result.exit_code == 0
    assert result.output.startswith("accelerate launch ") and result.output.endswith(
        "-m recipe_kit samsum --runs-dir runs --profile smoke --set training.max_steps=1\n"
    )


def test_eval_of_no_run_is_a_sentence(tmp_path: Path) -> None:
    result = run("eval", str(tmp_path / "nothing"))
    assert result.exit_code == 1 and "not a run folder" in result.output and "Traceback" not in result.output


def test_wrong_usage_exits_two() -> None:
    assert run("train").exit_code == 2
    assert run("no-such-command").exit_code == 2


def test_doctor_reports_versions_and_shows_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thismustnotbeshown")
    result = run("doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(result.output)}
    assert findings["trl"]["status"] == "ok" and findings["Hub token"]["status"] == "ok"
    assert "hf_thismustnotbeshown" not in result.output
