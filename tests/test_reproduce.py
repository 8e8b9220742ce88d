"""A run trained again from what it pins: here, from a published folder, from the Hub; and what is published for it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from hub.clients import MAJORS, run_client
from hub.server import Hub
from recipe_kit import catalog, lock, run_dir
from recipe_kit.cli.reproduce import reproduce
from recipe_kit.cli.train import train as train_command
from recipe_kit.errors import RunError
from recipe_kit.recipe import dump_recipe, load_recipe
from recipe_kit.reproduce import Comparison, Record, compare

TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
RECIPE = """
name: support
model: {id: "tiny:chatml", dtype: float32, chat_template: templates/own.jinja}
method: lora
data:
  train: {path: rows.jsonl, limit: 32}
  eval: {rows: 8}
  formatter: support
  max_length: 256
lora: {r: 4, target_modules: [q_proj, v_proj]}
training: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-2, logging_steps: 1, save_strategy: "no",
           use_cpu: true, report_to: []}
evaluation: {samples: 2, max_new_tokens: 8, batch_size: 2, metrics: [rouge]}
card: {contact: "write to me, not with hf_abcdefghijklmnopqrstuvwxyzabcdefgh"}
"""
HOST = "machine-of-nobody"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody's with rows, a template, a recipe, and in `runs` one run of it."""
    from recipe_kit.training import train

    folder = tmp_path_factory.mktemp("somebody")
    rows = catalog.sample_path("support", "train").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[:40]), encoding="utf-8")
    (folder / "templates").mkdir()
    (folder / "templates" / "own.jinja").write_text(TEMPLATE, encoding="utf-8")
    (folder / "support.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("platform.node", lambda: HOST)
        train(load_recipe(folder / "support.yaml"), runs_dir=folder / "runs", command=[str(folder / "recipe-kit")])
    return folder


@pytest.fixture
def run(made: Path) -> Path:
    return run_dir.find(made / "runs" / "support")


@pytest.fixture
def published(run: Path, tmp_path: Path) -> Path:
    """What `push --to-folder` leaves of it: the record and the adapter, and nothing of the machine."""
    folder = tmp_path / "published"
    for name, content in lock.public_record(run).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    shutil.copy(run / "adapter" / "adapter_model.safetensors", folder)
    return folder


@pytest.fixture
def threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets this variable to what the run recorded."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    yield


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(reproduce, [str(word) for word in words], prog_name="recipe-kit reproduce")


def one_line(text: str) -> str:
    """What the command said on stderr as its last word."""
    return text.strip().splitlines()[-1]


# --- the whole way ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_published_run_is_trained_again_to_the_same_bytes(
    made: Path, published: Path, tmp_path: Path, threads_as_they_were: None
) -> None:
    """alignment-handbook #124, #45, #39, PR #139: a recipe that did not reproduce, and nothing that told which number
    of it was off, or what had changed."""
    moved = shutil.copy(made / "rows.jsonl", tmp_path / "elsewhere.jsonl")
    result = command(published, "--set", f"data.train.path={moved}", "--runs-dir", tmp_path / "runs", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    new = run_dir.find(said["run"])
    assert new.is_relative_to(tmp_path / "runs")
    assert said["same_weights"] is True
    assert lock.weights_sha256(new, "lora") == lock.weights_sha256(run_dir.find(made / "runs" / "support"), "lora")
    assert {(check["gap"], check["within"]) for check in said["scores"]} == {(0.0, True)}
    checked = {(check["score"], check["which"]) for check in said["scores"]}
    assert {("perplexity", "base"), ("perplexity", "tuned"), ("rougeL", "tuned")} <= checked
    assert ("train_loss", "training") in checked
    assert all(fact["equal"] for fact in [*said["environment"], *said["rows"]])
    assert said["differs"] == []
    info = run_dir.read(new)
    original = run_dir.read(run_dir.find(made / "runs" / "support"))
    assert info["reproduces"] == {"origin": str(published), "recipe_sha256": original["recipe_sha256"]}
    assert "bit-identical" in one_line(result.stderr)


@pytest.mark.slow
def test_another_learning_rate_is_found(made: Path, run: Path, tmp_path: Path) -> None:
    from recipe_kit.training import train

    recipe = load_recipe(made / "support.yaml", overrides=["training.learning_rate=1e-4"])
    other = train(recipe, runs_dir=tmp_path / "runs")
    found = compare(record_of(run), record_of(other))
    assert not found.reproduced
    assert {(check.score, check.which) for check in found.checks if not check.within} == {
        ("perplexity", "tuned"), ("perplexity_all_tokens", "tuned")
    }  # fmt: skip
    assert "perplexity of the tuned model was " in found.sentence and " allowed)" in found.sentence
    assert ("training.learning_rate", "0.01", "0.0001") in {(f.what, f.then, f.now) for f in found.differs}
    assert found.same_weights is False


def record_of(run: Path) -> Record:
    locked = lock.source_of(run)
    return Record(locked.info, locked.metrics, locked.recipe, locked.weights)


# --- before training --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_changed_rows_are_refused_by_their_content(
    made: Path, run: Path, tmp_path: Path, threads_as_they_were: None
) -> None:
    changed = tmp_path / "rows.jsonl"
    text = (made / "rows.jsonl").read_text(encoding="utf-8")
    changed.write_text(text.replace("Please", "Kindly"), encoding="utf-8")
    words = (run, "--set", f"data.train.path={changed}", "--runs-dir", tmp_path / "runs")
    result = command(*words)
    assert result.exit_code == 1
    content = run_dir.read(run)["data"]["splits"]["train"]["content_sha256"][:12]
    sentence = one_line(result.stderr)
    assert (
        f"not the rows that were recorded (rows of train: 24 rows, 2,005 tokens, content {content} then, " in sentence
    )
    assert "--set data.train.path=FILE, or train on these with --anyway" in sentence
    assert not list((tmp_path / "runs").iterdir())
    checked = command(*words, "--check-only", "--anyway", "--json")
    assert checked.exit_code == 1
    assert not json.loads(checked.stdout)["rows"][0]["equal"]


