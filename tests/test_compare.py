"""`recipe-kit compare`: run folders side by side, what is not fair between them, and recipes times seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from recipe_kit import metrics, run_dir, trials
from recipe_kit.cli.compare import compare, one_flag_for_each
from recipe_kit.comparison import Comparison, as_csv, as_page, as_text, compare_runs, numbers
from recipe_kit.comparison.plan import plan, tokens_remark
from recipe_kit.comparison.runs import read_runs
from recipe_kit.errors import RecipeError, RunError
from recipe_kit.recipe import dump_recipe, load_recipe, recipe_digest

# Loss sums of four held-out rows with ten answer tokens each.
FIRST, SECOND = [20.0, 22.0, 18.0, 24.0], [18.0, 20.0, 17.0, 21.0]
ROWS = 4


def change(values: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        values = values.setdefault(key, {})
    values[last] = value


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value * 0.9, "high": value * 1.1}


def entry(label: str, tuned: float, *, base: float = 50.0, better: bool | None = True) -> dict[str, Any]:
    return {
        "label": label, "base": estimate(base), "tuned": estimate(tuned), "difference": estimate(tuned - base),
        "higher_is_better": better, "rows": ROWS, "settings": {},
    }  # fmt: skip


def make_run(
    folder: Path,
    losses: list[float] | None = None,
    *,
    overrides: tuple[str, ...] = (),
    info: dict[str, Any] | None = None,
    scores: dict[str, Any] | None = None,
    texts: list[str] | None = None,
) -> Path:
    """A run folder as `recipe-kit train` leaves it. `losses`: of each held-out row; `info` and `scores`: dotted keys
    of run.json and metrics.json that differ."""
    losses = FIRST if losses is None else losses
    recipe = load_recipe("quickstart", profiles=["smoke"], overrides=["evaluation.metrics=[chrf]", *overrides])
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"0" * 2048)
    (folder / "adapter" / "tokenizer.json").write_bytes(b"0" * 9999)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    run = {
        "status": "finished", "name": recipe.name, "method": recipe.method, "recipe_sha256": recipe_digest(recipe),
        "processes": 1, "seed": recipe.training["seed"],
        "hardware": {"device": "cpu", "machine": "x86_64", "cores": 2},
        "model": {"id": "tiny:chatml", "revision": None, "dtype": "float32", "trainable_parameters": 32768},
        "data": {"splits": {"train": {"content_sha256": "aaaa"}}},
        "training": {"tokens": 7000, "tokens_per_second": 900.0, "seconds": 30.0, "wall_seconds": 90.0,
                     "peak_memory_bytes": 3 * 2**30, "steps": 8},
    }  # fmt: skip
    perplexity = math.exp(sum(losses) / (10 * len(losses)))
    found = {
        "split": "test", "rows": len(losses), "content_sha256": "bbbb", "precision": "float32",
        "tuned": {"loss": math.log(perplexity), "perplexity": perplexity, "tokens": 40},
        "generation": {"answers": ROWS, "max_new_tokens": 64, "do_sample": False, "stop_token_ids": [2]},
        "scores": {"perplexity": entry("perplexity", perplexity, better=False)},
    }  # fmt: skip
    for key, value in (info or {}).items():
        change(run, key, value)
    for key, value in (scores or {}).items():
        change(found, key, value)
    run_dir.write_json(folder / "run.json", run)
    run_dir.write_json(folder / "metrics.json", found)
    lines = [
        {"row": row, "digest": f"{row:04}", "tuned": {"loss_sum": loss, "tokens": 10}, "answers": [
            {"turn": 0, "reference": "the right answer",
             "tuned": {"text": (texts or ["an answer"] * ROWS)[row], "tokens": 3, "stopped": True, "scores": {}}}]}
        for row, loss in enumerate(losses)
    ]  # fmt: skip
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., Comparison]:
    """Two runs that differ in what is given, compared."""

    def make(**second: Any) -> Comparison:
        first = make_run(tmp_path / "a")
        other = make_run(tmp_path / "b", second.pop("losses", SECOND), **second)
        return compare_runs([first, other])

    return make


def change_json(path: Path, **changes: Any) -> None:
    run_dir.write_json(path, json.loads(path.read_text()) | changes)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(compare, [str(word) for word in words])


# --- scores -----------------------------------------------------------------------------------------------------


def test_the_difference_from_the_first_run_is_paired_over_the_same_rows(two: Callable[..., Comparison]) -> None:
    first, second = two(overrides=("lora.r=4",)).entries
    found = second.against_first["perplexity"]
    assert first.against_first == {}
    assert found.value == pytest.approx(math.exp(76 / 40) - math.exp(84 / 40))
    # Every row of the second run is better, so every resample is; its two scores' own intervals overlap.
    assert found.low < found.high < 0 and found.verdict(False) == "better"
    assert second.scores["perplexity"].tuned.high > first.scores["perplexity"].tuned.low
    assert found.rows == 4 and found.p_value == 0.125


def test_a_corpus_score_is_compared_by_scoring_the_kept_answers_again(two: Callable[..., Comparison]) -> None:
    texts = ["the right answer", "the wrong answer", "no", "right"]
    of = [metrics.score("chrf", {}, answers, ["the right answer"] * 4)["chrf"].statistics.value()
          for answers in (["an answer"] * 4, texts)]  # fmt: skip
    comparison = two_with_chrf(two, texts, of)
    assert comparison.entries[1].against_first["chrf"].value == pytest.approx(of[1] - of[0])
    assert comparison.remarks == ()


def two_with_chrf(two: Callable[..., Comparison], texts: list[str], of: list[float]) -> Comparison:
    comparison = two(texts=texts, scores={"scores.chrf": entry("chrF2", of[1])}, overrides=("lora.r=4",))
    folder = Path(comparison.entries[0].folder)
    found = json.loads((folder / "metrics.json").read_text())
    found["scores"]["chrf"] = entry("chrF2", of[0])
    run_dir.write_json(folder / "metrics.json", found)
    return compare_runs([entry.folder for entry in comparison.entries])


def test_a_score_that_the_rows_do_not_give_back_has_no_difference_and_says_so(two: Callable[..., Comparison]) -> None:
    comparison = two_with_chrf(two, ["right"] * 4, [12.0, 77.0])
    assert "chrf" not in comparison.entries[1].against_first
    assert "chrF2: scores.jsonl does not give it back" in comparison.remarks[0]


def test_other_rows_in_the_same_file_give_no_difference(two: Callable[..., Comparison], tmp_path: Path) -> None:
    two()
    path = tmp_path / "b" / "scores.jsonl"
    path.write_text(path.read_text().replace('"0001"', '"ffff"'))
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert comparison.entries[1].against_first == {}
    assert "has other rows" in comparison.remarks[0]


@pytest.mark.parametrize("damage", ["{", "[1]\n", '{"row": 0}\n', None])
def test_scores_that_are_damaged_or_missing_cost_the_difference_alone(
    two: Callable[..., Comparison], tmp_path: Path, damage: str | None
) -> None:
    two()
    path = tmp_path / "b" / "scores.jsonl"
    path.unlink() if damage is None else path.write_text(damage)
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert "no paired difference" in comparison.remarks[0] and str(path) in comparison.remarks[0]
    assert "7.389" not in as_text(comparison) and "8.166 [7.350, 8.983]" in as_text(comparison)


def test_scores_of_a_part_of_the_rows_are_shown_by_the_name_of_the_part(two: Callable[..., Comparison]) -> None:
    groups = {"answer not in training": {"rows": 3, "scores": {"perplexity": entry("perplexity", 9.0)}}}
    assert "perplexity, answer not in training (3 rows)" in as_text(two(scores={"groups": groups}))


JUDGED = {"judge": {"model": "big", "pairs": 20, "win_share": estimate(0.75), "prompt_sha256": "ee"}}
TASK = {
    "documents_sha256": "ff",
    "metrics": {"acc": {"base": {"value": 0.3, "stderr": 0.1}, "tuned": {"value": 0.5, "stderr": 0.1}}},
}


def test_verdicts_of_a_judge_and_tasks_are_scores_too(two: Callable[..., Comparison]) -> None:
    text = as_text(two(scores={**JUDGED, "lm_eval": {"tasks": {"arc": TASK}}}))
    assert "preferred to the base by big (20 pairs)" in text and "0.7500 [0.6750, 0.8250]" in text
    (line,) = [line for line in text.splitlines() if line.startswith("arc, acc (lm-eval)")]
    assert "0.3000 [0.1040, 0.4960]" in line and "0.5000 [0.3040, 0.6960]" in line


def test_another_judge_or_other_documents_are_marked(tmp_path: Path) -> None:
    judges = {"judge": {**JUDGED["judge"], "model": "small"}}
    runs = [
        make_run(tmp_path / "a", scores={**JUDGED, "lm_eval": {"tasks": {"arc": TASK}}}),
        make_run(tmp_path / "b", scores={**judges, "lm_eval": {"tasks": {"arc": {**TASK, "documents_sha256": "00"}}}}),
    ]
    assert [mark.text.split(" (compared")[0] for mark in compare_runs(runs).marks] == [
        "judged otherwise: model is 'small' instead of 'big'",
        "arc of lm-eval was asked otherwise: documents_sha256 is 00 instead of ff",
    ]


def test_what_could_not_be_measured_is_said_once_for_all_runs(tmp_path: Path) -> None:
    problems = {"problems": ["metric bertscore: not installed"]}
    runs = [make_run(tmp_path / name, scores=problems) for name in ("a", "b")]
    assert "quickstart, a, quickstart, b: metric bertscore: not installed" in compare_runs(runs).remarks


def test_metrics_without_intervals_are_shown_as_they_are(two: Callable[..., Comparison]) -> None:
    comparison = two(scores={"scores": {}})
    assert comparison.entries[1].scores["perplexity"].tuned.low is None
    assert "6.686" in as_text(comparison) and "6.686 [" not in as_text(comparison)


# --- fairness ---------------------------------------------------------------------------------------------------

ROUGE = {"scores.rouge1": entry("ROUGE-1", 0.3)}


@pytest.mark.parametrize(
    ("second", "kind", "affects", "words"),
    [
        ({"scores": {"content_sha256": "cccc"}}, "held-out rows", "scores", "other held-out rows, 4 of test (cccc)"),
        ({"scores": {"split": "eval"}}, "held-out rows", "scores", "4 of eval (bbbb) instead of 4 of test (bbbb)"),
        ({"scores": {"rows": 3}}, "held-out rows", "scores", "3 of test"),
        ({"scores": {"precision": "nf4"}}, "precision", "scores", "in nf4 instead of float32"),
        ({"info": {"model.id": "tiny:llama3"}}, "base model", "all", "tiny:llama3 instead of tiny:chatml"),
        ({"info": {"model.revision": "12ab"}}, "base model", "all", "another revision of the base model, 12ab"),
        ({"info": {"data.splits.train.content_sha256": "dd"}}, "training rows", "all", "trained on other rows (dd"),
        ({"info": {"training.tokens": 7100}, "overrides": ("lora.r=4",)}, "token budget", "all", "7,100 tokens (+1%)"),
        ({"info": {"processes": 2}}, "processes", "speed", "in 2 processes instead of 1"),
        ({"info": {"hardware": {"device": "cuda", "name": "H100"}}}, "hardware", "speed", "H100 instead of 2 x86_64"),
        ({"info": {"training.resumed_at_step": 4}}, "resumed", "speed", "resumed at step 4"),
        ({"info": {"changed_on_resume": [{"step": 4}]}}, "changed on the way", "all", "packages changed at step 4"),
    ],
)  # fmt: skip
def test_what_is_not_equal_is_marked_in_a_sentence(
    two: Callable[..., Comparison], second: dict[str, Any], kind: str, affects: str, words: str
) -> None:
    comparison = two(**second)
    (mark,) = comparison.marks
    assert (mark.kind, mark.affects, mark.runs) == (kind, affects, (1,))
    assert words in comparison.sentence(mark)
    assert comparison.sentence(mark) in as_text(comparison)


def test_runs_that_differ_in_a_setting_alone_are_compared_without_a_mark(two: Callable[..., Comparison]) -> None:
    comparison = two(overrides=("lora.r=4",), info={"training.tokens": 7069})
    assert comparison.marks == () and comparison.remarks == ()
    assert [entry.label for entry in comparison.entries] == ["quickstart, r 16", "quickstart, r 4"]


@pytest.mark.parametrize("changed", [{"max_new_tokens": 32}, {"do_sample": True}, {"stop_token_ids": [2, 3]}])
def test_decoding_matters_where_scores_are_made_of_answers(tmp_path: Path, changed: dict[str, Any]) -> None:
    other = {f"generation.{key}": value for key, value in changed.items()}
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", scores=other)
    assert compare_runs([a, b]).marks == ()
    c, d = make_run(tmp_path / "c", scores=ROUGE), make_run(tmp_path / "d", scores={**ROUGE, **other})
    (mark,) = compare_runs([c, d]).marks
    assert mark.kind == "decoding" and str(next(iter(changed.values()))) in mark.text


def test_stop_tokens_in_another_order_are_the_same(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, scores={**ROUGE, "generation.stop_token_ids": ids})
        for name, ids in (("a", [2, 3]), ("b", [3, 2]))
    ]
    assert compare_runs(runs).marks == ()


def test_a_metric_with_other_settings_is_marked(tmp_path: Path) -> None:
    stemmed = {"scores.rouge1": {**entry("ROUGE-1", 0.3), "settings": {"stemmer": "Porter"}}}
    runs = [make_run(tmp_path / "a", scores=ROUGE), make_run(tmp_path / "b", scores=stemmed)]
    assert [mark.kind for mark in compare_runs(runs).marks] == ["metric settings"]


def test_other_held_out_rows_have_no_paired_difference(two: Callable[..., Comparison]) -> None:
    assert two(scores={"content_sha256": "cccc"}).entries[1].against_first == {}


def test_a_mark_stands_by_its_number_in_the_heading_of_its_column(two: Callable[..., Comparison]) -> None:
    text = as_text(two(overrides=("lora.r=4",), scores={"precision": "nf4"}, info={"processes": 2}))
    assert "quickstart, r 4 (1, 2)" in text.splitlines()[0]
    assert "quickstart, r 16 " in text.splitlines()[0]


def test_strict_refuses_what_is_marked_otherwise(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", scores={"precision": "nf4"})
    shown, refused = run(tmp_path / "a", tmp_path / "b"), run(tmp_path / "a", tmp_path / "b", "--strict")
    assert shown.exit_code == 0 and "Not a fair comparison in every respect:\n  (1) quickstart, b:" in shown.output
    assert refused.exit_code == 1 and "--strict: not a fair comparison" in refused.stderr
    assert refused.stdout == ""
    assert run(tmp_path / "a", "--strict").exit_code == 0


def test_strict_refuses_runs_that_are_not_finished_not_evaluated_or_damaged(tmp_path: Path) -> None:
    names = ["a", "failed", "bare", "damaged"]
    a, failed, bare, damaged = (make_run(tmp_path / name, overrides=(f"lora.r={r}",)) for r, name in
                                enumerate(names, 1))  # fmt: skip
    change_json(failed / "run.json", status="failed", error="out of memory")
    (bare / "metrics.json").unlink()
    change_json(damaged / "run.json", seed="many")
    assert run(a, failed, bare, damaged).exit_code == 0
    refused = run(a, failed, bare, damaged, "--strict")
    assert refused.exit_code == 1 and refused.stdout == ""
    first, *sentences = refused.stderr.splitlines()
    assert first == "recipe-kit: --strict: not a fair comparison"
    assert sentences[0] == "quickstart, r 2 did not finish: it failed (out of memory)"
    assert sentences[1].startswith("quickstart, r 3 was not evaluated; `recipe-kit eval")
    assert sentences[2].endswith("seed is 'many', not a whole number; the run folder is damaged")
    assert len(sentences) == 3


# --- runs that lack something -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"status": "running"}, "has not finished: it is still running, or was killed"),
        ({"status": "failed", "error": "out of memory"}, "did not finish: it failed (out of memory)"),
        ({"status": "interrupted"}, "did not finish: it was interrupted"),
        ({}, "was not evaluated; `recipe-kit eval"),
    ],
)
def test_an_unfinished_or_unevaluated_run_is_listed_and_the_others_are_compared(
    tmp_path: Path, info: dict[str, Any], words: str
) -> None:
    lame = make_run(tmp_path / "lame", info=info)
    for name in ("metrics.json", "scores.jsonl"):
        (lame / name).unlink()
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", SECOND, overrides=("lora.r=4",))
    comparison = compare_runs([lame, a, b])
    assert any(words in remark for remark in comparison.remarks)
    assert comparison.first == 1 and comparison.entries[2].against_first["perplexity"].value < 0
    assert "the others are compared with quickstart, r 16, a" in "\n".join(comparison.remarks)
    assert words in as_text(comparison)


def test_damaged_metrics_are_said_and_the_figures_kept(two: Callable[..., Comparison], tmp_path: Path) -> None:
    two()
    (tmp_path / "b" / "metrics.json").write_text("{")
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert "has no scores" in comparison.remarks[0] and "damaged" in comparison.remarks[0]
    assert comparison.entries[1].figures["tokens"] == 7000


@pytest.mark.parametrize("damage", ["null", "[1]", '{"scores": [1]}', '{"scores": {"chrf": 3}}'])
def test_metrics_of_another_shape_are_said_and_the_others_compared(
    two: Callable[..., Comparison], tmp_path: Path, damage: str
) -> None:
    two()
    (tmp_path / "b" / "metrics.json").write_text(damage)
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert "has no scores" in comparison.remarks[0] and "metrics.json" in comparison.remarks[0]
    assert comparison.entries[0].scores and comparison.entries[1].scores == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"seed": "many"}, "seed is 'many'"), ({"model": "tiny"}, "model"), ({"training": [1]}, "training is [1]")],
)
def test_a_damaged_run_file_is_said_and_the_others_compared(
    two: Callable[..., Comparison], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    two()
    change_json(tmp_path / "b" / "run.json", **changed)
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert len(comparison.entries) == 1 and comparison.damaged == comparison.remarks[:1]
    assert said in comparison.damaged[0] and comparison.damaged[0].endswith("the run folder is damaged")
    with pytest.raises(RunError, match="the run folder is damaged"):
        compare_runs([tmp_path / "b"])


def test_numbers_that_were_not_finite_cost_their_score_alone(two: Callable[..., Comparison], tmp_path: Path) -> None:
    two()
    change_json(tmp_path / "b" / "metrics.json", scores={}, tuned={"loss": None, "perplexity": None})
    scores = tmp_path / "a" / "scores.jsonl"
    scores.write_text(scores.read_text().replace("22.0", "null"))
    first, other = compare_runs([tmp_path / "a", tmp_path / "b"]).entries
    assert other.scores == other.against_first == {} and "perplexity" in first.scores
    change_json(
        tmp_path / "b" / "metrics.json", scores=json.loads((tmp_path / "a" / "metrics.json").read_text())["scores"]
    )
    assert "does not give it back" in "".join(compare_runs([tmp_path / "a", tmp_path / "b"]).remarks)


def test_scores_of_an_earlier_version_say_how_to_measure_again(two: Callable[..., Comparison], tmp_path: Path) -> None:
    two()
    path = tmp_path / "b" / "scores.jsonl"
    path.write_text("".join(json.dumps({"digest": str(i), "tuned": {"loss_sum": 2.0}}) + "\n" for i in range(ROWS)))
    said = compare_runs([tmp_path / "a", tmp_path / "b"]).remarks[0]
    assert "scores.jsonl: was written by an earlier version" in said
    assert f"`recipe-kit eval {tmp_path / 'b'}` measures it again" in said


def test_a_recipe_of_another_version_is_said_and_the_run_compared(
    two: Callable[..., Comparison], tmp_path: Path
) -> None:
    two()
    (tmp_path / "b" / "recipe.yaml").write_text("name: x\nold_key: 1\n")
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert "cannot be read by this version" in comparison.remarks[0]
    assert comparison.entries[1].against_first["perplexity"].value < 0


def test_links_and_folders_above_are_followed_and_the_same_run_is_listed_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "quickstart" / "2026-01-01T00-00-00")
    run_dir.point_latest(folder)
    comparison = compare_runs([folder, tmp_path / "quickstart" / "latest", tmp_path / "quickstart"])
    assert len(comparison.entries) == 1
    assert len([remark for remark in comparison.remarks if "are the same run" in remark]) == 2


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1 and "not a run folder (no run.json in it)" in result.stderr


def test_a_run_file_without_its_keys_is_damaged(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    found = json.loads((folder / "run.json").read_text())
    run_dir.write_json(folder / "run.json", {key: value for key, value in found.items() if key != "processes"})
    with pytest.raises(RunError, match="processes is missing; the run folder is damaged"):
        compare_runs([folder])


# --- seeds ------------------------------------------------------------------------------------------------------


def seeds_of(tmp_path: Path) -> Comparison:
    runs = []
    for seed, factor in ((0, 1.0), (1, 1.1), (2, 0.9)):
        for name, losses, r in (("a", FIRST, 16), ("b", SECOND, 4)):
            overrides = (f"training.seed={seed}", f"lora.r={r}")
            runs.append(make_run(tmp_path / f"{name}{seed}", [x * factor for x in losses], overrides=overrides))
    return compare_runs(runs)


def test_seeds_of_one_recipe_become_a_mean_with_its_spread(tmp_path: Path) -> None:
    comparison = seeds_of(tmp_path)
    assert [(group.label, group.seeds, group.runs) for group in comparison.groups] == [
        ("quickstart, r 16", (0, 1, 2), (0, 2, 4)),
        ("quickstart, r 4", (0, 1, 2), (1, 3, 5)),
    ]
    values = [math.exp(2.1 * factor) for factor in (1.0, 1.1, 0.9)]
    found = comparison.groups[0].scores["perplexity"].tuned
    mean = sum(values) / 3
    assert found.mean == pytest.approx(mean) and found.n == 3
    assert (found.min, found.max) == pytest.approx((math.exp(1.89), math.exp(2.31)))
    assert found.sd == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 2))


def test_a_difference_over_seeds_pairs_equal_seeds(tmp_path: Path) -> None:
    found = seeds_of(tmp_path).groups[1].scores["perplexity"].against_first
    pairs = [math.exp(1.9 * factor) - math.exp(2.1 * factor) for factor in (1.0, 1.1, 0.9)]
    assert found is not None and found.n == 3
    assert (found.min, found.mean, found.max) == pytest.approx((min(pairs), sum(pairs) / 3, max(pairs)))


def test_an_interval_over_rows_never_stands_in_a_column_of_seeds(tmp_path: Path) -> None:
    comparison = seeds_of(tmp_path)
    text = as_text(comparison)
    (line,) = [line for line in text.splitlines() if line.startswith("perplexity")]
    assert line.split("  ")[0] == "perplexity" and "8.287 (6.619–10.074, sd 1.731)" in line
    assert "[" not in line.replace("50.00 [45.00, 55.00]", "")  # the base is the same for all
    assert "better in 3 of 3" in text and "0, 1, 2 (n 3)" in text
    page = as_page(comparison, title="t")
    assert "Every run" in page and "8.166 <span class=whole>[7.350, 8.983]</span>" in page


def test_the_same_recipe_and_seed_twice_is_no_spread_over_seeds(tmp_path: Path) -> None:
    comparison = compare_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", SECOND)])
    assert [group.runs for group in comparison.groups] == [(0,), (1,)]
    assert [group.label for group in comparison.groups] == ["quickstart, a", "quickstart, b"]


def test_a_repeated_seed_among_others_counts_once(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, overrides=(f"training.seed={seed}",))
        for name, seed in (("a", 0), ("b", 1), ("c", 1))
    ]
    comparison = compare_runs(runs)
    assert [group.runs for group in comparison.groups] == [(0, 2)]
    assert (
        "the mean over seeds leaves it out" in comparison.remarks[0] and str(tmp_path / "b") in comparison.remarks[0]
    )


def test_token_budgets_are_compared_between_equal_seeds(tmp_path: Path) -> None:
    """Another seed draws other rows, with another number of tokens: that is no unfair comparison."""
    runs = [
        make_run(tmp_path / f"{r}-{seed}", overrides=(f"training.seed={seed}", f"lora.r={r}"),
                 info={"training.tokens": tokens})
        for seed, r, tokens in ((0, 16, 7000), (1, 16, 9000), (0, 4, 7000), (1, 4, 9000))
    ]  # fmt: skip
    assert compare_runs(runs).marks == ()
    info = json.loads((runs[3] / "run.json").read_text())
    info["training"]["tokens"] = 7000
    run_dir.write_json(runs[3] / "run.json", info)
    (mark,) = compare_runs(runs).marks
    assert "7,000 tokens (-22%) instead of 9,000 (compared with quickstart, r 16, seed 1)" in mark.text


def test_a_mark_of_all_seeds_names_the_recipe_once(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{r}-{seed}", overrides=(f"training.seed={seed}", f"lora.r={r}"),
                 scores={"precision": precision})
        for seed in (0, 1) for r, precision in ((16, "float32"), (4, "nf4"))
    ]  # fmt: skip
    comparison = compare_runs(runs)
    assert comparison.sentence(comparison.marks[0]).startswith("quickstart, r 4: measured with weights in nf4")


# --- figures and outputs ----------------------------------------------------------------------------------------


def test_what_a_run_took_is_shown_with_units(two: Callable[..., Comparison]) -> None:
    text = as_text(two())
    for words in ("3.0 GiB", "900", "30.0 s", "1:30 min", "7,000", "32,768", "2.0 KiB"):
        assert words in text


@pytest.mark.parametrize(
    ("hardware", "processes", "cost"),
    [({"device": "cuda", "name": "H100"}, 4, 0.4), ({"device": "cpu", "machine": "x86_64", "cores": 2}, 4, 0.1)],
)
def test_cost_counts_a_gpu_for_each_process_and_one_machine_without_gpus(
    tmp_path: Path, hardware: dict[str, Any], processes: int, cost: float
) -> None:
    folder = make_run(tmp_path / "a", info={"hardware": hardware, "processes": processes})
    comparison = compare_runs([folder], price_per_hour=4.0)  # 90 seconds of wall time
    assert comparison.entries[0].figures["cost"] == pytest.approx(cost)
    assert "cost: 4 an hour for each process's GPU" in comparison.remarks[0]
    assert "cost" not in compare_runs([folder]).entries[0].figures


def test_a_resumed_run_has_no_cost_since_it_recorded_its_last_part_only(tmp_path: Path) -> None:
    whole, resumed = make_run(tmp_path / "a"), make_run(tmp_path / "b", info={"training.resumed_at_step": 5})
    comparison = compare_runs([whole, resumed], price_per_hour=4.0)
    assert [entry.figures["cost"] for entry in comparison.entries] == [pytest.approx(0.1), None]
    assert "none is shown for a resumed run" in comparison.remarks[-1]
    assert "resumed at step 5: its tokens, speed and time count from there" in as_text(comparison)


def test_a_resumed_run_whose_totals_are_whole_is_compared_like_any_other(tmp_path: Path) -> None:
    resumed = {"training.resumed_at_step": 5, "training.counted_from_step": 0}
    folders = make_run(tmp_path / "a"), make_run(tmp_path / "b", info=resumed)
    comparison = compare_runs(folders, price_per_hour=4.0)
    assert [entry.figures["cost"] for entry in comparison.entries] == [pytest.approx(0.1)] * 2
    assert "of a resumed run, steps that were done twice are counted once" in comparison.remarks[-1]
    assert "count from there" not in as_text(comparison)


def test_numbers_that_round_to_zero_are_zero() -> None:
    assert [numbers.number(x) for x in (-0.00001, 0.00001, -0.0, -0.0001)] == ["0", "0", "0", "-0.0001"]
    assert numbers.number(-0.00001, sign=True) == "0"


def test_the_base_is_shown_once_where_it_is_the_same_and_for_each_run_where_not(
    two: Callable[..., Comparison],
) -> None:
    same = as_text(two())
    assert same.splitlines()[0].split()[0] == "base" and same.count("50.00 [45.00, 55.00]") == 1
    assert "  base" not in [line[:6] for line in same.splitlines()[1:]]


def test_bases_that_differ_have_a_row_of_their_own(two: Callable[..., Comparison]) -> None:
    differ = as_text(two(scores={"scores.perplexity": entry("perplexity", 6.6, base=51.0)}))
    (line,) = [line for line in differ.splitlines() if line.startswith("  base")]
    assert "50.00 [45.00, 55.00]" in line and "51.00 [45.90, 56.10]" in line


def test_json_is_what_the_table_shows_and_more(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", SECOND, overrides=("lora.r=4",))
    found = json.loads(run(tmp_path / "a", tmp_path / "b", "--json").stdout)
    assert found["first"] == 0 and [entry["label"] for entry in found["runs"]] == [
        "quickstart, r 16",
        "quickstart, r 4",
    ]
    assert found["runs"][1]["against_first"]["perplexity"]["p_value"] == 0.125


def test_csv_has_a_line_for_each_run(tmp_path: Path) -> None:
    comparison = compare_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", SECOND, overrides=("lora.r=4",))])
    first, second = csv.DictReader(io.StringIO(as_csv(comparison)))
    assert second["run"] == "quickstart, r 4" and float(second["perplexity.tuned"]) == pytest.approx(math.exp(1.9))
    assert float(second["perplexity.difference"]) < 0 and first["perplexity.difference"] == ""
    assert second["weights_bytes"] == "2048" and second["held_out.rows"] == "4"


def test_the_page_holds_everything_and_takes_no_markup_from_a_run(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", info={"name": "<img src=x>"}, scores={"precision": "nf4"}),
    ]
    comparison = compare_runs(runs, price_per_hour=1)
    page = as_page(comparison, title="A & B")
    assert "<img" not in page and "&lt;img src=x&gt; (1)" in page and "<h1>A &amp; B</h1>" in page
    assert "http" not in page.replace("http-equiv", "")
    for words in ("Scores", "Difference from the first", "What it took", "in nf4 instead of float32", "Folders"):
        assert words in page


def test_columns_that_do_not_fit_the_terminal_stand_below(two: Callable[..., Comparison]) -> None:
    comparison = two(overrides=("lora.r=4",))
    wide, narrow = as_text(comparison), as_text(comparison, width=70)
    assert wide.count("SCORES") == 1 and narrow.count("SCORES") == 2
    table = narrow.partition("Notes:")[0]
    assert max(map(len, table.splitlines())) <= 70


def test_files_are_not_overwritten_unless_forced(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    page = tmp_path / "page.html"
    page.write_text("mine")
    refused = run(folder, "--html", page)
    assert refused.exit_code == 1 and "add --force to overwrite it" in refused.stderr and page.read_text() == "mine"
    assert run(folder, "--html", page, "--csv", tmp_path / "runs.csv", "--force").exit_code == 0
    assert page.read_text().startswith("<!doctype html>") and (tmp_path / "runs.csv").is_file()
    assert "there is no folder" in run(folder, "--csv", tmp_path / "no" / "runs.csv").stderr


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    folder, page = make_run(tmp_path / "a"), tmp_path / "page.html"
    refused = run(folder, "--html", page, "--csv", tmp_path / "a" / ".." / "page.html", "--force")
    assert refused.exit_code == 1 and "is named for two outputs" in refused.stderr and not page.exists()


# --- recipes times seeds ----------------------------------------------------------------------------------------

METHODS = ["llama32_1b_full", "llama32_1b_lora", "llama32_1b_qlora"]


def test_several_values_after_one_option_are_one_option_each() -> None:
    line = "--recipes a b --seeds 0 1 --profile smoke --html p.html --recipes c --set k=-1 -- --seeds 2 3"
    assert " ".join(one_flag_for_each(line.split())) == (
        "--recipes a --recipes b --seeds 0 --seeds 1 --profile smoke --html p.html --recipes c --set k=-1 "
        "-- --seeds 2 3"
    )


def test_the_line_of_the_issue_plans_every_recipe_with_every_seed(tmp_path: Path) -> None:
    words = ["--recipes", *METHODS, "--seeds", "0", "1", "2", "--profile", "smoke", "--runs-dir", str(tmp_path)]
    lines = run(*words, "--dry-run").stdout.splitlines()
    assert [line.split()[2] for line in lines] == METHODS * 3
    assert [line.split()[-1] for line in lines] == [f"training.seed={seed}" for seed in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert lines[0].startswith(f"recipe-kit train llama32_1b_full --runs-dir {tmp_path} --profile smoke --set ")


def test_recipes_that_would_read_other_tokens_are_refused_key_by_key(tmp_path: Path) -> None:
    for name, keys in (("a", "lora.r=4"), ("b", "data.max_length=128"), ("c", "training.max_steps=9")):
        recipe = load_recipe("quickstart", profiles=["smoke"], overrides=[keys])
        (tmp_path / f"{name}.yaml").write_text(dump_recipe(recipe))
    files = [str(tmp_path / f"{name}.yaml") for name in "abc"]
    with pytest.raises(RecipeError) as refused:
        plan(files, [0, 1], runs_dir=tmp_path)
    first, second, remedy = refused.value.problems
    assert first.key == "data.max_length" and first.message == f"128 in {files[1]} and 256 in {files[0]}"
    assert second.key == "training.max_steps"
    assert "the same tokens in the same order; make them equal" in remedy.message


def test_recipes_of_other_data_are_refused_with_their_keys_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        plan(["quickstart", "samsum"], [0], profiles=["smoke"], runs_dir=tmp_path)
    lines = [str(problem) for problem in refused.value.problems]
    (data,) = [line for line in lines if line.startswith("data")]
    assert data.startswith("data: samsum and quickstart differ in ") and "train" in data and "max_length" in data
    assert sum("make them equal" in line for line in lines) == 1


def test_equal_effective_batches_in_other_pieces_are_equal(tmp_path: Path) -> None:
    for name, size, pieces in (("a", 8, 1), ("b", 4, 2), ("c", 4, 1)):
        overrides = [f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={pieces}"]
        recipe = load_recipe("quickstart", profiles=["smoke"], overrides=overrides)
        (tmp_path / f"{name}.yaml").write_text(dump_recipe(recipe))
    a, b, c = (str(tmp_path / f"{name}.yaml") for name in "abc")
    assert len(plan([a, b], [0], runs_dir=tmp_path)) == 2
    with pytest.raises(RecipeError, match="effective batch size: 4 in .*c.yaml and 8 in .*a.yaml"):
        plan([a, c], [0], runs_dir=tmp_path)


def test_with_auto_the_rows_of_a_step_stand_in_the_other_key(tmp_path: Path) -> None:
    for name, size, rows in (("a", "auto", 8), ("b", 4, 2), ("c", "auto", 4)):
        overrides = [f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={rows}"]
        recipe = load_recipe("quickstart", profiles=["smoke"], overrides=overrides)
        (tmp_path / f"{name}.yaml").write_text(dump_recipe(recipe))
    a, b, c = (str(tmp_path / f"{name}.yaml") for name in "abc")
    assert len(plan([a, b], [0], runs_dir=tmp_path)) == 2
    with pytest.raises(RecipeError, match="effective batch size: 4 in .*c.yaml and 8 in .*a.yaml"):
        plan([a, c], [0], runs_dir=tmp_path)


def test_without_seeds_the_recipes_own_seeds_must_agree(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", overrides=["training.seed=7"])
    (tmp_path / "other.yaml").write_text(dump_recipe(recipe))
    recipes = ["quickstart", str(tmp_path / "other.yaml")]
    with pytest.raises(RecipeError, match="training.seed: 7 in .* and 42 in quickstart"):
        plan(recipes, [], runs_dir=tmp_path)
    assert [entry.seed for entry in plan(recipes, [1], runs_dir=tmp_path)] == [1, 1]


def test_mistakes_of_all_recipes_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        plan(["samsun", "quickstart", "guanako"], [0], runs_dir=tmp_path)
    assert "did you mean samsum" in str(refused.value) and "did you mean guanaco" in str(refused.value)
    with pytest.raises(RecipeError, match="--seeds: 1 is given twice"):
        plan(["quickstart"], [1, 1], runs_dir=tmp_path)


def test_a_finished_run_of_the_same_recipe_is_not_trained_again(tmp_path: Path) -> None:
    (entry,) = plan(["quickstart"], [3], profiles=["smoke"], runs_dir=tmp_path)
    digest = entry.trial.digest
    runs = {
        "2026-01-01T00-00-01": {"recipe_sha256": digest, "status": "failed"},
        "2026-01-01T00-00-02": {"recipe_sha256": digest},
        "2026-01-01T00-00-03": {"recipe_sha256": "other"},
    }
    for stamp, info in runs.items():
        make_run(tmp_path / "quickstart" / stamp, info=info)
    (again,) = plan(["quickstart"], [3], profiles=["smoke"], runs_dir=tmp_path)
    assert again.finished == tmp_path / "quickstart" / "2026-01-01T00-00-02"
    (other,) = plan(["quickstart"], [3], profiles=["smoke"], runs_dir=tmp_path, num_processes=2)
    assert other.finished is None
    line = run("--recipes", "quickstart", "--seeds", "3", "--profile", "smoke", "--runs-dir", tmp_path, "--dry-run")
    assert line.stdout == f"finished already: {again.finished}\n"


def test_a_failed_trial_is_said_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(trial: trials.Trial, runs_dir: str, **_: Any) -> trials.Outcome:
        if trial.recipe.training["seed"] == 1:
            return trials.Outcome("failed", None, "out of memory")
        info = {"recipe_sha256": trial.digest, "name": trial.recipe.name}
        overrides = (f"training.seed={trial.recipe.training['seed']}",)
        return trials.Outcome("finished", make_run(tmp_path / "quickstart" / "x", info=info, overrides=overrides))

    monkeypatch.setattr(trials, "train", train)
    words = ["--recipes", "quickstart", "--seeds", "0", "1", "--profile", "smoke", "--runs-dir", str(tmp_path)]
    result = run(*words)
    assert result.exit_code == 1
    assert "quickstart, seed 1, failed: out of memory" in result.stdout and "8.166" in result.stdout
    assert "[1/2] quickstart, seed 0: finished already in" in run(*words).stderr


def test_all_trials_failing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "train", lambda *_, **__: trials.Outcome("failed", None, "no such file"))
    result = run("--recipes", "quickstart", "--profile", "smoke", "--runs-dir", tmp_path)
    assert result.exit_code == 1 and "all 1 trainings failed" in result.stderr and "no such file" in result.stderr


def test_an_interrupted_comparison_says_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> trials.Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "train", interrupted)
    result = run("--recipes", "quickstart", "--profile", "smoke", "--runs-dir", tmp_path)
    assert result.exit_code == 130 and "the same command goes on" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "either run folders, or recipes"),
        (["a", "--recipes", "quickstart"], None),
        (["runs/a", "--seeds", "1"], "--seeds says how to train"),
        (["runs/a", "--profile", "smoke"], "--profile says how to train"),
        (["--recipes", "quickstart", "--seeds", "one"], "'one' is not a valid integer"),
        (["runs/a", "--price-per-hour", "nan"], "nan is no price"),
        (["runs/a", "--price-per-hour", "inf"], "inf is no price"),
        (["runs/a", "--price-per-hour", "-1"], "not in the range"),
    ],
)
def test_wrong_usage_is_exit_code_two(words: list[str], said: str | None) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert said is None or said in result.stderr


def test_unequal_tokens_after_training_are_said(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{r}", overrides=(f"lora.r={r}",), info={"training.tokens": tokens})
        for r, tokens in ((16, 7000), (4, 7001))
    ]
    assert "did not read equally many tokens in training (seed 42: 7,000 and 7,001)" in tokens_remark(
        read_runs(runs)[0]
    )
    assert tokens_remark(read_runs(runs[:1])[0]) == ""


# --- children ---------------------------------------------------------------------------------------------------

# Stands for `recipe-kit train`: makes a run folder, logs a step every tenth of a second, and heeds an interrupt.
CHILD = """
import json, os, pathlib, signal, sys, time
runs = pathlib.Path(sys.argv[sys.argv.index("--runs-dir") + 1])
run = runs / "quickstart" / "2026-01-01T00-00-00"
run.mkdir(parents=True)
def say(status):
    about = {"name": "quickstart", "method": "lora", "model": {}, "data": {}}
    (run / "run.json").write_text(json.dumps({**about, "recipe_sha256": os.environ["DIGEST"], "status": status}))
