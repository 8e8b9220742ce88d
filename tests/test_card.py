"""The model card: complete, honest, valid for the Hub, and free of what is nobody's business; and the lint for any."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from recipe_kit import card, catalog, run_dir
from recipe_kit.card import vocabulary
from recipe_kit.card.facts import read
from recipe_kit.card.licences import begins_with, duties_of, with_prefix
from recipe_kit.card.markdown import plain
from recipe_kit.card.page import parse
from recipe_kit.card.private import cleaned, is_private
from recipe_kit.cli.card import card as command
from recipe_kit.errors import CardError, RunError
from recipe_kit.recipe import Recipe, dump_recipe, load_recipe, recipe_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS_COMMIT = "9876543210abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "abcdefgh" * 4
LLAMA = {"license": "llama3.2"}

SHOP = """
name: shop
description: Answers of a shop.
model: {id: acme/base, dtype: bfloat16}
method: lora
data:
  train: {id: acme/rows, split: train}
  eval: {rows: 10}
  test: {id: acme/rows, split: test}
  formatter: support
  system: You are the help desk.
lora: {r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}
training: {learning_rate: 1.0e-3, max_steps: 4, use_cpu: true, report_to: []}
evaluation: {metrics: [rouge], prompts: ["When do you open?"], max_new_tokens: 32}
card: {language: en, intended_use: Help., limitations: Knows one shop.}
"""


def recipe_of(tmp_path: Path, *overrides: str, text: str = SHOP) -> Recipe:
    path = tmp_path / "recipe_file.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides=overrides)


def score(label: str, base: float, tuned: float, **more: Any) -> dict[str, Any]:
    """A score of 52 rows whose intervals end half a unit away; better than the base where it is higher."""
    found = {"label": label, "higher_is_better": True, "rows": 52, "tuned_better": 51, "base_better": 1, "ties": 0}
    for key, value in (("base", base), ("tuned", tuned), ("difference", tuned - base)):
        found[key] = {"value": value, "low": value - 0.5, "high": value + 0.5}
    return found | {"p_value": 1e-9, "settings": {"package": "rouge_score", "version": "0.1.2"}} | more


PERPLEXITY = score("perplexity", 55.1, 2.18, higher_is_better=False, settings={"weighted_by": "tokens"})
ROUGE = score("ROUGE-L", 1.0, 4.0)
SCORES = {"perplexity": PERPLEXITY, "stop_rate": score("answers that end by themselves", 1.0, 3.0), "rougeL": ROUGE}
SAMPLE = {
    "kind": "prompt",
    "prompt": [
        {"role": "system", "content": "You are the help desk."},
        {"role": "user", "content": "When do you open?"},
    ],
    "reference": None,
    "base": {"text": "I do not know", "tokens": 4, "stopped": True},
    "tuned": {"text": "At *nine*.\n\n# Monday too", "tokens": 3, "stopped": True},
}
HELD_OUT = SAMPLE | {
    "kind": "held_out",
    "reference": "At ten.",
    "tuned": {"text": "At", "tokens": 32, "stopped": False},
}


def metrics(scores: dict[str, Any] = SCORES, **more: Any) -> dict[str, Any]:
    found = {"split": "test", "rows": 52, "precision": "bfloat16", "content_sha256": "ab" * 32, "scores": scores}
    generation = {"answers": 52, "max_new_tokens": 32, "stop_token_ids": [2]}
    return found | {"generation": generation, "groups": {}, "problems": []} | more


def run_of(
    folder: Path, recipe: Recipe, *, measured: Any = None, samples: Any = (), model: Any = None, **info: Any
) -> Path:
    """A finished run as files, without weights: what the card reads of it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"read": 264, "kept": 260, "held_out": 0, "truncated": 2, "dropped": {"answer is empty": 4}, "tokens": 9000}
    rows |= {"trained_tokens": 4000, "content_sha256": "cd" * 32}
    splits = {
        name: rows
        | {"sources": [{"split": s.split, "resolved_revision": ROWS_COMMIT if s.id else None} for s in sources]}
        for name in ("train", "eval", "test")
        if getattr(recipe.data, name) is not None
        for sources in [recipe.data.sources(name) or recipe.data.sources("train")]
    }
    is_hub = not recipe.model.id.startswith(("tiny:", "package:", "/"))
    told = {
        "schema_version": 1, "recipe_kit_version": "0.1.0", "status": "finished", "name": recipe.name,
        "method": recipe.method, "recipe_sha256": recipe_digest(recipe), "seed": 42, "processes": 1, "notes": [],
        "started_at": "2026-01-02T03:04:05+00:00", "command": ["/home/ann/.venv/bin/recipe-kit"], "git_commit": None,
        "versions": {"python": "3.11.7", "torch": "2.13.0"}, "hardware": {"device": "cuda", "name": "NVIDIA H100"},
        "model": {"id": recipe.model.id, "revision": COMMIT if is_hub else None, "parameters": 1_000_000,
                  "trainable_parameters": 10_000, "trainable_dtype": "float32", "chat_template_sha256": "ef" * 32,
                  "dtype": "nf4" if recipe.method == "qlora" else recipe.model.dtype, "license": None} | (model or {}),
        "data": {"formatter": {"name": recipe.data.formatter.name}, "splits": splits},
        "proofs": [{"name": "one_bos", "ok": True, "detail": "<s> once; 260 rows", "remedy": "", "fatal": True}],
        "training": {"steps": 4, "epochs": 0.5, "effective_batch_size": 8, "train_loss": 1.5, "final_loss": 1.25,
                     "tokens": 9000, "seconds": 10.0, "wall_seconds": 20.0, "tokens_per_second": 900.0,
                     "peak_memory_bytes": 2**31, "resumed_at_step": None},
        "finished_at": "2026-01-02T03:14:05+00:00",
    } | info  # fmt: skip
    run_dir.write_json(folder / run_dir.RUN, told)
    (folder / run_dir.RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
    run_dir.write_lines(folder / run_dir.LOG, [{"step": step, "loss": 4 / step} for step in range(1, 30)])
    run_dir.write_lines(folder / run_dir.SAMPLES, samples)
    if measured is not None:
        (folder / run_dir.METRICS).write_text(json.dumps(measured), encoding="utf-8")  # may hold NaN
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A measured LoRA run on a base of the Hub, with samples."""
    return run_of(tmp_path / "run", recipe_of(tmp_path), measured=metrics(), samples=[HELD_OUT, SAMPLE])


def data_of(text: str) -> dict[str, Any]:
    block = text.split("---\n")[1]
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no section {heading}"
    return found[1].strip()


def errors(found: list[card.Finding]) -> list[str]:
    return [str(finding) for finding in found if finding.level == "error"]


# --- metadata ---------------------------------------------------------------------------------------------------


def test_the_metadata_of_an_adapter_is_complete(shop: Path) -> None:
    data = data_of(card.render(shop, what="adapter", repo_id="acme/shop"))
    (index,) = data.pop("model-index")
    assert data == {
        "base_model": "acme/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "datasets": ["acme/rows"],
        "tags": ["lora", "base_model:adapter:acme/base", "sft", "trl", "recipe-kit"],
        "metrics": ["perplexity", "rouge"],
    }
    assert index["name"] == "shop"
    (result,) = index["results"]
    assert result["task"] == {"type": "text-generation", "name": "Text Generation"}
    assert result["dataset"] == {
        "type": "acme/rows", "name": "acme/rows", "split": "test", "revision": ROWS_COMMIT,
        "args": {"rows": 52, "content_sha256": "ab" * 32},
    }  # fmt: skip
    assert [(m["type"], m["name"], m["value"]) for m in result["metrics"]] == [
        ("perplexity", "perplexity", 2.18),
        ("custom", "answers that end by themselves", 3.0),
        ("rouge", "ROUGE-L", 4.0),
    ]  # fmt: skip
    assert result["metrics"][2]["args"] == {
        "score": "rougeL", "rows": 52, "low_95": 3.5, "high_95": 4.5, "base_model": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("what", ["merged", "both"])
def test_merged_weights_are_a_finetune_for_transformers(shop: Path, what: str) -> None:
    data = data_of(card.render(shop, what=what))
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")
    assert data["tags"] == ["lora", "sft", "trl", "recipe-kit"]


def test_a_full_run_is_published_whole_and_has_no_adapter(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "method=full", "lora=null")
    run = run_of(tmp_path / "run", recipe, measured=metrics())
    data = data_of(card.render(run, what=None))
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")
    assert "peft" not in section(card.render(run, what="merged"), "How to use it")
    with pytest.raises(CardError, match="--what adapter: this run trained all weights and has no adapter"):
        card.render(run, what="adapter")


def test_rows_and_base_that_are_not_on_the_hub_are_no_ids(tmp_path: Path) -> None:
    """A local path as base_model makes the Hub reject a card."""
    (tmp_path / "my_base").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    recipe = recipe_of(
        tmp_path, f"model.id={tmp_path}/my_base", f"data.train={{path: {tmp_path}/rows.jsonl}}", "data.test=null"
    )
    run = run_of(tmp_path / "run", recipe, measured=metrics(split="eval"))
    text = card.render(run, what="merged")
    data = data_of(text)
    assert not {"base_model", "base_model_relation", "datasets"} & set(data)
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == "rows.jsonl"
    assert str(tmp_path) not in text and "`my_base`" in text and "rows.jsonl" in section(text, "Training data")
    assert errors(card.lint(text, run=run, what="merged")) == []
    named = recipe_of(tmp_path, f"model.id={tmp_path}/my_base", "card.base_model=acme/base")
    data = data_of(card.render(run_of(tmp_path / "other", named), what="merged"))
    assert (data["base_model"], data["base_model_relation"]) == ("acme/base", "finetune")


def test_text_that_yaml_reads_as_something_else_stays_text(tmp_path: Path) -> None:
    """`no` is a boolean to YAML 1.1, 1e3 a number to YAML 1.2, and a date a date to both."""
    words = ["2024-01-01", "1e3", "1.0", "yes", "null"]
    recipe = recipe_of(tmp_path, "card.language=['no']", f"card.tags={json.dumps(words)}")
    text = card.render(run_of(tmp_path / "run", recipe), what="adapter")
    data = data_of(text)
    assert data["language"] == ["no"] and data["tags"][-5:] == words
    assert "'1e3'" in text and "- 'no'" in text
    assert errors(card.lint(text)) == []


def test_a_score_that_is_no_number_is_left_out_and_named(tmp_path: Path) -> None:
    scores = SCORES | {"chrf": score("chrF2", 1.0, math.nan), "rouge1": score("ROUGE-1", 1.0, math.inf)}
    run = run_of(tmp_path / "run", recipe_of(tmp_path), measured=metrics(scores))
    text = card.render(run, what="adapter")
    names = [metric["name"] for metric in data_of(text)["model-index"][0]["results"][0]["metrics"]]
    assert names == ["perplexity", "answers that end by themselves", "ROUGE-L"]
    assert "No finite number came of chrF2 and ROUGE-1" in section(text, "Evaluation")
    assert errors(card.lint(text, run=run)) == []


def test_groups_and_tasks_of_the_harness_are_scores_too(tmp_path: Path) -> None:
    acc = {"base": {"value": 0.5, "stderr": 0.1}, "tuned": {"value": 0.6, "stderr": 0.1, "higher_is_better": True}}
    tasks = {"hellaswag": {"documents": 100, "num_fewshot": 0, "metrics": {"acc": acc}}}
    groups = {"answer not in training": {"rows": 40, "scores": {"rougeL": ROUGE | {"rows": 40}}},
              "answer also in training": {"rows": 12, "scores": {"rougeL": ROUGE | {"rows": 12}}}}  # fmt: skip
    measured = metrics(groups=groups, lm_eval={"lm_eval": "0.4.11", "tasks": tasks, "problems": []})
    text = card.render(run_of(tmp_path / "run", recipe_of(tmp_path), measured=measured), what="adapter")
    own, harness = data_of(text)["model-index"][0]["results"]
    assert [m["name"] for m in own["metrics"]][-2:] == [
        "ROUGE-L, answer not in training", "ROUGE-L, answer also in training",
    ]  # fmt: skip
    assert harness["dataset"] == {"type": "hellaswag", "name": "hellaswag"}
    assert harness["metrics"][0]["type"] == "accuracy" and harness["metrics"][0]["args"]["stderr"] == 0.1
    told = section(text, "Evaluation")
    assert "**Answer not in training** (40 rows):" in told and "| hellaswag | acc ↑ | 0.500 ± 0.100 |" in told
    assert "Some answers it was measured on also stand in the training rows" in section(text, "Limitations")


# --- licences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "prefix", "built_with", "notice"),
    [
        ("llama2", None, None, "Llama 2 is licensed under the LLAMA 2 Community License, "),
        ("llama3", "Llama 3", "Built with Meta Llama 3", "Meta Llama 3 is licensed under the Meta Llama 3 Community "),
        ("llama3.1", "Llama", "Built with Llama", "Llama 3.1 is licensed under the Llama 3.1 Community License, "),
        ("llama3.2", "Llama", "Built with Llama", "Llama 3.2 is licensed under the Llama 3.2 Community License, "),
        ("llama3.3", "Llama", "Built with Llama", "Llama 3.3 is licensed under the Llama 3.3 Community License, "),
        ("llama4", "Llama", "Built with Llama", "Llama 4 is licensed under the Llama 4 Community License, "),
        ("gemma", None, None, "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/"),
        ("apache-2.0", None, None, ""),
    ],
)
def test_what_a_licence_asks_for(entry: str, prefix: str | None, built_with: str | None, notice: str) -> None:
    asked = card.duties(entry)
    assert (asked.name_prefix, asked.built_with) == (prefix, built_with)
    assert (asked.notice or "").startswith(notice) and bool(asked.notice) == bool(notice)


def test_a_licence_outside_the_list_is_known_by_its_name() -> None:
    assert duties_of({"license": "other", "license_name": "llama4"}).name_prefix == "Llama"
    assert duties_of({"license": "mit"}, {"license": "gemma"}).notice is not None
    assert duties_of({}, None, {"license": "other", "license_name": "my-own"}) == card.Duties()


@pytest.mark.parametrize(
    ("name", "prefix", "found"),
    [("shop", "Llama", "Llama-shop"), ("Llama-shop", "Llama", "Llama-shop"), ("llama32_a", "Llama", "Llama32_a"),
     ("LLAMA-a", "Llama 3", "Llama-3-LLAMA-a"), ("Llama3_a", "Llama 3", "Llama3_a"), ("shop", None, "shop")],
)  # fmt: skip
def test_the_published_name_begins_as_asked(name: str, prefix: str | None, found: str) -> None:
    assert with_prefix(name, prefix) == found
    assert prefix is None or begins_with(found, prefix)


def test_a_llama_card_has_its_name_its_line_and_its_notice(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", recipe_of(tmp_path), measured=metrics(), model={"license": LLAMA})
    text = card.render(run, what="adapter")
    assert text.split("---\n\n")[1].startswith("# Llama-shop\n\n**Built with Llama**\n\n")
    assert data_of(text)["license"] == "llama3.2" and data_of(text)["model-index"][0]["name"] == "Llama-shop"
    assert section(text, "Licence") == (
        "`llama3.2`, the licence of the base model. Llama 3.2 is licensed under the Llama 3.2 Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved. Terms: [Llama 3.2 Community License Agreement]"
        "(https://www.llama.com/llama3_2/license/); they rule out [some uses](https://www.llama.com/llama3_2/use-policy/)."
        " The weights were changed by fine-tuning."
    )
    assert errors(card.lint(text, run=run)) == []
    assert errors(card.lint(card.render(run, what="adapter", repo_id="acme/shop"), run=run, repo_id="acme/shop")) == [
        "error: line 6: Llama 3.2 Community License Agreement asks for a name that begins with 'Llama': "
        "the repository is 'shop'"
    ]  # fmt: skip
    told = card.notice(read(run))
    assert told is not None and told.splitlines()[0] == card.duties("llama3.2").notice
    assert "Llama-shop was made from acme/base by fine-tuning; its weights were changed." in told


def test_a_licence_of_the_recipe_does_not_end_the_duties_of_the_base(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", recipe_of(tmp_path, "card.license=mit"), model={"license": LLAMA})
    text = card.render(run, what="adapter")
    assert data_of(text)["license"] == "mit" and "**Built with Llama**" in text
    assert "The base model is published under `llama3.2`, whose terms go on" in section(text, "Licence")


def test_no_licence_is_invented(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", recipe_of(tmp_path, "model.id=meta-llama/Llama-3.2-1B"))
    text = card.render(run, what="adapter")
    assert "license" not in data_of(text) and card.notice(read(run)) is None
    assert "No licence is recorded" in section(text, "Licence")
    assert any(finding.message.startswith("no licence") for finding in card.lint(text, run=run))
    (wanted,) = [line for line in card.write(run).missing if "card.license" in line]
    assert "those of Llama ask for a name, a line and a notice" in wanted


def test_a_licence_that_the_hub_does_not_know_is_other_with_its_name(tmp_path: Path) -> None:
    own = {"license": "Acme Open v1", "license_link": "LICENSE.md"}
    data = data_of(card.render(run_of(tmp_path / "run", recipe_of(tmp_path), model={"license": own}), what="adapter"))
    link = f"https://huggingface.co/acme/base/blob/{COMMIT}/LICENSE.md"
    assert [data[key] for key in ("license", "license_name", "license_link")] == ["other", "acme-open-v1", link]


# --- the text ---------------------------------------------------------------------------------------------------


def test_the_card_says_what_it_is_and_whether_it_helped(shop: Path) -> None:
    top = card.render(shop, what="adapter").split("\n## ")[0].split("---\n\n")[1]
    assert top.startswith(
        "# shop\n\nAnswers of a shop. This is a LoRA adapter for [acme/base](https://huggingface.co/acme/base), "
        "trained on 260 rows of [acme/rows](https://huggingface.co/datasets/acme/rows) with recipe-kit 0.1.0. "
        "Language: English.\n\n"
        "**It helped: better in perplexity, answers that end by themselves and ROUGE-L.** On 52 held-out rows"
    )


def test_the_table_has_both_models_with_intervals_and_rows(shop: Path) -> None:
    assert "| ROUGE-L ↑ | 1.00 (0.50 to 1.50) | **4.00 (3.50 to 4.50)** | 3.00 (2.50 to 3.50) | 51 / 1 / 0 | 52 |" in (
        section(card.render(shop, what="adapter"), "Evaluation")
    )


def test_samples_are_quoted_fixed_prompts_first_and_say_when_they_were_cut(shop: Path) -> None:
    assert section(card.render(shop, what="adapter"), "Sample answers") == (
        "Greedy answers of both models as they were measured, in that order; none was picked.\n\n"
        "A prompt of the recipe:\n\n> **User:** When do you open?\n>\n> **Base model:** I do not know\n>\n"
        "> **Tuned model:**  \n> At \\*nine\\*.  \n>\n> \\# Monday too\n\n"
        "A held-out row:\n\n> **User:** When do you open?\n>\n> **Base model:** I do not know\n>\n"
        "> **Tuned model (cut off after 32 tokens):** At\n>\n> **Reference:** At ten."
    )


def test_samples_with_personal_data_or_paths_are_left_out_and_counted(tmp_path: Path) -> None:
    personal = [
        {**HELD_OUT, "reference": "Write to ann@example.com"},
        {**HELD_OUT, "tuned": {"text": "see /home/ann/notes.txt", "tokens": 1, "stopped": True}},
    ]
    run = run_of(tmp_path / "run", recipe_of(tmp_path), measured=metrics(), samples=[*personal, SAMPLE])
    told = section(card.render(run, what="adapter"), "Sample answers")
    assert "2 samples are left out: they hold what looks like personal or private data." in told
    assert "ann@" not in told and "/home" not in told and told.count("**Tuned model") == 1
    none = recipe_of(tmp_path, "card.samples=0")
    assert "Sample answers" not in card.render(run_of(tmp_path / "b", none, samples=[SAMPLE]), what="adapter")


def test_a_system_prompt_may_hold_an_address_and_names_to_fill_in(tmp_path: Path) -> None:
    system = "Write as {{agent}} of help@acme.example. TODO lists are welcome."
    recipe = recipe_of(tmp_path, f"data.system='{system}'")
    sample = SAMPLE | {"prompt": [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]}
    text = card.render(run_of(tmp_path / "run", recipe, samples=[sample]), what="adapter")
    assert system in section(text, "How to use it") and "**User:** Hi" in section(text, "Sample answers")
    assert errors(card.lint(text)) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [("# no heading", "\\# no heading"), ("<b>bold</b> & &amp;", "&lt;b>bold&lt;/b> & &amp;amp;"),
     ("- a\n2. b\n---", "\\- a\n2\\. b\n\\---"), ("snake_case a _b_ | p < 0.1", "snake_case a \\_b\\_ \\| p < 0.1"),
     ("<!-- x -->[a](b) `c` $d$", "&lt;!-- x -->\\[a\\](b) \\`c\\` \\$d\\$")],
)  # fmt: skip
def test_text_of_others_is_no_markup(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_rows_settings_and_machine_are_told(shop: Path) -> None:
    text = card.render(shop, what="adapter")
    rows = section(text, "Training data")
    link = "[acme/rows](https://huggingface.co/datasets/acme/rows)"
    assert (
        f"| train | {link} `train`, at `{ROWS_COMMIT[:12]}` | 264 | 260 | 9,000 | 4,000 | `cdcdcdcdcdcdcdcd` |" in rows
    )
    assert "| eval | held out of `train` |" in rows and "- train: 4 rows dropped (answer is empty)" in rows
    assert "were given this one:\n\n> You are the help desk." in rows
    told = section(text, "Training")
    for line in ("| Adapter | r 8, alpha 16 on q_proj, v_proj |",
                 "| Trained parameters | 10,000 of 1,000,000 (1.00 %) |",
                 "| Hardware | 1 × NVIDIA H100 |", "| Seed | 42 |", "| Peak memory | 2.0 GiB |"):  # fmt: skip
        assert line in told
    assert (
        told.count("\n| ", told.index("Loss along the way")) >= 9
        and "| 1 | 4.00 |" in told
        and "| 29 | 0.138 |" in told
    )
    assert "All 1 proofs" in told and "`one_bos`" in told
    assert recipe_digest(load_recipe(shop / "recipe.yaml")) in section(text, "Reproduce it")


def test_what_the_gpu_decided_is_told_and_not_auto(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "training.optim=auto", "training.packing=true")
    for packing, longest in ((True, "tokens, packed |"), (False, "tokens |")):
        run = run_of(tmp_path / str(packing), recipe, speed={"optim": "paged_adamw_8bit", "packing": packing})
        told = section(card.render(run, what="adapter"), "Training")
        assert "| Optimiser | paged_adamw_8bit |" in told
        assert longest in told


def test_the_recipe_is_whole_and_can_be_trained_again(shop: Path, tmp_path: Path) -> None:
    text = section(card.render(shop, what="adapter", repo_id="acme/shop"), "Reproduce it")
    assert "recipe-kit reproduce acme/shop\n" in text
    found = re.search(r"```yaml\n(.*?)\n```", text, re.DOTALL)
    assert found
    (tmp_path / "again.yaml").write_text(found[1], encoding="utf-8")
    again = load_recipe(tmp_path / "again.yaml")
    assert again.data.train[0].revision == ROWS_COMMIT and again.model.revision == COMMIT
    assert again.training == load_recipe(shop / "recipe.yaml").training


def test_merged_weights_tell_how_near_they_are(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "method=qlora")
    merge = {
        "dtype": "float16", "base": "nf4",
        "choice": {"reason": "", "rows": 52, "loss": {"as_trained": 1.0, "original": 1.2, "nf4": 1.01}},
        "parity": {"rows": 8, "positions": 900, "max_logit_gap": 0.03, "mean_kl": 2e-6, "greedy_agreement": 0.995,
                   "ok": True},
    }  # fmt: skip
    run = run_of(tmp_path / "run", recipe, measured=metrics(precision="nf4"), merge=merge)
    text = card.render(run, what="both", repo_id="acme/shop")
    assert section(text, "Merge") == (
        "The adapter was merged into the base as 4 bits made it, in which it was trained, in float16. "
        "Both were measured on 52 held-out rows; loss 1.00 as trained, 1.20 merged into the original base, "
        "1.01 merged into the 4-bit base. "
        "Compared with the adapter on that base (8 rows, 900 positions): "
        "the most likely token is the same at 99.50 % of them, "
        "mean KL divergence 2e−06, largest gap between logits 0.03."
    )
    assert "Weights in nf4, before the adapter was merged." in section(text, "Evaluation")
    assert "Scores were measured on base and adapter in nf4; the merged weights are float16" in section(
        text, "Limitations"
    )
    assert 'dtype="float16"' in text and 'subfolder="adapter"' in text and "load_in_4bit=True" in text
    assert errors(card.lint(text, run=run, what="both", repo_id="acme/shop")) == []
    assert "## Merge" not in card.render(run, what="adapter")
    unmerged = run_of(tmp_path / "other", recipe)
    assert "recipe-kit merge" in " ".join(
        f.message for f in card.lint(card.render(unmerged, what="merged"), run=unmerged)
    )


@pytest.mark.parametrize(
    ("what", "merge", "said"),
    [
        ("adapter", {}, "- Scores of the adapter were measured on the base in 4 bits (nf4); on another it may answer"),
        ("merged", {"base": "nf4", "dtype": "float16"}, "- Scores were measured on base and adapter in nf4; the "
         "merged weights are float16 (how near they are is told under *Merge*)."),
        ("merged", {"base": "original", "dtype": "float16"}, "the merged weights are float16, made from the base "
         "before it was brought to 4 bits. They were not scored themselves."),
        ("both", {"base": "original", "dtype": "float16", "choice": {"rows": 9, "loss": {"nf4": 1.0}}}, "made from "
         "the base before it was brought to 4 bits, and what that does to the loss is told under *Merge*. They "),
    ],
)  # fmt: skip
def test_what_was_scored_is_told_where_something_else_is_published(
    tmp_path: Path, what: str, merge: dict[str, Any], said: str
) -> None:
    parity = {"rows": 8, "positions": 900, "mean_kl": 2e-6, "greedy_agreement": 0.995, "ok": True}
    given = {"merge": merge | {"parity": parity}} if merge else {}
    run = run_of(tmp_path / "run", recipe_of(tmp_path, "method=qlora"), measured=metrics(precision="nf4"), **given)
    assert said in section(card.render(run, what=what), "Limitations")


def test_the_words_of_the_recipe_have_their_places(tmp_path: Path) -> None:
    words = {
        "out_of_scope": "No medicine.",
        "data": "Written by us, CC0.",
        "developed_by": "Acme",
        "contact": "acme.example",
        "citation": "@misc{shop}",
    }
    recipe = recipe_of(tmp_path, *(f"card.{key}='{value}'" for key, value in words.items()))
    text = card.render(run_of(tmp_path / "run", recipe), what="adapter")
    assert section(text, "Intended use") == "Help.\n\n**Out of scope:** No medicine."
    assert section(text, "Training data").endswith("Written by us, CC0.")
    assert section(text, "Authors and contact") == "Acme\n\n**Contact:** acme.example"
    assert section(text, "Citation") == "```bibtex\n@misc{shop}\n```"


# --- runs that are not as they should be -------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["intended_use", "out_of_scope", "limitations", "data", "citation"])
@pytest.mark.parametrize("fence", ["```", "~~~~"])
def test_a_code_block_that_the_author_left_open_does_not_swallow_the_card(
    tmp_path: Path, key: str, fence: str
) -> None:
    recipe = recipe_of(tmp_path, f'card.{key}="Such as\\n{fence}\\nprint(1)"')
    run = run_of(tmp_path / "run", recipe, measured=metrics())
    text = card.render(run, what=None)
    assert f"print(1)\n{fence}\n" in text
    assert {"Limitations", "Training data", "Reproduce it"} <= {heading.text for heading in parse(text).headings}
    assert errors(card.lint(text, run=run)) == []


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    notes = ["not evaluated (CUDA out of memory at /home/ann/x.py); run `recipe-kit eval` on this folder"]
    run = run_of(tmp_path / "run", recipe_of(tmp_path), notes=notes)
    text = card.render(run, what="adapter")
    assert (
        "**Not measured: whether it helped is not known.** The run was not evaluated, so there are no scores." in text
    )
    assert "## Evaluation" not in text and "Nothing was measured" in section(text, "Limitations")
    assert "model-index" not in data_of(text) and data_of(text)["model_name"] == "shop"
    assert "/home" not in text and "x.py" in text
    assert errors(card.lint(text, run=run)) == []


@pytest.mark.parametrize(
    "measured",
    [
        metrics({}, problems=["metrics: these rows are plain text; see /tmp/rows/a.jsonl"]),
        metrics({}, base={"perplexity": 9.5, "loss": 2.25, "tokens": 10}, tuned={"perplexity": 4.5, "tokens": 10}),
        {"split": "test", "rows": 3, "scores": {"perplexity": {"label": "perplexity"}}},
        {"nothing": "here"},
        [],
    ],
)  # fmt: skip
def test_odd_metrics_still_give_an_honest_card(tmp_path: Path, measured: Any) -> None:
    run = run_of(tmp_path / "run", recipe_of(tmp_path), measured=measured)
    text = card.render(run, what="adapter")
    assert errors(card.lint(text, run=run)) == []
    if measured and measured.get("problems"):
        assert "- metrics: these rows are plain text; see a.jsonl." in section(text, "Evaluation")
    if measured and measured.get("tuned"):
        (metric,) = data_of(text)["model-index"][0]["results"][0]["metrics"]
        assert metric["value"] == 4.5 and "| perplexity ↓ | 9.50 | 4.50 |" in text


def test_a_streamed_run_says_that_its_counts_are_of_the_first_rows(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "data.streaming=true", "data.eval=null")
    run = run_of(tmp_path / "run", recipe, training={"steps": 4, "streamed_rows": {"read": 500, "kept": 490}})
    text = card.render(run, what="adapter")
    assert (
        "the counts of `train` are of the first rows only. Seen by the process that read them: 500 read, 490 kept."
        in (section(text, "Training data"))
    )
    assert "trained on streamed rows of" in text and "260 rows of" not in text


def test_a_run_that_did_not_finish_has_no_card(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", recipe_of(tmp_path), status="failed", error="out of memory")
    with pytest.raises(RunError, match=r"this run is failed \(out of memory\)"):
        card.render(run, what=None)


def test_no_path_and_no_token_of_the_run_comes_into_the_card(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    recipe = recipe_of(
        tmp_path, f"data.train={{path: {tmp_path}/rows.jsonl}}", "data.test=null",
        "evaluation.prompts=['Where is /home/ann/rows.csv ?']", "training.deepspeed=/home/ann/zero.json",
    )  # fmt: skip
    notes = [f"read {tmp_path}/rows.jsonl with {TOKEN}"]
    problems = [f"lm_eval: /home/ann/tasks/mine.yaml failed with {TOKEN}"]
    run = run_of(tmp_path / "run", recipe, measured=metrics(split="eval", problems=problems), notes=notes)
    text = card.render(run, what="adapter")
    assert not is_private(text) and TOKEN not in text and "/home" not in text and str(tmp_path) not in text
    assert "mine.yaml failed" in text and errors(card.lint(text, run=run)) == []


@pytest.mark.parametrize(
    "text",
    ["see /home/ann/a.txt", "path=/root/.cache/x", "`/Users/ann/model`", "(/tmp/runs/x)", r"C:\Users\ann\rows.csv",
     "file:///srv/rows", "D:/Data/rows.csv", TOKEN, "sk-ant-" + "aB1" * 12, "ghp_" + "a" * 36, "AKIA" + "A1" * 8,
     "https://ann:secret@example.com/x", "-----BEGIN RSA PRIVATE KEY-----"],
)  # fmt: skip
def test_paths_and_secrets_are_found_and_cleaned(text: str) -> None:
    assert is_private(text) and not is_private(cleaned(text))
    assert errors(card.lint(f"---\nlicense: mit\n---\n# T\n\n{text}\n"))


@pytest.mark.parametrize(
    "text",
    ["https://example.com/home/ann", "and/tmp/or", "hf_hub_download(repo)", "A:\\nB:\\nC:\\n", "</s>[/INST]",
     "~/.cache", "acme/root/x", "Q: /home", "sk-learn", "ratio 3/4 of /v1/chat", "https://huggingface.co/acme/tmp/x"],
)  # fmt: skip
def test_ordinary_text_is_no_path_and_no_secret(text: str) -> None:
    assert not is_private(text)


# --- lint -------------------------------------------------------------------------------------------------------

GOOD = """\
---
license: apache-2.0
language: [en, hi]
base_model: acme/base
base_model_relation: adapter
library_name: peft
pipeline_tag: text-generation
datasets: [acme/rows, imdb]
tags: [lora]
model-index:
- name: shop
  results:
  - task: {type: text-generation}
    dataset: {type: acme/rows, name: rows}
    metrics: [{type: rouge, value: 0.43}]
---
# shop

## Uses

### Direct use

Help.

## Limitations

> TODO is what the customer said, and a "[More Information Needed]" too.

```python
print("hello")
```

<details>

```bash
pip install peft
```

</details>
"""
TRL_STYLE = """\
---
base_model: acme/base
library_name: transformers
model_name: sft-out
tags:
- generated_from_trainer
- trl
- sft
licence: license
---

# Model Card for sft-out

This model is a fine-tuned version of [acme/base](https://huggingface.co/acme/base).

## Quick start

```python
from transformers import pipeline
generator = pipeline("text-generation", model="None", device="cuda")
```

## Training procedure



This model was trained with SFT.

### Framework versions

- TRL: 1.16.0
"""
PEFT_STYLE = """\
---
base_model: /home/ann/models/base
library_name: peft
tags:
- base_model:adapter:/home/ann/models/base
- lora
---

# Model Card for Model ID

<!-- Provide a quick summary of what the model is/does. -->

## Model Details

- **Developed by:** [More Information Needed]

## Uses

<!-- Address questions around how the model is intended to be used -->

### Direct Use

[More Information Needed]
"""
TRAINER_STYLE = """\
---
library_name: transformers
license: llama3.2
base_model: meta-llama/Llama-3.2-1B
tags: [generated_from_trainer]
model-index:
- name: out
  results: []
---

<!-- This model card has been generated automatically -->

# out

This model is a fine-tuned version of it.

## Intended uses & limitations

More information needed

### Training hyperparameters

- learning_rate: 0.0002
"""


def test_a_good_card_has_nothing_said_against_it() -> None:
    assert card.lint(GOOD) == []


def test_the_card_of_trl_names_a_licence_that_is_none() -> None:
    assert errors(card.lint(TRL_STYLE)) == ["error: line 9: licence: the Hub reads 'license'; rename the key"]


def test_the_empty_template_of_peft_is_refused() -> None:
    assert errors(card.lint(PEFT_STYLE)) == [
        "error: line 2: base_model: expected a model of the Hub, `owner/name`, got '/home/ann/models/base'",
        "error: line 2: /home/ann/models/base is a path of somebody's machine: name the file or the Hub id alone",
        "error: line 5: /home/ann/models/base is a path of somebody's machine: name the file or the Hub id alone",
        "error: line 11: '<!--' is text of a template: say what is so, or take it out",
        "error: line 15: '[More Information Needed]' is text of a template: say what is so, or take it out",
        "error: line 19: '<!--' is text of a template: say what is so, or take it out",
        "error: line 23: '[More Information Needed]' is text of a template: say what is so, or take it out",
    ]


def test_the_card_of_the_trainer_does_not_fulfil_llamas_duties() -> None:
    found = errors(card.lint(TRAINER_STYLE))
    asks = "error: line 3: Llama 3.2 Community License Agreement asks for"
    assert found == [
        f"{asks} a name that begins with 'Llama': the name in model-index is 'out'",
        f"{asks} a name that begins with 'Llama': the title is 'out'",
        f"{asks} the words 'Built with Llama': show them near the top",
        f"{asks} its notice: add the line {card.duties('llama3.2').notice!r}",
        "error: line 11: '<!--' is text of a template: say what is so, or take it out",
        "error: line 19: 'More information needed' is text of a template: say what is so, or take it out",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("apache-2.0", "apache2", "line 2: license: 'apache2' is no licence of the Hub's list; write "
         "`license: other` with license_name; did you mean apache-2.0?"),
        ("[en, hi]", "no", "line 3: language: YAML reads this as false; put the code in quotes, such as 'no'"),
        ("[en, hi]", "english", "line 3: language: 'english' is no code of ISO 639, two or three small letters"),
        ("acme/base", "./base/", "line 4: base_model: expected a model of the Hub, `owner/name`, got './base/'"),
        ("adapter", "finetune", "line 5: base_model_relation: finetune does not go with library_name: peft"),
        ("adapter", "adaptor", "line 5: base_model_relation: expected one of adapter, finetune, merge, quantized"),
        ("peft", "transformers", "line 5: base_model_relation: an adapter is not loaded by transformers"),
        ("peft", "pefft", "line 6: library_name: the Hub knows no library 'pefft'; did you mean peft?"),
        ("text-generation\ndata", "text-generations\ndata", "line 7: pipeline_tag: the Hub knows no task"),
        ("imdb", "data/rows/train.csv", "line 8: datasets: expected a data set of the Hub"),
        ("tags: [lora]", "tags: [2024-01-01]", "line 9: tags: YAML reads 2024-01-01 as a date; put it in quotes"),
        ("tags: [lora]", "tags: [1.0]", "line 9: tags: expected text, got 1.0; put it in quotes"),
        ("value: 0.43", "value: .nan", "line 10: model-index: result 1: rouge is nan: leave out what could not be"),
        ("value: 0.43", "value: .inf", "line 10: model-index: result 1: rouge is inf"),
        ("value: 0.43", "worth: 0.43", "line 10: model-index: result 1: rouge has no value, but None"),
        ("name: rows}", "title: rows}", "line 10: model-index: result 1: dataset has no name"),
        ("task: {type: text-generation}", "task: text-generation", "model-index: result 1: task has no type"),
        ("- name: shop\n  results:", "- results:", "line 10: model-index: a model has no `name`"),
        ("tags: [lora]", "tags: [lora]\ntags: [peft]", "line 10: the metadata cannot be read: the key 'tags' stands "
         "here twice"),
        ("tags: [lora]", "tags: [lora", "the metadata cannot be read"),
        ("---\nlicense", "license", "line 1: it has no metadata: begin it with a block of YAML between two lines of"),
        ("Help.", "", "line 19: nothing stands under the heading 'Uses': fill it, or take it out"),
        ("Help.", "TODO", "line 23: 'TODO' is text of a template"),
        ("Help.", "Lorem ipsum dolor", "line 23: 'Lorem ipsum' is text of a template"),
        ("Help.", "Load your-username/model", "line 23: 'your-username' is text of a template"),
        ('print("hello")', "print(hello", "line 30: this Python does not compile ('(' was never closed): correct it"),
        ('print("hello")', 'print("your-username/x")', "line 30: 'your-username' is text of a template: write"),
        ("</details>", "```", "this code block is not closed"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_its_line(old: str, new: str, message: str) -> None:
    assert GOOD.count(old) >= 1
    found = errors(card.lint(GOOD.replace(old, new, 1)))
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    "words",
    ["Helps you reset your username.", "Answers about your repo.", "Turns a chat into a TODO list.", "TODO lists of",
     "Dates that are TBD stay so."],
)  # fmt: skip
def test_what_a_model_is_for_is_no_placeholder(words: str) -> None:
    assert errors(card.lint(GOOD.replace("Help.", words, 1))) == []


@pytest.mark.parametrize("words", ["TODO", "- TODO: say it", "Licence: TBD", "| size | TBD |", "<your username>/x"])
def test_placeholders_are_found_where_words_should_stand(words: str) -> None:
    assert ["is text of a template" in line for line in errors(card.lint(GOOD.replace("Help.", words, 1)))] == [True]


def test_a_template_or_prompt_that_was_trained_with_is_no_placeholder(tmp_path: Path) -> None:
    """None of these can be written otherwise once the run is trained, and a lint error keeps a card from the Hub."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ system | default('') }}"
    recipe = recipe_of(tmp_path, f'model.chat_template="{template}"', 'data.system="Be <your name>, clone your_repo."')
    run = run_of(tmp_path / "run", recipe, measured=metrics())
    assert errors(card.lint(card.render(run, what=None), run=run)) == []


def test_what_a_reader_misses_is_a_warning() -> None:
    found = card.lint("---\ntags: [a]\n---\n# A\n\nText.\n")
    assert errors(found) == [] and [finding.message.partition(":")[0] for finding in found] == [
        "no licence", "no language", "no library_name", "no pipeline_tag", "no base_model", "no datasets",
        "no scores in the metadata (model-index)", "no section about intended use", "no section about limitations",
        "no code that shows how to use it",
    ]  # fmt: skip
    doubtful = "license: other\nlicense_nam: x"
    messages = [finding.message for finding in card.lint(GOOD.replace("license: apache-2.0", doubtful, 1))]
    assert "the Hub has no key 'license_nam'; did you mean license_name?" in messages
    assert "license: other says nothing without license_link" in messages


def test_the_oldest_models_have_no_owner() -> None:
    findings = card.lint(GOOD.replace("acme/base", "gpt2"))
    assert [str(f) for f in findings] == [
        "warning: line 4: base_model: 'gpt2' has no owner: right for the oldest models alone"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "---\n? [a, b]\n: c\n---\n# A\n",
        "",
        "---",
        "---\n---\n",
        "\ufeff---\r\nlicense: mit\r\n---\r\n# A\r\n",
        "---\n- a\n---\n",
    ],
)
def test_no_text_brings_the_lint_down(text: str) -> None:
    assert isinstance(card.lint(text), list)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: 2.18", "value: 1.18", "model-index: perplexity is 1.18 here and 2.18 in metrics.json"),
        ("name: ROUGE-L\n", "name: ROUGE-Z\n", "model-index: ROUGE-L of metrics.json is missing"),
        ("base_model: acme/base", "base_model: acme/other", "base_model: expected 'acme/base', got 'acme/other'"),
        ("base_model_relation: adapter", "base_model_relation: quantized", "base_model_relation: expected 'adapter'"),
        ("library_name: peft", "library_name: transformers", "library_name: expected 'peft', got 'transformers'"),
        (ROWS_COMMIT + "\n", COMMIT + "\n", "model-index: its data sets are not those that were measured on"),
    ],
)  # fmt: skip
def test_a_card_that_differs_from_its_run_is_refused(shop: Path, old: str, new: str, message: str) -> None:
    text = card.render(shop, what="adapter")
    assert card.lint(text, run=shop, what="adapter") == [card.Finding("warning", 0, card.lint(text)[0].message)]
    assert old in text
    found = errors(card.lint(text.replace(old, new), run=shop, what="adapter"))
    assert any(message in line for line in found), found