@pytest.mark.slow
def test_check_only_shows_then_and_now_and_trains_nothing(
    run: Path, tmp_path: Path, threads_as_they_were: None
) -> None:
    result = command(run, "--check-only", "--runs-dir", tmp_path / "runs")
    assert result.exit_code == 0, result.stderr
    lines = {tuple(line.split()) for line in result.stdout.splitlines()}
    versions = run_dir.read(run)["versions"]
    assert ("torch", versions["torch"], versions["torch"]) in lines
    assert ("formatter", "support", "support") in lines
    assert not any("differs" in line for line in lines)
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_a_missing_file_is_named_with_its_content_and_the_set_that_gives_it(published: Path, tmp_path: Path) -> None:
    """Its folder is not asked either: a file of that name beside the record would be another one."""
    (published / "recipe-kit" / "rows.jsonl").write_text("{}\n")
    result = command(published, "--runs-dir", tmp_path / "runs")
    content = lock.source_of(published).info["data"]["splits"]["train"]["content_sha256"][:12]
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"recipe-kit: data.train: the local file rows.jsonl (of 24 rows, content {content}) is not here; "
        "give it with --set data.train.path=FOLDER/rows.jsonl\n"
    )


@pytest.mark.slow
def test_a_missing_base_folder_is_offered_from_the_hub(run: Path, tmp_path: Path) -> None:
    copied = copy_of(run, tmp_path)
    recipe = yaml.safe_load((copied / "recipe.yaml").read_text())
    recipe["model"]["id"] = "/models/own-base"
    recipe["card"]["base_model"] = "acme/own-base"
    (copied / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = command(copied)
    assert result.exit_code == 1
    assert one_line(result.stderr) == (
        "recipe-kit: model.id: the local folder own-base is not here; give the same base with "
        "--set model.id=acme/own-base"
    )
    there = lock.source_of(copied, ["model.id=acme/own-base"]).recipe.model
    assert (there.id, there.chat_template) == ("acme/own-base", recipe["model"]["chat_template"])  # kept: it has moved


def copy_of(run: Path, tmp_path: Path, **changes: Any) -> Path:
    """The run's text files in a folder of their own, with keys of run.json changed."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in (run_dir.RECIPE, run_dir.RUN, run_dir.METRICS):
        shutil.copy(run / name, folder)
    run_dir.update(folder, **changes)
    return folder


@pytest.mark.slow
def test_a_recipe_that_was_changed_after_its_run_is_told(run: Path, tmp_path: Path) -> None:
    copied = copy_of(run, tmp_path)
    assert lock.source_of(copied).notes == ()
    text = (copied / "recipe.yaml").read_text()
    (copied / "recipe.yaml").write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    assert lock.source_of(copied).notes == (
        "its recipe.yaml was changed after the run; unless that was card or publish, undo it",
    )


@pytest.mark.slow
def test_an_unfinished_run_is_not_reproduced(run: Path, tmp_path: Path) -> None:
    result = command(copy_of(run, tmp_path, status="failed", error="out of memory"))
    assert result.exit_code == 1
    assert "this run is failed (out of memory)" in result.stderr


# --- train --from-run -------------------------------------------------------------------------------------------


def train(*words: str | Path) -> Result:
    return CliRunner().invoke(train_command, [str(word) for word in words], prog_name="recipe-kit train")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give a RECIPE or --from-run RUN; got neither"),
        (["samsum", "--from-run", "runs/a"], "give a RECIPE or --from-run RUN; got both"),
        (
            ["--from-run", "runs/a", "--profile", "smoke"],
            "--profile: the recipe of a run is resolved and has no profiles",
        ),
    ],
)
def test_a_recipe_and_a_run_exclude_each_other(words: list[str], sentence: str) -> None:
    result = train(*words)
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.mark.slow
def test_from_run_takes_the_number_of_processes_of_the_run_unless_told_otherwise(run: Path, tmp_path: Path) -> None:
    two = copy_of(run, tmp_path, processes=2)
    words = train("--from-run", two, "--set", "training.seed=7", "--print-command").stdout.split()
    start = words.index("-m")
    assert "--nproc_per_node=2" in words[:start]
    assert words[start:] == [
        "-m", "recipe_kit", "--from-run", str(two), "--runs-dir", "runs", "--set", "training.seed=7"
    ]  # fmt: skip
    assert "--nproc_per_node=2" not in train("--from-run", two, "--num-processes", "1", "--print-command").stdout


# --- pins -------------------------------------------------------------------------------------------------------

HUB_RECIPE = """
name: pinned
model: {id: acme/base, revision: main}
method: lora
data:
  train:
    - {id: acme/rows, weight: 2}
    - {path: rows.jsonl}
    - {id: acme/more, revision: "fixed"}
  test: {id: acme/rows, split: test}
  formatter: support
"""
A, B, C = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def of_the_hub(tmp_path: Path) -> Path:
    """A run that trained on rows and a base of the Hub, which were branches then."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(HUB_RECIPE)
    sources = [
        {"id": "acme/rows", "resolved_revision": B},
        {"path": "rows.jsonl", "resolved_revision": None},
        {"id": "acme/more", "revision": "fixed", "resolved_revision": C},
    ]
    splits = {
        "train": {"sources": sources, "kept": 30, "content_sha256": "4" * 64},
        "test": {"sources": [{"id": "acme/rows", "resolved_revision": B}]},
    }
    info = {"name": "pinned", "status": "finished", "method": "lora", "model": {"id": "acme/base", "revision": A}}
    info |= {"data": {"splits": splits}}
    run_dir.write_json(folder / "run.json", info)
    return folder


def test_base_and_data_sets_are_pinned_to_the_commits_that_were_read(of_the_hub: Path) -> None:
    recipe = lock.recipe_of(of_the_hub)
    assert recipe.model.revision == A
    assert [source.revision for source in recipe.data.train] == [B, None, C]
    assert [source.weight for source in recipe.data.train] == [2, None, None]
    assert [source.revision for source in recipe.data.sources("test")] == [B]


def test_what_an_override_changes_is_not_pinned_to_something_else(of_the_hub: Path) -> None:
    recipe = lock.recipe_of(of_the_hub, ["model.id=acme/other", "data.test.revision=v2"])
    assert (recipe.model.id, recipe.model.revision) == ("acme/other", None)
    assert recipe.data.sources("test")[0].revision == "v2"
    assert recipe.data.train[0].revision == B
    assert lock.recipe_of(of_the_hub, ["data.train={sample: support}"]).data.train[0].revision is None


def test_a_file_that_has_moved_keeps_everything_else_of_its_source(of_the_hub: Path, tmp_path: Path) -> None:
    moved = lock.recipe_of(of_the_hub, [f"data.train.1.path={tmp_path}/there.jsonl"])
    assert moved.data.train[1].path == f"{tmp_path}/there.jsonl"
    assert [source.id for source in moved.data.train] == ["acme/rows", None, "acme/more"]
    sentence = (
        r"^data\.train: the local file rows\.jsonl \(of 30 rows, content 4{12}\) is not here; .* data\.train\.1\.path="
    )
    with pytest.raises(RunError, match=sentence):
        lock.require_files(lock.recipe_of(of_the_hub), run_dir.read(of_the_hub))


# --- the verdict, on two records --------------------------------------------------------------------------------


def entry(base: float, tuned: float, half_width: float, rows: int = 52) -> dict[str, Any]:
    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "low": value - half_width, "high": value + half_width}

    label = {"label": "a score", "rows": rows, "settings": {}}
    return {**label, "base": estimate(base), "tuned": estimate(tuned), "higher_is_better": True}


