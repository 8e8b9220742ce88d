"""The example plugin, as a user who installed it would meet it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipe_kit import run_dir

PLUGIN = Path(__file__).resolve().parents[1] / "examples" / "formatter-plugin"
SCRIPT = PLUGIN.parent / "trl-script" / "train.py"


@pytest.mark.slow
def test_an_installed_plugin_trains_two_steps(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*install, "--target", site, PLUGIN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    own_tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", PLUGIN / "tests"]
    tested = subprocess.run(own_tests, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout[-2000:]
    run = [sys.executable, "-m", "recipe_kit", PLUGIN / "faq.yaml", "--runs-dir", tmp_path / "runs"]
    trained = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    assert trained.returncode == 0, trained.stderr[-2000:]
    info = run_dir.require_finished(run_dir.find(tmp_path / "runs" / "faq"))
    assert info["training"]["steps"] == 2
    assert info["data"]["formatter"]["name"] == "faq" and info["data"]["formatter"]["source_sha256"]


def test_a_recipe_with_a_plugin_that_is_not_installed_says_how_plugins_travel() -> None:
    import recipe_kit

    (problem,) = recipe_kit.validate(PLUGIN / "faq.yaml")
    assert "'faq'" in problem.message and "entry point" in problem.message


@pytest.mark.slow
def test_a_plain_trl_script_takes_labels_and_proofs_from_the_kit(tmp_path: Path) -> None:
    script = [sys.executable, SCRIPT, "--output", tmp_path / "out", "--max-steps", "2"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 rows, 261 of 473 tokens are learnt" in done.stdout
    assert "13 of 13 proofs hold" in done.stdout
    assert "train_loss" in done.stdout