def test_the_card_of_another_run_is_refused(shop: Path, tmp_path: Path) -> None:
    other = run_of(tmp_path / "other", recipe_of(tmp_path, "training.learning_rate=2e-3"), measured=metrics())
    (found,) = errors(card.lint(card.render(other, what="adapter"), run=shop))
    assert "this card is not of this run: it does not name" in found


# --- the Hub's own client ---------------------------------------------------------------------------------------

ROUND_TRIP = """
import sys, yaml, huggingface_hub
from pathlib import Path
from huggingface_hub import ModelCard, ModelCardData
for path in sorted(Path(sys.argv[1]).glob("*.md")):
    text = path.read_text(encoding="utf-8")
    data = yaml.safe_load(text.split("---\\n")[1])
    card = ModelCard(text)
    assert card.data.to_dict() == data, path
    assert yaml.safe_load(str(card).split("---\\n")[1]) == data, path
    assert card.text == text.split("---\\n", 2)[2], path
    assert ModelCardData(**data).to_dict() == data, path
print(huggingface_hub.__version__)
"""


def shipped_cards(folder: Path) -> dict[str, Path]:
    """A card for each shipped recipe, with its smoke profile and without, for all that can be published of it."""
    found = {}
    for name in catalog.recipe_names():
        for profiles in ([], ["smoke"]):
            recipe = load_recipe(name, profiles=profiles)
            held_out = "test" if recipe.data.test is not None else "eval"
            licence = {"license": LLAMA if "llama" in recipe.model.id.casefold() else {"license": "apache-2.0"}}
            run = run_of(
                folder / f"{name}{len(profiles)}",
                recipe,
                measured=metrics(split=held_out),
                samples=[SAMPLE],
                model=licence,
            )
            for what in ("merged",) if recipe.method == "full" else ("adapter", "merged", "both"):
                found[f"{name}-{len(profiles)}-{what}"] = run
    return found