def record(train_loss: float | None = 1.5, precision: str = "bfloat16", **scores: dict[str, Any]) -> Record:
    info: Any = {
        "recipe_kit_version": "0.1.0", "versions": {"python": "3.11.7", "torch": "2.13.0"}, "processes": 1, "seed": 42,
        "hardware": {"device": "cpu", "machine": "x86_64", "cores": 2, "threads": 2},
        "model": {"id": "acme/base", "revision": A, "chat_template_sha256": "1" * 64},
        "data": {"formatter": {"name": "support", "source_sha256": "2" * 64}, "splits": {}},
        "training": {"train_loss": train_loss},
    }  # fmt: skip
    metrics: Any = {
        "split": "test", "rows": 52, "content_sha256": "3" * 64, "precision": precision, "processes": 1,
        "versions": info["versions"], "generation": {}, "scores": scores,
    }  # fmt: skip
    return Record(info, metrics if scores else None)


def failed(found: Comparison) -> list[tuple[str, str]]:
    return [(check.score, check.which) for check in found.checks if not check.within]


@pytest.mark.parametrize(
    ("then", "now", "ok"),
    [
        ((10.0, 2.180), (10.0, 2.184), True),  # another seed: 0.002 in log-perplexity
        ((10.0, 2.180), (10.05, 2.20), True),  # other kernels
        ((10.0, 2.180), (10.0, 2.31), False),  # 5.8 % off
        ((10.0, 2.180), (10.2, 2.18), False),  # the base itself is another one
        ((2.30, 2.18), (2.30, 2.204), False),  # 1 % off, where training changed 5 %
        ((2.18, 2.18), (2.18, 2.185), True),  # nothing was learnt, and nothing is now
    ],
)
def test_perplexity_may_differ_by_a_share_of_what_training_changed(
    then: tuple[float, float], now: tuple[float, float], ok: bool
) -> None:
    found = compare(record(perplexity=entry(*then, 0.1)), record(perplexity=entry(*now, 0.1)))
    assert found.reproduced is ok


