"""Which run is gone on with, and what is said, refused or recorded of what has changed since it began."""

from __future__ import annotations

import copy
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from recipe_kit import resume, run_dir, trials
from recipe_kit.errors import RunError
from recipe_kit.out_of_memory import Watch, sentence
from recipe_kit.recipe import Recipe, dump_recipe, load_recipe, recipe_digest
from tiny_recipe import TINY

UNMEASURED = TINY.replace("{samples: 2, max_new_tokens: 8, batch_size: 2}", "{after_training: false}")
INFO: dict[str, Any] = {
    "schema_version": 1, "recipe_kit_version": "0.1.0", "status": "interrupted", "name": "tiny", "method": "lora",
    "started_at": "2026-01-01T00:00:00+00:00", "command": [], "git_commit": None, "processes": 1, "seed": 42,
    "notes": [], "versions": {"python": "3.12.1", "torch": "2.12.0", "trl": "1.15.0"},
    "hardware": {"device": "cuda", "name": "NVIDIA A100", "cuda": "13.0"},
    "model": {"id": "tiny:chatml", "revision": None, "chat_template_sha256": "c" * 64},
    "data": {"splits": {"train": {"kept": 24, "tokens": 1234, "content_sha256": "a" * 64, "order_sha256": "0" * 64}}},
    "speed": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "optim": "adamw_torch"},
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(UNMEASURED, encoding="utf-8")
    return load_recipe(path)


def changed(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "changed.yaml"
    path.write_text(UNMEASURED, encoding="utf-8")
    return load_recipe(path, overrides=overrides)


def make_run(
    folder: Path, recipe: Recipe, status: str = "interrupted", *, step: int | None = 2, **values: Any
) -> Path:
    folder.mkdir(parents=True)
    run_dir.write_text(folder / "recipe.yaml", dump_recipe(recipe))
    info = {**copy.deepcopy(INFO), "status": status, "recipe_sha256": recipe_digest(recipe), **values}
    run_dir.write_json(folder / "run.json", info)
    if step is not None:
        checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "complete.json").write_text(json.dumps({"schema_version": 1, "step": step, "files": {}}))
    return folder


def now_of(run: Path, **values: Any) -> Any:
    """What run.json would say now: nothing else than then, but for `values`, whose keys may be `versions.torch`."""
    info: Any = run_dir.read(run)
    info["notes"] = []
    for key, value in values.items():
        *parents, last = key.split("__")
        place = info
        for parent in parents:
            place = place[parent]
        place[last] = value
    return info


# --- which run


def test_auto_begins_where_there_is_nothing_to_go_on_with(tmp_path: Path, begun: Recipe) -> None:
    said: list[str] = []
    assert resume.find(begun, tmp_path, "auto", said.append) is None
    make_run(tmp_path / "tiny" / "2026-01-01T00-00-00", begun, "failed", step=None)
    assert resume.find(begun, tmp_path, "auto", said.append) is None
    assert said == [f"nothing to go on with in {tmp_path / 'tiny'}: a new run begins"] * 2


def test_auto_goes_on_with_the_newest_unfinished_run(tmp_path: Path, begun: Recipe) -> None:
    make_run(tmp_path / "tiny" / "2026-01-01T00-00-00", begun, "failed")
    newest = make_run(tmp_path / "tiny" / "2026-01-02T00-00-00", begun)
    said: list[str] = []
    assert resume.find(begun, tmp_path, "auto", said.append) == newest
    assert said == [f"going on with {newest}"]


def test_auto_begins_anew_where_every_checkpoint_is_damaged(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "tiny" / "2026-01-01T00-00-00", begun)
    (damaged,) = run.glob("checkpoints/checkpoint-*")
    (damaged / "complete.json").write_text('{"files": {"optimizer.pt": {"bytes": 5, "sha256": ""}}}')
    said: list[str] = []
    assert resume.find(begun, tmp_path, "auto", said.append) is None
    assert said == [
        f"{damaged} is left out: optimizer.pt is missing",
        f"nothing to go on with in {tmp_path / 'tiny'}: a new run begins",
    ]


def test_auto_does_nothing_where_this_recipe_is_finished(tmp_path: Path, begun: Recipe) -> None:
    """A job that a scheduler starts once more after its end must not train for another day."""
    make_run(tmp_path / "tiny" / "2026-01-01T00-00-00", begun, "failed")
    finished = make_run(tmp_path / "tiny" / "2026-01-02T00-00-00", begun, "finished")
    said: list[str] = []
    assert resume.find(begun, tmp_path, "auto", said.append) == finished
    assert said == [f"{finished}: this run is finished; leave --resume auto out to train once more"]


