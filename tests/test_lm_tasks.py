"""Tasks of lm-evaluation-harness on base and tuned model, with a task of our own that needs no network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipe_kit.errors import ModelError
from recipe_kit.evaluation import lm_tasks

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval is not installed: pip install lm-eval"
)

TASK = """
task: pets
dataset_path: json
dataset_kwargs: {data_files: {test: "DATA"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: brier_score, higher_is_better: false}
metadata: {version: 2.5}
"""
QUESTIONS: list[dict[str, Any]] = [
    {"question": "A cat says", "choices": ["meow", "woof"], "answer": 0},
    {"question": "A dog says", "choices": ["meow", "woof"], "answer": 1},
    {"question": "A cow says", "choices": ["moo", "quack"], "answer": 0},
    {"question": "A duck says", "choices": ["moo", "quack"], "answer": 1},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one task and its questions."""
    data = tmp_path / "pets.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pets.yaml").write_text(TASK.replace("DATA", str(data)))
    return tmp_path / "tasks"


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Callable[..., Any]) -> Any:
    from transformers import AutoModelForCausalLM

    from recipe_kit.local_models import local_folder

    return AutoModelForCausalLM.from_pretrained(local_folder("tiny:chatml")).eval()


def log_likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """What the harness should find, the plain way: of the answer's tokens, after the prompt's."""
    import torch

    before, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + answer)["input_ids"]
    with torch.no_grad():
        scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(scores[place - 1, whole[place]]) for place in range(len(before), len(whole)))


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(ModelError, match=r"pip install 'recipe-kit\[lm-eval\]'"):
        lm_tasks.check(["arc_easy"])


def test_both_models_stand_side_by_side_with_their_errors() -> None:
    def found(accuracy: float, hashed: str = "aa") -> dict[str, Any]:
        metrics = {"acc": {"value": accuracy, "stderr": 0.1, "higher_is_better": True}}
        task = {"version": 1, "documents": 4, "num_fewshot": 0, "documents_sha256": hashed, "metrics": metrics}
        return {"lm_eval": "0.4.9", "tasks": {"pets": task}, "problems": ["lm_eval task cars failed: OSError"]}

    both = lm_tasks.side_by_side(found(0.25), found(0.75))
    assert both == {
        "lm_eval": "0.4.9",
        "tasks": {
            "pets": {
                "version": 1,
                "documents": 4,
                "num_fewshot": 0,
                "documents_sha256": "aa",
                "metrics": {
                    "acc": {
                        "base": {"value": 0.25, "stderr": 0.1, "higher_is_better": True},
                        "tuned": {"value": 0.75, "stderr": 0.1, "higher_is_better": True},
                    }
                },
            }
        },
        "problems": ["lm_eval task cars failed: OSError"],
    }
    assert "cannot be compared" in lm_tasks.side_by_side(found(0.25, "bb"), found(0.75))["tasks"]["pets"]["differs"]
    assert lm_tasks.side_by_side({}, found(0.5))["tasks"] == {}


@installed
@pytest.mark.slow
def test_a_folder_of_tasks_runs_and_agrees_with_a_plain_loop(
    folder: Path, model: Any, tiny_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = tiny_tokenizer("chatml")
    found = lm_tasks.run_tasks(model, tokenizer, [str(folder)])
    right = 0
    for row in QUESTIONS:
        scores = [log_likelihood(model, tokenizer, row["question"], f" {choice}") for choice in row["choices"]]
        right += scores.index(max(scores)) == row["answer"]
    task = found["tasks"]["pets"]
    assert task["metrics"]["acc"]["value"] == right / 4
    assert 0 < task["metrics"]["acc"]["stderr"] < 1 and task["metrics"]["acc"]["higher_is_better"] is True
    assert (task["version"], task["documents"], task["num_fewshot"]) == (2.5, 4, 0)
    assert len(task["documents_sha256"]) == 64 and found["problems"] == []
    json.dumps(found)


@installed
@pytest.mark.slow
def test_an_adapter_is_measured_on_and_off(folder: Path, model: Any, tiny_tokenizer: Callable[..., Any]) -> None:
    import copy

    import peft
    import torch

    tuned = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=5.0, generator=torch.Generator().manual_seed(0))
    tokenizer = tiny_tokenizer("chatml")
    on = lm_tasks.run_tasks(tuned, tokenizer, [str(folder)])
    with tuned.disable_adapter():
        off = lm_tasks.run_tasks(tuned, tokenizer, [str(folder)])
    assert off == lm_tasks.run_tasks(model, tokenizer, [str(folder)])
    scores = lm_tasks.side_by_side(off, on)["tasks"]["pets"]["metrics"]["brier_score"]
    assert scores["base"]["value"] != scores["tuned"]["value"]
    assert tokenizer.padding_side == tiny_tokenizer("chatml").padding_side


@installed
@pytest.mark.slow
def test_limit_and_shots_reach_the_harness(folder: Path, model: Any, tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer("chatml")
    whole = lm_tasks.run_tasks(model, tokenizer, [str(folder)])["tasks"]["pets"]
    part = lm_tasks.run_tasks(model, tokenizer, [str(folder)], limit=2, num_fewshot=1)["tasks"]["pets"]
    assert (part["documents"], part["num_fewshot"]) == (2, 1)
    assert part["documents_sha256"] != whole["documents_sha256"]


@installed
@pytest.mark.slow
def test_a_task_without_its_data_is_a_sentence_and_the_others_are_kept(
    folder: Path, model: Any, tiny_tokenizer: Callable[..., Any]
) -> None:
    lost = TASK.replace("task: pets", "task: lost").replace("DATA", str(folder / "nothing.jsonl"))
    (folder / "lost.yaml").write_text(lost)
    found = lm_tasks.run_tasks(model, tiny_tokenizer("chatml"), [str(folder)])
    assert list(found["tasks"]) == ["pets"]
    assert len(found["problems"]) == 1
    assert found["problems"][0].startswith("lm_eval task lost failed: ") and "nothing.jsonl" in found["problems"][0]


@installed
@pytest.mark.slow
def test_an_unknown_task_names_the_nearest(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"knows no task 'arc_esy'; did you mean arc_easy\?"):
        lm_tasks.check([str(folder), "arc_esy"])
    lm_tasks.check(["arc_easy", "hellaswag", str(folder)])


@installed
@pytest.mark.slow
@pytest.mark.parametrize(("name", "said"), [("nowhere", "is no folder"), ("empty", "holds no task file")])
def test_a_folder_without_tasks_is_a_sentence(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=said):
        lm_tasks.check([str(tmp_path / name)])