def test_base_scores_agree_to_rounding_on_the_same_machine_in_float32() -> None:
    then = record(precision="float32", perplexity=entry(10.0, 2.0, 0.1))
    now = record(precision="float32", perplexity=entry(10.001, 2.0, 0.1))
    assert failed(compare(then, now)) == [("perplexity", "base")]
    other = copy.deepcopy(now)
    other.info["hardware"]["threads"] = 8
    assert failed(compare(then, other)) == []


@pytest.mark.parametrize(
    ("then", "now", "half_width", "rows", "ok"),
    [
        (0.430, 0.389, 0.067, 52, True),  # bfloat16 on another number of CPU threads
        (0.430, 0.467, 0.067, 52, True),  # another seed
        (0.430, 0.330, 0.067, 52, False),
        (0.430, 0.445, 0.005, 5000, True),  # 0.02 is always allowed
        (0.430, 0.455, 0.005, 5000, False),
        (0.0, 0.125, 0.0, 8, True),  # one row of eight
        (43.0, 44.9, 0.5, 5000, True),  # 0 to 100: two points
        (43.0, 45.1, 0.5, 5000, False),
    ],
)
def test_scores_of_answers_may_differ_by_what_other_rows_might_have_given(
    then: float, now: float, half_width: float, rows: int, ok: bool
) -> None:
    before, after = (record(rougeL=entry(then, value, half_width, rows)) for value in (then, now))
    assert compare(before, after).reproduced is ok


def test_a_loss_of_zero_or_no_number_is_not_a_reproduction() -> None:
    """alignment-handbook #39, PR #139: with LoRA and without bf16 the loss was 0, and training went on."""
    then = record(train_loss=1.5, perplexity=entry(10.0, 2.0, 0.1))
    zero = compare(then, record(train_loss=0.0, perplexity=entry(10.0, 2.0, 0.1)))
    assert failed(zero) == [("train_loss", "training")]
    assert zero.sentence == (
        "not reproduced: 1 of 3 numbers outside what is allowed: "
        "training loss was 1.5 and is 0 (1.5 apart, 0.075 allowed)"
    )
    nothing = compare(then, record(train_loss=None, perplexity=entry(10.0, float("nan"), 0.1)))
    assert failed(nothing) == [("perplexity", "tuned"), ("train_loss", "training")]
    assert "a score of the tuned model was 2 and is no number now" in nothing.sentence


