"""The report of a run: says what its files show, no more, whatever state they are in."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pages import Document
from recipe_kit.cli.report import report
from recipe_kit.errors import RunError
from recipe_kit.page import page
from recipe_kit.report import CSV_COLUMNS, write_report
from recipe_kit.report.files import read
from recipe_kit.report.plots import MAX_POINTS, means, thin
from recipe_kit.report.verdict import verdict
from recipe_kit.report.words import duration, estimate, number, p_value, short_count

INFO: dict[str, Any] = {
    "status": "finished", "name": "shop", "method": "lora", "seed": 42, "processes": 1, "notes": [],
    "started_at": "2026-01-02T03:04:05+00:00", "recipe_kit_version": "0.1.0", "versions": {"torch": "2.13.0"},
    "hardware": {"device": "cpu", "machine": "x86_64", "cores": 2}, "git_commit": None,
    "command": ["/somewhere/recipe_kit/__main__.py", "shop", "--set", "training.seed=4 2"],
    "model": {"id": "some/model", "parameters": 139_399_488, "trainable_parameters": 4_884_480},
    "data": {"splits": {
        "train": {"read": 264, "kept": 260, "dropped": {"answer is empty": 4}, "tokens": 1000, "trained_tokens": 400,
                  "sources": [{"sample": "shop", "split": "train"}],
                  "lengths": {"edges": [0, 32, 64], "tokens": [60, 200], "trained": [250, 10]}},
        "test": {"read": 52, "kept": 52, "dropped": {}, "tokens": 200, "trained_tokens": 80},
    }},
    "proofs": [{"name": "one_bos", "ok": True, "detail": "none", "remedy": "", "fatal": True},
               {"name": "answers_whole", "ok": False, "detail": "9 rows cut", "remedy": "raise it", "fatal": False}],
    "training": {"steps": 132, "tokens": 16_000, "wall_seconds": 250.4, "peak_memory_bytes": 4_509_715_661},
}  # fmt: skip
LOG = [{"step": step, "seconds": 2.0 * step, "epoch": step / 33, "loss": 4.0 / step, "learning_rate": 0.001,
        "grad_norm": 1.0, "num_tokens": 100.0 * step, "tokens_per_second": 50.0, "peak_memory_bytes": 2**31}
       for step in (1, 5, 10)]  # fmt: skip
SAMPLE = {
    "kind": "held_out",
    "prompt": [{"role": "user", "content": "When do you open?"}],
    "reference": "At nine.",
    "base": {"text": "I do not know", "tokens": 4, "stopped": False},
    "tuned": {"text": "At nine.", "tokens": 3, "stopped": True},
    "pieces": [["<|im_start|>", False, True], ["assistant\n", False, False], ["At nine.", True, False]],
}


def score(
    label: str, base: float, tuned: float, difference: tuple[float, float, float], **more: Any
) -> dict[str, Any]:
    """A score of 52 rows, better on 51 of them; intervals of both models are a tenth to each side."""
    found = {"label": label, "higher_is_better": True, "rows": 52, "tuned_better": 51, "base_better": 1, "ties": 0}
    found |= {"p_value": 1e-9, "settings": {"package": "some", "version": "1.0"}}
    for key, value in (("base", base), ("tuned", tuned)):
        found[key] = {"value": value, "low": value - 0.1, "high": value + 0.1}
    found["difference"] = dict(zip(("value", "low", "high"), difference, strict=True))
    return found | more


PERPLEXITY = score("perplexity", 55.1, 2.18, (-52.9, -60.0, -46.0), higher_is_better=False)
BETTER = score("ROUGE-L", 0.12, 0.43, (0.31, 0.25, 0.36))
WORSE = score("ROUGE-L", 0.43, 0.12, (-0.31, -0.36, -0.25), tuned_better=1, base_better=51)
SAME = score("Exact match", 0.1, 0.12, (0.02, -0.01, 0.05), tuned_better=3, base_better=2, ties=47, p_value=1.0)


def metrics(**scores: Any) -> dict[str, Any]:
    return {"split": "test", "rows": 52, "precision": "bfloat16", "scores": scores, "groups": {}, "problems": []}


def make_run(folder: Path, *, info: Any = None, log: Any = LOG, measured: Any = None, samples: Any = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(INFO | (info or {})))
    (folder / "recipe.yaml").write_text("name: shop\ntraining:\n  num_train_epochs: 4\n")
    (folder / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if measured is not None:
        (folder / "metrics.json").write_text(json.dumps(measured))
        (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    return folder


def said(run: Path) -> str:
    """Headline and sentences of the verdict."""
    found = verdict(read(run))
    return "\n".join([found.headline, *found.sentences])


def page_of(run: Path) -> tuple[str, Document]:
    text = write_report(run).read_text(encoding="utf-8")
    return text, Document(text)


def test_better_scores_are_said_with_interval_sign_test_and_cost(tmp_path: Path) -> None:
    assert said(make_run(tmp_path, measured=metrics(perplexity=PERPLEXITY, rougeL=BETTER))).splitlines() == [
        "It helped: better in perplexity and ROUGE-L",
        "On 52 held-out rows the tuned model’s perplexity is 2.18 (95 % interval 2.08 to 2.28) where the base model’s "
        "is 55.1: better, as lower is better. It is better on 51 of 52 rows (sign test p < 0.0001).",
        "ROUGE-L rose from 0.120 to 0.430: better (difference 0.310, 95 % interval 0.250 to 0.360); better on 51 of "
        "52 rows (sign test p < 0.0001).",
        "It took 4 min 10 s on 2 CPU cores, at most 4.2 GiB of memory, 16,000 tokens; 4.88 M of 139 M parameters were "
        "trained.",
    ]


def test_worse_is_said_as_plainly_as_better(tmp_path: Path) -> None:
    found = said(make_run(tmp_path, measured=metrics(rougeL=WORSE)))
    assert found.startswith(
        "It did harm: worse in ROUGE-L\nROUGE-L fell from 0.430 to 0.120: worse (difference −0.310"
    )
    assert "worse on 51 of 52 rows" in found


def test_higher_perplexity_is_worse(tmp_path: Path) -> None:
    higher = score("perplexity", 2.0, 9.0, (7.0, 5.0, 9.0), higher_is_better=False, tuned_better=1, base_better=51)
    assert said(make_run(tmp_path, measured=metrics(perplexity=higher))).startswith("It did harm: worse in perplexity")


def test_better_in_one_and_worse_in_another_is_mixed(tmp_path: Path) -> None:
    found = said(make_run(tmp_path, measured=metrics(perplexity=PERPLEXITY, rougeL=WORSE)))
    assert found.startswith("Mixed: better in perplexity, worse in ROUGE-L\n")


def test_an_interval_with_zero_in_it_shows_no_difference(tmp_path: Path) -> None:
    found = said(make_run(tmp_path, measured=metrics(exact_match=SAME)))
    assert found.splitlines()[:2] == [
        "No difference was shown in exact match",
        "On 52 held-out rows no difference in exact match was shown: 0.100 before, 0.120 after (difference 0.020, 95 "
        "% interval −0.010 to 0.050, sign test p = 1).",
    ]


def test_a_sign_test_that_does_not_agree_with_the_interval_is_said(tmp_path: Path) -> None:
    found = said(make_run(tmp_path, measured=metrics(rougeL=BETTER | {"tuned_better": 28, "p_value": 0.41})))
    assert "better on 28 of 52 rows, which a sign test alone would not find remarkable (p = 0.41)" in found


def test_a_score_of_the_same_family_speaks_for_itself_only_when_it_disagrees(tmp_path: Path) -> None:
    agreeing = said(make_run(tmp_path, measured=metrics(rougeL=BETTER, rouge1=BETTER | {"label": "ROUGE-1"})))
    disagreeing = said(make_run(tmp_path, measured=metrics(rougeL=BETTER, rouge1=WORSE | {"label": "ROUGE-1"})))
    assert "ROUGE-1" not in agreeing
    assert disagreeing.startswith("Mixed: better in ROUGE-L, worse in ROUGE-1\n")


def test_a_score_of_which_neither_more_nor_less_is_better_is_not_judged(tmp_path: Path) -> None:
    length = score("answer length in tokens", 64.0, 28.0, (-36.0, -40.0, -30.0), higher_is_better=None)
    run = make_run(tmp_path, measured=metrics(rougeL=BETTER, answer_tokens=length))
    assert "answer length" not in said(run)
    assert "−36.0 (−40.0 to −30.0) not judged — —" in page_of(run)[1].text


def test_few_rows_are_called_rough(tmp_path: Path) -> None:
    found = said(make_run(tmp_path, measured=metrics(rougeL=BETTER) | {"rows": 8}))
    assert "With 8 rows the intervals are rough" in found


def test_rows_seen_in_training_are_told_apart(tmp_path: Path) -> None:
    measured = metrics(rougeL=BETTER)
    measured["groups"] = {
        "answer also in training": {"rows": 30, "scores": {"rougeL": BETTER}},
        "answer not in training": {"rows": 22, "scores": {"rougeL": SAME | {"label": "ROUGE-L"}}},
    }
    run = make_run(tmp_path, measured=measured)
    assert "On the 22 rows “answer not in training”: ROUGE-L 0.100 before, 0.120 after (no difference shown)." in said(
        run
    )
    assert "Answer not in training: 22 rows" in page_of(run)[1].text


def test_a_wiring_check_means_nothing(tmp_path: Path) -> None:
    note = "wiring check: a tiny random model, whose scores and answers mean nothing"
    found = said(make_run(tmp_path, info={"notes": [note]}, measured=metrics(rougeL=BETTER)))
    assert found.startswith(
        "A wiring check\nThe model is a tiny random one: this run shows that the parts fit, and its"
    )


def test_a_run_without_evaluation_says_what_to_type(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert said(run).startswith(
        "Not measured: whether it helped is not known\nThis run was not evaluated. Type: recipe-kit"
    )
    _, document = page_of(run)
    assert "Nothing was measured on held-out rows yet." in document.text
    assert "No answers are recorded yet." in document.text


def test_a_run_without_held_out_rows_says_that_there_is_nothing_to_measure_on(tmp_path: Path) -> None:
    found = said(make_run(tmp_path, info={"data": {"splits": {"train": {"kept": 3}}}}))
    assert "The recipe names no held-out rows" in found


def test_a_run_that_is_still_going_on_says_how_far_it_is(tmp_path: Path) -> None:
    info = {"status": "running", "training": None, "proofs": None}
    assert said(make_run(tmp_path, info=info)).splitlines() == [
        "Still training: nothing is measured yet",
        "This run is still going on, or was killed without a word.",
        "The last logged step is 10 of about 132, with a training loss of 0.400.",
        "So far it has taken 20 s on 2 CPU cores, at most 2.0 GiB of memory, 1,000 tokens; 4.88 M of 139 M parameters "
        "were trained.",
    ]


def test_a_run_without_a_logged_step_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, info={"status": "running", "training": None, "model": {"id": "some/model"}}, log=[])
    _, document = page_of(run)
    assert "No step was logged yet." in document.text
    assert document.text.count("Not measured") == 0


def test_a_failed_run_says_why_and_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-5" / "complete.json").write_text("{}")
    run = make_run(tmp_path, info={"status": "failed", "error": "CUDA out of memory <b>", "training": None})
    found = said(run)
    assert found.startswith("The run failed before anything was measured\nThis run failed: CUDA out of memory <b>.")
    assert "--resume` goes on from the last one" in found
    assert "CUDA out of memory &lt;b&gt;" in page_of(run)[0]


def test_a_run_of_nothing_but_a_status_has_a_page(tmp_path: Path) -> None:
    bare = {"status": "interrupted", "name": "shop", "method": "lora", "model": {}, "data": {}}
    (tmp_path / "run.json").write_text(json.dumps(bare))
    _, document = page_of(tmp_path)
    assert "The run was interrupted before anything was measured." in document.text
    assert "This folder has no recipe.yaml ." in document.text


@pytest.mark.parametrize(
    "info",
    [
        {"processes": None},
        {"proofs": "none"},
        {"notes": 3},
        {"data": {"splits": {"train": None}}},
        {"data": {"splits": {"train": {"tokens": "many", "dropped": {"empty": None}, "sources": 1, "lengths": []}}}},
    ],
)
def test_a_value_of_another_kind_than_expected_costs_no_page(tmp_path: Path, info: dict[str, Any]) -> None:
    assert "Loss over steps" in page_of(make_run(tmp_path, info=info))[1].text


def test_several_gpus_are_named_and_whose_memory_was_measured(tmp_path: Path) -> None:
    info = {"hardware": {"device": "cuda", "name": "NVIDIA H100"}, "processes": 4}
    assert (
        "It took 4 min 10 s on 4 × NVIDIA H100, at most 4.2 GiB of GPU memory in the first of 4 processes, 16,000 "
    ) in said(make_run(tmp_path, info=info))


def test_a_resumed_run_says_since_when_its_time_counts(tmp_path: Path) -> None:
    info = {"training": INFO["training"] | {"resumed_at_step": 50}}
    assert "4 min 10 s on 2 CPU cores since step 50, where it was resumed" in said(make_run(tmp_path / "a", info=info))
    info["training"]["counted_from_step"] = 0  # its totals went on from those at the checkpoint
    assert "4 min 10 s on 2 CPU cores, " in said(make_run(tmp_path / "b", info=info))


def test_a_log_line_half_written_is_left_out_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, info={"status": "running"})
    with (run / "training_log.jsonl").open("a") as file:
        file.write('{"step": 15, "seco')
    assert [line["step"] for line in read(run).log] == [1, 5, 10]
    assert "training_log.jsonl has one line that is not whole; the others are shown." in page_of(run)[1].text


def test_damaged_metrics_are_said_and_the_rest_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "metrics.json").write_text('{"scores": ')
    text = page_of(run)[1].text
    assert "metrics.json cannot be read (Expecting value" in text
    assert "Loss over steps" in text


def test_steps_logged_again_after_a_resume_replace_the_first_ones(tmp_path: Path) -> None:
    again = [{"step": 5, "seconds": 1.0, "loss": 9.0}, {"step": 5, "seconds": 1.1, "eval_loss": 8.0}]
    log = [*LOG, {"step": 10, "seconds": 21.0, "eval_loss": 0.5}, *again, {"step": 10, "seconds": 2.0, "loss": 7.0}]
    record = read(make_run(tmp_path, log=log))
    assert record.logged("loss") == [(1, 4.0), (5, 9.0), (10, 7.0)]
    assert record.logged("eval_loss") == [(5, 8.0)]


def test_a_loss_that_is_not_a_number_is_said_and_the_plot_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path, log=[*LOG, {"step": 15, "seconds": 30.0, "loss": math.nan}])
    text, document = page_of(run)
    sentence = "The training loss was no finite number at 1 of 4 logged steps, first at step 15"
    assert sentence in said(run)
    assert document.text.count(sentence) == 2
    assert 'id="loss-title"' in text


NAN = [*LOG, {"step": 15, "seconds": 30.0, "loss": math.nan}, {"step": 20, "seconds": 40.0, "loss": math.nan}]
WIRING = {"notes": ["wiring check: a tiny random model, whose scores and answers mean nothing"]}


@pytest.mark.parametrize("info", [{}, WIRING])
def test_a_training_that_went_wrong_is_the_headline(tmp_path: Path, info: dict[str, Any]) -> None:
    run = make_run(tmp_path, info=info, log=NAN, measured=metrics(exact_match=SAME))
    assert said(run).startswith("Training went wrong: the training loss was no finite number, first at step 15\n")


def test_a_gradient_that_overflowed_once_is_no_headline(tmp_path: Path) -> None:
    log = [*LOG, {"step": 15, "seconds": 30.0, "grad_norm": math.inf}]
    found = said(make_run(tmp_path, log=log, measured=metrics(rougeL=BETTER)))
    assert found.startswith("It helped: better in ROUGE-L\nThe gradient norm was no finite number at 1 of 4")


@pytest.mark.parametrize(
    ("measured", "headline"),
    [(None, "The run failed before anything was measured"), (metrics(rougeL=BETTER), "The run failed")],
)
def test_a_failed_run_says_so_before_anything_else(tmp_path: Path, measured: Any, headline: str) -> None:
    run = make_run(tmp_path, info=WIRING | {"status": "failed"}, log=NAN, measured=measured)
    assert said(run).splitlines()[0] == headline
    assert "The model is a tiny random one" in said(run)


def test_a_run_of_nothing_but_nan_has_no_loss_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path, log=[{"step": step, "seconds": 1.0, "loss": math.nan} for step in (1, 2)])
    text, document = page_of(run)
    assert 'id="loss-title"' not in text
    assert "at 2 of 2 logged steps" in document.text


def test_a_perplexity_that_is_not_finite_does_not_pass_for_a_score(tmp_path: Path) -> None:
    broken = PERPLEXITY | {"tuned": {"value": math.inf, "low": math.nan, "high": math.inf}}
    broken["difference"] = {"value": math.inf, "low": math.nan, "high": math.nan}
    run = make_run(tmp_path, measured=metrics(perplexity=broken))
    assert said(run).startswith("Nothing could be measured")
    assert "infinite" in page_of(run)[1].text


def test_problems_of_the_evaluation_are_listed(tmp_path: Path) -> None:
    measured = metrics(rougeL=BETTER) | {"problems": ["metric mine: it raised <ValueError>"]}
    run = make_run(tmp_path, measured=measured)
    assert "The evaluation names one problem." in said(run)
    assert "metric mine: it raised <ValueError>." in page_of(run)[1].text


def test_a_run_of_an_older_version_without_scores_is_told_without_intervals(tmp_path: Path) -> None:
    base, tuned = {"loss": 4.0, "perplexity": 55.1, "tokens": 9}, {"loss": 0.8, "perplexity": 2.2, "tokens": 9}
    old = {"split": "test", "rows": 52, "precision": "float32", "generation": {}, "base": base, "tuned": tuned}
    sample = {key: value for key, value in SAMPLE.items() if key not in ("kind", "pieces")}
    run = make_run(tmp_path, measured=old, samples=[sample])
    assert said(run).startswith(
        "Measured, but without intervals\nOn 52 held-out rows the tuned model’s perplexity is 2.20"
    )
    assert "Held-out prompt 1" in page_of(run)[1].text


def test_trained_tokens_are_marked_and_control_tokens_are_visible(tmp_path: Path) -> None:
    text, _ = page_of(make_run(tmp_path, measured=metrics(rougeL=BETTER), samples=[SAMPLE]))
    assert "<span class=control>&lt;|im_start|&gt;</span>assistant<i></i>\n<mark>At nine.</mark>" in text


def test_answers_stand_beside_prompt_and_reference(tmp_path: Path) -> None:
    fixed = SAMPLE | {"kind": "prompt", "reference": None, "pieces": None}
    _, document = page_of(make_run(tmp_path, measured=metrics(rougeL=BETTER), samples=[SAMPLE, fixed]))
    held_out, prompts = document.text.split("Held-out prompt 1")[1].split("Fixed prompt 1")
    assert held_out.startswith(
        " user When do you open? Base model 4 tokens, cut off I do not know Tuned model 3 tokens, ended by itself At "
        "nine. Reference what stands in the data At nine."
    )
    assert "Reference" not in prompts


def test_judge_and_benchmarks_are_shown_when_there_are_any(tmp_path: Path) -> None:
    measured = metrics(rougeL=BETTER)
    measured["judge"] = {"model": "some-judge", "pairs": 50, "wins": 30, "losses": 10, "ties": 10, "p_value": 0.002,
                         "win_share": {"value": 0.7, "low": 0.58, "high": 0.81}, "failures": {}}  # fmt: skip
    accuracy = {"base": {"value": 0.3, "stderr": 0.02}, "tuned": {"value": 0.4, "higher_is_better": True}}
    measured["lm_eval"] = {"lm_eval": "0.4.9", "tasks": {"arc": {"documents": 100, "metrics": {"acc": accuracy}}}}
    run = make_run(tmp_path, measured=measured)
    assert (
        "A judge (some-judge) preferred the tuned answer 30 times and the base answer 10 times, with 10 ties: the "
        "tuned model is preferred (share of wins 0.700 (0.580 to 0.810), sign test p = 0.002)."
    ) in said(run)
    text = page_of(run)[1].text
    assert "arc acc ↑ 0.300 ± 0.020 0.400 100 —" in text
    assert "tuned answer preferred 30" in text


def test_nothing_of_a_file_acts_on_the_page(tmp_path: Path) -> None:
    attack = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)>"
    sample = json.loads(json.dumps(SAMPLE).replace("At nine.", attack).replace("When do you open?", attack))
    info = {
        "name": attack, "status": "failed", "error": attack, "notes": [attack], "method": attack,
        "data": {"splits": {attack: {"dropped": {attack: 1}, "sources": [{attack: attack}],
                                     "lengths": INFO["data"]["splits"]["train"]["lengths"]}}},
        "proofs": [{"name": attack, "ok": False, "detail": attack, "remedy": attack}], "versions": {attack: attack},
    }  # fmt: skip
    measured = metrics(**{attack: score(attack, 0.1, 0.9, (0.8, 0.7, 0.9))})
    measured |= {"problems": [attack], "split": attack, "groups": {attack: {"rows": 1, "scores": {"a": BETTER}}}}
    run = make_run(tmp_path, info=info, measured=measured, samples=[sample, sample | {"kind": "prompt"}])
    (run / "recipe.yaml").write_text(f"name: {attack}\n")
    text, document = page_of(run)
    assert not {"script", "img"} & set(document.tags)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20


def test_the_page_refers_to_nothing_outside_of_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path, measured=metrics(perplexity=PERPLEXITY), samples=[SAMPLE])
    text, document = page_of(run)
    assert "http://" not in text
    assert "https://" not in text
    assert len(document.references) > 10
    assert {reference[0] for reference in document.references} == {"#"}
    assert {reference[1:] for reference in document.references} <= set(document.ids)
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert "default-src 'none'" in text


def test_every_plot_is_named_and_described_and_ids_are_unique(tmp_path: Path) -> None:
    log = [*LOG, {"step": 10, "seconds": 20.0, "eval_loss": 0.5}]
    text, document = page_of(make_run(tmp_path, log=log, measured=metrics(rougeL=BETTER), samples=[SAMPLE]))
    plots = re.findall(
        r'<svg class="plot" role="img".*?aria-labelledby="(\S+) (\S+)"><title id="\1">.+?<desc id="\2">', text
    )
    assert [name.removesuffix("-title") for name, _ in plots] == [
        "loss", "learning-rate", "gradient-norm", "speed", "memory", "lengths-train",
    ]  # fmt: skip
    assert document.tags.count("svg") == 6
    assert sorted(document.ids) == sorted(set(document.ids))
    assert set(document.labels) <= set(document.ids)


def test_plots_take_the_colours_of_the_page_and_differ_without_colour(tmp_path: Path) -> None:
    log = [*LOG, {"step": 10, "seconds": 20.0, "eval_loss": 0.5}, {"step": 10, "seconds": 20.0, "eval_loss": 0.4}]
    text, _ = page_of(make_run(tmp_path, log=log))
    loss = text[text.index('id="loss-title"') : text.index('id="learning-rate-title"')]
    assert not re.search(r"#[0-9a-f]{6}", loss)
    assert "stroke: var(--series-1)" in loss
    assert "stroke-dasharray" in loss
    assert ">held out</text>" in loss


def test_headings_go_down_one_level_at_a_time(tmp_path: Path) -> None:
    _, document = page_of(make_run(tmp_path, measured=metrics(rougeL=BETTER), samples=[SAMPLE]))
    levels = [int(tag[1]) for tag in document.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[:2] == [1, 2]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.slow
def test_a_long_log_is_thinned_and_its_extremes_stay(tmp_path: Path) -> None:
    line = LOG[0]
    log = [line | {"step": step, "loss": 3.0 + (step % 7) / 10, "grad_norm": step % 11} for step in range(1, 20_001)]
    log[12_344]["loss"] = 99.0
    run = make_run(tmp_path, log=log)
    text, document = page_of(run)
    assert len(text.encode()) < 1_500_000
    assert "highest 99 at step 12,345" in document.text
    thinned = thin(read(run).logged("loss"))
    assert len(thinned) <= MAX_POINTS
    assert (12_345, 99.0) in thinned
    assert (thinned[0][0], thinned[-1][0]) == (1, 20_000)


def test_the_line_over_a_long_log_is_made_of_means() -> None:
    assert means([(step, step % 2) for step in range(1000)])[:2] == [(5, 0.5), (15, 0.5)]


def test_thinning_keeps_a_gap_where_every_value_is_missing() -> None:
    points = [(step, math.nan if step > 5000 else 1.0) for step in range(10_000)]
    assert any(math.isnan(y) for _, y in thin(points))


def test_proofs_that_do_not_hold_come_first(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path))[1].text
    assert "1 warned and 1 ok of 2." in text
    assert text.index("answers_whole warned 9 rows cut; raise it") < text.index("one_bos ok")


def test_dropped_rows_are_shown_with_their_reason_and_the_command_as_typed(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path))[1].text
    assert "train 4 answer is empty" in text
    assert "recipe-kit train shop --set 'training.seed=4 2'" in text


def test_figures_are_written_as_png_with_their_numbers(tmp_path: Path) -> None:
    measured = metrics(perplexity=PERPLEXITY)
    measured["groups"] = {"answer not in training": {"rows": 22, "scores": {"rougeL": BETTER}}}
    run = make_run(tmp_path / "run", measured=measured)
    write_report(run, out=tmp_path / "page.html", figures=tmp_path / "figures")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["gradient-norm.png", "learning-rate.png", "lengths-train.png", "loss.png", "memory.png",
                     "metrics.csv", "speed.png", "training_log.csv"]  # fmt: skip
    png = (tmp_path / "figures" / "loss.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (1380, 870)  # 4.6 by 2.9 inches, 300 dots each
    rows = list(csv.DictReader((tmp_path / "figures" / "metrics.csv").open(encoding="utf-8")))
    assert list(rows[0]) == CSV_COLUMNS
    assert [(row["group"], row["score"], row["base"], row["difference_low"]) for row in rows] == [
        ("", "perplexity", "55.1", "-60.0"),
        ("answer not in training", "rougeL", "0.12", "0.25"),
    ]
    steps = list(csv.DictReader((tmp_path / "figures" / "training_log.csv").open(encoding="utf-8")))
    assert [row["training loss"] for row in steps] == ["4", "0.8", "0.4"]
    assert not (run / "report.html").exists()


def test_a_file_that_is_no_report_is_not_replaced(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "thesis.html").write_text("<p>Mine.</p>")
    with pytest.raises(RunError, match=r"thesis.html exists and is no report; choose another file with --out"):
        write_report(run, out=tmp_path / "thesis.html")
    assert write_report(run) == write_report(run)  # our own page is


def test_a_page_of_a_comparison_is_no_report(tmp_path: Path) -> None:
    compared = page("2 runs compared", [("Runs", "<p>Two.</p>")], kind="compare")
    (tmp_path / "compared.html").write_text(compared)
    with pytest.raises(RunError, match=r"compared.html exists and is no report"):
        write_report(make_run(tmp_path / "run"), out=tmp_path / "compared.html")
    assert (tmp_path / "compared.html").read_text() == compared


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write .*page.html"):
        write_report(make_run(tmp_path / "run"), out=tmp_path / "file" / "page.html")


def test_without_matplotlib_the_line_to_install_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RunError, match="pip install matplotlib"):
        write_report(make_run(tmp_path))


def test_the_command_prints_the_page_and_takes_the_folder_above(tmp_path: Path) -> None:
    run = make_run(tmp_path / "shop" / "latest")
    found = CliRunner().invoke(report, [str(tmp_path / "shop"), "--figures", str(tmp_path / "figures")])
    assert found.exit_code == 0, found.output
    assert found.stdout == f"{run.resolve() / 'report.html'}\n"
    assert "plots and numbers are in" in found.stderr


def test_a_report_needs_no_torch_and_no_pyplot(tmp_path: Path) -> None:
    run = make_run(tmp_path, measured=metrics(rougeL=BETTER), samples=[SAMPLE])
    code = (
        f"import sys; from recipe_kit.report import write_report; write_report({str(run)!r}); "
        "print(*sorted({'torch', 'transformers', 'datasets', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_matplotlib_is_imported_only_when_a_page_is_written() -> None:
    code = "import sys, recipe_kit.report, recipe_kit.cli.report; print('matplotlib' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_numbers_are_written_for_people() -> None:
    assert [number(x) for x in (55.091, 2.1787, 0.4312, -0.05, 50257.4, 0.0, 0.00021, math.nan, math.inf, None)] == [
        "55.1", "2.18", "0.431", "−0.050", "50,257", "0.000", "0.00021", "not a number", "infinite", "—",
    ]  # fmt: skip
    assert [number(x) for x in (-1e-12, 1e-12, -0.0)] == ["0", "0", "0.000"]
    assert estimate({"value": 0.31, "low": 0.0003, "high": 0.36}) == "0.310 (0.00030 to 0.360)"
    assert [p_value(p) for p in (1e-9, 0.0321, 1.0, None)] == ["p < 0.0001", "p = 0.032", "p = 1", ""]
    assert [duration(s) for s in (0.605, 42, 250.4, 7500, 90_000, 3600)] == [
        "0.6 s", "42 s", "4 min 10 s", "2 h 5 min", "1 d 1 h", "1 h",
    ]  # fmt: skip
    assert [short_count(n) for n in (4_884_480, 1_235_814_400, 205_120)] == ["4.88 M", "1.24 B", "205,120"]
