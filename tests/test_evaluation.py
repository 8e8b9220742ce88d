"""What is measured after training: perplexity, answers, scores side by side, and what goes wrong on the way."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe_kit import data, modeling, run_dir
from recipe_kit.errors import LabelError, MetricError, ModelError, RunError
from recipe_kit.evaluation import evaluate, generation, perplexity
from recipe_kit.recipe import Recipe, load_recipe
from recipe_kit.training import train

pytestmark = pytest.mark.slow

TINY = """
name: tiny
model: {id: "tiny:chatml", dtype: float32}
method: lora
data:
  train: {sample: support, limit: 48}
  eval: {rows: 12}
  formatter: support
  max_length: 256
lora: {r: 4, target_modules: all-linear}
training: {max_steps: 6, per_device_train_batch_size: 4, learning_rate: 1.0e-2, logging_steps: 1, save_strategy: "no",
           use_cpu: true, report_to: []}
evaluation:
  {samples: 3, max_new_tokens: 12, metrics: [rouge, chrf, exact_match], prompts: [Hello, "Where is my plant?"]}
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return load_recipe(path, overrides=overrides)


def trained(folder: Path, *overrides: str) -> Path:
    return train(recipe(folder, *overrides), runs_dir=folder / "runs")


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(shared_run, tmp_path / "run"))


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[tuple[Any, Any, list[tuple[list[int], list[int]]]]]:
    """The tiny model in float32, its tokenizer, and 48 rows of ids and labels."""
    settings = recipe(tmp_path)
    tokenizer = modeling.load_tokenizer(settings.model)
    rows = data.prepare(settings.data, tokenizer, splits=["train"])["train"].rows
    model = modeling.load_model(settings, tokenizer, "float32").eval()
    yield model, tokenizer, [(row["input_ids"], row["labels"]) for row in rows]


def plain_loss(model: Any, rows: list[tuple[list[int], list[int]]], *, double: bool = True) -> tuple[float, int]:
    """Sum over the rows' trained tokens and their number: one row at a time, in float64, from all logits."""
    model = model.double() if double else model
    total, count = 0.0, 0
    for ids, labels in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        targets = torch.tensor(labels[1:])
        losses = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
        total, count = total + losses.sum().item(), count + int((targets != -100).sum())
    model.float()
    return total, count


@pytest.mark.parametrize("packed", [False, True])
def test_loss_sums_equal_a_plain_float64_loop_over_single_rows(tiny: Any, packed: bool) -> None:
    model, tokenizer, rows = tiny
    found = perplexity.row_losses(model, rows, pad_id=tokenizer.pad_token_id, packed=packed, tokens_at_once=512)
    total, count = plain_loss(model, rows)
    assert sum(row.answer_tokens for row in found) == count > 500
    assert sum(row.answer_sum for row in found) == pytest.approx(total, rel=1e-6)


@pytest.mark.reference
@pytest.mark.parametrize("packed", [False, True])
def test_perplexity_of_200_real_chats_equals_a_plain_float64_loop(
    reference: Path, tmp_path: Path, packed: bool
) -> None:
    rows_file = reference / "data" / "hinglish_restaurant.train.jsonl"
    settings = recipe(
        tmp_path, f"data.train={{path: {rows_file}, limit: 200}}", "data.eval=null", "data.formatter=messages",
        "data.max_length=1024", "model.id=tiny:tinyllama",
    )  # fmt: skip
    tokenizer = modeling.load_tokenizer(settings.model)
    prepared = data.prepare(settings.data, tokenizer, splits=["train"])["train"].rows
    rows = [(row["input_ids"], row["labels"]) for row in prepared]
    model = modeling.load_model(settings, tokenizer, "float32").eval()
    found = perplexity.row_losses(model, rows, pad_id=tokenizer.pad_token_id, packed=packed)
    total, count = plain_loss(model, rows)
    assert len(rows) > 150 and sum(row.answer_tokens for row in found) == count
    assert math.exp(sum(row.answer_sum for row in found) / count) == pytest.approx(math.exp(total / count), rel=1e-4)


