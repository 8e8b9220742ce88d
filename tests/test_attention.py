"""Which attention can be had here: packages as they lie on a disk, working or not, by cards and recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import import_utils

from recipe_kit import attention, doctor, modeling, varlen
from recipe_kit import plan as planning
from recipe_kit.errors import RecipeError
from recipe_kit.evaluation.work import inference
from recipe_kit.recipe import Recipe, resolve
from recipe_kit.speed.card import CARDS
from recipe_kit.speed.kernels import choose_attention
from recipe_kit.training import train
from test_choose import SMALL, recipe_of

HOPPER, AMPERE, TURING = (9, 0), (8, 0), (7, 5)
MODULES = {2: "flash_attn/__init__.py", 3: "flash_attn_interface.py", 4: "flash_attn/cute/__init__.py"}
NAMES = ("flash_attn", "flash_attn.cute", "flash_attn_interface")
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts packages where Python finds them. transformers looks for a GPU too, and is told what there is."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def put(*versions: int, code: str = "", kernels: bool = False) -> None:
        for version in (2, 3, 4):
            found = version in versions
            monkeypatch.setattr(import_utils, f"is_flash_attn_{version}_available", lambda found=found: found)
        monkeypatch.setattr(import_utils, "is_kernels_available", lambda: kernels)
        for version in versions:
            place = tmp_path / MODULES[version]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(code, encoding="utf-8")

    put()
    yield put
    for name in NAMES:
        sys.modules.pop(name, None)


def asking(tmp_path: Path, name: str) -> Recipe:
    return recipe_of(tmp_path, model=f", attention: {name}")


@pytest.mark.parametrize(
    ("versions", "card", "taken"),
    [
        ([2, 3], "h100", "flash_attention_3"),
        ([2, 3, 4], "h100", "flash_attention_4"),
        ([2, 3, 4], "a100-80gb", "flash_attention_2"),  # the newer ones are for Hopper
        ([2], "rtx-4090", "flash_attention_2"),
        ([], "h100", "torch_varlen"),
        ([2], "t4", "auto"),
    ],
)
def test_flash_attention_is_taken_where_it_is_installed(
    tmp_path: Path, install: Install, versions: list[int], card: str, taken: str
) -> None:
    install(*versions)
    assert choose_attention(recipe_of(tmp_path), SMALL, CARDS[card], []) == taken
    planned = choose_attention(recipe_of(tmp_path), SMALL, CARDS[card], [], planned=True)
    assert planned == ("auto" if card == "t4" else "torch_varlen")  # of another machine nothing is known


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import half_of_it", "No module named 'half_of_it'"),
        ("raise ImportError('flash.so: undefined symbol: _ZN3c10')", "flash.so: undefined symbol: _ZN3c10"),
        ("raise AttributeError(\"module 'torch' has no attribute 'gone'\")", "module 'torch' has no attribute 'gone'"),
    ],
    ids=["without a package it needs", "built for another PyTorch", "written for another PyTorch"],
)  # fmt: skip
def test_what_is_installed_and_does_not_load_is_told_and_not_taken(
    tmp_path: Path, install: Install, code: str, reason: str
) -> None:
    """It would fail when the model is loaded, after rows are prepared and proved."""
    install(4, code=code)
    notes: list[str] = []
    assert choose_attention(recipe_of(tmp_path), SMALL, CARDS["h100"], notes) == varlen.NAME
    assert notes == [f"FlashAttention-4 is installed and cannot be imported ({reason})"]


def test_an_older_one_that_loads_is_taken_instead(tmp_path: Path, install: Install) -> None:
    install(2, 3, 4)
    (tmp_path / MODULES[4]).write_text("import half_of_it", encoding="utf-8")
    assert attention.installed_flash(HOPPER, notes := []) == "flash_attention_3"
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("name", "versions", "capability", "reason"),
    [
        ("flash_attention_2", [2], AMPERE, None),
        ("flash_attention_2", [], AMPERE, "FlashAttention-2 is not installed"),
        ("flash_attention_4", [2, 3], HOPPER, "FlashAttention-4 is not installed"),
        ("flash_attention_2", [2], TURING, "this GPU is older than Ampere"),
        ("flash_attention_2", [2], None, "it trains on a GPU, and this run is on a CPU"),
        ("flex_attention", [], None, "it trains on a GPU, and this run is on a CPU"),
        ("flex_attention", [], TURING, None),
        ("sdpa", [], None, None),
        ("torch_varlen", [], None, None),
    ],
)
def test_attention_that_is_asked_for_must_be_there(
    tmp_path: Path, install: Install, name: str, versions: list[int], capability: tuple[int, int] | None,
    reason: str | None,
) -> None:  # fmt: skip
    install(*versions)
    recipe = asking(tmp_path, name)
    if reason is None:
        attention.check(recipe, capability)
        return
    with pytest.raises(RecipeError) as refused:
        attention.check(recipe, capability)
    assert str(refused.value) == f"model.attention: {name} cannot be used, {reason}; set it to auto"


def test_what_the_hub_has_is_left_to_transformers(install: Install) -> None:
    install(kernels=True)
    assert attention.unusable("flash_attention_2", AMPERE) is None


def test_it_is_refused_before_rows_are_looked_at(tmp_path: Path, install: Install) -> None:
    with pytest.raises(RecipeError, match="flex_attention cannot be used, it trains on a GPU"):
        train(asking(tmp_path, "flex_attention"), runs_dir=tmp_path / "runs")  # neither model nor rows exist
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("card", [None, "h100"])
def test_the_plan_says_it_of_this_machine_and_not_of_another(tmp_path: Path, card: str | None) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(
        'name: some\nmodel: {id: "tiny:llama3", dtype: float32, attention: flex_attention}\nmethod: lora\n'
        "data: {train: {sample: support, limit: 8}, formatter: support}\nlora: {r: 4}\ntraining: {use_cpu: true}\n",
        encoding="utf-8",
    )
    told = [error["message"] for error in planning.build(resolve(path), card=card, quality=False)["errors"]]
    reason = "it trains on a GPU, and this run is on a CPU"
    refused = f"model.attention: flex_attention cannot be used, {reason}; set it to auto"
    assert told == ([refused] if card is None else [])


def test_a_recipes_attention_need_not_be_where_its_weights_are_asked(tmp_path: Path) -> None:
    """Trained on a GPU with FlashAttention, talked to on a laptop."""
    recipe = recipe_of(tmp_path, model=", attention: flash_attention_2")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"id": "tiny:llama3"})})
    model = modeling.load_model(recipe, modeling.load_tokenizer(recipe.model), "float32")
    assert model.config._attn_implementation == "sdpa"


def test_the_doctor_tells_of_one_that_does_not_load(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "no_kernel", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: HOPPER)
    install(4, code="import half_of_it")
    told = doctor._attention()
    assert (told.status, told.detail) == (
        "note",
        "kept apart by torch_varlen; FlashAttention-4 is installed and cannot be imported "
        "(No module named 'half_of_it')",
    )


IN_16_BITS = '''
"""Takes what FlashAttention takes, on a CPU."""

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa


def flash_attn_func(q, k, v, causal=False, softmax_scale=None, **more):
    assert v.dtype in (torch.float16, torch.bfloat16), "inputs must be float16 or bfloat16"
    rows = (states.transpose(1, 2) for states in (q, k, v))
    return sdpa(*rows, is_causal=causal and q.shape[1] > 1, scale=softmax_scale, enable_gqa=True).transpose(1, 2)


def flash_attn_varlen_func(q, k, v, **more):  # of one row
    return flash_attn_func(q[None], k[None], v[None], **more)[0]
'''


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_in_float32_are_measured_without_flash_attention(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Trained in full in mixed precision on an H100, with FlashAttention-4: a failed assertion instead of scores."""
    install(4, code=IN_16_BITS)
    recipe = recipe_of(tmp_path)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"id": "tiny:llama3"})})
    model = modeling.load_model(recipe, modeling.load_tokenizer(recipe.model), dtype).to(getattr(torch, dtype))
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = model(input_ids=ids).logits
    model.config._attn_implementation = "flash_attention_4"  # as it was trained
    if dtype == "float32":
        with pytest.raises(AssertionError, match="inputs must be float16"):
            model(input_ids=ids)
    with inference(model):
        assert model.config._attn_implementation == ("sdpa" if dtype == "float32" else "flash_attention_4")
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=0.02)
        assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape == (1, 6)