print("results nobody asked for")
say("running")
print("step 1", file=sys.stderr, flush=True)
try:
    for step in range(int(os.environ["STEPS"])):
        with (run / "training_log.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "loss": 2.0}) + "\\n")
        time.sleep(0.1)
except KeyboardInterrupt:
    say("interrupted")
    print("recipe-kit: --resume continues", file=sys.stderr, flush=True)
    sys.exit(130)
if os.environ.get("FAIL"):
    say("failed")
    print("recipe-kit: no rows are left\\nmore", file=sys.stderr, flush=True)
    sys.exit(1)
say("finished")
"""


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Callable[..., trials.Trial]:
    def make(steps: int, **environment: str) -> trials.Trial:
        found = trials.load("quickstart", ["smoke"], [])
        monkeypatch.setattr(trials, "_TRAIN", CHILD)
        for key, value in {"DIGEST": found.digest, "STEPS": str(steps), **environment}.items():
            monkeypatch.setenv(key, value)
        return found

    return make


def test_a_child_that_finishes_is_found_by_its_recipe(
    trial: Callable[..., trials.Trial], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    outcome = trials.train(trial(3), tmp_path, echo=said.append)
    assert (outcome.status, outcome.run) == ("finished", tmp_path / "quickstart" / "2026-01-01T00-00-00")
    assert said == ["step 1"] and capfd.readouterr().out == ""


def test_a_child_that_fails_gives_its_own_sentence(trial: Callable[..., trials.Trial], tmp_path: Path) -> None:
    outcome = trials.train(trial(0, FAIL="1"), tmp_path)
    assert (outcome.status, outcome.reason) == ("failed", "no rows are left")


def test_a_watched_child_is_stopped_by_an_interrupt_and_may_write(
    trial: Callable[..., trials.Trial], tmp_path: Path
) -> None:
    said: list[str] = []
    outcome = trials.train(
        trial(1000), tmp_path, watch=lambda line: "enough" if line["step"] >= 3 else None, echo=said.append
    )
    assert (outcome.status, outcome.reason) == ("stopped", "enough")
    assert outcome.run is not None and run_dir.read(outcome.run)["status"] == "interrupted"
    assert said == ["step 1"]  # not its advice to use --resume
    steps = [line["step"] for line in trials.read_log(outcome.run)]
    assert steps == list(range(len(steps))) and len(steps) < 100


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_parent_and_child(
    trial: Callable[..., trials.Trial], tmp_path: Path, name: signal.Signals
) -> None:
    found = trial(1000)
    code = (
        "import sys; from recipe_kit import trials; trials._TRAIN = sys.argv[2]\n"
        "echo = lambda line: print(line, flush=True)\n"
        "try: trials.train(trials.load('quickstart', ['smoke'], []), sys.argv[1], echo=echo)\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), CHILD], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "step 1\n"
        time.sleep(0.2)
        os.kill(process.pid, name)
        assert process.wait(timeout=20) == 130
    (run,) = (tmp_path / found.recipe.name).iterdir()
    assert run_dir.read(run)["status"] == "interrupted"


def test_half_a_line_of_a_growing_log_is_read_later(tmp_path: Path) -> None:
    log = trials._Log()
    log.run = tmp_path
    (tmp_path / "training_log.jsonl").write_text('{"step": 1}\n{"st')
    assert list(log.new_lines()) == [{"step": 1}]
    with (tmp_path / "training_log.jsonl").open("a") as file:
        file.write('ep": 2}\n')
    assert list(log.new_lines()) == [{"step": 2}] and list(log.new_lines()) == []


@pytest.mark.slow
def test_three_methods_with_two_seeds_are_trained_and_compared_and_found_again(tmp_path: Path) -> None:
    words = ["--recipes", *METHODS, "--seeds", "0", "1", "--profile", "smoke", "--runs-dir", str(tmp_path)]
    words += ["--set", "training.max_steps=2", "--set", "evaluation.samples=0"]
    result = run(*words, "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr[-2000:]
    assert result.stderr.count("step 2/2") == 6
    assert "all recipes read equally many tokens in training" in result.stdout
    assert "measured with weights in nf4 instead of float32" in result.stdout
    again = run(*words, "--json")
    assert again.exit_code == 0 and again.stderr.count("finished already in") == 6 and "step" not in again.stderr
    found = json.loads(again.stdout)
    assert [(group["label"], group["seeds"]) for group in found["groups"]] == [(name, [0, 1]) for name in METHODS]
    assert {mark["kind"] for mark in found["marks"]} == {"precision"}
    full, lora = found["groups"][0]["figures"], found["groups"][1]["figures"]
    assert full["trainable_parameters"]["mean"] > lora["trainable_parameters"]["mean"]
    assert full["tokens"] == lora["tokens"] and "Every run" in (tmp_path / "page.html").read_text()