def test_auto_begins_anew_where_another_recipe_of_that_name_is_finished(tmp_path: Path, begun: Recipe) -> None:
    make_run(tmp_path / "tiny" / "2026-01-02T00-00-00", begun, "finished")
    assert resume.find(changed(tmp_path, "training.max_steps=8"), tmp_path, "auto") is None


def test_auto_passes_a_damaged_folder_over_and_says_so(tmp_path: Path, begun: Recipe) -> None:
    wanted = make_run(tmp_path / "tiny" / "2026-01-01T00-00-00", begun)
    damaged = make_run(tmp_path / "tiny" / "2026-01-02T00-00-00", begun)
    (damaged / "run.json").write_text('{"status": ')
    said: list[str] = []
    assert resume.find(begun, tmp_path, "auto", said.append) == wanted
    assert said[0].startswith(f"passed over: {damaged / 'run.json'}: cannot be read")


@pytest.mark.parametrize("step", [2, None])
def test_auto_is_refused_while_another_process_trains(tmp_path: Path, begun: Recipe, step: int | None) -> None:
    """Also before its first checkpoint: two runs of one command would share a machine."""
    owner = {"pid": os.getpid(), "host": platform.node()}
    make_run(tmp_path / "tiny" / "2026-01-01T00-00-00", begun, "running", step=step, process=owner)
    with pytest.raises(RunError, match=f"process {os.getpid()} is still training here; wait for it, or stop it"):
        resume.find(begun, tmp_path, "auto")


def test_a_run_without_a_checkpoint_is_refused_by_name(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun, step=None)
    with pytest.raises(RunError, match="no checkpoint was saved; start anew without --resume"):
        resume.find(begun, tmp_path, run)
    with pytest.raises(RunError, match="this run is finished; there is nothing to resume"):
        resume.find(begun, tmp_path, make_run(tmp_path / "b", begun, "finished"))


def test_nothing_is_looked_for_without_resume(tmp_path: Path, begun: Recipe) -> None:
    make_run(tmp_path / "tiny" / "2026-01-01T00-00-00", begun)
    assert resume.find(begun, tmp_path, False) is None


# --- what has changed


def test_nothing_is_said_where_nothing_changed(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    now = now_of(run)
    said: list[str] = []
    assert resume.check_unchanged(run, run_dir.read(run), now, begun, report=said.append) == []
    assert said == now["notes"] == []


def test_a_changed_recipe_is_named_with_both_values_and_refused(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    recipe = changed(tmp_path, "training.learning_rate=1e-3", "data.system=Be brief.")
    with pytest.raises(RunError) as refused:
        resume.check_unchanged(run, run_dir.read(run), now_of(run), recipe)
    assert str(refused.value) == (
        f"{run}: the recipe has changed since this run started: data.system null then, Be brief. now; "
        "training.learning_rate 0.01 then, 0.001 now; add --accept-changes to go on with what is here now, undo them, "
        "or start anew without --resume"
    )


def test_of_many_keys_five_are_named_and_the_rest_is_counted(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    keys = ("learning_rate", "warmup_steps", "max_grad_norm", "max_steps", "seed", "neftune_noise_alpha", "data_seed")
    recipe = changed(tmp_path, *(f"training.{key}=3" for key in keys))
    with pytest.raises(RunError, match=rf"and 2 more \(`recipe-kit diff {run}/recipe.yaml YOUR_RECIPE` shows all\)"):
        resume.check_unchanged(run, run_dir.read(run), now_of(run), recipe)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"versions__torch": "2.13.0"}, "the packages have changed since this run started: torch 2.12.0 then, 2.13.0"),
        ({"versions__liger-kernel": "0.8"}, "liger-kernel not there then, 0.8 now"),
        ({"recipe_kit_version": "0.2.0"}, "recipe-kit 0.1.0 then, 0.2.0 now"),
        (
            {"data__splits__train": {"kept": 25, "tokens": 1300, "content_sha256": "b" * 64}},
            r"the rows have changed since this run started: train: 24 rows of 1,234 tokens \(content aaaaaaaaaaaa\) "
            r"then, 25 rows of 1,300 tokens \(content bbbbbbbbbbbb\) now",
        ),
        ({"data__splits__train__order_sha256": "1" * 64}, "order of train 000000000000 then, 111111111111 now"),
        ({"data__splits__test": {"kept": 1, "tokens": 9, "content_sha256": "d" * 64}}, "test: no rows then, 1 rows"),
        ({"model__chat_template_sha256": "e" * 64}, "chat template cccccccccccc then, eeeeeeeeeeee now"),
        ({"processes": 2}, "the batch has changed since this run started: rows a step 8 then, 16 now"),
    ],
)
def test_other_rows_packages_and_batches_are_refused_unless_accepted(
    tmp_path: Path, begun: Recipe, values: dict[str, Any], sentence: str
) -> None:
    run = make_run(tmp_path / "a", begun)
    before = run_dir.read(run)
    with pytest.raises(RunError, match=sentence):
        resume.check_unchanged(run, before, now_of(run, **values), begun)
    accepted = resume.check_unchanged(run, before, now_of(run, **values), begun, accepted=True)
    assert [change.kind for change in accepted] == ["asked"]


