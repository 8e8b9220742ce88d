"""Arrows point one way, and light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import recipe_kit

PACKAGE = Path(recipe_kit.__file__).parent

# What each part may import of the package. `errors`, `suggest` and `options` are open to all.
ALLOWED = {
    "errors": set(),
    "suggest": set(),
    "options": set(),
    "registry": set(),
    "formatters": {"registry"},
    "testing": {"formatters", "registry"},
    "catalog": set(),
    "secrets": set(),
    "records": set(),
    "run_dir": {"records"},
    "launch": {"catalog", "topology", "signals"},
    "signals": set(),
    "ranks": {"signals"},
    "stopping": {"checkpoints", "saving", "signals"},
    "topology": {"catalog", "recipe"},
    "jobs": {"catalog", "signals", "topology"},
    "gathering": set(),
    "recipe": {"catalog"},
    "validation": {"recipe", "formatters", "metrics"},
    "labels": set(),
    "local_models": {"catalog"},
    "proofs": {"labels", "recipe"},
    "wiring": {"arguments", "labels", "modeling", "proofs", "recipe"},
    "quality": {"formatters"},
    "preview": {"labels", "recipe"},
    "arguments": {"gathering", "modeling", "recipe", "run_dir", "topology"},
    "plan": {
        *("arguments", "attention", "data", "local_models", "modeling", "proofs", "provenance", "publish", "quality"),
        *("launch", "recipe", "secrets", "speed", "topology", "trainer", "wiring"),
    },
    "data": {"catalog", "labels", "local_models", "formatters", "quality", "recipe"},
    "attention": {"recipe"},
    "modeling": {"attention", "local_models", "recipe", "topology", "varlen"},
    "varlen": set(),
    "speed": {"attention", "modeling", "recipe", "topology", "varlen"},
    "trainer": {"arguments", "gathering", "modeling", "recipe", "saving", "speed"},
    "out_of_memory": {"recipe"},
    "halving": {"out_of_memory"},
    "checkpoints": {"run_dir"},
    "saving": {"checkpoints", "finite", "halving", "progress"},
    "finite": set(),
    "final_save": {"checkpoints", "gathering", "saving"},
    "resume": {"checkpoints", "recipe", "run_dir"},
    "carry_over": set(),
    "progress": {"run_dir"},
    "metrics": {"quality", "registry", "run_dir"},
    "page": set(),
    "lock": {"recipe", "run_dir", "secrets"},
    "evaluation": {
        *("attention", "data", "labels", "local_models", "lock", "metrics", "modeling", "preview", "progress"),
        *("provenance", "recipe", "run_dir", "signals"),
    },
    "merge": {"data", "evaluation", "labels", "local_models", "lock", "modeling", "provenance", "recipe", "run_dir"},
    "gguf": set(),
    "card": {"lock", "quality", "recipe", "report", "run_dir", "secrets"},
    "publish": {"card", "lock", "recipe", "run_dir", "secrets"},
    "reproduce": {"data", "launch", "lock", "modeling", "provenance", "recipe", "run_dir", "trials"},
    "provenance": {"data", "local_models", "modeling", "formatters", "recipe", "run_dir", "secrets"},
    "running": {
        *("carry_over", "checkpoints", "data", "evaluation", "final_save", "gathering", "modeling", "out_of_memory"),
        *("progress", "proofs", "provenance", "recipe", "run_dir", "signals", "speed", "stopping", "topology"),
        *("trainer", "wiring"),
    },
    "training": {
        *("arguments", "attention", "data", "evaluation", "modeling", "out_of_memory", "proofs", "provenance"),
        *("recipe", "resume"),
        *("run_dir", "running", "secrets", "speed", "topology", "trainer", "wiring"),
    },
    "doctor": {"attention", "local_models", "varlen"},
    "report": {"page", "run_dir"},
    "trials": {"recipe", "run_dir", "signals"},
    "comparison": {"metrics", "page", "recipe", "run_dir", "trials"},
    "sweep": {"comparison", "page", "recipe", "run_dir", "trials"},
    "chat": {"evaluation", "labels", "lock", "modeling", "recipe", "run_dir"},
    "cli": {
        *("catalog", "data", "doctor", "evaluation", "formatters", "launch", "modeling", "plan", "preview", "recipe"),
        *("card", "chat", "comparison", "gguf", "lock", "merge", "publish", "report", "reproduce", "run_dir"),
        *("out_of_memory", "sweep", "topology", "training", "trials", "validation"),
        *("jobs", "ranks", "signals"),
    },
    "__main__": {"cli"},
    "__init__": {"*"},  # names resolved on first use
}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "tensorboard"}
LIGHT = ["recipe_kit", "recipe_kit.formatters", "recipe_kit.recipe", "recipe_kit.cli", "recipe_kit.launch",
         "recipe_kit.run_dir", "recipe_kit.registry", "recipe_kit.validation", "recipe_kit.labels",
         "recipe_kit.local_models", "recipe_kit.doctor", "recipe_kit.testing", "recipe_kit.proofs",
         "recipe_kit.quality", "recipe_kit.preview", "recipe_kit.metrics", "recipe_kit.page",
         "recipe_kit.report", "recipe_kit.comparison", "recipe_kit.sweep", "recipe_kit.trials",
         "recipe_kit.lock", "recipe_kit.card", "recipe_kit.publish", "recipe_kit.gguf",
         "recipe_kit.reproduce", "recipe_kit.out_of_memory", "recipe_kit.signals", "recipe_kit.ranks",
         "recipe_kit.checkpoints",
         "recipe_kit.resume", "recipe_kit.topology", "recipe_kit.jobs"]  # fmt: skip


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    """Parts of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "recipe_kit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recipe_kit."):
            found.add(str(node.module).split(".")[1])
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


FILES = sorted(PACKAGE.rglob("*.py"))


def test_the_table_has_no_circle() -> None:
    TopologicalSorter({part: sorted(allowed - {"*"}) for part, allowed in ALLOWED.items()}).prepare()


def test_every_module_has_its_place_in_the_table() -> None:
    assert len(FILES) > 30
    assert {part_of(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_one_way(path: Path) -> None:
    part = part_of(path)
    allowed = ALLOWED[part] | {part, "errors", "options", "suggest"}
    assert "*" in allowed or imports(path) <= allowed


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_validating_a_shipped_recipe_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, recipe_kit; assert recipe_kit.validate('samsum') == []; "
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@pytest.mark.slow  # imports everything there is, in an interpreter of its own
def test_public_names_are_listed_resolved_and_sorted() -> None:
    assert recipe_kit.__all__ == ["__version__", *sorted(recipe_kit.__all__[1:])]
    code = "import recipe_kit; print(*[name for name in recipe_kit.__all__ if getattr(recipe_kit, name) is None])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@pytest.mark.slow  # imports everything there is, in an interpreter of its own
def test_train_is_the_function_also_after_its_module_was_imported() -> None:
    code = "import recipe_kit, recipe_kit.training; assert callable(recipe_kit.train)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = recipe_kit.trian  # type: ignore[attr-defined]