def test_versions_hardware_and_template_that_differ_are_listed() -> None:
    then, now = record(perplexity=entry(10.0, 2.0, 0.1)), record(perplexity=entry(10.0, 2.0, 0.1))
    now.info["versions"] = {"python": "3.12.1", "torch": "2.13.0", "peft": "0.21.2"}
    now.info["hardware"] = {"device": "cuda", "name": "NVIDIA H100"}
    now.info["model"]["chat_template_sha256"] = "9" * 64
    found = compare(then, now)
    assert found.reproduced  # none of this is a number that was promised
    assert {fact.what: (fact.then, fact.now) for fact in found.differs} == {
        "python": ("3.11.7", "3.12.1"),
        "peft": ("(not recorded)", "0.21.2"),
        "hardware device": ("cpu", "cuda"),
        "hardware machine": ("x86_64", "(not recorded)"),
        "hardware cores": ("2", "(not recorded)"),
        "hardware threads": ("2", "(not recorded)"),
        "hardware name": ("(not recorded)", "NVIDIA H100"),
        "chat template": ("111111111111", "999999999999"),
    }


def test_a_score_that_is_missing_now_is_not_within() -> None:
    then = record(perplexity=entry(10.0, 2.0, 0.1), rougeL=entry(0.1, 0.4, 0.05))
    assert failed(compare(then, record(perplexity=entry(10.0, 2.0, 0.1)))) == [("rougeL", "base"), ("rougeL", "tuned")]
    unmeasured = compare(then, record())
    assert len(failed(unmeasured)) == 4 and unmeasured.notes == [
        "the new run was not measured; see its notes in run.json"
    ]


def test_runs_without_scores_are_compared_by_their_training_loss() -> None:
    found = compare(record(train_loss=1.50), record(train_loss=1.53))
    assert found.reproduced and [check.score for check in found.checks] == ["train_loss"]
    assert found.notes == [
        "the recorded run was not measured: only its training loss is compared, which is a weak test"
    ]
    assert not compare(record(train_loss=1.5), record(train_loss=1.7)).reproduced
    nothing = compare(record(train_loss=None), record(train_loss=1.5))
    assert not nothing.reproduced and nothing.sentence.startswith("not compared: ")


def test_scores_of_other_rows_come_with_a_note() -> None:
    then, now = record(perplexity=entry(10.0, 2.0, 0.1)), record(perplexity=entry(10.0, 2.0, 0.1))
    assert now.metrics is not None
    now.metrics["rows"] = 100
    assert compare(then, now).notes == ["the scores were measured on other rows: a gap says little"]


def test_tasks_of_lm_eval_are_compared_within_their_standard_error() -> None:
    def with_task(value: float) -> Record:
        found = record(perplexity=entry(10.0, 2.0, 0.1))
        task = {"base": {"value": 0.5, "stderr": 0.02}, "tuned": {"value": value, "stderr": 0.02}}
        found.metrics["lm_eval"] = {"tasks": {"arc_easy": {"metrics": {"acc": task}}}}  # type: ignore[index]
        return found

    assert compare(with_task(0.60), with_task(0.63)).reproduced
    assert failed(compare(with_task(0.60), with_task(0.65))) == [("arc_easy acc", "tuned")]


# --- what is published ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_public_record_says_nothing_of_machine_or_user(made: Path, run: Path) -> None:
    record = lock.public_record(run)
    assert set(record) == {"recipe-kit/recipe.yaml", "recipe-kit/run.json", "recipe-kit/metrics.json"}
    for name, content in record.items():
        for private in (
            str(made),
            made.name,
            str(run.parent),
            str(Path.home()) + "/",
            HOST,
            "hf_abc",
            '"pid"',
            '"host"',
        ):
            assert private.encode() not in content, (name, private)
    assert HOST.encode() in (run / "run.json").read_bytes() and str(made).encode() in (run / "run.json").read_bytes()
    assert lock.public_record(run) == record


