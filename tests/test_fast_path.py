"""A training by the fast path, from recipe to adapter, ends with the weights of a plain one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe_kit import data, modeling
from recipe_kit.arguments import training_arguments
from recipe_kit.out_of_memory import Watch
from recipe_kit.recipe import Recipe, load_recipe
from recipe_kit.speed import projections
from recipe_kit.speed.choose import Choice
from recipe_kit.trainer import make_trainer

pytestmark = pytest.mark.slow

TINY = """
name: tiny
model: {id: "tiny:llama3", dtype: float32}
method: METHOD
data:
  train: {sample: support, limit: 48}
  formatter: support
  max_length: 256
LORA
training: {max_steps: 8, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1.0e-3,
           lr_scheduler_type: constant, save_strategy: "no", logging_steps: 1, use_cpu: true, report_to: [], seed: 3,
           optim: sgd, gradient_checkpointing: CHECKPOINTING}
"""
# Plain gradient descent: Adam's first steps are as long for a rounding error as for a gradient.
LORA = "lora: {r: 4, lora_alpha: 64, lora_dropout: 0.0, target_modules: all-linear}"
FAST = Choice(together=True, attention="torch_varlen", training={"padding_free": True})
PACKED = Choice(together=True, attention="torch_varlen", training={"packing": True})


def recipe_of(tmp_path: Path, method: str, checkpointing: bool) -> Recipe:
    path = tmp_path / "tiny.yaml"
    text = TINY.replace("METHOD", method).replace("CHECKPOINTING", str(checkpointing).lower())
    path.write_text(text.replace("LORA", "" if method == "full" else LORA), encoding="utf-8")
    return load_recipe(path)


def trained(
    recipe: Recipe, choice: Choice, folder: Path, prepare: Callable[[Any], Any] = lambda trainer: None
) -> tuple[Any, dict[str, torch.Tensor], list[float]]:
    """The trainer, how far each trained weight has moved, and the loss of each step."""
    tokenizer = modeling.load_tokenizer(recipe.model)
    arguments = training_arguments(recipe, "float32", choice.training)
    arguments.output_dir = str(folder)
    rows = data.prepare(recipe.data, tokenizer, splits=["train"])["train"].rows
    torch.manual_seed(0)
    model = modeling.load_model(recipe, tokenizer, "float32", attention=choice.attention)
    trainer = make_trainer(recipe, model, tokenizer, arguments, choice, "float32", rows)
    trainer.watch = Watch(recipe, arguments)
    prepare(trainer)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    moved = {name: value.detach() - before[name] for name, value in trainer.model.named_parameters() if name in before}
    return trainer, moved, [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(("method", "checkpointing"), [("lora", False), ("lora", True), ("full", False)])
def test_the_fast_path_ends_where_the_plain_one_does(tmp_path: Path, method: str, checkpointing: bool) -> None:
    """trl #2175, #2604, transformers #35203, #37766: the mean over trained tokens of a step is the same whether rows
    are padded, one batch after another, or joined; trl #805, #1230: and rows that are joined do not see each other.
    """
    recipe = recipe_of(tmp_path, method, checkpointing)
    plain, expected, losses = trained(recipe, Choice(), tmp_path / "plain")
    assert "attention_mask" in next(iter(plain.get_train_dataloader()))
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []
        forward = projections._Projections.forward

        def counted(ctx: Any, x: torch.Tensor, *rest: Any) -> Any:
            calls.append(len(x))
            return forward(ctx, x, *rest)

        patch.setattr(projections._Projections, "forward", staticmethod(counted))
        fast, found, fast_losses = trained(recipe, FAST, tmp_path / "fast")
    batch = next(iter(fast.get_train_dataloader()))
    assert "attention_mask" not in batch and batch["input_ids"].shape[0] == 1 and "cu_seq_lens_q" in batch
    assert calls and fast.model.config._attn_implementation == "torch_varlen"
    assert fast_losses == pytest.approx(losses, rel=1e-5) and len(losses) == 8
    assert found.keys() == expected.keys()
    length = torch.cat([value.flatten() for value in expected.values()]).norm()
    apart = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
    assert length > 1e-3
    assert float(apart / length) < 1e-4  # of what training has done
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-5


def test_a_step_that_runs_out_of_memory_between_two_layers_of_a_group_is_repeated_with_its_room_free(
    tmp_path: Path,
) -> None:
    recipe = recipe_of(tmp_path, "lora", False)
    _, expected, losses = trained(recipe, Choice(), tmp_path / "plain")
    held: list[weakref.ref[torch.Tensor]] = []
    calls: list[int] = []
    alive: list[bool] = []

    def break_down(trainer: Any) -> None:
        block = trainer.model.get_base_model().model.layers[-1].mlp

        def fails_once(*arguments: Any) -> None:
            calls.append(1)
            if len(calls) == 4:  # the second batch of the second step
                held.append(weakref.ref(block.up_proj._kit.answer[1]))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        def begins(*arguments: Any) -> None:
            alive.extend(answer() is not None for answer in held)

        block.act_fn.register_forward_pre_hook(fails_once)
        trainer.model.get_input_embeddings().register_forward_pre_hook(begins)

    trainer, found, fast_losses = trained(recipe, FAST, tmp_path / "fast", break_down)
    assert trainer.watch.parts == 2
    assert len(held) == 1
    assert alive and not any(alive)  # nothing of the step that failed is there when it is repeated
    assert fast_losses == pytest.approx(losses, rel=1e-5)
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-5


def test_a_card_without_the_kernel_trains_on_batches_of_like_length(tmp_path: Path) -> None:
    """What `choose` makes of a packed recipe on a T4: four times the rows a step, with hardly any padding."""
    instead = {"packing": False, "gradient_accumulation_steps": 8, "train_sampling_strategy": "group_by_length"}
    recipe = recipe_of(tmp_path, "lora", False)
    shares = []
    for choice in (Choice(training=instead), Choice()):
        trainer, _, losses = trained(recipe, choice, tmp_path / "out")
        masks = [batch["attention_mask"].float() for batch in trainer.get_train_dataloader()]
        shares.append(1 - sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks))
        assert len(losses) == 8
    assert shares[0] < 0.5 * shares[1]


def test_packed_rows_train_by_the_fast_path_too(tmp_path: Path) -> None:
    trainer, moved, losses = trained(recipe_of(tmp_path, "lora", False), PACKED, tmp_path / "packed")
    assert "cu_seq_lens_q" in next(iter(trainer.get_train_dataloader()))
    assert len(losses) == 8 and all(torch.isfinite(value).all() for value in moved.values())
    assert all(value.abs().max() > 0 for name, value in moved.items() if "lora_B" in name)


def test_what_a_step_walks_through_once_is_what_upstream_walks_through_in_each_batch(tmp_path: Path) -> None:
    trainer, _, _ = trained(recipe_of(tmp_path, "lora", False), PACKED, tmp_path / "packed")
    batch = {"input_ids": torch.zeros(1, 7, dtype=torch.long)}
    assert trainer.floating_point_ops(batch) == 42 * trainer.model.num_parameters(exclude_embeddings=True)
    model = trainer.model
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    layer.eval()  # one of many, while the model itself says that it trains
    assert model.train() is model and layer.training
    model.eval()
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())
    assert gc.get_freeze_count() == 0
