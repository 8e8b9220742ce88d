"""Documentation that cannot rot: pages are current, commands parse, paths exist, recipes say what they must."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from recipe_kit import catalog, cli
from recipe_kit.cli.rank import rank
from recipe_kit.recipe import check_profiles

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"^\s*(?:\$ )?((?:recipe-kit|accelerate launch|torchrun) .*)$", re.MULTILINE)


def blocks(page: Path) -> str:
    return "\n".join(re.findall(r"^```(?:bash|sh|console|text)?\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))


def commands() -> list[str]:
    found = [line for page in PAGES if page.name != "cli.md" for line in COMMAND.findall(blocks(page))]
    found += [
        line for name in catalog.recipe_names() for line in re.findall(r"(?m)^# Command:\s+(.*)$", recipe_text(name))
    ]
    return sorted({line.split("   ")[0].split(" #")[0].strip() for line in found})


def recipe_text(name: str) -> str:
    return catalog.recipe_path(name).read_text(encoding="utf-8")


def test_generated_pages_are_current() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
    )
    for name in ("click", "trl", "transformers", "peft"):
        if metadata.version(name) != pins[name]:
            pytest.skip(f"the pages are generated with the versions in constraints.txt; {name} is another one here")
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], check=True)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 12


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "formatters.md"], ids=lambda page: page.name)
def test_python_in_the_pages_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        exec(compile(block, page.name, "exec"), {})


@pytest.mark.parametrize("line", commands())
def test_every_documented_command_parses(line: str) -> None:
    words = shlex.split(line)
    if words[0] != "recipe-kit":
        arguments = words[words.index("recipe_kit") + 1 :]
        rank.make_context("recipe_kit", arguments, resilient_parsing=False)
        return
    if len(words) == 1 or words[1].startswith("-"):
        return
    assert words[1] in cli.main.commands, line
    cli.main.commands[words[1]].make_context(words[1], words[2:])


def test_links_between_pages_lead_somewhere() -> None:
    links = [
        (page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text("utf-8"))
    ]
    assert len(links) > 5
    missing = [f"{page.name} -> {link}" for page, link in links if not (page.parent / link).exists()]
    assert missing == []


def test_the_publishing_page_says_what_a_merge_is_allowed() -> None:
    from recipe_kit.merge import parity

    page = (ROOT / "docs" / "publishing.md").read_text("utf-8")
    assert parity._ALLOWED
    for (weights, arithmetic), allowed in parity._ALLOWED.items():
        kl = f"{allowed.mean_kl:.0e}".replace("e-0", "e-")
        row = f"{weights} | {arithmetic} | {kl} | {100 * allowed.greedy_agreement:g} % | {allowed.layer_error:g}"
        assert f"| {row} |" in page


def test_every_command_and_public_name_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert all(f"## recipe-kit {name}\n" in page for name in cli.main.commands)


@pytest.mark.parametrize("name", catalog.recipe_names())
def test_a_shipped_recipe_opens_with_what_a_user_must_know(name: str) -> None:
    header = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    assert header[0] == "# yaml-language-server: $schema=recipe.schema.json"
    text = "\n".join(header)
    assert "Hardware:" in text and f"Command:  recipe-kit train {name}" in text


@pytest.mark.parametrize("name", catalog.recipe_names())
def test_a_shipped_recipe_is_valid_plain_and_under_every_profile(name: str) -> None:
    variants = check_profiles(name)
    assert variants[""].name == name and "smoke" in variants
    smoke = variants["smoke"]
    assert smoke.model.id.startswith("tiny:") and smoke.training["use_cpu"] is True
    assert all(source.sample for split in ("train", "eval", "test") for source in smoke.data.sources(split))


def test_the_recipes_are_those_of_the_use_cases() -> None:
    assert catalog.recipe_names() == [
        "customer_support", "guanaco", "hinglish", "llama32_1b_full", "llama32_1b_lora", "llama32_1b_qlora",
        "quickstart", "samsum",
    ]  # fmt: skip


def test_a_shipped_recipe_fits_the_published_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: `pip install jsonschema`")
    schema = yaml.safe_load((ROOT / "recipes" / "recipe.schema.json").read_text("utf-8"))
    for name in catalog.recipe_names():
        jsonschema.validate(yaml.safe_load(recipe_text(name)), schema)


def test_sample_rows_are_clean_text_without_placeholders() -> None:
    import json

    rows = 0
    for name in catalog.sample_names():
        for split in catalog.sample_splits(name):
            for line in catalog.sample_path(name, split).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                rows += 1
                assert all(isinstance(value, str) and value.strip() for value in row.values()), row
                assert "{{" not in line and "@gmail" not in line and "TODO" not in line
    assert rows > 600


def test_sample_tests_do_not_repeat_training_rows() -> None:
    for name in catalog.sample_names():
        train, test = (set(catalog.sample_path(name, s).read_text("utf-8").splitlines()) for s in ("train", "test"))
        assert train and test and not train & test
