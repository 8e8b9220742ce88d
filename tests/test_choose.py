"""What a recipe leaves open is decided for the card, by rules that can be checked with a pencil."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import trl
from trl import SFTConfig

from recipe_kit import varlen
from recipe_kit.arguments import for_trainer, training_arguments
from recipe_kit.errors import RecipeError
from recipe_kit.recipe import Recipe, load_recipe
from recipe_kit.speed import choose as choosing
from recipe_kit.speed import layers
from recipe_kit.speed.batches import largest_batch, work_of_packing
from recipe_kit.speed.card import CARDS, Card
from recipe_kit.speed.choose import Choice, as_begun, choose
from recipe_kit.speed.kernels import choose_attention
from recipe_kit.speed.memory import ERROR, card_needs
from recipe_kit.speed.moments import Work
from recipe_kit.topology import Strategy, Topology

LLAMA_32_1B = transformers.LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
)  # fmt: skip
LLAMA_2_7B = transformers.LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
SMALL = transformers.LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
LENGTHS = np.array([100, 200, 300, 400] * 50)  # 250 on average
ALONE = Topology("alone", "none", 1)


def recipe_of(tmp_path: Path, training: str = "", *, model: str = "", lora: str = "{r: 8}", method: str = "lora",
              max_length: int = 1024) -> Recipe:  # fmt: skip
    path = tmp_path / "some.yaml"
    path.write_text(
        f"name: some\nmodel: {{id: org/model{model}}}\nmethod: {method}\n"
        f"data: {{train: {{id: org/rows}}, formatter: chat, max_length: {max_length}}}\n"
        + (f"lora: {lora}\n" if method != "full" else "")
        + f"training: {{report_to: [], use_cpu: true{training}}}\n",
        encoding="utf-8",
    )
    return load_recipe(path)


def chosen(
    recipe: Recipe, card: str | Card | None, config: Any = SMALL, lengths: Any = LENGTHS, *, planned: bool = True,
    precision: str = "bfloat16", how: Topology = ALONE,
) -> Choice:  # fmt: skip
    here = CARDS[card] if isinstance(card, str) else card
    return choose(recipe, config, precision, training_arguments(recipe, "float32"), lengths, 0.5, here,
                  how=how, planned=planned)  # fmt: skip


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra `kernels` is installed."""
    monkeypatch.setattr(layers, "unsupported", lambda model_type: None)


# --- attention


@pytest.mark.parametrize(
    ("card", "config", "attention", "note"),
    [
        ("h100", SMALL, "torch_varlen", None),
        ("rtx-3070", SMALL, "torch_varlen", None),
        ("t4", SMALL, "auto", "attention is left to transformers: T4 is older than Ampere"),
        ("h100", transformers.Gemma2Config(), "auto", "attention is left to transformers: its attention caps logits"),
        (
            "h100",
            transformers.GptOssConfig(),
            "auto",
            "attention is left to transformers: transformers has no interchangeable attention for gpt_oss models",
        ),
        (None, SMALL, "auto", None),
    ],
    ids=["h100", "rtx-3070", "t4", "softcaps", "sinks", "cpu"],
)  # fmt: skip
def test_attention_is_chosen_by_card_and_model(
    tmp_path: Path, card: str | None, config: Any, attention: str, note: str | None
) -> None:
    notes: list[str] = []
    found = choose_attention(recipe_of(tmp_path), config, CARDS[card] if card else None, notes, planned=True)
    assert found == attention
    assert notes == ([note] if note else [])


def test_a_run_in_32_bits_does_not_ask_for_a_kernel_of_16(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ", bf16: false", model=", dtype: float32")
    found = chosen(recipe, "h100", precision="float32")
    assert (found.attention, "padding_free" in found.training) == ("auto", False)
    assert "attention is left to transformers: the kernel computes in 16 bits, and this run does not" in found.notes
    mixed = chosen(recipe_of(tmp_path, ", bf16: true", model=", dtype: float32"), "h100", precision="float32")
    assert (mixed.attention, mixed.training["padding_free"]) == ("torch_varlen", True)


