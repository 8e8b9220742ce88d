"""What is known of a training before a row is read."""

from __future__ import annotations

import importlib.util

import pytest

from recipe_kit import modeling
from recipe_kit.arguments import check_method, training_arguments
from recipe_kit.errors import ModelError, RecipeError
from recipe_kit.recipe import load_recipe


def test_fused_kernels_that_are_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("samsum", profiles=["smoke"], overrides=["training.use_liger_kernel=true"])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "liger_kernel" else find(name))
    with pytest.raises(RecipeError, match=r"liger-kernel is not installed; `pip install 'recipe-kit\[kernels\]'`"):
        check_method(recipe)


def test_hub_kernels_without_their_package_are_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("samsum", profiles=["smoke"], overrides=["model.kernels=hub"])
    monkeypatch.setattr("transformers.utils.import_utils.is_kernels_available", lambda: False)
    check_method(recipe)  # a CPU has no use for them
    monkeypatch.setattr(modeling, "uses_cpu", lambda recipe: False)
    monkeypatch.setattr(modeling, "check_quantization", lambda recipe: None)
    with pytest.raises(ModelError, match=r"^model.kernels: hub needs another package; `pip install 'kernels>=.*`, or"):
        check_method(recipe)


@pytest.mark.parametrize("profiles", [["smoke"], []])
def test_a_stream_needs_a_number_of_steps(profiles: list[str]) -> None:
    recipe = load_recipe("samsum", profiles=profiles, overrides=["data.streaming=true", "training.use_cpu=true",
                                                                 "training.bf16=false"])  # fmt: skip
    if profiles:
        assert training_arguments(recipe, "float32").max_steps == 8
        return
    with pytest.raises(RecipeError, match=r"an epoch of a stream has no known length; set training\.max_steps"):
        training_arguments(recipe, "float32")
