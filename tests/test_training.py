"""Runs from recipe to run folder, in this process, with the tiny model."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from recipe_kit import run_dir
from recipe_kit.errors import DataError, ModelError, RecipeError, RunError
from recipe_kit.recipe import Recipe, load_recipe
from tiny_recipe import TINY

pytestmark = pytest.mark.slow

# After the first step weights of 1e27, after the second none.
DIVERGING = (
    "method=full", "lora=null", "training.learning_rate=1e30", "training.optim=sgd", "training.max_grad_norm=0",
    "evaluation.after_training=false", "training.save_strategy=steps", "training.save_steps=4",
)  # fmt: skip


def recipe(tmp_path: Path, *overrides: str, text: str = TINY) -> Recipe:
    path = tmp_path / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides=overrides)


def trained(tmp_path: Path, *overrides: str, **options: Any) -> Path:
    from recipe_kit.training import train

    return train(recipe(tmp_path, *overrides), runs_dir=tmp_path / "runs", **options)


def only_run(tmp_path: Path) -> Path:
    (run,) = (path.parent for path in tmp_path.glob(f"runs/*/2*/{run_dir.RUN}"))
    return run


def tuned_loss(run: Path) -> float:
    return run_dir.read_metrics(run)["tuned"]["loss"]


def test_a_finished_run_holds_recipe_numbers_samples_and_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR")
    run = trained(tmp_path)
    assert os.environ["DS_ACCELERATOR"] == "cpu"  # without it DeepSpeed writes among our results what it found
    names = {path.name for path in run.iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.json", "samples.jsonl", "adapter", "training_log.jsonl"} <= names
    info = run_dir.read(run)
    assert info["status"] == "finished"
    assert (run.parent / "latest").resolve() == run
    assert info["data"]["splits"]["train"]["kept"] == 24
    assert info["data"]["splits"]["train"]["held_out"] == 8
    assert info["model"]["trainable_parameters"] == 2 * 2 * 4 * (64 + 64) - 2 * 4 * (64 - 32)  # v_proj is 64 -> 32
    assert load_recipe(run / "recipe.yaml") == recipe(tmp_path)
    assert sorted(path.name for path in (run / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [set(sample) for sample in samples] == [{"kind", "prompt", "reference", "base", "tuned", "pieces"}] * 2


def test_the_log_has_a_line_a_step_with_loss_speed_and_memory(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (trained(tmp_path) / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["loss"] > 0 and line["tokens_per_second"] > 0 and line["peak_memory_bytes"] > 0 for line in lines)


def test_training_lowers_the_held_out_loss_and_leaves_the_base_alone(tmp_path: Path) -> None:
    run = trained(tmp_path, "training.max_steps=30", "training.save_strategy=no", "lora.target_modules=all-linear")
    metrics = run_dir.read_metrics(run)
    assert metrics["tuned"]["loss"] < metrics["base"]["loss"] - 0.1
    assert metrics["base"]["perplexity"] == pytest.approx(math.exp(metrics["base"]["loss"]))
    untrained = trained(tmp_path, "training.learning_rate=1e-30", "training.save_strategy=no")
    assert run_dir.read_metrics(untrained)["base"] == metrics["base"]
    assert tuned_loss(untrained) == pytest.approx(metrics["base"]["loss"], abs=1e-5)


def test_perplexity_equals_a_plain_loop_over_single_rows(tmp_path: Path) -> None:
    from recipe_kit import data, modeling

    run = trained(tmp_path)
    settings = recipe(tmp_path)
    tokenizer = modeling.load_tokenizer(settings.model)
    rows = data.prepare(settings.data, tokenizer, splits=["eval"])["eval"].rows
    model = modeling.load_model(settings, tokenizer, "float32").double().eval()
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="none")
        total, count = total + losses.sum().item(), count + int((labels[1:] != -100).sum())
    base = run_dir.read_metrics(run)["base"]
    assert base["tokens"] == count
    assert base["loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("packing", ["false", "true"])
def test_every_method_trains_packed_and_not(tmp_path: Path, method: str, packing: str) -> None:
    changes = ["lora=null"] if method == "full" else []
    run = trained(tmp_path, f"method={method}", f"training.packing={packing}", *changes)
    assert run_dir.read(run)["status"] == "finished"
    assert tuned_loss(run) != run_dir.read_metrics(run)["base"]["loss"]
    assert (run / ("model" if method == "full" else "adapter")).is_dir()


@pytest.mark.parametrize("option", ["lora.use_dora=true", "lora.use_rslora=true"])
def test_dora_and_rslora_pass_through_to_the_saved_adapter(tmp_path: Path, option: str) -> None:
    run = trained(tmp_path, option)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config[option.removeprefix("lora.").removesuffix("=true")] is True


def test_adapters_of_a_4_bit_model_are_float32_where_trl_makes_them_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT #2889: TRL casts all that is trained of a 4-bit model to bfloat16, in which small updates are lost."""
    import trl
    from safetensors.torch import load_file

    from recipe_kit import modeling, running
    from recipe_kit.evaluation import evaluate

    seen: dict[str, Any] = {}
    build = running._trainer

    def types(model: Any) -> dict[str, torch.dtype]:
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        assert any("lora_B" in name for name in trained)
        return {"adapter" if "lora_" in name else "layer": value.dtype for name, value in trained.items()}

    def keep_types(*args: Any) -> Any:
        trainer = build(*args)
        seen["ours"] = types(trainer.model)
        return trainer

    monkeypatch.setattr(running, "_trainer", keep_types)
    adapter = "lora={r: 4, target_modules: [q_proj, v_proj], modules_to_save: [lm_head]}"
    changes = ["method=qlora", "model.dtype=bfloat16", adapter]
    run = trained(tmp_path, *changes)
    # Whole layers are loaded in the type of the base, so they are trained in it.
    assert seen["ours"] == {"adapter": torch.float32, "layer": torch.bfloat16}
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for name, value in saved.items() if "lora_" in name} == {torch.float32}
    assert evaluate(run)["tuned"]["loss"] == pytest.approx(tuned_loss(run), abs=1e-6)

    settings = recipe(tmp_path, *changes)
    tokenizer = modeling.load_tokenizer(settings.model)
    theirs = trl.SFTTrainer(
        model=modeling.load_model(settings, tokenizer, "bfloat16"),
        args=trl.SFTConfig(output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to=[]),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[1, 2, 3]]}),
        peft_config=modeling.lora_config(settings),
    )
    assert types(theirs.model) == {"adapter": torch.bfloat16, "layer": torch.bfloat16}


