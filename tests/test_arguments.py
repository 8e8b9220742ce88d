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


@pytest.mark.parametrize(
    ("written", "kwargs"),
    [
        (None, {"sync_each_batch": True}),
        ("{non_blocking: true, split_batches: true}", {"sync_each_batch": True}),
        ("{gradient_accumulation_kwargs: {sync_each_batch: false}}", {"sync_each_batch": False}),
    ],
)
def test_fsdp2_shares_gradients_out_after_each_micro_batch_unless_the_recipe_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, written: str | None, kwargs: dict[str, bool]
) -> None:
    changes = [f"training.accelerator_config={written}"] if written else []
    recipe = load_recipe("samsum", profiles=["smoke"], overrides=changes)
    alone = training_arguments(recipe, "float32").accelerator_config
    assert (alone.gradient_accumulation_kwargs or {}).get("sync_each_batch", False) is False
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    found = training_arguments(recipe, "float32").accelerator_config
    assert found.gradient_accumulation_kwargs == kwargs
    both = "split_batches" in str(written)
    assert (found.split_batches, found.non_blocking) == (both, both)  # other keys stay


def test_a_recipe_is_not_written_into_by_a_trainer() -> None:
    """transformers puts `num_steps: 1` into the options, and refuses it when a second trainer takes them."""
    recipe = load_recipe("samsum", profiles=["smoke"], overrides=[
        "training.accelerator_config={gradient_accumulation_kwargs: {sync_each_batch: true}}",
        "training.gradient_accumulation_steps=2",
    ])  # fmt: skip
    given = training_arguments(recipe, "float32").accelerator_config.gradient_accumulation_kwargs
    given["num_steps"] = 1
    assert recipe.training["accelerator_config"] == {"gradient_accumulation_kwargs": {"sync_each_batch": True}}


def test_workers_that_fill_pinned_memory_end_with_their_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept ones cost each run on a GPU ten seconds at its end: PyTorch 2.11 waits before it tells them to end."""
    monkeypatch.setattr(modeling, "uses_cpu", lambda recipe: False)
    found = training_arguments(load_recipe("samsum", profiles=["smoke"]), "float32")
    assert (found.dataloader_num_workers, found.dataloader_pin_memory) == (2, True)
    assert found.dataloader_persistent_workers is False