@pytest.mark.slow
def test_the_public_record_keeps_what_a_repetition_needs(run: Path, published: Path) -> None:
    info, told = run_dir.read(run), run_dir.read(published / "recipe-kit")
    kept = ("versions", "hardware", "processes", "seed", "training", "proofs", "method", "recipe_sha256", "notes")
    assert {key: told.get(key) for key in kept} == {key: info.get(key) for key in kept}
    assert told["model"] == info["model"]
    (source,) = told["data"]["splits"]["train"]["sources"]
    assert (source["path"], source["limit"]) == ("rows.jsonl", 32)
    assert told["data"]["splits"]["train"]["content_sha256"] == info["data"]["splits"]["train"]["content_sha256"]
    assert told["lock"]["recipe_sha256"] == info["recipe_sha256"]
    assert told["lock"]["weights"].keys() == {"adapter_model.safetensors"}
    assert told["lock"]["left_out"] == [
        "data: the file rows.jsonl is not published; its rows are known by content_sha256"
    ]
    assert run_dir.read_metrics(published / "recipe-kit") == run_dir.read_metrics(run)
    assert "command" not in told and "process" not in told and "published" not in told
    assert load_recipe(published / "recipe-kit" / "recipe.yaml").model.chat_template == TEMPLATE


@pytest.mark.slow
def test_the_template_that_was_trained_is_published_also_when_its_file_has_changed(made: Path, run: Path) -> None:
    file = made / "templates" / "own.jinja"
    try:
        file.write_text("{{ 'another one' }}")
        text = lock.public_record(run)["recipe-kit/recipe.yaml"].decode()
    finally:
        file.write_text(TEMPLATE)
    assert yaml.safe_load(text)["model"]["chat_template"] == TEMPLATE