def test_several_kinds_of_change_are_one_sentence(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    now = now_of(run, versions__trl="1.16.0", data__splits__train__tokens=99)
    recipe = changed(tmp_path, "data.max_length=128")
    with pytest.raises(RunError, match="the recipe, rows and packages have changed since this run started: data.max_"):
        resume.check_unchanged(run, run_dir.read(run), now, recipe)


@pytest.mark.parametrize(
    "override",
    [
        "description=another", "evaluation.samples=3", "launch.num_processes=2", "publish.tag=v1", "card.language=en",
        "training.logging_steps=5", "training.report_to=[wandb]", "training.save_steps=1",
        "training.save_total_limit=9", "training.gradient_checkpointing=true", "training.optim=adamw_torch",
        "training.per_device_train_batch_size=8", "model.revision=main",
    ],
)  # fmt: skip
def test_what_cannot_change_what_is_learnt_is_told_and_needs_no_acceptance(
    tmp_path: Path, begun: Recipe, override: str
) -> None:
    run = make_run(tmp_path / "a", begun)
    now, said = now_of(run), list[str]()
    assert resume.check_unchanged(run, run_dir.read(run), now, changed(tmp_path, override), report=said.append) == []
    assert said == now["notes"]
    assert f"change nothing of what is learnt: {override.partition('=')[0]} " in said[0]


def test_another_card_and_more_processes_with_the_same_batch_are_told(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    now = now_of(run, hardware__name="NVIDIA H100", processes=2, speed__gradient_accumulation_steps=1)
    assert resume.check_unchanged(run, run_dir.read(run), now, begun) == []
    assert "hardware name NVIDIA A100 then, NVIDIA H100 now; processes 1 then, 2 now" in now["notes"][0]


@pytest.mark.parametrize(
    ("then", "now", "sentence"),
    [
        (("fsdp2", 2), ("ddp", 2), "strategy fsdp2 then, ddp now; undo them"),
        (("zero2", 2), ("zero2", 1), "processes 2 then, 1 now; undo them"),
    ],
)
def test_checkpoints_in_shards_are_taken_up_as_they_were_written(
    tmp_path: Path, begun: Recipe, then: tuple[str, int], now: tuple[str, int], sentence: str
) -> None:
    speed = {**INFO["speed"], "gradient_accumulation_steps": 4 // then[1], "strategy": then[0]}
    run = make_run(tmp_path / "a", begun, speed=speed, processes=then[1])
    here = now_of(run, processes=now[1], speed__strategy=now[0], speed__gradient_accumulation_steps=4 // now[1])
    with pytest.raises(RunError, match=sentence):
        resume.check_unchanged(run, run_dir.read(run), here, begun, accepted=True)


@pytest.mark.parametrize(
    "override",
    [
        "lora.r=8", "lora.target_modules=[q_proj]", "training.optim=paged_adamw_8bit", "training.weight_decay=0.1",
        "model.id=acme/other",
    ],
)  # fmt: skip
def test_what_the_checkpoint_does_not_fit_cannot_be_accepted(tmp_path: Path, begun: Recipe, override: str) -> None:
    run = make_run(tmp_path / "a", begun)
    with pytest.raises(RunError, match="its checkpoint cannot be gone on with after these changes: .* undo them, or"):
        resume.check_unchanged(run, run_dir.read(run), now_of(run), changed(tmp_path, override), accepted=True)


def test_an_adapter_may_go_on_in_4_bits_and_full_weights_may_not(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    found = resume.check_unchanged(
        run, run_dir.read(run), now_of(run), changed(tmp_path, "method=qlora"), accepted=True
    )
    assert "method" in [change.what for change in found]
    with pytest.raises(RunError, match="method lora then, full now"):
        full = changed(tmp_path, "method=full", "lora=null")
        resume.check_unchanged(run, run_dir.read(run), now_of(run), full, accepted=True)


def test_rows_that_lie_elsewhere_are_the_same_rows(tmp_path: Path) -> None:
    there, here = (changed(tmp_path, f"data.train={{path: {tmp_path / name}}}") for name in ("a.jsonl", "b.jsonl"))
    run = make_run(tmp_path / "a", there)
    assert resume.check_unchanged(run, run_dir.read(run), now_of(run), here) == []


def test_a_recipe_file_of_the_run_that_was_edited_by_hand_is_not_believed(tmp_path: Path, begun: Recipe) -> None:
    run, recipe = make_run(tmp_path / "a", begun), changed(tmp_path, "training.learning_rate=1e-3")
    run_dir.write_text(run / "recipe.yaml", dump_recipe(recipe))
    now = now_of(run, recipe_sha256=recipe_digest(recipe))
    with pytest.raises(
        RunError, match=r"recipe.yaml of the run was changed: SHA-256 [0-9a-f]{12} then, [0-9a-f]{12} "
    ):
        resume.check_unchanged(run, run_dir.read(run), now, recipe)


def test_a_recipe_that_cannot_be_read_any_more_is_a_sentence(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    (run / "recipe.yaml").write_text("method: telepathy\n")
    with pytest.raises(RunError, match="nobody knows what has changed .*go on with recipe-kit 0.1.0, which wrote it"):
        resume.check_unchanged(run, run_dir.read(run), now_of(run), changed(tmp_path, "training.seed=7"))


# --- what is kept of it


def accept(run: Path, recipe: Recipe) -> Any:
    before, now = run_dir.read(run), now_of(run)
    now["recipe_sha256"] = recipe_digest(recipe)
    resume.record(run, before, now, resume.check_unchanged(run, before, now, recipe, accepted=True))
    run_dir.write_text(run / "recipe.yaml", dump_recipe(recipe))
    run_dir.write_json(run / "run.json", now)
    return now


def test_an_accepted_change_is_kept_with_its_step_and_the_recipe_of_the_steps_before(
    tmp_path: Path, begun: Recipe
) -> None:
    run = make_run(tmp_path / "a", begun, step=120)
    now = accept(run, changed(tmp_path, "training.learning_rate=1e-3"))
    assert now["changed_on_resume"] == [
        {
            "step": 120,
            "at": "2026-01-01T00:00:00+00:00",
            "recipe_before": "recipe.before-step-120.yaml",
            "changes": [{"what": "training.learning_rate", "then": 0.01, "now": 0.001}],
        }
    ]
    assert load_recipe(run / "recipe.before-step-120.yaml") == begun
    said = "the steps after 120 were not trained as those before: training.learning_rate 0.01 then, 0.001 now"
    assert now["notes"] == [said]
    assert accept(run, load_recipe(run / "recipe.yaml"))["notes"] == [said]  # gone on with once more, unchanged


def test_a_try_that_left_no_checkpoint_is_forgotten(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    accept(run, changed(tmp_path, "training.learning_rate=1e-3", "training.max_steps=8"))
    (entry,) = accept(run, changed(tmp_path, "training.learning_rate=1e-4"))["changed_on_resume"]
    assert entry["changes"] == [{"what": "training.learning_rate", "then": 0.01, "now": 0.0001}]
    assert load_recipe(run / entry["recipe_before"]) == begun


def test_a_comparison_does_not_take_it_for_a_run_of_its_last_recipe(tmp_path: Path, begun: Recipe) -> None:
    (tmp_path / "tiny.yaml").write_text(UNMEASURED, encoding="utf-8")
    trial = trials.load(str(tmp_path / "tiny.yaml"), (), ())
    run = make_run(tmp_path / "tiny" / "a", begun, "finished")
    assert trials.find_finished(trial, tmp_path) == run
    run_dir.update(run, changed_on_resume=[{"step": 2}])
    assert trials.find_finished(trial, tmp_path) is None


# --- advice, and the command line


@pytest.mark.parametrize(
    ("remedy", "advice"),
    [
        (
            "set training.gradient_checkpointing: true",
            "go on with `--resume --set training.gradient_checkpointing=true`",
        ),
        (
            "set training.per_device_train_batch_size: 2 and training.gradient_accumulation_steps: 4, which is the "
            "same effective batch",
            "go on with `--resume --set training.per_device_train_batch_size=2 --set "
            "training.gradient_accumulation_steps=4`",
        ),
        ("set method: qlora, or data.max_length: 128", "go on with `--resume --accept-changes --set method=qlora`"),
        ("set data.max_length: 128", "go on with `--resume --accept-changes --set data.max_length=128`"),
        ("set training.optim: paged_adamw_8bit", ""),  # another optimiser cannot take up its states
        ("name a smaller model in model.id, or take a card with more memory", ""),
    ],
)
def test_advice_on_memory_says_how_to_go_on(tmp_path: Path, begun: Recipe, remedy: str, advice: str) -> None:
    assert resume.advice(make_run(tmp_path / "a", begun), begun, remedy) == advice
    assert resume.advice(make_run(tmp_path / "b", begun, step=None), begun, remedy) == ""


def test_a_step_that_ran_out_of_memory_ends_with_what_to_type(tmp_path: Path, begun: Recipe) -> None:
    run = make_run(tmp_path / "a", begun)
    arguments: Any = SimpleNamespace(
        per_device_train_batch_size=4, per_device_eval_batch_size=8, gradient_accumulation_steps=1,
        gradient_checkpointing=False, optim="adamw_torch",
    )  # fmt: skip
    watch = Watch(begun, arguments, phase="backward", step=12, go_on=lambda line: resume.advice(run, begun, line))
    assert sentence(watch, "", None) == (
        "out of GPU memory in backward at step 12: set training.gradient_checkpointing: true; "
        "go on with `--resume --set training.gradient_checkpointing=true`"
    )
    after = replace(watch, phase="evaluation", arguments=None, step=0)  # weights are saved, and nothing is resumed
    assert "--resume" not in sentence(after, "", None)


def test_accept_changes_alone_is_wrong_usage() -> None:
    from recipe_kit.cli import main

    result = CliRunner().invoke(main, ["train", "quickstart", "--accept-changes"])
    assert result.exit_code == 2
    assert "--accept-changes says how to go on with a run: add --resume" in result.output


def test_the_launch_line_carries_both_options() -> None:
    from recipe_kit.cli import main

    words = ["train", "quickstart", "--resume", "auto", "--accept-changes", "--print-command"]
    result = CliRunner().invoke(main, words)
    assert "--resume auto --accept-changes" in result.output


# --- for real


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, begun: Recipe) -> Iterator[Path]:
    """The runs folder of a run that was stopped at step 3, with a checkpoint of step 2."""
    from recipe_kit.progress import ProgressLog
    from recipe_kit.training import train

    runs = tmp_path_factory.mktemp("runs")
    log = ProgressLog.on_log

    def stop_at_three(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        log(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressLog, "on_log", stop_at_three)
        with pytest.raises(KeyboardInterrupt):
            train(begun, runs_dir=runs)
    yield runs


@pytest.mark.slow
def test_an_accepted_learning_rate_is_the_one_that_is_trained_with_and_the_run_says_so(
    tmp_path: Path, stopped: Path
) -> None:
    """transformers 5.23 takes the rate and the intervals from the checkpoint, whatever the arguments say."""
    from recipe_kit.training import train

    recipe = changed(tmp_path, "training.learning_rate=1e-3", "training.save_steps=1")
    with pytest.raises(RunError, match="the recipe has changed .* training.learning_rate 0.01 then, 0.001 now; add"):
        train(recipe, runs_dir=stopped, resume="auto")
    run = train(recipe, runs_dir=stopped, resume="auto", accept_changes=True)
    info = run_dir.read(run)
    assert info["changed_on_resume"][0]["step"] == info["training"]["resumed_at_step"] == 2
    assert load_recipe(run / "recipe.before-step-2.yaml").training["learning_rate"] == 0.01
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in log if "loss" in line]
    # Linear to zero over four steps; the third was trained twice, and counts as it was trained last.
    assert rates[:2] == pytest.approx([0.01, 0.0075])
    assert rates[-2:] == pytest.approx([0.0005, 0.00025])
    assert (run / "checkpoints" / "checkpoint-3").is_dir()
    assert train(recipe, runs_dir=stopped, resume="auto") == run  # finished: nothing is trained again
    assert run_dir.read(run) == info