@pytest.mark.slow
def test_cards_of_all_shipped_recipes_pass_lint_and_both_clients(tmp_path: Path) -> None:
    cards = shipped_cards(tmp_path / "runs")
    assert len(cards) == 2 * (7 * 3 + 1)
    (tmp_path / "cards").mkdir()
    for key, run in cards.items():
        what = key.rpartition("-")[2]
        text = card.render(run, what=what, repo_id=f"acme/Llama-{run.name}")
        assert errors(card.lint(text, run=run, what=what, repo_id=f"acme/Llama-{run.name}")) == [], key
        (tmp_path / "cards" / f"{key}.md").write_text(text, encoding="utf-8")
    for client in (None, first_client()):
        path = [str(client)] if client else []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(
            [sys.executable, "-c", ROUND_TRIP, str(tmp_path / "cards")],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("1." if client else ("1.", "2."))


def first_client() -> Path:
    """huggingface_hub 1.x, in a folder of its own beside the environment."""
    folder = Path(os.environ.get("RECIPE_KIT_HUB1", Path(sys.prefix) / "hub-1"))
    if not (folder / "huggingface_hub").is_dir():
        pytest.skip("RECIPE_KIT_HUB1 names no folder with huggingface_hub 1.x in it")
    return folder


def test_the_vocabularies_are_those_of_the_hub() -> None:
    assert len(vocabulary.pipeline_tags()) == 57 and len(vocabulary.libraries()) == 257
    assert {"peft", "transformers"} <= vocabulary.libraries() and "text-generation" in vocabulary.pipeline_tags()
    assert {"llama3.2", "gemma", "apache-2.0", "other"} <= vocabulary.licenses()
    assert {"no", "hi", "zho", "code"} <= vocabulary.languages() and "xx" not in vocabulary.languages()
    assert vocabulary.language_name("hi") == "Hindi" and vocabulary.language_name("zho") == "zho"


# --- command line -----------------------------------------------------------------------------------------------


def test_the_command_writes_the_card_and_says_what_it_lacks(shop: Path) -> None:
    result = CliRunner().invoke(command, [str(shop)])
    assert result.exit_code == 0 and result.stdout == f"{shop / 'README.md'}\n"
    assert "  licence, which the base's card does not tell: card.license\n" in result.stderr
    assert "card.intended_use" not in result.stderr and "publish.repo_id, or --repo-id" in result.stderr
    assert "warning: no licence" in result.stderr
    assert (shop / "README.md").read_text(encoding="utf-8") == card.render(shop, what="adapter")


def test_the_command_prints_without_writing(shop: Path) -> None:
    result = CliRunner().invoke(command, [str(shop), "--stdout", "--what", "merged", "--repo-id", "acme/shop"])
    assert result.exit_code == 0 and result.stdout == card.render(shop, what="merged", repo_id="acme/shop")
    assert not (shop / "README.md").exists()


def test_words_may_be_added_to_the_recipe_of_a_run_afterwards(shop: Path) -> None:
    path = shop / "recipe.yaml"
    path.write_text(path.read_text().replace("  contact: null", "  contact: acme.example"), encoding="utf-8")
    text = card.render(shop, what="adapter")
    assert section(text, "Authors and contact") == "**Contact:** acme.example"
    assert errors(card.lint(text, run=shop)) == []


def test_a_card_that_was_changed_by_hand_is_kept_and_our_own_is_not(shop: Path) -> None:
    assert card.write(shop).earlier is None and card.write(shop, repo_id="acme/shop").earlier is None
    (shop / "README.md").write_text("mine", encoding="utf-8")
    earlier = card.write(shop).earlier
    assert earlier is not None and earlier.read_text(encoding="utf-8") == "mine"


def test_the_command_looks_at_any_card(tmp_path: Path, shop: Path) -> None:
    path = tmp_path / "card.md"
    path.write_text(GOOD, encoding="utf-8")
    result = CliRunner().invoke(command, ["--check", str(path)])
    assert result.exit_code == 0 and result.stdout == f"{path}: nothing to say against it\n"
    assert CliRunner().invoke(command, [str(shop), "--check", str(path)]).exit_code == 1
    path.write_text(TRL_STYLE, encoding="utf-8")
    result = CliRunner().invoke(command, ["--check", str(path)])
    assert result.exit_code == 1 and f"{path}: error: line 9: licence" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [([], 2, "Give a RUN to write the card of, or --check FILE"), (["nowhere"], 1, "not a run folder"),
     (["RUN", "--repo-id", "a/b/c"], 1, "--repo-id a/b/c: expected owner/name, such as acme/shop"),
     (["RUN", "--what", "all"], 2, "'all' is not one of 'adapter', 'merged', 'both'")],
)  # fmt: skip
def test_wrong_words_are_explained(shop: Path, words: list[str], code: int, message: str) -> None:
    result = CliRunner().invoke(command, [str(shop) if word == "RUN" else word for word in words])
    assert result.exit_code == code and message in result.stderr and "Traceback" not in result.stderr