def test_logits_are_made_for_a_few_positions_at_a_time(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """trl #893, transformers #26702, unsloth-zoo #878: evaluation ran out of memory, because logits were kept."""
    model, tokenizer, rows = tiny
    whole = perplexity.row_losses(model, rows, pad_id=tokenizer.pad_token_id)
    largest = []
    model.get_output_embeddings().register_forward_hook(lambda m, i, o: largest.append(o.numel()))
    monkeypatch.setattr(perplexity, "LOGIT_BYTES", 4 * 768 * 40)
    pieces = perplexity.row_losses(model, rows, pad_id=tokenizer.pad_token_id)
    assert max(largest) <= 768 * 40 and len(largest) > 50
    assert [row.answer_sum for row in pieces] == pytest.approx([row.answer_sum for row in whole], rel=1e-6)


def test_a_head_that_caps_its_logits_is_used_as_the_model_uses_it() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, initializer_range=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    rows = [([2, 5, 9, 11, 17, 3, 8], [-100, -100, 9, 11, 17, 3, 8]), ([2, 40, 41], [-100, -100, 41])]
    found = perplexity.row_losses(model, rows, pad_id=0)
    total, count = plain_loss(model, rows)
    assert sum(row.answer_sum for row in found) == pytest.approx(total, rel=1e-5)
    assert sum(row.answer_tokens for row in found) == count == 6
    with torch.no_grad():
        uncapped = model.lm_head(model.model(input_ids=torch.tensor([rows[0][0]])).last_hidden_state)
    assert uncapped.abs().max() > 0.5  # the cap did something


def small(kind: str) -> Any:
    """A tiny random model of another architecture, in float32."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        MixtralConfig,
        MixtralForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5)).eval()
    if kind == "opt":
        config = OPTConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=2,
                           word_embed_proj_dim=32, init_std=0.5)  # fmt: skip
        return OPTForCausalLM(config).eval()
    config = MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, initializer_range=0.5,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


SHORT_ROWS = [([5, 7, 9, 11, 17, 3, 8], [-100, -100, 9, 11, 17, 3, 8]), ([6, 40, 41], [-100, -100, 41])]


@pytest.mark.parametrize("kind", ["gpt2", "opt", "mixtral"])
def test_architectures_whose_decoders_return_other_things_are_measured_right(kind: str) -> None:
    model = small(kind)
    found = perplexity.row_losses(model, SHORT_ROWS, pad_id=0)
    total, _ = plain_loss(model, SHORT_ROWS, double=kind != "mixtral")  # its experts compute in 16 or 32 bits
    assert sum(row.answer_sum for row in found) == pytest.approx(total, rel=1e-5)


def test_packed_rows_of_a_model_that_takes_no_boundaries_are_refused() -> None:
    rows = [(ids, ids) for ids, _ in SHORT_ROWS]
    with pytest.raises(ModelError, match="rows of opt see each other when laid one after another"):
        perplexity.check_packed(small("opt"), rows, pad_id=0)
    perplexity.check_packed(small("mixtral"), rows, pad_id=0)


def test_rows_that_do_not_fit_together_are_taken_in_halves(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, rows = tiny
    whole = perplexity.row_losses(model, rows[:9], pad_id=tokenizer.pad_token_id)
    losses = perplexity._token_losses

    def small_memory(model: Any, rows: Any, *rest: Any) -> Any:
        if len(rows) > 2:
            raise torch.cuda.OutOfMemoryError("no")
        return losses(model, rows, *rest)

    monkeypatch.setattr(perplexity, "_token_losses", small_memory)
    halves = perplexity.row_losses(model, rows[:9], pad_id=tokenizer.pad_token_id)
    assert [row.answer_sum for row in halves] == pytest.approx([row.answer_sum for row in whole])


def test_answers_are_the_likeliest_tokens_whatever_the_models_own_configuration_says(tiny: Any) -> None:
    model, tokenizer, rows = tiny
    prompts = [ids[:20] for ids, _ in rows[:6]]

    def answers() -> list[Any]:
        return generation.answer(model, tokenizer, prompts, stop_ids=[1], max_new_tokens=16)

    plain = answers()
    model.generation_config.repetition_penalty = 1.8
    model.generation_config.num_beams = 3
    assert answers() == plain
    assert model.generation_config.num_beams == 3


def test_each_turn_of_a_chat_has_its_own_sum(tiny: Any) -> None:
    model, tokenizer, _ = tiny
    ids, labels = [1, 60, 61, 62, 63, 64, 65], [-100, -100, 61, 62, -100, 64, 65]
    (row,) = perplexity.row_losses(model, [(ids, labels)], pad_id=tokenizer.pad_token_id)
    assert [tokens for _, tokens in row.turns] == [2, 2]
    assert sum(loss for loss, _ in row.turns) == pytest.approx(row.answer_sum)
    assert (row.answer_tokens, row.every_tokens) == (4, 6)


def test_answers_in_float32_are_the_same_alone_and_in_batches_of_sixteen(tiny: Any) -> None:
    model, tokenizer, rows = tiny
    prompts = [ids[: 8 + index] for index, (ids, _) in enumerate(rows[:20])]
    stops = generation.stop_token_ids(model, tokenizer)
    one, sixteen = (
        generation.answer(model, tokenizer, prompts, stop_ids=stops, max_new_tokens=24, batch_size=size)
        for size in (1, 16)
    )
    assert one == sixteen and len({answer["text"] for answer in one if answer}) > 3


def test_a_prompt_that_leaves_no_room_for_an_answer_is_not_answered(tiny: Any) -> None:
    model, tokenizer, _ = tiny
    room = generation.context_length(model)
    assert room is not None
    prompts = [[5] * (room - 4), [5] * (room - 3)]
    fits, too_long = generation.answer(model, tokenizer, prompts, stop_ids=[1], max_new_tokens=4)
    assert fits is not None and too_long is None


def test_a_template_that_refuses_a_prompt_is_a_sentence(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer("chatml", "{{ raise_exception('roles must alternate') }}{{ messages }}")
    with pytest.raises(LabelError, match="the chat template refuses these messages: roles must alternate"):
        generation.prompt_ids(tokenizer, [{"role": "user", "content": "hi"}])


def test_a_run_ends_with_every_score_of_both_models_with_intervals(shared_run: Path) -> None:
    """LlamaFactory #3617, #4323: users could not find how to evaluate."""
    metrics = run_dir.read_metrics(shared_run)
    assert metrics["rows"] == 12 and metrics["split"] == "eval" and metrics["problems"] == []
    names = set(metrics["scores"])
    assert {"perplexity", "perplexity_all_tokens", "rouge1", "rougeLsum", "chrf", "exact_match"} < names
    assert {"stop_rate", "answer_tokens"} < names
    for entry in metrics["scores"].values():
        assert entry["rows"] == 12
        for which in ("base", "tuned", "difference"):
            assert entry[which]["low"] <= entry[which]["value"] <= entry[which]["high"]
    entry = metrics["scores"]["perplexity"]
    assert entry["tuned"]["value"] == pytest.approx(metrics["tuned"]["perplexity"])
    assert entry["difference"]["value"] == pytest.approx(entry["tuned"]["value"] - entry["base"]["value"])
    assert entry["tuned_better"] + entry["base_better"] + entry["ties"] == 12 and entry["p_value"] < 0.05


def test_scores_of_each_row_add_up_to_the_whole(shared_run: Path) -> None:
    rows = run_dir.read_lines(shared_run / run_dir.SCORES)
    metrics = run_dir.read_metrics(shared_run)
    assert [row["row"] for row in rows] == list(range(12)) and len({row["digest"] for row in rows}) == 12
    for which in ("base", "tuned"):
        loss = sum(row[which]["loss_sum"] for row in rows) / sum(row[which]["tokens"] for row in rows)
        assert math.exp(loss) == pytest.approx(metrics["scores"]["perplexity"][which]["value"])
        mean = sum(row["answers"][0][which]["scores"]["rouge1"] for row in rows) / 12
        assert mean == pytest.approx(metrics["scores"]["rouge1"][which]["value"])


def test_rouge_of_a_run_is_that_of_rouge_score(shared_run: Path) -> None:
    """LlamaFactory #2140: ROUGE differed from rouge_score."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for row in run_dir.read_lines(shared_run / run_dir.SCORES):
        (answer,) = row["answers"]
        expected = scorer.score(answer["reference"], answer["tuned"]["text"])["rougeL"].fmeasure
        assert answer["tuned"]["scores"]["rougeL"] == expected


def test_samples_hold_held_out_prompts_with_marked_tokens_and_the_recipes_own(shared_run: Path) -> None:
    lines = run_dir.read_lines(shared_run / run_dir.SAMPLES)
    assert [line["kind"] for line in lines] == ["held_out"] * 3 + ["prompt"] * 2
    assert lines[-1]["prompt"] == [{"role": "user", "content": "Where is my plant?"}]
    assert lines[-1]["reference"] is None and lines[-1]["pieces"] is None
    trained_text = "".join(text for text, is_trained, _ in lines[0]["pieces"] if is_trained)
    assert trained_text == lines[0]["reference"] + "<|im_end|>"


def test_the_base_is_measured_once_for_the_same_rows_and_settings(run: Path) -> None:
    first = evaluate(run, fresh=True)
    again = evaluate(run)
    assert (first["base_from_cache"], again["base_from_cache"]) == (False, True)
    assert again["scores"] == first["scores"] and again["base"] == first["base"]
    assert evaluate(run, overrides=["evaluation.max_new_tokens=5"])["base_from_cache"] is False
    assert evaluate(run, limit=5)["base_from_cache"] is False


def test_a_full_fine_tune_does_not_load_a_base_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path, "method=full", "lora=null", "training.max_steps=2")
    loaded = []
    load = modeling.load_model
    monkeypatch.setattr(modeling, "load_model", lambda *a, **k: loaded.append(a[0].model.id) or load(*a, **k))
    first = run_dir.read_metrics(run)
    assert evaluate(run)["scores"] == first["scores"]
    assert len(loaded) == 1 and loaded[0].endswith("/model")


@pytest.mark.parametrize("change", ["lora.init_lora_weights=pissa", "lora.bias=all"])
def test_an_adapter_that_changes_the_base_is_compared_with_the_real_one(
    shared_run: Path, tmp_path: Path, change: str
) -> None:
    base = run_dir.read_metrics(shared_run)["base"]
    assert run_dir.read_metrics(trained(tmp_path, change))["base"] == pytest.approx(base, rel=1e-5)


def test_full_weights_under_mixed_precision_score_the_same_after_training_and_later(tmp_path: Path) -> None:
    run = trained(tmp_path, "method=full", "lora=null", "training.bf16=true", "training.max_steps=2")
    after = run_dir.read_metrics(run)
    assert evaluate(run)["tuned"] == pytest.approx(after["tuned"], rel=1e-6) and after["precision"] == "float32"


def test_packed_rows_have_the_same_perplexity(run: Path) -> None:
    padded, packed = evaluate(run), evaluate(run, packed=True)
    for which in ("base", "tuned"):
        assert packed["scores"]["perplexity"][which]["value"] == pytest.approx(
            padded["scores"]["perplexity"][which]["value"], rel=1e-5
        )


def test_a_run_can_be_measured_in_4_bits_and_in_its_own_precision(run: Path) -> None:
    own, nf4 = evaluate(run), evaluate(run, precision="nf4")
    assert (own["precision"], nf4["precision"]) == ("float32", "nf4")
    assert own["base"]["loss"] != nf4["base"]["loss"] == pytest.approx(own["base"]["loss"], rel=0.05)


def test_answers_that_were_also_learnt_are_reported_apart(tmp_path: Path) -> None:
    rows = [{"instruction": f"question {i}", "response": f"answer {i % 7}"} for i in range(28)]
    held_out = [
        {"instruction": "new question", "response": "answer 3"},
        {"instruction": "other", "response": "no idea"},
    ]
    for name, lines in (("train", rows), ("test", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    run = trained(
        tmp_path, f"data.train={{path: {tmp_path}/train.jsonl}}", "data.eval=null",
        f"data.test={{path: {tmp_path}/test.jsonl}}", "training.max_steps=2",
    )  # fmt: skip
    groups = run_dir.read_metrics(run)["groups"]
    assert {name: group["rows"] for name, group in groups.items()} == {
        "answer also in training": 1,
        "answer not in training": 1,
    }
    assert [group["scores"]["perplexity"]["rows"] for group in groups.values()] == [1, 1]
    losses = [row["tuned"]["loss_sum"] / row["tuned"]["tokens"] for row in run_dir.read_lines(run / run_dir.SCORES)]
    seen, unseen = (group["scores"]["perplexity"]["tuned"]["value"] for group in groups.values())
    assert [seen, unseen] == pytest.approx([math.exp(loss) for loss in losses])


def test_every_answer_of_a_chat_is_asked_for_and_a_chat_counts_as_one_row(tmp_path: Path) -> None:
    def chat(*turns: str) -> str:
        roles = ["user", "assistant"] * len(turns)
        return json.dumps({"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]})

    train_rows = [chat(f"hi {i}", f"hello {i}", "and you?", "fine") for i in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(train_rows), encoding="utf-8")
    held_out = [
        chat("good day", "good day to you", "how so?", "fine"),
        chat("why", "because", "ok", "fine", "so", "yes"),
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(held_out), encoding="utf-8")
    run = trained(
        tmp_path, f"data.train={{path: {tmp_path}/train.jsonl}}", "data.eval=null", "data.formatter=messages",
        f"data.test={{path: {tmp_path}/test.jsonl}}", "training.max_steps=2", "evaluation.prompts=[]",
    )  # fmt: skip
    metrics = run_dir.read_metrics(run)
    assert metrics["generation"]["answers"] == 5 and metrics["scores"]["rouge1"]["rows"] == 2
    rows = run_dir.read_lines(run / run_dir.SCORES)
    assert [[answer["reference"] for answer in row["answers"]] for row in rows] == [
        ["good day to you", "fine"], ["because", "fine", "yes"],
    ]  # fmt: skip
    scores = [answer["tuned"]["scores"]["rouge1"] for row in rows for answer in row["answers"]]
    assert metrics["scores"]["rouge1"]["tuned"]["value"] == pytest.approx(sum(scores) / 5)
    seen, unseen = metrics["groups"]["answer also in training"], metrics["groups"]["answer not in training"]
    assert (seen["rows"], seen["scores"]["rouge1"]["rows"]) == (2, 2)
    assert (unseen["rows"], unseen["scores"]["rouge1"]["rows"]) == (2, 2)
    tokens = metrics["tuned"]["tokens"]
    assert tokens == sum(row["tuned"]["tokens"] for row in rows)


def test_a_metric_that_raises_costs_its_own_score_only(run: Path) -> None:
    metrics = evaluate(run, overrides=["evaluation.metrics=[tests.test_evaluation:broken, exact_match]"])
    (problem,) = metrics["problems"]
    assert "broken" in problem and "ZeroDivisionError" in problem and "take it out of evaluation.metrics" in problem
    assert {"perplexity", "exact_match"} < set(metrics["scores"])
    assert run_dir.read_metrics(run)["problems"] == [problem]


def broken(answers: list[str], references: list[str]) -> list[float]:
    return [1 / 0 for _ in answers]


def test_two_metrics_of_one_name_are_said_not_mixed_up(run: Path) -> None:
    metrics = evaluate(run, overrides=["evaluation.metrics=[rouge, {name: rouge, options: {use_stemmer: false}}]"])
    assert "metric rouge: there is a score 'rouge1' already; this one was left out" in metrics["problems"]
    assert metrics["scores"]["rouge1"]["settings"]["options"]["use_stemmer"] is True


def test_what_a_metric_prints_is_no_part_of_the_result(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(run, overrides=["evaluation.metrics=[tests.test_evaluation:chatty]"])
    assert capfd.readouterr().out == ""


def chatty(answers: list[str], references: list[str]) -> list[float]:
    print("look at me")
    return [1.0 for _ in answers]


def test_a_metric_of_your_own_is_scored_by_module_and_attribute(run: Path) -> None:
    metrics = evaluate(run, overrides=["evaluation.metrics=[tests.test_evaluation:is_short]"])
    entry = metrics["scores"]["is_short"]
    assert entry["tuned"]["value"] == 1.0 and entry["rows"] == 12


def is_short(answers: list[str], references: list[str]) -> list[float]:
    return [len(answer) < 500 for answer in answers]


def test_a_loss_that_is_not_a_number_is_said_and_the_answers_are_kept(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "lora_B" in name and "down_proj" in name)
    save_file({**tensors, name: torch.full_like(tensors[name], math.nan)}, weights, {"format": "pt"})
    metrics = evaluate(run)
    assert any("the tuned model's loss is not a number on 12 of 12 rows" in text for text in metrics["problems"])
    assert "perplexity" not in metrics["scores"] and "tuned" not in metrics
    assert "NaN" not in (run / run_dir.METRICS).read_text() + (run / run_dir.SCORES).read_text()


def test_prompts_that_are_too_long_are_counted_and_the_others_answered(run: Path) -> None:
    long = "why " * 3000
    metrics = evaluate(run, overrides=[f"evaluation.prompts=['{long}', hello]"])
    (problem,) = metrics["problems"]
    assert problem.startswith("answers: 1 of 14 prompts are too long for the model's context")
    assert [line["kind"] for line in run_dir.read_lines(run / run_dir.SAMPLES)].count("prompt") == 2


def test_plain_text_has_a_perplexity_and_a_sentence_about_metrics(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"Line {i} of a book about plants and pots."}) for i in range(24)]
    (tmp_path / "book.jsonl").write_text("\n".join(rows), encoding="utf-8")
    run = trained(
        tmp_path, f"data.train={{path: {tmp_path}/book.jsonl}}", "data.eval={rows: 6}", "data.formatter=text",
        "data.train_on=all", "training.max_steps=2", "evaluation.prompts=[]",
    )  # fmt: skip
    metrics = run_dir.read_metrics(run)
    assert set(metrics["scores"]) == {"perplexity", "perplexity_all_tokens"}
    assert metrics["problems"] == [
        "metrics: these rows are plain text, without prompts to answer; only perplexity is taken"
    ]


def test_a_recipe_without_metrics_answers_only_what_is_kept_to_read(run: Path) -> None:
    metrics = evaluate(run, overrides=["evaluation.metrics=[]", "evaluation.prompts=[]", "evaluation.samples=2"])
    assert metrics["generation"]["answers"] == 2 and set(metrics["scores"]) == {"perplexity", "perplexity_all_tokens"}
    spread = evaluate(run, overrides=["evaluation.answers=4", "evaluation.prompts=[]"])
    assert spread["generation"]["answers"] == 4 and spread["scores"]["rouge1"]["rows"] == 4


def test_only_the_evaluation_of_a_finished_run_can_be_changed(run: Path) -> None:
    with pytest.raises(RunError, match="a finished run cannot be changed; set values of `evaluation` only"):
        evaluate(run, overrides=["training.learning_rate=1"])


def test_training_rows_that_have_changed_cost_the_groups_alone(tmp_path: Path) -> None:
    rows = [{"instruction": f"question {i}", "response": f"answer {i % 3}"} for i in range(12)]
    for name, lines in (("train", rows), ("test", [{"instruction": "new", "response": "answer 1"}, *rows[:1]])):
        text = "\n".join(map(json.dumps, lines)).replace("question 0", f"question {name}")
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    run = trained(
        tmp_path, f"data.train={{path: {tmp_path}/train.jsonl}}", "data.eval=null",
        f"data.test={{path: {tmp_path}/test.jsonl}}", "training.max_steps=1",
    )  # fmt: skip
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    metrics = evaluate(run)
    assert metrics["problems"] == [
        "groups: answers that were also learnt are not told apart, for the training rows have changed"
    ]
    (tmp_path / "train.jsonl").unlink()
    assert "are not told apart (" in evaluate(run)["problems"][0] and metrics["scores"]["perplexity"]["rows"] == 2


def test_an_unknown_metric_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="no option 'stemmer'"):
        trained(tmp_path, "evaluation.metrics=[{name: rouge, options: {stemmer: true}}]")
    assert not (tmp_path / "runs").exists()


def test_a_prompt_that_the_template_refuses_is_said_before_training(tmp_path: Path) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    settings = recipe(tmp_path, f"model.chat_template={json.dumps(template)}")
    with_system = settings.model_copy(update={"data": settings.data.model_copy(update={"system": "Be kind."})})
    with pytest.raises(LabelError, match=r"evaluation.prompts, prompt 1: .*no system role"):
        train(with_system, runs_dir=tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_measurement_that_fails_does_not_lose_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_kit.evaluation import work

    def no_memory(*args: Any, **kwargs: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 245.00 GiB.")

    monkeypatch.setattr(work.perplexity, "row_losses", no_memory)
    run = trained(tmp_path, "training.max_steps=1")
    info = run_dir.require_finished(run)
    assert info["notes"][-1].startswith("not evaluated (out of GPU memory in evaluation: 245.00 GiB more needed; ")
    monkeypatch.undo()
    assert evaluate(run)["scores"]["perplexity"]["rows"] == 12


def test_a_bug_while_measuring_keeps_its_traceback_and_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_kit.evaluation import work

    monkeypatch.setattr(work.perplexity, "row_losses", lambda *a, **k: {}["nothing"])
    with pytest.raises(KeyError):
        trained(tmp_path, "training.max_steps=1")
    info = run_dir.require_finished(run_dir.find(tmp_path / "runs" / "tiny"))
    assert info["notes"][-1].startswith("not evaluated (")


def test_a_split_that_the_recipe_does_not_have_is_a_sentence(run: Path) -> None:
    with pytest.raises(RunError, match="the recipe has no data.test to measure on; it has data.eval: --split eval"):
        evaluate(run, split="test")


def test_an_evaluation_of_fewer_rows_does_not_lose_the_one_of_all(run: Path) -> None:
    whole = run_dir.read_metrics(run)
    said: list[str] = []
    assert evaluate(run, limit=3, report=said.append)["rows"] == 3
    (kept,) = (run / run_dir.EVALUATIONS).iterdir()
    assert json.loads((kept / "metrics.json").read_text()) == whole and (kept / "scores.jsonl").is_file()
    assert any("the earlier evaluation (12 rows of eval in float32) is kept in" in text for text in said)
    evaluate(run, limit=3)
    assert len(list((run / run_dir.EVALUATIONS).iterdir())) == 1


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_a_sentence(run: Path, name: str) -> None:
    path = run / "adapter" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read|damaged"):
        evaluate(run)
    shutil.rmtree(run / "adapter")
    with pytest.raises(RunError, match="what this run learnt is gone"):
        evaluate(run)
