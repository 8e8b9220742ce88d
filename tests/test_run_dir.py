"""Run folders: found, named, and never taken for finished when they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe_kit import run_dir
from recipe_kit.errors import RunError


def make_run(folder: Path, status: str, *, checkpoint: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"name": "a", "status": status, "method": "lora", "model": {}, "data": {}})
    )
    if checkpoint:
        (folder / "checkpoints" / "checkpoint-2").mkdir(parents=True)
        (folder / "checkpoints" / "checkpoint-2" / "complete.json").write_text("{}")
    return folder


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    assert run_dir.create(tmp_path, "a") != run_dir.create(tmp_path, "a")


def test_a_run_is_found_by_its_folder_by_latest_and_by_the_folder_above(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a" / "2026-01-01T00-00-00", "finished")
    run_dir.point_latest(run)
    assert (
        run_dir.find(run) == run_dir.find(tmp_path / "a" / "latest") == run_dir.find(tmp_path / "a") == run.resolve()
    )


def test_a_folder_that_is_no_run_names_the_nearest(tmp_path: Path) -> None:
    make_run(tmp_path / "samsum" / "2026-01-01T00-00-00", "finished")
    with pytest.raises(RunError, match=r"samsun: not a run folder \(no run.json in it\); did you mean samsum\?"):
        run_dir.find(tmp_path / "samsun")


def test_latest_moves_to_the_newest_finished_run(tmp_path: Path) -> None:
    for stamp in ("2026-01-01T00-00-00", "2026-01-02T00-00-00"):
        run_dir.point_latest(make_run(tmp_path / stamp, "finished"))
    assert (tmp_path / "latest").resolve().name == "2026-01-02T00-00-00"


def test_the_newest_unfinished_run_with_a_checkpoint_is_resumed(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "2026-01-01T00-00-00", "failed", checkpoint=True)
    wanted = make_run(tmp_path / "a" / "2026-01-02T00-00-00", "running", checkpoint=True)
    make_run(tmp_path / "a" / "2026-01-03T00-00-00", "failed")
    make_run(tmp_path / "a" / "2026-01-04T00-00-00", "finished", checkpoint=True)
    assert run_dir.newest_unfinished(tmp_path, "a") == wanted


def test_a_damaged_run_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": ')
    with pytest.raises(RunError, match="the run folder is damaged"):
        run_dir.read(tmp_path)


def test_an_unevaluated_run_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run `recipe-kit eval RUN` first"):
        run_dir.read_metrics(make_run(tmp_path / "a", "finished"))


def test_writing_leaves_no_part_behind(tmp_path: Path) -> None:
    run_dir.write_json(tmp_path / "run.json", {"wört": 1})
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == '{\n  "wört": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_file_without_its_parts_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "finished", "name": "a"}')
    with pytest.raises(RunError, match="it has no method, model, data; the run folder is damaged"):
        run_dir.read(tmp_path)
    (tmp_path / "metrics.json").write_text("null")
    with pytest.raises(RunError, match="holds NoneType instead of dict"):
        run_dir.read_metrics(tmp_path)


def test_a_folder_with_runs_in_it_names_the_newest(tmp_path: Path) -> None:
    for stamp in ("2026-01-01T00-00-00", "2026-01-02T00-00-00"):
        make_run(tmp_path / "a" / stamp, "failed")
    with pytest.raises(RunError, match=r"did you mean .*a/2026-01-02T00-00-00\?"):
        run_dir.find(tmp_path / "a")


def test_a_run_that_still_trains_is_waited_for_and_one_that_was_killed_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "running", checkpoint=True)
    info = run_dir.read(run)
    run_dir.write_json(run / "run.json", {**info, "process": run_dir.process()})
    with pytest.raises(RunError, match="this run is still training; wait until it has finished"):
        run_dir.require_finished(run)
    run_dir.write_json(run / "run.json", {**info, "process": {**run_dir.process(), "pid": 2**22 + 1}})
    with pytest.raises(RunError, match="this run is running; continue it with `recipe-kit train ... --resume`"):
        run_dir.require_finished(run)


def test_a_failed_run_without_checkpoint_is_trained_again(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="this run is failed; train again: it left no checkpoint"):
        run_dir.require_finished(make_run(tmp_path / "a", "failed"))


def test_numbers_that_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    run_dir.write_json(tmp_path / "a.json", {"loss": float("nan"), "more": [float("inf"), 1.5]})
    run_dir.write_lines(tmp_path / "a.jsonl", [{"loss": float("-inf")}])
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": None, "more": [None, 1.5]}
    assert run_dir.read_lines(tmp_path / "a.jsonl") == [{"loss": None}]
