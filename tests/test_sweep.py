"""`recipe-kit sweep`: what is tried, when a trial is stopped, what is remembered, and the recipe that comes out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from recipe_kit import run_dir, trials
from recipe_kit.cli.sweep import sweep
from recipe_kit.comparison.scores import Estimate
from recipe_kit.errors import LaunchError, RecipeError, RunError
from recipe_kit.recipe import dump_recipe, load_recipe, recipe_digest
from recipe_kit.sweep import best, plan_sweep, result
from recipe_kit.sweep.drive import Tried, held_out_loss, run_trials, said
from recipe_kit.sweep.plan import SweepPlan, trial_overrides
from recipe_kit.sweep.pruning import Watcher, curve_of, median_rule, schedule
from recipe_kit.sweep.values import Range, as_overrides, corners, grid, parse

EVAL = "data.eval={rows: 16}"  # quickstart names no eval rows


def values(*over: str, ranges: bool = False) -> list[Any]:
    return [axis.values for axis in parse(over, ranges=ranges)]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(sweep, [str(word) for word in words])


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., SweepPlan]:
    def make(*over: str, **options: Any) -> SweepPlan:
        options = {
            "profiles": ["smoke"],
            "overrides": [EVAL],
            "runs_dir": tmp_path,
            "out": tmp_path / "best.yaml",
        } | options
        return plan_sweep("quickstart", over, **options)

    return make


# --- what is tried ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "found"),
    [
        ("training.learning_rate=1e-4,2e-4", (1e-4, 2e-4)),
        ("lora.r=8, 16", (8, 16)),
        ("training.optim=adamw_torch,'adamw_torch_fused'", ("adamw_torch", "adamw_torch_fused")),
        ("lora.target_modules=[q_proj, v_proj],all-linear", (["q_proj", "v_proj"], "all-linear")),
        ("lora.use_rslora=true,false,null", (True, False, None)),
        ("data.system='Be brief, please.',null", ("Be brief, please.", None)),
        ("data.system=no", ("no",)),
    ],
)
def test_values_are_read_as_in_a_recipe(over: str, found: tuple[Any, ...]) -> None:
    assert values(over) == [found]
    assert all(type(mine) is type(value) for mine, value in zip(values(over)[0], found, strict=True))


def test_a_setting_comes_back_from_its_override_as_it_was() -> None:
    settings = {
        "training.learning_rate": 1e-5,
        "lora.target_modules": ["q_proj", "v_proj"],
        "data.system": "no: 1, 'ü'",
    }
    recipe = load_recipe("samsum", overrides=as_overrides(settings))
    assert recipe.training["learning_rate"] == 1e-5 and recipe.data.system == "no: 1, 'ü'"
    assert recipe.lora["target_modules"] == ["q_proj", "v_proj"]


def test_ranges_are_whole_when_both_ends_are_and_logarithmic_from_a_factor_of_ten() -> None:
    assert values("a=1e-5..1e-3", "b=4..64", "c=0..0.1", "d=2..8", ranges=True) == [
        Range(1e-5, 1e-3, whole=False), Range(4, 64, whole=True), Range(0, 0.1, whole=False), Range(2, 8, whole=True)
    ]  # fmt: skip
    found = [str(value) for value in values("a=1e-5..1e-3", "b=4..64", "c=0..0.1", "d=2..8", ranges=True)]
    assert found == ["1e-05 to 0.001, on a log scale", "4 to 64, whole numbers, on a log scale", "0 to 0.1",
                     "2 to 8, whole numbers"]  # fmt: skip


def test_the_last_key_of_a_grid_changes_fastest() -> None:
    assert grid(parse(["a=1,2", "b=x,y"], ranges=False)) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}
    ]  # fmt: skip


def test_every_value_and_end_of_a_range_occurs_in_the_corners() -> None:
    assert corners(parse(["a=1..5", "b=x,y,z"], ranges=True)) == [
        {"a": 1, "b": "x"}, {"a": 5, "b": "x"}, {"a": 1, "b": "y"}, {"a": 1, "b": "z"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (["lora.r="], "--over lora.r=: no value is given"),
        (["lora.r"], "no value is given"),
        (["=8"], "expected KEY=VALUE,VALUE"),
        (["lora..r=8"], "expected KEY=VALUE,VALUE"),
        (["lora.r=8,8"], "8 is given twice"),
        (["lora.r=8,,16"], "separate values by commas"),
        (["lora.r=8", "lora.r=16"], "lora.r is given twice; write all its values after one --over"),
        (["lora.r=8", "lora={r: 8}"], "lora and lora.r are parts of one another"),
        (["lora.r=8..16"], "a range needs `--sampler tpe`"),
        (["evaluation.limit=1,2"], "evaluation.limit cannot be swept: the held-out loss does not depend on it"),
        (["data.eval.rows=1,2"], "every trial would be measured on other rows"),
        (["data.max_length=64,128"], "data.max_length cannot be swept: every trial would be measured on other tokens"),
        (["data.train_on=all,assistant"], "every trial would be measured on other tokens"),
        (["training.learning_rate=1"], "--set training.learning_rate=2 sets it as well"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_sentence(over: list[str], words: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse(over, ranges=False, overrides=["training.learning_rate=2"])
    assert words in str(refused.value)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the range 1e-3\.\.1e-5 is empty"):
        parse(["training.learning_rate=1e-3..1e-5"], ranges=True)


def test_mistakes_of_all_combinations_are_said_once_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "train", lambda *_, **__: pytest.fail("something was trained"))
    result = run(
        "quickstart", "--profile", "smoke", "--set", EVAL, "--over", "lora.rr=8,16", "--runs-dir", tmp_path,
        "--over", "training.learning_rat=1e-4", "--over", "training.max_steps=4,long", "--out", tmp_path / "best.yaml",
    )  # fmt: skip
    assert result.exit_code == 1
    assert sorted(result.stderr.splitlines()) == [
        "recipe-kit: lora.rr: not a field of LoraConfig; did you mean r? (from `--over lora.rr=8,16`)",
        "training.learning_rat: not a field of SFTConfig; did you mean learning_rate? "
        "(from `--over training.learning_rat=1e-4`)",
        "training.max_steps: expected a whole number; got 'long' (from `--over training.max_steps=4,long`)",
    ]


def test_a_recipe_without_eval_rows_is_refused(planned: Callable[..., SweepPlan]) -> None:
    with pytest.raises(RecipeError, match=r"names no data\.eval.*--set 'data\.eval={fraction: 0\.1}'"):
        planned("lora.r=8,16", overrides=[])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 3}, "--trials: a grid tries every combination"),
        ({"out": "no/such/folder/best.yaml"}, "there is no folder no/such/folder"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    planned: Callable[..., SweepPlan], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        planned("lora.r=8,16", **options)


def test_optuna_is_asked_for_by_the_name_of_its_extra(
    planned: Callable[..., SweepPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"optuna is not installed; `pip install 'recipe-kit\[sweep\]'`"):
        planned("lora.r=8..16", sampler="tpe")


def test_a_file_that_exists_is_never_overwritten(planned: Callable[..., SweepPlan], tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text("mine")
    with pytest.raises(RecipeError, match=r"best\.yaml exists already; choose another file with --out"):
        planned("lora.r=8,16")
    assert (tmp_path / "best.yaml").read_text() == "mine"


# --- a trial ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], ["training.save_strategy=no", "training.eval_strategy=steps", "training.eval_steps=2"]),
        (["training.max_steps=100"], ["training.save_strategy=no", "training.eval_strategy=steps",
                                      "training.eval_steps=20"]),
        (["training.max_steps=-1"], ["training.save_strategy=no", "training.eval_strategy=steps",
                                     "training.eval_steps=0.2"]),
        (["training.eval_strategy=steps", "training.eval_steps=3"], ["training.save_strategy=no"]),
        (["training.eval_strategy=epoch"], ["training.save_strategy=no"]),
        (["training.eval_strategy=steps", "training.eval_steps=4", "training.load_best_model_at_end=true"], []),
    ],
)  # fmt: skip
def test_a_trial_is_measured_by_held_out_loss_and_keeps_what_the_recipe_says(
    given: list[str], added: list[str]
) -> None:
    recipe = load_recipe("quickstart", profiles=["smoke"], overrides=[EVAL, *given])
    overrides = trial_overrides(recipe, prune=True)
    assert [change for change in overrides if change.startswith("training.")] == added
    trial = load_recipe("quickstart", profiles=["smoke"], overrides=[EVAL, *given, *overrides])
    assert (trial.evaluation.split, trial.evaluation.metrics, trial.evaluation.samples) == ("eval", [], 0)
    assert (trial.evaluation.perplexity, trial.evaluation.prompts, trial.evaluation.judge) == (True, [], None)
    assert trial.evaluation.limit == recipe.evaluation.limit


def test_without_pruning_nothing_is_evaluated_while_training() -> None:
    recipe = load_recipe("quickstart", profiles=["smoke"], overrides=[EVAL])
    assert not [change for change in trial_overrides(recipe, prune=False) if "eval_s" in change]


QLORA = ["method=qlora", "quantization.load_in_4bit=true"]


@pytest.mark.parametrize(
    ("overrides", "on_cpu", "evaluated"),
    [
        (QLORA, True, False),
        ([*QLORA, "training.use_cpu=false", "launch.accelerate_config=null"], False, True),
        ([*QLORA, "training.use_cpu=true", "launch.accelerate_config=null"], False, False),
        ([*QLORA, "training.use_cpu=false", "launch.accelerate_config=cpu"], False, False),
        ([], True, True),
    ],
)
def test_a_trial_of_4_bit_weights_on_a_cpu_is_not_evaluated_while_it_trains(
    planned: Callable[..., SweepPlan], overrides: list[str], on_cpu: bool, evaluated: bool
) -> None:
    plan = planned("lora.r=4,8", overrides=[EVAL, *overrides], on_cpu=on_cpu)
    trial = plan.trial({"lora.r": 4})
    assert ("eval_strategy" in trial.recipe.training) == evaluated
    assert ("are not stopped early" in plan.remark) != evaluated
    assert trial.recipe.evaluation.split == "eval"


# --- pruning ----------------------------------------------------------------------------------------------------

CURVES = [{10: 3.0, 20: 2.0, 30: 1.8}, {10: 3.2, 20: 2.4, 30: 2.0}, {10: 2.8, 20: 2.2, 30: 1.9}]


def test_a_loss_above_the_median_of_finished_trials_stops_a_trial() -> None:
    prune = median_rule(CURVES)
    assert prune(20, 2.2, 2) is None  # the median itself
    assert prune(20, 2.21, 2) == "held-out loss 2.2100 at step 20, above the median 2.2000 of 3 finished trials"


@pytest.mark.parametrize(
    ("curves", "last_step", "step", "evaluations"),
    [
        (CURVES, None, 10, 1),  # the first evaluation
        (CURVES[:1], None, 20, 2),  # one finished trial
        (CURVES, None, 25, 3),  # nothing to compare with at this step
        (CURVES, 30, 30, 3),  # the last step
    ],
)
def test_a_trial_is_not_judged_too_early_nor_when_it_is_over(
    curves: list[dict[int, float]], last_step: int | None, step: int, evaluations: int
) -> None:
    assert median_rule(curves, last_step)(step, 99.0, evaluations) is None
    assert median_rule(CURVES, None)(20, 99.0, 2) is not None


def test_a_watcher_reads_the_log_and_keeps_the_curve() -> None:
    watch = Watcher(median_rule(CURVES))
    lines = [{"step": 5, "loss": 4.0}, {"step": 10, "eval_loss": 3.5}, {"step": 20, "eval_loss": 3.4}]
    assert [watch(line) for line in lines[:2]] == [None, None]
    assert "3.4000 at step 20" in str(watch(lines[2]))
    assert watch.curve == curve_of(lines) == {10: 3.5, 20: 3.4}


@pytest.mark.parametrize("key", ["loss", "eval_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_a_trial_even_without_pruning(key: str, value: float) -> None:
    said = Watcher(None)(json.loads(json.dumps({"step": 4, key: value})))
    assert said is not None and f"loss is {value} at step 4" in said
    assert "loss is not a number at step 4" in str(Watcher(None)({"step": 4, key: None}))


def test_trials_with_other_steps_are_not_held_against_one_another() -> None:
    def of(*overrides: str) -> str:
        return schedule(load_recipe("quickstart", profiles=["smoke"], overrides=[EVAL, *overrides]))

    assert of() == of("training.learning_rate=1e-5") == of("lora.r=64")
    for other in ("training.per_device_train_batch_size=4", "training.max_steps=9", "data.max_length=128"):
        assert of() != of(other)


# --- the whole sweep, its children faked at the border ------------------------------------------------------------


def finished_run(
    folder: Path, trial: trials.Trial, loss: float, curve: dict[int, float] | None = None, **more: Any
) -> Path:
    """The run folder of a trial that was trained, with ten tokens in each of four held-out rows."""
    folder.mkdir(parents=True)
    info = {
        "status": "finished", "name": trial.recipe.name, "method": "lora", "recipe_sha256": trial.digest,
        "processes": 1, "seed": 42, "hardware": {}, "model": {"id": "tiny:chatml"}, "training": {"steps": 8},
        "data": {},
    }  # fmt: skip
    sums = [10 * (loss + spread) for spread in (-0.2, -0.1, 0.1, 0.2)]
    perplexity = {"value": math.exp(loss), "low": math.exp(loss - 0.1), "high": math.exp(loss + 0.1)}
    metrics = {
        "split": "eval", "rows": 4, "content_sha256": "aa", "precision": "float32",
        "tuned": {"loss": loss, "perplexity": math.exp(loss), "tokens": 40},
        "scores": {"perplexity": {"label": "perplexity", "tuned": perplexity, "higher_is_better": False}}, **more,
    }  # fmt: skip
    run_dir.write_json(folder / "run.json", info)
    run_dir.write_json(folder / "metrics.json", metrics)
    (folder / "recipe.yaml").write_text(dump_recipe(trial.recipe))
    lines = [
        {"row": i, "digest": str(i), "tuned": {"loss_sum": x, "tokens": 10}, "answers": []} for i, x in enumerate(sums)
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = [{"step": step, "eval_loss": value} for step, value in (curve or {}).items()]
    (folder / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


class Children:
    """Stands for training: a loss for each learning rate, or a sentence, or an interrupt. Counts what it trained."""

    def __init__(self, losses: dict[float, Any], **more: Any) -> None:
        self.losses, self.more = losses, more
        self.trained: list[float] = []

    def __call__(self, trial: trials.Trial, runs_dir: Path, *, watch: trials.Watch, **_: Any) -> trials.Outcome:
        rate = float(trial.recipe.training["learning_rate"])
        self.trained.append(rate)
        loss = self.losses[rate]
        if loss is None:
            raise KeyboardInterrupt
        if isinstance(loss, str):
            return trials.Outcome("failed", None, loss)
        curve = {2: loss + 1, 4: loss + 0.5, 8: loss}
        for step, value in curve.items():
            reason = watch({"step": step, "eval_loss": value})
            if reason:
                return trials.Outcome("stopped", None, reason)
        folder = Path(runs_dir) / trial.recipe.name / f"2026-{rate:g}"
        return trials.Outcome("finished", finished_run(folder, trial, loss, curve, **self.more))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Children]:
    def make(losses: dict[float, Any], **more: Any) -> Children:
        fake = Children(losses, **more)
        monkeypatch.setattr(trials, "train", fake)
        return fake

    return make


RATES = "training.learning_rate=1e-4,2e-4,3e-4,4e-4"


def words(tmp_path: Path, *more: str) -> list[str]:
    return ["quickstart", "--profile", "smoke", "--set", EVAL, "--over", RATES, "--runs-dir", str(tmp_path),
            "--out", str(tmp_path / "best.yaml"), *more]  # fmt: skip


def test_a_sweep_ranks_its_trials_and_writes_the_best_as_a_recipe(
    children: Callable[..., Children], tmp_path: Path
) -> None:
    children({1e-4: 2.5, 2e-4: 2.0, 3e-4: 3.0, 4e-4: "out of memory"})
    done = run(*words(tmp_path))
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:5]] == [
        ["2", "2e-4"], ["1", "1e-4"], ["3", "3e-4"], ["4", "4e-4"]
    ]  # fmt: skip
    assert "2.0000 [1.9000, 2.1000]  finished" in done.stdout
    assert "pruned: held-out loss 3.5000 at step 4, above the median 2.7500 of 2 finished trials" in done.stdout
    assert "failed: out of memory" in done.stdout
    assert f"best: trial 2, held-out loss 2.0000 [1.9000, 2.1000]; written to {tmp_path / 'best.yaml'}" in done.stdout
    assert "every setting was trained with one seed" in done.stdout
    written = load_recipe(tmp_path / "best.yaml")
    assert written == load_recipe("quickstart", profiles=["smoke"], overrides=[EVAL, "training.learning_rate=2e-4"])
    page = (tmp_path / "quickstart-sweep" / "sweep.html").read_text()
    assert "Trials" in page and "out of memory" in page and "Difference from the first" in page


def test_a_sweep_is_taken_up_where_it_was_interrupted(children: Callable[..., Children], tmp_path: Path) -> None:
    first = children({1e-4: 2.0, 2e-4: 2.1, 3e-4: 3.0, 4e-4: None})
    stopped = run(*words(tmp_path))
    assert stopped.exit_code == 130 and "the same command goes on" in stopped.stderr
    assert first.trained == [1e-4, 2e-4, 3e-4, 4e-4]
    second = children({4e-4: 1.9})
    assert run(*words(tmp_path)).exit_code == 0
    assert second.trained == [4e-4]  # the pruned trial is remembered, the finished ones are found
    assert load_recipe(tmp_path / "best.yaml").training["learning_rate"] == 4e-4


def test_a_failed_trial_is_remembered_unless_it_is_to_be_tried_again(
    children: Callable[..., Children], tmp_path: Path
) -> None:
    children({1e-4: 2.0, 2e-4: 2.1, 3e-4: "no space left", 4e-4: 2.2})
    run(*words(tmp_path))
    (tmp_path / "best.yaml").unlink()
    again = children({})
    said = "failed: no space left (failed before; --retry-failed trains it again)"
    assert said in run(*words(tmp_path)).stdout and again.trained == []
    assert said in run(*words(tmp_path)).stdout  # and is not said twice the next time
    (tmp_path / "best.yaml").unlink()
    retried = children({3e-4: 1.5})
    assert run(*words(tmp_path, "--retry-failed")).exit_code == 0 and retried.trained == [3e-4]


def test_a_finished_sweep_run_again_shows_its_table_and_replaces_its_own_recipe(
    children: Callable[..., Children], tmp_path: Path
) -> None:
    children({1e-4: 2.0, 2e-4: 2.1, 3e-4: "no space left", 4e-4: 2.2})
    first, again = run(*words(tmp_path)), run(*words(tmp_path))
    assert again.exit_code == 0 and "best: trial 1, held-out loss 2.0000" in again.stdout
    assert len(first.stdout.splitlines()) == len(again.stdout.splitlines())
    children({3e-4: 1.5})
    assert run(*words(tmp_path, "--retry-failed")).exit_code == 0
    assert load_recipe(tmp_path / "best.yaml").training["learning_rate"] == 3e-4
    (tmp_path / "best.yaml").write_text((tmp_path / "best.yaml").read_text() + "# mine\n")
    refused = run(*words(tmp_path))
    assert refused.exit_code == 1 and "best.yaml exists already" in refused.stderr


def test_a_price_that_is_no_number_is_wrong_usage(tmp_path: Path) -> None:
    refused = run(*words(tmp_path, "--price-per-hour", "nan"))
    assert refused.exit_code == 2 and "nan is no price" in refused.stderr


def test_without_pruning_every_trial_is_trained_to_its_end(children: Callable[..., Children], tmp_path: Path) -> None:
    fake = children({1e-4: 2.0, 2e-4: 2.1, 3e-4: 3.0, 4e-4: 4.0})
    done = run(*words(tmp_path, "--no-prune"))
    assert len(fake.trained) == 4 and done.stdout.count("finished\n") == 4


def test_all_trials_failing_is_said_and_no_recipe_written(children: Callable[..., Children], tmp_path: Path) -> None:
    children(dict.fromkeys([1e-4, 2e-4, 3e-4, 4e-4], "the GPU is gone"))
    done = run(*words(tmp_path))
    assert done.exit_code == 1 and "none of the 4 trials finished" in done.stderr and "the GPU is gone" in done.stderr
    assert not (tmp_path / "best.yaml").exists()


def test_a_run_without_a_held_out_loss_is_a_failed_trial(children: Callable[..., Children], tmp_path: Path) -> None:
    children(dict.fromkeys([1e-4, 2e-4, 3e-4, 4e-4], 2.0), tuned=None, problems=["perplexity: it is not a number"])
    done = run(*words(tmp_path))
    assert done.exit_code == 1
    assert "no held-out loss was measured: perplexity: it is not a number" in done.stdout


def test_losses_over_other_rows_choose_no_best(
    children: Callable[..., Children], tmp_path: Path, planned: Callable[..., SweepPlan]
) -> None:
    children({1e-4: 2.0, 2e-4: 2.1})
    plan = planned("training.learning_rate=1e-4,2e-4")
    tried = run_trials(plan)
    assert tried[1].run is not None
    path = Path(tried[1].run) / "metrics.json"
    path.write_text(path.read_text().replace('"tokens": 40', '"tokens": 39'))
    with pytest.raises(RunError, match="trials 1 and 2 were measured on other rows or tokens"):
        result.require_best(tried)


def test_json_has_trials_best_and_comparison(children: Callable[..., Children], tmp_path: Path) -> None:
    children({1e-4: 2.0, 2e-4: 2.1, 3e-4: 3.0, 4e-4: 4.0})
    found = json.loads(run(*words(tmp_path, "--json")).stdout)
    assert found["best"]["settings"] == {"training.learning_rate": 1e-4}
    assert [one["status"] for one in found["trials"]] == ["finished", "finished", "pruned", "pruned"]
    assert len(found["comparison"]["runs"]) == 2


def test_a_dry_run_names_every_command_and_what_is_finished(children: Callable[..., Children], tmp_path: Path) -> None:
    children({1e-4: 2.0, 2e-4: None})
    run(*words(tmp_path))
    lines = run(*words(tmp_path, "--dry-run")).stdout.splitlines()
    assert lines[0].startswith("finished already: ") and len(lines) == 5
    assert lines[1].startswith(
        f"recipe-kit train quickstart --runs-dir {tmp_path / 'quickstart-sweep'} --profile smoke"
    )
    assert "--set training.learning_rate=0.0002" in lines[1] and "--set evaluation.split=eval" in lines[1]


def test_a_damaged_memory_says_what_to_do(planned: Callable[..., SweepPlan], tmp_path: Path) -> None:
    (tmp_path / "quickstart-sweep").mkdir()
    (tmp_path / "quickstart-sweep" / "sweep.json").write_text("{")
    with pytest.raises(RunError, match=r"sweep\.json: cannot be read .*remove it to go on"):
        run_trials(planned("lora.r=4,8"))


def test_a_folder_that_cannot_be_written_is_said_before_training(
    planned: Callable[..., SweepPlan], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another folder with --runs-dir"):
        run_trials(planned("lora.r=4,8", runs_dir=tmp_path / "file"))


# --- how sure ---------------------------------------------------------------------------------------------------


def two_tried(tmp_path: Path, planned: Callable[..., SweepPlan], gap: float) -> list[Tried]:
    """The best two of a sweep, whose rows have losses a little apart: `gap` in the mean, 0.1 either way by row."""
    plan = planned("lora.r=4,8")
    found = []
    for number, (settings, loss) in enumerate(zip(grid(plan.axes), (2.0, 2.0 + gap), strict=True), 1):
        trial = plan.trial(settings)
        folder = finished_run(tmp_path / "runs" / str(number), trial, loss)
        if number == 2:
            sums = [10 * (loss + spread) for spread in (0.0, -0.3, 0.3, 0.0)]
            lines = [
                {"row": i, "digest": str(i), "tuned": {"loss_sum": x, "tokens": 10}, "answers": []}
                for i, x in enumerate(sums)
            ]
            (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        loss_of = held_out_loss(json.loads((folder / "metrics.json").read_text()))
        found.append(Tried(number, settings, trial.digest, "finished", str(folder), loss_of, {}))
    return found


def test_the_best_two_are_said_to_be_close_when_the_rows_cannot_tell(
    tmp_path: Path, planned: Callable[..., SweepPlan]
) -> None:
    said = result.closeness(*two_tried(tmp_path, planned, gap=0.01))
    assert "trials 1 and 2, differ by less than their intervals" in said and "paired difference" in said


def test_the_best_two_are_not_said_to_be_close_when_the_rows_tell(
    tmp_path: Path, planned: Callable[..., SweepPlan]
) -> None:
    assert result.closeness(*two_tried(tmp_path, planned, gap=0.5)) == ""


def test_without_rows_the_intervals_decide() -> None:
    def tried(number: int, *loss: float) -> Tried:
        return Tried(number, {}, str(number), "finished", None, Estimate(*loss))

    assert "their intervals overlap" in result.closeness(tried(1, 2.0, 1.9, 2.1), tried(2, 2.15, 2.05, 2.25))
    assert result.closeness(tried(1, 2.0, 1.9, 2.1), tried(2, 2.3, 2.2, 2.4)) == ""
    assert result.closeness(tried(1, 2.0), tried(2, 9.0)) != ""


def test_the_interval_of_a_loss_is_that_of_its_perplexity() -> None:
    perplexity = {"tuned": {"value": math.exp(2), "low": math.exp(1.5), "high": math.exp(2.5)}}
    found = held_out_loss({"tuned": {"loss": 2.0}, "scores": {"perplexity": perplexity}})
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 1.5, 2.5))
    assert held_out_loss({"tuned": {"loss": 2.0}}) == Estimate(2.0)


def test_settings_are_said_in_few_words() -> None:
    found = said({"training.learning_rate": 2e-4, "lora.r": 8, "lora.target_modules": ["q_proj", "v_proj"]})
    assert found == "learning_rate 2e-4, r 8, target_modules q_proj+v_proj"


def test_the_same_settings_suggested_twice_are_one_line() -> None:
    one = Tried(1, {"a": 1}, "x", "finished", None, Estimate(2.0))
    assert result.ranked([one, Tried(2, {"a": 1}, "x", "finished", None, Estimate(2.0))]) == [one]
    with pytest.raises(LaunchError, match="none of the 0 trials finished"):
        result.require_best([])


# --- the recipe that comes out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "profiles", "overrides"),
    [
        ("quickstart", [], ["lora.r=64"]),
        ("quickstart", ["smoke"], [EVAL, "training.learning_rate=1e-5"]),
        ("samsum", ["smoke"], ["lora.target_modules=[q_proj]", "data.train={sample: dialogues, split: train}"]),
        ("llama32_1b_full", [], ["model.id=org/other", "training.warmup_steps=0"]),
        ("llama32_1b_qlora", ["smoke"], ["quantization.bnb_4bit_use_double_quant=null", "training.packing=true"]),
        ("guanaco", [], ["data.formatter={name: guanaco}", "data.system='no'", "training.weight_decay=null"]),
    ],
)
def test_the_best_recipe_is_a_child_that_gives_back_every_setting(
    tmp_path: Path, source: str, profiles: list[str], overrides: list[str]
) -> None:
    wanted = load_recipe(source, profiles=profiles, overrides=overrides)
    best.write(tmp_path / "best.yaml", source, wanted, comments=["One line"], memory=tmp_path / "sweep.json")
    text = (tmp_path / "best.yaml").read_text()
    assert load_recipe(tmp_path / "best.yaml") == wanted
    assert text.startswith(f"# One line\nextends: {source}\n")
    assert recipe_digest(load_recipe(tmp_path / "best.yaml")) == recipe_digest(wanted)


def test_the_best_recipe_holds_only_what_differs(tmp_path: Path) -> None:
    wanted = load_recipe("quickstart", overrides=["lora.r=64", "training.learning_rate=1e-4"])
    best.write(tmp_path / "best.yaml", "quickstart", wanted, comments=[], memory=tmp_path / "sweep.json")
    assert (tmp_path / "best.yaml").read_text() == (
        "extends: quickstart\nlora: {r: 64}\ntraining: {learning_rate: 0.0001}\n"
    )


def test_a_recipe_of_ones_own_is_extended_by_its_relative_path(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(dump_recipe(load_recipe("quickstart")).replace("name: quickstart", "name: mine"))
    wanted = load_recipe(own, overrides=["lora.r=4"])
    assert best.default_path(str(own), "mine") == tmp_path / "mine-best.yaml"
    assert best.default_path("quickstart", "quickstart") == Path("quickstart-best.yaml")
    (tmp_path / "out").mkdir()
    for place, parent in (("mine-best.yaml", "./mine.yaml"), ("out/best.yaml", "../mine.yaml")):
        best.write(tmp_path / place, str(own), wanted, comments=[], memory=tmp_path / "sweep.json")
        assert (tmp_path / place).read_text() == f"extends: {parent}\nlora: {{r: 4}}\n"
        assert load_recipe(tmp_path / place) == wanted


def test_what_a_child_cannot_say_is_written_out_in_full(tmp_path: Path) -> None:
    """Text that YAML 1.2 reads as a number would lose its quotes on the way."""
    own = tmp_path / "mine.yaml"
    own.write_text("name: mine\nextends: quickstart\nprofiles: {p: {data: {system: '1e-4'}}}\n")
    wanted = load_recipe(own, profiles=["p"])
    best.write(tmp_path / "best.yaml", str(own), wanted, comments=["Why"], memory=tmp_path / "sweep.json")
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith("# Why\nname: mine\n") and "extends" not in text
    assert load_recipe(tmp_path / "best.yaml") == wanted and wanted.data.system == "1e-4"


# --- Optuna -----------------------------------------------------------------------------------------------------


def test_optuna_suggests_the_same_again_after_the_same_results() -> None:
    pytest.importorskip("optuna")
    from recipe_kit.sweep.search import Optuna

    axes = parse(["training.learning_rate=1e-5..1e-3", "lora.r=4..64", "lora.use_rslora=true,false"], ranges=True)

    def suggested(upto: int) -> list[dict[str, Any]]:
        search, found = Optuna(axes, "tpe", 12), []
        for number in range(upto):
            settings = search.ask()
            assert settings is not None
            found.append(settings)
            search.tell(None if number == 3 else abs(settings["lora.r"] - 16), {2: 3.0}, pruned=number == 3)
        return found

    twelve = suggested(12)
    assert suggested(8) == twelve[:8]
    assert all(1e-5 <= s["training.learning_rate"] <= 1e-3 and 4 <= s["lora.r"] <= 64 for s in twelve)
    assert {type(s["lora.r"]) for s in twelve} == {int} and {s["lora.use_rslora"] for s in twelve} == {True, False}
    search = Optuna(axes, "random", 1)
    assert search.ask() is not None
    search.tell(1.0, {})
    assert search.ask() is None


# --- the real thing ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_sweep_ends_with_a_recipe_and_is_found_again(tmp_path: Path) -> None:
    line = ["quickstart", "--profile", "smoke", "--set", EVAL, "--set", "training.max_steps=4", "--runs-dir",
            str(tmp_path), "--over", "training.learning_rate=1e-6,1e-2", "--over", "lora.r=4"]  # fmt: skip
    done = run(*line, "--out", tmp_path / "best.yaml")
    assert done.exit_code == 0, done.stderr[-2000:]
    assert "best: trial 2" in done.stdout and done.stderr.count("held-out loss") >= 4
    written = load_recipe(tmp_path / "best.yaml")
    assert written.training["learning_rate"] == 1e-2 and written.evaluation.split is None
    again = run(*line, "--out", tmp_path / "again.yaml")
    assert again.exit_code == 0 and "run folder" not in again.stderr
    assert load_recipe(tmp_path / "again.yaml") == written
    assert not list((tmp_path / "quickstart-sweep").rglob("checkpoint-*"))