@pytest.mark.parametrize("card", ["h100", "t4", None])
def test_torch_varlen_is_refused_for_a_model_that_it_would_change(tmp_path: Path, card: str | None) -> None:
    """What the kernel cannot do goes to sdpa, and that leaves gpt-oss's sinks out without a word."""
    recipe = recipe_of(tmp_path, model=", attention: torch_varlen")
    with pytest.raises(RecipeError) as refused:
        chosen(recipe, card, transformers.GptOssConfig())
    assert str(refused.value) == (
        "model.attention: torch_varlen cannot be used, transformers has no interchangeable attention for gpt_oss "
        "models; set it to auto"
    )


def test_flash_attention_is_refused_to_a_run_in_32_bits(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, model=", attention: flash_attention_2")
    with pytest.raises(RecipeError) as refused:
        chosen(recipe, "h100", precision="float32")
    reason = "it computes in 16 bits and this run does not"
    assert str(refused.value) == f"model.attention: flash_attention_2 cannot be used, {reason}; set it to auto"
    assert chosen(recipe, "h100").attention == "flash_attention_2"


def test_rows_are_not_joined_for_a_kernel_that_the_card_has_not(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, model=", attention: torch_varlen")
    assert chosen(recipe, "h100").training["padding_free"] is True
    assert "padding_free" not in chosen(recipe, "t4").training  # sdpa would mask all tokens by all tokens


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_is_written_is_left_as_it_is(tmp_path: Path, attention: str) -> None:
    packed = recipe_of(tmp_path, ", packing: true", model=f", attention: {attention}")
    for card in ("h100", "t4"):
        found = chosen(packed, card)
        assert found.attention == attention
        assert "packing" not in found.training and "padding_free" not in found.training


# --- a run that is continued on another card


def test_a_run_that_is_continued_keeps_its_rows_and_its_optimiser(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ", packing: true, optim: auto" + AUTO, max_length=2048)
    begun = chosen(recipe, "t4")
    assert begun.training["packing"] is False
    speed = {"packing": False, "train_sampling_strategy": "group_by_length", "optim": "paged_adamw_8bit",
             "per_device_train_batch_size": 32, "gradient_accumulation_steps": 16}  # fmt: skip
    here = chosen(recipe, "h100")
    assert "packing" not in here.training
    found = as_begun(here, training_arguments(recipe, "float32", here.training), speed)
    arguments = training_arguments(recipe, "float32", found.training)
    assert {key: getattr(arguments, key) for key in speed} == speed
    assert found.notes[-1].startswith("this card would choose otherwise, but the run goes on as it was begun: packing")


def test_a_run_that_is_continued_may_have_other_micro_batches(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, AUTO)
    here = chosen(recipe, "h100")
    arguments = training_arguments(recipe, "float32", here.training)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (64, 1)
    speed = {"packing": False, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 8}
    assert as_begun(here, arguments, speed) == here
    assert as_begun(here, arguments, {}) == here  # a run folder of an earlier version


@pytest.mark.parametrize(
    ("processes", "sizes"),
    [
        ((1, 2), (8, 2)),  # 32 rows a step in both
        ((2, 1), (8, 8)),
        ((1, 8), (4, 1)),
        ((1, 3), (8, 4)),  # 32 rows cannot be shared out among three: said elsewhere, as a change to accept
    ],
)
def test_a_run_that_is_continued_by_more_processes_keeps_the_rows_of_a_step(
    tmp_path: Path, processes: tuple[int, int], sizes: tuple[int, int]
) -> None:
    recipe = recipe_of(tmp_path, ", per_device_train_batch_size: 16, gradient_accumulation_steps: 16")
    here = chosen(recipe, "h100")
    speed = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    found = as_begun(here, training_arguments(recipe, "float32", here.training), speed, processes=processes)
    arguments = training_arguments(recipe, "float32", found.training)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == sizes


def test_what_was_set_anew_in_the_recipe_is_left_to_it(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ", per_device_train_batch_size: 2, gradient_accumulation_steps: 1")
    here = chosen(recipe, "h100")
    arguments = training_arguments(recipe, "float32", here.training)
    speed = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    assert as_begun(here, arguments, speed, set_anew={"gradient_accumulation_steps"}) == here