# --- a real run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder with a tiny base model, trained here."""
    from recipe_kit.local_models import local_folder
    from recipe_kit.training import train

    folder = tmp_path_factory.mktemp("trained")
    base = local_folder("tiny:chatml")
    text = f"""
name: tiny
model: {{id: "{base}", dtype: float32}}
method: lora
data: {{train: {{sample: support, limit: 32}}, eval: {{rows: 8}}, formatter: support, max_length: 256,
       system: Be short.}}
lora: {{r: 4, target_modules: [q_proj, v_proj]}}
training: {{max_steps: 12, per_device_train_batch_size: 4, learning_rate: 3.0e-2, logging_steps: 1,
           save_strategy: "no", use_cpu: true, report_to: []}}
evaluation: {{samples: 2, max_new_tokens: 8, batch_size: 2, metrics: [rouge], prompts: ["When do you open?"]}}
card: {{language: en}}
"""
    return train(recipe_of(folder, text=text), runs_dir=folder / "runs")


@pytest.mark.slow
def test_the_card_of_a_real_run_passes_lint_and_names_no_folder(trained: Path) -> None:
    text = card.render(trained, what="adapter")
    assert errors(card.lint(text, run=trained)) == []
    assert str(trained.parent.parent.parent) not in text and "recipe-kit/tiny-chatml" not in text
    measured = run_dir.read_metrics(trained)["scores"]
    (result,) = data_of(text)["model-index"][0]["results"]
    assert {m["args"]["score"]: m["value"] for m in result["metrics"] if "group" not in m["args"]} == {
        name: entry["tuned"]["value"] for name, entry in measured.items()
    }


