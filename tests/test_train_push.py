"""`recipe-kit train --push`, from recipe to repository, against the small Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub.server import Hub
from recipe_kit import run_dir

pytestmark = pytest.mark.slow

RECIPE = """
name: small
model: {id: "tiny:chatml", dtype: float32}
method: lora
data: {train: {sample: support, limit: 16}, eval: {rows: 4}, formatter: support, max_length: 256}
lora: {r: 4, target_modules: [q_proj]}
training: {max_steps: 2, learning_rate: 1.0e-2, use_cpu: true, report_to: [], logging_steps: 1}
evaluation: {samples: 1, max_new_tokens: 4}
publish: {repo_id: acme/small, what: merged, tag: v1.0}
card: {license: mit, language: en}
"""


def train(hub: Hub, token: str | None, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
    code = "from recipe_kit.cli import main; main(prog_name='recipe-kit')"
    environment = {**os.environ, **hub.environment(token, folder / "home")}
    return subprocess.run(
        [sys.executable, "-c", code, "train", "small.yaml", *arguments], cwd=folder, env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def test_a_run_is_merged_described_and_published_by_one_command(tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as hub:
        token = hub.add_user("acme", role="write")
        done = train(hub, token, tmp_path, "--push")
        assert done.returncode == 0, done.stderr
        repo = hub.repo("acme/small")
        assert repo.private and set(repo.tags) == {"v1.0"} and len(repo.commits) == 2
        files = repo.files("main")
    assert {"README.md", "config.json", "model.safetensors", "recipe-kit/recipe.yaml"} <= set(files)
    record = run_dir.read(run_dir.find(tmp_path / "runs" / "small"))["published"]
    assert [entry["commit"] for entry in record] == [repo.tags["v1.0"]]
    assert f"{hub.endpoint}/acme/small/tree/v1.0" in done.stdout
    assert token not in done.stdout + done.stderr


def test_what_would_be_refused_is_said_before_training(tmp_path: Path) -> None:
    """autotrain #651, #648: the training was done, and the upload refused."""
    with Hub(tmp_path / "hub") as hub:
        token = hub.add_user("acme", role="read")
        done = train(hub, token, tmp_path, "--push", "--set", "publish.what=adapter")
    assert done.returncode == 1
    assert "the token of acme may only read" in done.stderr
    assert "the base model tiny:chatml is not on the Hub, so nobody could load the adapter" in done.stderr
    assert done.stderr.rstrip().endswith("nothing was trained; without --push it would be")
    assert not (tmp_path / "runs" / "small").exists()


def test_a_push_that_fails_keeps_the_run_and_says_how_to_go_on(tmp_path: Path) -> None:
    """unsloth #898: the push failed after hours of training."""
    with Hub(tmp_path / "hub") as hub:
        token = hub.add_user("acme", role="write")
        hub.fail(op="commit", status=403, times=None)
        done = train(hub, token, tmp_path, "--push")
    run = run_dir.find(tmp_path / "runs" / "small")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"the training is finished and kept; go on with `recipe-kit push {run}`")
    assert "Traceback" not in done.stderr
    assert run_dir.read(run)["status"] == "finished" and (run / "merged").is_dir()