# --- packed, padded or joined rows


def test_rows_stay_packed_where_attention_keeps_them_apart(tmp_path: Path) -> None:
    found = chosen(recipe_of(tmp_path, ", packing: true, gradient_checkpointing: false"), "h100")
    assert (found.attention, found.training) == ("torch_varlen", {})


def test_rows_that_are_not_packed_are_joined_without_padding(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ", gradient_checkpointing: false")
    found = chosen(recipe, "h100")
    assert found.training == {"padding_free": True}
    arguments = training_arguments(recipe, "float32", found.training)
    assert (arguments.padding_free, arguments.packing, arguments.max_length) == (True, False, 1024)
    assert for_trainer(arguments).max_length is None  # TRL refuses both at once; rows are cut when they are prepared
    assert arguments.max_length == 1024
    for padded in (chosen(recipe, "t4"), chosen(recipe, None)):
        assert padded.training == {}


def test_padding_that_is_written_stays(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ", gradient_checkpointing: false, padding_free: false")
    assert chosen(recipe, "h100").training == {}


def packing(max_length: int, rows: int = 1, **values: Any) -> trl.SFTConfig:
    return trl.SFTConfig(output_dir="unused", use_cpu=True, bf16=False, report_to="none", packing=True,
                         max_length=max_length, per_device_train_batch_size=rows, **values)  # fmt: skip


def test_work_of_packing_is_what_a_pencil_finds() -> None:
    """A layer of the small shape has 64 * 16 * (2 * 4 + 2 * 2) = 12,288 weights in its attention and
    3 * 64 * 192 = 36,864 in its feed-forward block: 49,152.

    Attention over 1,024 tokens multiplies 2 * 1,024 * 64 = 131,072 times a token, counted four times: 524,288, which
    is 32/3 of the weights. Rows of 10, 20, 30 and 40 tokens in pairs of like length are 2 * 20 + 2 * 40 = 120 tokens
    for 100 useful ones.
    """
    rows = np.array([40, 10, 30, 20])
    assert work_of_packing(SMALL, packing(1024, 2, packing_strategy="wrapped"), rows) == pytest.approx((35 / 3, 1.2))
    assert work_of_packing(SMALL, packing(512, 2), rows) == pytest.approx((35 / 3, 1.2))  # TRL joins both packs
    assert work_of_packing(SMALL, packing(96, 1), rows) == pytest.approx((2, 1))
    three = np.array([10, 20, 30])
    assert work_of_packing(SMALL, packing(96, 2), three)[1] == pytest.approx((2 * 20 + 30) / 60)


def test_a_card_without_the_kernel_gets_batches_of_like_length_with_as_many_tokens_a_step(tmp_path: Path) -> None:
    """T4: a pack of 1,024 holds about 0.97 * 1,024 / 250 = 4 rows, so a step has 4 times as many rows as packs."""
    recipe = recipe_of(
        tmp_path, ", packing: true, per_device_train_batch_size: 2, gradient_accumulation_steps: 8, "
        "gradient_checkpointing: false",
    )  # fmt: skip
    found = chosen(recipe, "t4")
    assert found.attention == "auto"
    assert found.training == {
        "packing": False, "gradient_accumulation_steps": 32, "train_sampling_strategy": "group_by_length"
    }  # fmt: skip
    arguments = training_arguments(recipe, "float32", found.training)
    rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    packed_tokens = 0.97 * 1024 * 2 * 8
    assert rows * LENGTHS.mean() == pytest.approx(packed_tokens, rel=0.02)
    (note,) = [note for note in found.notes if note.startswith("rows are not packed")]
    assert note == (
        "rows are not packed: without attention that keeps them apart it would be 22.3 times the work of batches of "
        "like length, which are made of 4 times as many rows a step instead"
    )