def test_only_the_adapter_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe_kit import running

    seen: dict[str, Any] = {}
    build = running._trainer

    def keep_trainer(*args: Any) -> Any:
        seen["trainer"] = build(*args)
        seen["before"] = {name: value.clone() for name, value in seen["trainer"].model.named_parameters()}
        return seen["trainer"]

    monkeypatch.setattr(running, "_trainer", keep_trainer)
    trained(tmp_path, "evaluation.after_training=false")
    for name, value in seen["trainer"].model.named_parameters():
        assert torch.equal(value, seen["before"][name]) != ("lora_" in name), name


def test_same_recipe_same_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    first, second = (load_file(trained(tmp_path) / "adapter" / "adapter_model.safetensors") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_batch_of_four_equals_four_accumulated_steps(tmp_path: Path) -> None:
    """transformers #35203, trl #2175: gradient accumulation changed the loss."""
    one = trained(tmp_path, "training.per_device_train_batch_size=4", "training.save_strategy=no")
    four = trained(
        tmp_path, "training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=4",
        "training.save_strategy=no",
    )  # fmt: skip
    losses = [run_dir.read(run)["training"]["final_loss"] for run in (one, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_interrupted_run_says_so_and_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from recipe_kit.progress import ProgressLog

    whole = trained(tmp_path)
    log = ProgressLog.on_log

    def stop_at_three(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        log(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressLog, "on_log", stop_at_three)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    monkeypatch.setattr(ProgressLog, "on_log", log)
    stopped = run_dir.newest_unfinished(tmp_path / "runs", "tiny")
    assert run_dir.read(stopped)["status"] == "interrupted"
    assert not (stopped / "adapter").exists()
    assert (tmp_path / "runs" / "tiny" / "latest").resolve() == whole

    resumed = trained(tmp_path, resume=True)
    assert resumed == stopped
    assert run_dir.read(resumed)["training"]["resumed_at_step"] == 2
    expected = load_file(whole / "adapter" / "adapter_model.safetensors")
    weights = load_file(resumed / "adapter" / "adapter_model.safetensors")
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in expected)


def test_resuming_with_another_recipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe_kit import running

    monkeypatch.setattr(running, "_save", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path)
    monkeypatch.undo()
    run = run_dir.newest_unfinished(tmp_path / "runs", "tiny")
    assert run_dir.read(run)["status"] == "failed"
    with pytest.raises(RunError, match="the recipe has changed since this run started"):
        trained(tmp_path, "training.learning_rate=1e-3", resume=True)


def test_a_run_that_another_process_still_trains_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_kit import running

    monkeypatch.setattr(running, "_save", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path)
    monkeypatch.undo()
    run = run_dir.newest_unfinished(tmp_path / "runs", "tiny")
    run_dir.write_json(run / "run.json", {**run_dir.read(run), "status": "running"})  # as this process recorded itself
    with pytest.raises(RunError, match="is still training here; wait for it, or stop it before you resume"):
        trained(tmp_path, resume=True)


def test_a_loss_that_is_not_a_number_is_logged_as_such(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"training went wrong by step 2 \(loss nan\)"):
        trained(tmp_path, *DIVERGING)
    log = (only_run(tmp_path) / "training_log.jsonl").read_text()
    assert '"loss": NaN' in log and '"loss": 0.0,' not in log


def test_weights_that_are_no_numbers_end_the_run_and_push_no_good_checkpoint_out(tmp_path: Path) -> None:
    """Training on would take hours, and with save_total_limit the last good checkpoint."""
    with pytest.raises(RunError) as error:
        trained(tmp_path, *DIVERGING, "training.save_steps=1", "training.save_total_limit=1", "training.max_steps=6")
    run = only_run(tmp_path)
    assert [path.name for path in (run / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
    assert "the checkpoint of step 1 is from before, and --resume " in str(error.value)
    info = run_dir.read(run)
    assert info["status"] == "failed" and "no later step mends" in info["error"]
    assert not (run / "model").exists()


def test_a_checkpoint_is_not_written_of_weights_that_are_no_numbers_even_where_no_loss_was_logged(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunError, match="training went wrong by step 2: .* no checkpoint was saved before"):
        trained(tmp_path, *DIVERGING, "training.save_steps=2", "training.logging_steps=100")


def test_after_one_step_it_is_not_the_learning_rate_that_is_blamed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_kit.trainer import Trainer

    step = Trainer.training_step

    def broken(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        loss = step(self, model, *arguments, **options)
        if self.rehearsal is not None:  # and not in the proof, which would notice
            next(p for p in model.parameters() if p.requires_grad).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(Trainer, "training_step", broken)
    with pytest.raises(RunError, match="by step 1.*; after one step this is seldom the learning rate: look"):
        trained(tmp_path)


def test_a_loss_that_is_no_number_ends_nothing_while_the_weights_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float16 a step whose gradients overflow is left out."""
    from recipe_kit.trainer import Trainer

    step = Trainer.training_step

    def overflowing(self: Any, *arguments: Any, **options: Any) -> Any:
        loss = step(self, *arguments, **options)
        if self.state.global_step == 1:
            self.model.zero_grad()
            return loss * float("nan")
        return loss

    monkeypatch.setattr(Trainer, "training_step", overflowing)
    run = trained(tmp_path)
    assert [math.isnan(line["loss"]) for line in run_dir.read_lines(run / run_dir.LOG) if "loss" in line] == [
        False, True, False, False,
    ]  # fmt: skip
    assert run_dir.read(run)["status"] == "finished"


def test_nothing_to_resume_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to resume"):
        trained(tmp_path, resume=True)


def test_eval_measures_a_finished_run_to_the_same_numbers(tmp_path: Path) -> None:
    from recipe_kit.evaluation import evaluate

    run = trained(tmp_path, "method=qlora")
    before, samples = run_dir.read_metrics(run), (run / "samples.jsonl").read_text()
    after = evaluate(run)
    assert after["tuned"]["loss"] == pytest.approx(before["tuned"]["loss"], abs=1e-6)
    assert after["base"]["loss"] == pytest.approx(before["base"]["loss"], abs=1e-6)
    assert (run / "samples.jsonl").read_text() == samples
    assert evaluate(run, limit=3)["rows"] == 3


def test_eval_refuses_rows_that_are_not_those_of_the_run(tmp_path: Path) -> None:
    from recipe_kit.evaluation import evaluate

    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"instruction": f"question {i}", "response": f"answer {i}"}) for i in range(20)]
    rows.write_text("\n".join(lines))
    run = trained(tmp_path, f"data.train={{path: {rows}}}")
    rows.write_text("\n".join(line.replace("answer", "reply") for line in lines))
    with pytest.raises(DataError, match="the held-out rows have changed since this run was trained"):
        evaluate(run)


def test_eval_of_a_run_that_did_not_finish_is_refused(tmp_path: Path) -> None:
    from recipe_kit.evaluation import evaluate

    run = trained(tmp_path)
    info = run_dir.read(run)
    run_dir.write_json(run / "run.json", {**info, "status": "failed", "error": "disk full"})
    with pytest.raises(RunError, match=r"this run is failed \(disk full\)"):
        evaluate(run)


def test_generation_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    one = trained(tmp_path, "evaluation.batch_size=1", "evaluation.samples=5")
    five = trained(tmp_path, "evaluation.batch_size=5", "evaluation.samples=5")
    assert (one / "samples.jsonl").read_text() == (five / "samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("overrides", "error", "sentence"),
    [
        (["model.id=tiny:llama9"], ModelError, "no tiny model 'tiny:llama9'"),
        (["model.id=no_such_folder"], ModelError, "neither a folder nor a Hub id"),
        (["model.id=package:no_such_package"], ModelError, "the Python package 'no_such_package' is not installed"),
        (["model.id=nobody/nothing"], ModelError, "cannot load nobody/nothing"),
        (["lora.target_modules=[wq]"], ModelError, "lora.target_modules: wq not in this model; its linear layers are"),
        (["training.optim=paged_adamw_8bit"], RecipeError, "paged optimisers need a GPU"),
        (
            ["training.packing=true", "training.packing_strategy=wrapped"],
            RecipeError,
            "lets packed rows see each other",
        ),
        (["data.max_length=8"], DataError, "none of .* rows is left"),
        (["data.train.sample=suport"], DataError, "did you mean support"),
        (["data.formatter=alpaca"], DataError, "'output'"),
        (["model.pad_token=<nope>"], ModelError, "not in the vocabulary"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_finished_run(
    tmp_path: Path, overrides: list[str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence) as caught:
        trained(tmp_path, *overrides)
    assert "\n" not in str(caught.value)
    runs = list((tmp_path / "runs").rglob("run.json"))
    assert all(json.loads(path.read_text())["status"] == "failed" for path in runs)


def test_a_folder_that_cannot_be_written_is_said_before_anything_slow(tmp_path: Path) -> None:
    from recipe_kit.training import train

    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="cannot write .*choose another folder with --runs-dir"):
        train(recipe(tmp_path), runs_dir=blocked / "runs")


def test_qlora_without_bitsandbytes_is_said_before_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(ModelError, match="qlora needs bitsandbytes; `pip install bitsandbytes`, or set method: lora"):
        trained(tmp_path, "method=qlora")
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_chat_without_an_answer_names_file_and_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    chats = [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        [{"role": "user", "content": "?"}],
    ]
    rows.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    with pytest.raises(DataError, match=r"rows.jsonl \(train\) row 2: .*assistant"):
        trained(tmp_path, f"data.train={{path: {rows}}}", "data.formatter=messages", "data.eval=null")


def test_nothing_is_sent_to_anyone(tmp_path: Path) -> None:
    """SFTTrainer pings the Hub when it is built, unless this is set."""
    import huggingface_hub

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = False
    trained(tmp_path, "training.max_steps=1", "evaluation.after_training=false")
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY is True


def test_a_token_in_the_command_never_reaches_the_run_folder(tmp_path: Path) -> None:
    run = trained(tmp_path, command=["recipe-kit", "train", "hf_abcdefghijklmnop"])
    assert "hf_abcdefgh" not in (run / "run.json").read_text()


def test_a_card_without_bfloat16_computes_in_float16_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_kit import modeling

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    notes: list[str] = []
    on_card = recipe(tmp_path, "training.use_cpu=false", "method=qlora", "model.dtype=bfloat16")
    assert modeling.choose_precision(on_card, notes) == "float16"
    assert notes == ["Tesla T4 has no bfloat16: computing in float16"]
    assert modeling.quantization_config(on_card, "float16").bnb_4bit_compute_dtype is torch.float16


def test_half_precision_is_not_used_on_a_cpu_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    run = trained(tmp_path, "model.dtype=float16", report=said.append)
    assert any("float16 is too slow on a CPU" in line for line in said)
    assert run_dir.read(run)["model"]["dtype"] == "float32"


def test_the_licence_of_the_base_is_recorded_and_its_texts_go_with_the_weights(tmp_path: Path) -> None:
    """hub-docs #995: models whose licence nobody can tell."""
    import shutil

    from recipe_kit.local_models import local_folder
    from recipe_kit.publish import gather

    base = tmp_path / "base"
    shutil.copytree(str(local_folder("tiny:chatml")), base)
    (base / "README.md").write_text("---\nlicense: llama3.2\n---\n# A base\n", encoding="utf-8")
    (base / "LICENSE.txt").write_text("You may use it.", encoding="utf-8")
    (base / "USE_POLICY.md").write_text("But not for that.", encoding="utf-8")
    run = trained(tmp_path, f"model.id={base}", "training.max_steps=1")
    assert run_dir.read(run)["model"]["license"] == {"license": "llama3.2"}
    files = {file.path: file for file in gather(run, repo_id="acme/Llama-tiny").files}
    assert {"LICENSE.txt", "USE_POLICY.md", "NOTICE"} <= set(files)
    assert files["LICENSE.txt"].content.read_text() == "You may use it."