@pytest.mark.slow
@pytest.mark.parametrize("profiles", [["smoke"], []], ids=["smoke", "full"])
@pytest.mark.parametrize("name", catalog.recipe_names())
def test_the_published_recipe_of_every_shipped_one_loads_again(
    name: str, profiles: list[str], run: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(name, profiles=profiles)
    copied = copy_of(run, tmp_path, model={"id": recipe.model.id, "revision": A})
    (copied / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    again = tmp_path / "recipe.yaml"
    again.write_bytes(lock.public_record(copied)["recipe-kit/recipe.yaml"])
    assert load_recipe(again) == lock.recipe_of(copied)
    assert load_recipe(again).model.revision == A


@pytest.mark.slow
def test_paths_and_secrets_anywhere_in_a_run_are_not_published(run: Path, tmp_path: Path) -> None:
    token = "hf_" + "Q" * 34
    copied = copy_of(
        run, tmp_path,
        notes=[f"read /mnt/disk one/of mine/rows.csv with {token}", "see https://example.org/a/b, 3 tokens/s, </s>"],
        reproduces={"origin": "/mnt/runs/support/2026-01-01T00-00-00", "recipe_sha256": "1"},
        merge={"notes": ["C:\\Users\\me\\base was slow"], "rows_from": f"{Path.home()}/rows.jsonl"},
    )  # fmt: skip
    recipe = yaml.safe_load((copied / "recipe.yaml").read_text())
    recipe["launch"]["accelerate_config"] = "/mnt/clusters/zero3.yaml"
    recipe["training"]["deepspeed"] = "/mnt/clusters/zero3.json"
    recipe["data"]["formatter"] = {"name": "support", "options": {"words": "~/words.txt", "api_key": "very secret"}}
    recipe["data"]["system"] = "Files are under /usr/share/doc on every machine."
    recipe["evaluation"]["judge"] = {"url": "http://me:pass@gpu7:8000/v1", "model": "judge"}
    (copied / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    files = lock.public_record(copied)
    told = json.loads(files["recipe-kit/run.json"])
    assert told["notes"][1] == "see https://example.org/a/b, 3 tokens/s, </s>"
    assert told["reproduces"]["origin"] == "2026-01-01T00-00-00"
    assert told["merge"] == {"notes": ["base was slow"], "rows_from": "rows.jsonl"}
    published = yaml.safe_load(files["recipe-kit/recipe.yaml"])
    assert published["launch"]["accelerate_config"] is None
    assert published["training"]["deepspeed"] == "zero3.json"
    assert published["data"]["formatter"]["options"] == {"words": "words.txt"}
    assert published["data"]["system"] == "Files are under /usr/share/doc on every machine."  # rows depend on it
    assert published["evaluation"]["judge"]["url"] == "http://localhost"
    everything = b"".join(files.values())
    for private in ("/mnt", "Users", "very secret", token, "gpu7", "me:pass", str(Path.home()) + "/"):
        assert private.encode() not in everything, private


# --- a stranger's record ----------------------------------------------------------------------------------------


def rewritten(published: Path, **changes: Any) -> None:
    """A record that somebody wrote by hand, with the right hash."""
    import hashlib

    path = published / "recipe-kit" / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        recipe[section][name] = value
    path.write_text(yaml.safe_dump(recipe))
    info = run_dir.read(published / "recipe-kit")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    run_dir.update(published / "recipe-kit", lock=info["lock"] | {"published_recipe_sha256": digest})


@pytest.mark.slow
def test_a_strangers_recipe_sends_nothing_and_runs_no_code_of_a_model_unasked(published: Path) -> None:
    judge = {"url": "https://evil.example/v1", "model": "judge", "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    rewritten(published, evaluation__judge=judge, training__report_to=["wandb", "tensorboard"])
    locked = lock.source_of(published)
    assert locked.recipe.evaluation.judge is None
    assert locked.recipe.training["report_to"] == ["tensorboard"]
    assert [note.partition(":")[0] for note in locked.notes] == [
        "the judge is not asked again", "nothing is sent to ['wandb', 'tensorboard']"
    ]  # fmt: skip
    rewritten(published, model__trust_remote_code=True)
    with pytest.raises(
        RunError, match=r"runs Python code that comes with tiny:chatml; .* --set model\.trust_remote_code"
    ):
        lock.source_of(published)
    assert lock.source_of(published, ["model.trust_remote_code=true"]).recipe.model.trust_remote_code


@pytest.mark.slow
def test_a_strangers_judge_is_asked_only_at_an_address_that_the_user_gave(published: Path) -> None:
    judge = {"url": "https://evil.example/v1", "model": "judge", "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    rewritten(published, evaluation__judge=judge)
    assert lock.source_of(published, ["evaluation.judge.pairs=3"]).recipe.evaluation.judge is None
    asked = lock.source_of(published, ["evaluation.judge.url=http://localhost:1/v1"]).recipe.evaluation.judge
    assert asked is not None and asked.url == "http://localhost:1/v1"


@pytest.mark.slow
def test_a_stranger_names_no_function_of_this_machine_unasked(published: Path, tmp_path: Path) -> None:
    """`subprocess:Popen` called with a row and `shell: true` runs the name of the row's first column."""
    spec = {"name": "subprocess:Popen", "options": {"shell": True}}
    for key, changes in (
        ("data.formatter.name", {"data__formatter": spec}),
        ("data.train.formatter.name", {"data__formatter": "support", "data__train": {"id": "a/b", "formatter": spec}}),
        ("evaluation.metrics.0.name", {"data__train": {"id": "a/b"}, "evaluation__metrics": [spec]}),
    ):
        rewritten(published, **changes)
        with pytest.raises(RunError, match=rf"its recipe calls subprocess:Popen on this machine \({key}\)") as caught:
            lock.source_of(published)
        assert str(caught.value).endswith(f"repeat with --set {key}=subprocess:Popen")
    agreed = lock.source_of(published, ["evaluation.metrics=[{name: 'subprocess:Popen'}]"])
    assert agreed.recipe.evaluation.metrics[0].name == "subprocess:Popen"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.train", {"path": "/etc/passwd"}),
        ("data.train", {"path": "../../rows.jsonl"}),
        ("model.chat_template", "/etc/passwd"),
        ("model.chat_template", "own.jinja"),
        ("model.id", "../model"),
        ("launch.accelerate_config", "topology.yaml"),
        ("evaluation.lm_eval", {"tasks": ["/tmp/tasks"]}),
        ("training.deepspeed", "/tmp/zero3.json"),
    ],
)
def test_a_strangers_recipe_reads_no_file_of_this_machine(published: Path, key: str, value: Any) -> None:
    rewritten(published, **{key.replace(".", "__"): value})
    with pytest.raises(RunError, match=rf"its recipe names a file or folder of this machine in {key}"):
        lock.source_of(published)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lock": None}, "lock is None"),
        ({"processes": "8"}, "processes is '8'"),
        ({"processes": 0}, "processes is 0"),
        ({"model": []}, r"model is \[\]"),
        ({"versions": None}, "versions is None"),
        ({"hardware": {"threads": "2; rm"}}, "hardware.threads is '2; rm'"),
        ({"data": {"splits": {"train": None}}}, "data.splits.train is None"),
        ({"data": {"splits": {"train": {"kept": 1}}}}, "data.splits.train.tokens is None"),
        ({"data": {"splits": {"train": {"kept": 1, "tokens": 1, "content_sha256": "1", "sources": [5]}}}}, "is 5"),
    ],
    ids=str,
)
def test_a_run_json_that_push_did_not_write_is_a_sentence(published: Path, changes: dict[str, Any], told: str) -> None:
    run_dir.update(published / "recipe-kit", **changes)
    with pytest.raises(RunError, match=rf"its run.json is not one that recipe-kit published \(.*{told}\)"):
        lock.source_of(published)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scores", [[], {"perplexity": None}, {"perplexity": {"label": "perplexity", "rows": 1}}], ids=str
)
def test_a_metrics_json_that_push_did_not_write_is_a_sentence(published: Path, scores: Any) -> None:
    metrics = run_dir.read_metrics(published / "recipe-kit") | {"scores": scores}
    run_dir.write_json(published / "recipe-kit" / "metrics.json", metrics)
    with pytest.raises(RunError, match=r"its metrics.json is not one that recipe-kit published \(scores"):
        lock.source_of(published)