@pytest.mark.parametrize(("times", "work", "packs"), [(5, (1.276, 1.875), True), (400, (1.276, 1.0), False)])
def test_a_card_without_the_kernel_keeps_short_packs_of_few_rows(
    tmp_path: Path, times: int, work: tuple[float, float], packs: bool
) -> None:
    """Eight packs of 128 are one row of 1,024 tokens: 1 + 8 * 1,024 * 2,048 / 60.8 million. Ten rows of 8 and 120
    tokens in batches of eight are 8 * 120 + 2 * 120 tokens for 640; of eight hundred, none is padded.
    """
    training = ", packing: true, gradient_checkpointing: false, per_device_train_batch_size: 8"
    recipe, lengths = recipe_of(tmp_path, training, max_length=128), np.array([8, 120] * times)
    assert work_of_packing(LLAMA_32_1B, training_arguments(recipe, "float32"), lengths) == pytest.approx(
        work, abs=1e-3
    )
    assert (chosen(recipe, "t4", LLAMA_32_1B, lengths).training == {}) == packs


def test_a_cpu_packs_as_the_recipe_says(tmp_path: Path) -> None:
    found = chosen(recipe_of(tmp_path, ", packing: true"), None)
    assert found.training == {"gradient_checkpointing": False}
    assert (found.attention, found.kernels, found.together, found.estimate) == ("auto", "none", False, None)


# --- batch, checkpointing, optimiser

AUTO = ", per_device_train_batch_size: auto, gradient_accumulation_steps: 64"


def test_an_automatic_batch_is_the_largest_divisor_below_65536_tokens(tmp_path: Path, liger: None) -> None:
    """trl #2604, transformers #37766: cut or not, a step has the 64 rows that are written."""
    found = chosen(recipe_of(tmp_path, AUTO, max_length=2048), "h100", LLAMA_32_1B)
    assert found.training["per_device_train_batch_size"] == 32  # times 2,048 is 65,536
    assert found.training["gradient_accumulation_steps"] == 2
    assert found.training["gradient_checkpointing"] is False
    assert found.estimate is not None
    assert (1 + ERROR) * card_needs(found.estimate) <= CARDS["h100"].memory_bytes


@pytest.mark.parametrize("rows", [1, 6, 7, 12, 60])
@pytest.mark.parametrize("card", ["h100", "rtx-3070", "t4", None])
def test_an_automatic_batch_leaves_the_effective_one_as_it_is(tmp_path: Path, rows: int, card: str | None) -> None:
    recipe = recipe_of(tmp_path, f", per_device_train_batch_size: auto, gradient_accumulation_steps: {rows}")
    found = chosen(recipe, card, LLAMA_32_1B).training
    size, steps = found["per_device_train_batch_size"], found["gradient_accumulation_steps"]
    assert size * steps == rows
    arguments = training_arguments(recipe, "float32", found)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (size, steps)


def test_rows_longer_than_the_limit_of_tokens_come_one_by_one(tmp_path: Path) -> None:
    found = chosen(recipe_of(tmp_path, AUTO, max_length=100_000), "h100", SMALL)
    assert found.training["per_device_train_batch_size"] == 1
    assert found.training["gradient_accumulation_steps"] == 64


def test_layers_are_computed_again_only_where_memory_needs_it(tmp_path: Path, liger: None) -> None:
    """One recipe on a small and a large card: the same rows in the same steps."""
    recipe = recipe_of(tmp_path, ", per_device_train_batch_size: 16, gradient_accumulation_steps: 2", max_length=2048)
    lengths = np.full(200, 2048)
    small, large = (chosen(recipe, card, LLAMA_32_1B, lengths) for card in ("rtx-3070", "a100-80gb"))
    assert small.training == {"padding_free": True, "gradient_checkpointing": True}
    assert large.training == {"padding_free": True, "gradient_checkpointing": False}


def test_batch_and_checkpointing_that_are_written_stay(tmp_path: Path) -> None:
    for written in ("true", "false"):
        recipe = recipe_of(tmp_path, f", per_device_train_batch_size: 3, gradient_checkpointing: {written}")
        assert chosen(recipe, "rtx-3070", LLAMA_32_1B).training == {"padding_free": True}


@pytest.mark.skipif(not hasattr(SFTConfig, "activation_checkpointing"), reason="transformers has one name for it")
def test_checkpointing_that_is_written_by_its_newer_name_stays_too(tmp_path: Path) -> None:
    for written in (True, False):
        recipe = recipe_of(tmp_path, f", activation_checkpointing: {str(written).lower()}")
        found = chosen(recipe, "h100").training
        assert found == {"padding_free": True}
        assert training_arguments(recipe, "float32", found).gradient_checkpointing is written


