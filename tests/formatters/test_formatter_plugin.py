"""The example package works once it is installed: found by name, checked by its own tests."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

PLUGIN = Path(__file__).parents[2] / "examples" / "formatter-plugin"


def test_the_installed_example_passes_its_own_tests(tmp_path):
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((group, names),) = project["entry-points"].items()
    installed = tmp_path / "recipe_kit_faq-0.1.0.dist-info"  # what an installer writes, without the network it needs
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    lines = "".join(f"{name} = {target}\n" for name, target in names.items())
    (installed / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    path = os.pathsep.join([str(tmp_path), str(PLUGIN / "src"), *filter(None, sys.path)])
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "tests")]
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert "5 passed" in result.stdout, result.stdout + result.stderr