def greedy(trained: Path) -> str:
    """What the run's own evaluation got for the fixed prompt, which is the example on the card."""
    line = next(line for line in run_dir.read_lines(trained / run_dir.SAMPLES) if line["kind"] == "prompt")
    assert line["tuned"]["text"].strip() and line["tuned"]["text"] != line["base"]["text"]
    return str(line["tuned"]["text"])


def printed(code: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        assert old in code
        code = code.replace(old, new)
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(code, "card", "exec"), {})
    return said.getvalue().rstrip("\n")


@pytest.mark.slow
def test_the_code_for_an_adapter_runs_and_answers_as_the_run_did(trained: Path, tmp_path: Path) -> None:
    base = json.loads((trained / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    blocks = {}
    for key in ("card.base_model=acme/base", "card.base_model=null"):
        run = tmp_path / key.replace("/", "-")
        run_of(run, load_recipe(trained / "recipe.yaml", overrides=[key]), measured=run_dir.read_metrics(trained),
               samples=run_dir.read_lines(trained / run_dir.SAMPLES), model={"dtype": "float32"})  # fmt: skip
        for block in re.findall(
            r"```python\n(.*?)```", card.render(run, what="adapter", repo_id="acme/tiny"), re.DOTALL
        ):
            blocks[block] = {"acme/tiny": str(trained / "adapter")}
            blocks[block] |= {"acme/base": base} if '"acme/base"' in block else {}
            blocks[block] |= {f'"{Path(base).name}"': f'"{base}"'} if f'"{Path(base).name}"' in block else {}
    assert len(blocks) == 3  # PEFT finds the base, the base by its Hub id, the base as a folder
    for block, replacements in blocks.items():
        assert printed(block, replacements) == greedy(trained)


@pytest.mark.slow
def test_the_code_for_merged_weights_runs_and_answers_as_the_run_did(trained: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    both = tmp_path / "both"
    AutoPeftModelForCausalLM.from_pretrained(trained / "adapter").merge_and_unload().save_pretrained(both)
    AutoTokenizer.from_pretrained(trained / "adapter").save_pretrained(both)
    (both / "adapter").symlink_to(trained / "adapter")
    base = json.loads((trained / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    run = run_of(
        tmp_path / "run", load_recipe(trained / "recipe.yaml", overrides=["card.base_model=acme/base"]),
        measured=run_dir.read_metrics(trained), samples=run_dir.read_lines(trained / run_dir.SAMPLES),
        model={"dtype": "float32"}, merge={"dtype": "float32"},
    )  # fmt: skip
    whole, adapter = re.findall(r"```python\n(.*?)```", card.render(run, what="both", repo_id="acme/tiny"), re.DOTALL)
    assert printed(whole, {"acme/tiny": str(both)}) == greedy(trained)
    assert printed(adapter, {"acme/tiny": str(both), "acme/base": base}) == greedy(trained)


@pytest.mark.slow
def test_the_card_of_a_full_smoke_run_passes_lint(tmp_path: Path) -> None:
    from recipe_kit.training import train

    run = train(load_recipe("llama32_1b_full", profiles=["smoke"]), runs_dir=tmp_path)
    text = card.render(run, what=None)
    assert errors(card.lint(text, run=run)) == []
    assert "**A wiring check.** The model is a tiny random one" in text
    assert "its answers mean nothing" in section(text, "Limitations")


@pytest.mark.slow
def test_the_card_of_a_qlora_smoke_run_passes_lint_and_its_code_answers_in_4_bits(tmp_path: Path) -> None:
    from recipe_kit.local_models import local_folder
    from recipe_kit.training import train

    overrides = ["card.base_model=acme/base", "training.learning_rate=3e-2"]
    run = train(load_recipe("samsum", profiles=["smoke"], overrides=overrides), runs_dir=tmp_path)
    text = card.render(run, what="adapter", repo_id="acme/samsum")
    assert errors(card.lint(text, run=run, repo_id="acme/samsum")) == []
    _, in_4_bits = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {"acme/samsum": str(run / "adapter"), "acme/base": str(local_folder("tiny:llama3"))}
    assert "load_in_4bit=True" in in_4_bits and printed(in_4_bits, found) == greedy(run)