def test_the_small_optimiser_is_taken_where_the_usual_one_does_not_fit(tmp_path: Path, liger: None) -> None:
    recipe = recipe_of(tmp_path, ", optim: auto, per_device_train_batch_size: 1", method="full")
    assert chosen(recipe, "h100", LLAMA_32_1B).training["optim"] == "adamw_torch_fused"
    assert chosen(recipe, "rtx-3070", LLAMA_32_1B).training["optim"] == "paged_adamw_8bit"
    assert "optim" not in chosen(recipe_of(tmp_path, method="full"), "rtx-3070", LLAMA_32_1B).training


def test_where_nothing_fits_the_smallest_is_tried_and_said(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, AUTO + ", optim: auto", method="full")
    found = chosen(recipe, "rtx-3070", LLAMA_2_7B)
    assert found.training == {
        "padding_free": True, "per_device_train_batch_size": 64, "gradient_accumulation_steps": 1,
        "gradient_checkpointing": True, "optim": "paged_adamw_8bit",
    }  # fmt: skip
    # Weights and gradients are most of it, and row by row a second set of gradients would be summed onto the first.
    assert found.estimate is not None
    one_by_one = ", per_device_train_batch_size: 1, gradient_accumulation_steps: 64, optim: paged_adamw_8bit"
    other = chosen(recipe_of(tmp_path, one_by_one, method="full"), "rtx-3070", LLAMA_2_7B)
    assert other.estimate is not None and found.estimate.peak <= other.estimate.peak
    assert found.notes[-1] == (
        "nothing that was tried is sure to fit into the 7.7 GiB of RTX 3070: the smallest is used"
    )


def test_of_a_model_that_cannot_be_estimated_the_smallest_is_taken_and_said(tmp_path: Path) -> None:
    mixture = transformers.MixtralConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    found = chosen(recipe_of(tmp_path, AUTO), "h100", mixture)
    assert found.training["per_device_train_batch_size"] == 1
    assert found.training["gradient_checkpointing"] is True
    assert found.estimate is None
    assert found.notes[-1].startswith("memory of this kind of model is not estimated")


def test_a_cpu_takes_at_most_eight_rows_and_recomputes_nothing(tmp_path: Path) -> None:
    found = chosen(recipe_of(tmp_path, AUTO + ", optim: auto"), None).training
    assert found == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8,
                     "gradient_checkpointing": False, "optim": "adamw_torch"}  # fmt: skip
    seven = recipe_of(tmp_path, ", per_device_train_batch_size: auto, gradient_accumulation_steps: 15")
    assert chosen(seven, None).training["per_device_train_batch_size"] == 5


def test_candidates_go_from_fast_and_large_to_slow_and_small() -> None:
    now = packing(4096)
    open_keys = {"per_device_train_batch_size", "gradient_checkpointing", "optim"}

    def tried(strategy: Strategy) -> list[tuple[str, bool, int]]:
        return [
            (settings["optim"][-4:], settings["gradient_checkpointing"], settings["per_device_train_batch_size"])
            for settings in choosing._candidates(open_keys, 1, 4, now, strategy)
        ]

    # A single row of 4,096 without checkpointing does not keep a GPU busy.
    usual = [("used", False, 4), ("used", False, 2), ("used", True, 4), ("used", True, 2), ("used", True, 1)]
    assert tried("none") == tried("ddp") == [*usual, *(("8bit", again, size) for _, again, size in usual)]
    assert tried("fsdp2") == tried("zero2") == tried("zero3") == usual


# --- several GPUs


