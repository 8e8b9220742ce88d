"""Whether a trained weight of a model is no number any more."""

from __future__ import annotations

import pytest
import torch

from recipe_kit.finite import ruined


def model_of(*, trained: float = 1.0, frozen: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(4, 4), "last": torch.nn.Linear(4, 4)}).to(dtype)
    model["first"].requires_grad_(False)
    with torch.no_grad():
        model["first"].weight[1, 2] = frozen
        model["last"].weight[3, 1] = trained
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_weight_with_a_value_that_is_no_number_is_named(value: float) -> None:
    assert ruined(model_of(trained=value).named_parameters()) == "last.weight"


def test_numbers_are_none_of_it_and_frozen_weights_are_not_looked_at() -> None:
    assert ruined(model_of().named_parameters()) == ""
    assert ruined(model_of(frozen=float("nan")).named_parameters()) == ""
    assert ruined([]) == ""


def test_the_largest_16_bit_numbers_are_numbers_together_too() -> None:
    model = model_of(dtype=torch.float16)
    torch.nn.init.constant_(model["last"].weight, 65_504.0)
    assert ruined(model.named_parameters()) == ""


def test_a_process_without_a_share_of_a_weight_finds_nothing_in_it() -> None:
    empty = torch.nn.Parameter(torch.zeros(0))
    assert ruined([("whole", empty)]) == ""
    empty.ds_tensor = torch.tensor([1.0, float("nan")])  # type: ignore[attr-defined]
    assert ruined([("split", empty)]) == "split"