@pytest.mark.slow
def test_a_published_record_without_its_lock_is_no_run_of_ones_own(published: Path) -> None:
    rewritten(published, model__trust_remote_code=True)
    info = run_dir.read(published / "recipe-kit")
    del info["lock"]
    run_dir.write_json(published / "recipe-kit" / "run.json", info)
    with pytest.raises(RunError, match="not one that recipe-kit published"):
        lock.source_of(published)


@pytest.mark.slow
def test_a_record_whose_recipe_was_changed_afterwards_is_refused(published: Path) -> None:
    path = published / "recipe-kit" / "recipe.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    result = command(published)
    assert result.exit_code == 1
    assert "recipe-kit/recipe.yaml is not the file that was published" in result.stderr


# --- the Hub ----------------------------------------------------------------------------------------------------

ASK = """
import json, sys
from recipe_kit.errors import RunError
from recipe_kit.lock import source_of
said = {}
for target in sys.argv[1:]:
    try:
        locked = source_of(target)
        said[target] = [locked.origin, locked.foreign, locked.recipe.training["learning_rate"], sorted(locked.weights)]
    except RunError as error:
        said[target] = str(error)
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Warnings while validating:UserWarning")
@pytest.mark.parametrize("major", MAJORS)
def test_a_repository_of_the_hub_is_read_at_its_commit_and_refusals_are_sentences(
    published: Path, tmp_path: Path, major: str
) -> None:
    with Hub(tmp_path / "hub") as hub:
        reader = hub.add_user("reader", role="read")
        repo = hub.add_repo("acme/support", folder=published)
        hub.add_repo("acme/secret", folder=published, private=True)
        hub.add_repo("acme/gated", folder=published, gated=True)
        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign" / "config.json").write_text("{}")
        hub.add_repo("acme/other", folder=tmp_path / "foreign")
        targets = ("acme/support", "acme/support@v9", "acme/nothing", "acme/secret", "acme/gated", "acme/other")
        said = json.loads(run_client(hub, ASK, *targets, token=reader, major=major))
        commit = repo.refs["main"]
        assert said["acme/support"] == [f"acme/support@{commit}", True, 0.01, ["adapter_model.safetensors"]]
        assert said["acme/support@v9"] == "acme/support: it has no revision 'v9'; leave it out for the newest"
        for hidden in ("acme/nothing", "acme/secret"):
            assert said[hidden].startswith(f"{hidden}: no run folder here, and no such repository on the Hub")
        assert said["acme/gated"].startswith("acme/gated: access has to be granted; ")
        assert said["acme/other"].startswith("acme/other: not published by recipe-kit (no recipe-kit/run.json in it)")
        anonymous = json.loads(run_client(hub, ASK, "acme/secret", token=None, major=major))
        assert "for a private one `hf auth login`" in anonymous["acme/secret"]
        stale = json.loads(run_client(hub, ASK, "acme/other", token="hf_" + "x" * 34, major=major))
        assert stale["acme/other"].startswith("acme/other: the Hub refuses your token; ")
        assert not [entry for entry in hub.requests("resolve") if "safetensors" in entry.path]  # the record alone
        offline = json.loads(
            run_client(hub, ASK, "acme/support", "acme/other", token=reader, major=major, HF_HUB_OFFLINE="1")
        )
        assert offline["acme/support"][0] == f"acme/support@{commit}"  # from the cache
    assert offline["acme/other"].startswith("acme/other: ")


def test_a_name_that_is_no_run_and_no_repository_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "support").mkdir(parents=True)
    with pytest.raises(RunError, match=r"^runs/suport: not a run folder .*; did you mean support\?"):
        lock.source_of("runs/suport")
    with pytest.raises(RunError, match=r"^a/b/c: not a run folder"):
        lock.source_of("a/b/c")
    with pytest.raises(RunError, match=r"^acme/model: no run folder here, and the Hub cannot be reached \("):
        lock.source_of("acme/model")