@pytest.mark.parametrize(
    ("strategy", "processes", "offload", "rows", "again", "optim"),
    [
        ("none", 1, False, 16, True, "paged_adamw_8bit"),
        ("fsdp2", 2, False, 4, True, "adamw_torch_fused"),
        ("fsdp2", 4, False, 2, False, "adamw_torch_fused"),
        ("fsdp2", 2, True, 2, False, "adamw_torch_fused"),
        ("zero3", 2, False, 2, True, "adamw_torch_fused"),
        ("zero2", 8, False, 2, False, "adamw_torch_fused"),
    ],
)
def test_seven_billion_trained_weights_are_chosen_for_by_what_each_gpu_holds(
    tmp_path: Path, liger: None, strategy: Strategy, processes: int, offload: bool, rows: int, again: bool, optim: str
) -> None:
    training = ", optim: auto, bf16: true, per_device_train_batch_size: auto, gradient_accumulation_steps: 16"
    recipe = recipe_of(tmp_path, training, method="full", model=", dtype: float32", max_length=4096)
    how, card = Topology("some", strategy, processes, offload=offload), CARDS["h100"]
    found = chosen(recipe, card, LLAMA_2_7B, np.full(200, 4096), precision="float32", how=how)
    assert (found.training, found.notes) == (
        {
            "padding_free": True, "per_device_train_batch_size": rows, "gradient_accumulation_steps": 16 // rows,
            "gradient_checkpointing": again, "optim": optim,
        },
        [],
    )  # fmt: skip
    assert found.estimate is not None
    assert found.estimate.error == (0.08 if strategy == "none" else 0.25)
    assert (1 + found.estimate.error) * card_needs(found.estimate) <= card.memory_bytes


def test_copies_of_all_weights_do_not_fit_two_gpus_where_shares_do(tmp_path: Path, liger: None) -> None:
    recipe = recipe_of(tmp_path, ", optim: auto, bf16: true", method="full", model=", dtype: float32")
    copies, shares = (
        chosen(recipe, "h100", LLAMA_2_7B, precision="float32", how=Topology("some", strategy, 2)).notes
        for strategy in ("ddp", "fsdp2")
    )
    assert copies[-1].startswith("nothing that was tried is sure to fit into") and shares == []


# --- the largest batch


@pytest.mark.parametrize(
    ("values", "work"),
    [
        ({"packing": True}, Work(1, 2048, 2048, 1024, 400)),  # two packs in one row
        ({"packing": True, "packing_strategy": "wrapped"}, Work(2, 1024, 2048, 1024, 400)),
        ({"train_sampling_strategy": "group_by_length"}, Work(2, 400, 800, 400, 400)),
        ({"padding_free": True, "train_sampling_strategy": "group_by_length"}, Work(1, 800, 800, 400, 400)),
    ],
)
def test_the_largest_batch_is_counted(values: dict[str, Any], work: Work) -> None:
    now = choosing._with(packing(1024, 2), {"packing": False, **values})
    assert largest_batch(LENGTHS, 0.5, now) == work


# --- kernels


def test_kernels_that_are_asked_for_and_not_installed_are_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "is_installed", lambda: False)
    with pytest.raises(RecipeError) as caught:
        chosen(recipe_of(tmp_path, model=", kernels: liger"), "h100", planned=False)
    assert str(caught.value) == (
        "model.kernels: liger-kernel is not installed; `pip install 'recipe-kit[kernels]'` makes steps faster and "
        "smaller; or set it to auto"
    )
    asked = chosen(recipe_of(tmp_path, model=", kernels: liger"), "h100", planned=True)
    assert asked.kernels == "liger"  # another machine may have it
    automatic = chosen(recipe_of(tmp_path), "h100", planned=False)
    assert (automatic.kernels, automatic.together) == ("none", True)
    assert automatic.notes[-1].startswith("plain layers: liger-kernel is not installed")


def test_without_kernels_layers_stay_as_they_were_made(tmp_path: Path) -> None:
    found = chosen(recipe_of(tmp_path, model=", kernels: none"), "h100")
    assert (found.kernels, found.together, found.fused_layers) == ("none", False, False)
    assert found.attention == varlen.NAME  # which is not asked here


@pytest.mark.parametrize(
    ("strategy", "together"), [("none", True), ("ddp", True), ("zero2", False), ("zero3", False), ("fsdp2", False)]
)
def test_sharded_weights_are_not_computed_together(tmp_path: Path, strategy: Strategy, together: bool) -> None:
    found = chosen(recipe_of(tmp_path), "h100", how=Topology("some", strategy, 2))
    assert found.together is together
