"""TRL's trainer as a run uses it: with fused layers, linear layers computed together."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MethodType
from typing import Any

import datasets
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig

from recipe_kit import modeling
from recipe_kit.arguments import for_trainer
from recipe_kit.errors import ModelError, first_line
from recipe_kit.gathering import gather
from recipe_kit.recipe import Recipe
from recipe_kit.saving import SavingTrainer
from recipe_kit.speed.choose import Choice
from recipe_kit.speed.layers import fuse_layers
from recipe_kit.speed.projections import compute_together, forget_answers, stream_in_16_bits


class Trainer(SavingTrainer):
    """The trainer without TRL's model card, which it writes into every checkpoint with a local path in it."""

    _flop_per_token: float | None = None
    saved_dtype: Callable[[str], torch.dtype]  # of a weight by its name
    needs_autocast = False  # where neither accelerate nor FSDP2 sees to it

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As ordinary files written by one process, also where weights lie in shares; checkpoints keep the shares."""
        if _internal_call or not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
            return
        model = self.accelerator.unwrap_model(self.model_wrapped)
        weights = gather(model, self.saved_dtype, self.accelerator.device)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)
        self.accelerator.wait_for_everyone()

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any]
        if self.needs_autocast:
            found = self.accelerator.autocast()
        else:
            found = super().autocast_smart_context_manager(cache_enabled)
        return found

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # Modules that are imported and the model stay. Left to Python, a step now and then would wait 0.4 s and more
        # for a search among 600,000 objects of theirs for what can go.
        gc.collect()
        gc.freeze()
        try:
            return super().train(*args, **kwargs)
        finally:
            gc.unfreeze()

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """As transformers counts them, but parameters are counted once and not in every batch."""
        tokens = inputs["input_ids"].numel()
        if self._flop_per_token is None:
            self._flop_per_token = float(super().floating_point_ops(inputs)) / tokens
        return self._flop_per_token * float(tokens)

    def _halve(self) -> None:
        # Where memory ran out between two layers of a group, an answer is waiting, and with it the whole failed step.
        forget_answers(self.model)
        super()._halve()


def make_trainer(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    choice: Choice,
    precision: str,
    rows: datasets.Dataset | datasets.IterableDataset,
    eval_rows: datasets.Dataset | None = None,
) -> Trainer:
    """A trainer of prepared rows around a loaded base model, with the recipe's adapter, computing as `choice` says.

    Raises ModelError where PEFT or TRL refuse the combination.
    """
    if choice.fused_layers:
        fuse_layers(model)
    adapter = None
    if recipe.method != "full":
        adapter = modeling.lora_config(recipe)
        modeling.check_targets(model, adapter)
    try:
        trainer = Trainer(
            model=model,
            args=for_trainer(arguments),
            processing_class=tokenizer,
            train_dataset=rows,
            eval_dataset=eval_rows,
            peft_config=adapter,
        )
    except ValueError as error:  # PEFT and TRL refuse combinations here, in their own words
        raise ModelError(f"{recipe.method}: {first_line(error)}") from error
    trainer.saved_dtype = _dtype_by_name(recipe, precision)
    if adapter is not None and not trainer.is_deepspeed_enabled:  # it trains in 16 bits, and updates copies in float32
        _adapters_in_float32(trainer.model, trainer.saved_dtype)
    if trainer.is_fsdp_enabled:
        trainer.needs_autocast = recipe.method == "qlora"
        _keep_precise(trainer, packed=recipe.method == "qlora")
        _call_the_head(trainer.accelerator.unwrap_model(trainer.model), trainer.accelerator.device)
    if choice.together:
        compute_together(trainer.model, checkpointing=bool(arguments.gradient_checkpointing))
        stream_in_16_bits(trainer.model)
        train_when_needed(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def train_when_needed(model: torch.nn.Module) -> None:
    """Let `model.train()`, which the trainer calls for each batch, look before it walks through all modules.

    A model of 32 layers with adapters has 2,665 modules: 4.7 ms of a step, of which looking leaves 0.1.
    """
    model._kit_modules = list(model.modules())  # type: ignore[assignment]
    model.train = MethodType(_train, model)  # type: ignore[method-assign]


def _train(self: Any, mode: bool = True) -> Any:
    if mode and all(module.training for module in self._kit_modules):
        return self
    return type(self).train(self, mode)


def _adapters_in_float32(model: torch.nn.Module, dtype: Callable[[str], torch.dtype]) -> None:
    """Adapters as PEFT makes and loads them, where TRL makes those of a 4-bit model bfloat16.

    Small updates are lost in it: in float32 the loss of the last of 300 steps was 2.5 to 2.8 % lower and that of
    held-out rows 1.2 to 1.4 %, LoRA and QLoRA, three seeds (benchmarks/README.md, Losses).
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and dtype(name) == torch.float32:
            parameter.data = parameter.data.float()


def _dtype_by_name(recipe: Recipe, precision: str) -> Callable[[str], torch.dtype]:
    """In what a trained weight is held by a single process, and saved by several."""
    base = modeling.model_dtype(recipe, precision)

    def dtype(name: str) -> torch.dtype:
        # PEFT loads whole layers of `modules_to_save` in the base's type, so they are trained in it too; but not in
        # float16, where gradients are scaled and parameters must be float32.
        whole = precision == "bfloat16" and ".modules_to_save." in name
        return base if recipe.method == "full" or whole else torch.float32

    return dtype


def _call_the_head(model: Any, device: torch.device) -> None:
    """Let FSDP2 know of the head, by calling it with no token each time that TRL's loss takes its weights.

    FSDP2 puts weights together and adds up gradients around the calls of modules, and TRL 1.16 multiplies by the
    head's weights without one. A head trained beside an adapter then had each process's own gradient (torch 2.13), and
    PyTorch before 2.13 waits for the call of each module that it has split together with others.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = base.forward

    def head() -> Any:
        found: Any = type(base).get_output_embeddings(base)
        is_split = isinstance(found, FSDPModule)
        if is_split:
            weight = found.weight
            found(torch.zeros((0, weight.shape[1]), dtype=weight.dtype, device=device))
        return found

    @functools.wraps(forward)
    def called(*arguments: Any, **options: Any) -> Any:
        base.get_output_embeddings = head
        try:
            return forward(*arguments, **options)
        finally:
            del base.get_output_embeddings

    base.forward = called


def _keep_precise(trainer: Trainer, *, packed: bool) -> None:
    """Under FSDP2 gradients of several processes are added up in float32, and losses not rounded to 16 bits.

    Nor are weights, where 4-bit ones are packed into numbers: those would not survive it. Their layers compute in 16
    bits all the same, by autocast, as in one process; accelerate has none under FSDP2.
    """
    plugin = trainer.accelerator.state.fsdp_plugin
    policy = plugin.mixed_precision_policy
    if policy is not None:
        together = None if packed else policy.param_dtype
        plugin.mixed_precision_policy = replace(
            policy, param_dtype=together, reduce_dtype=torch.float32, output_dtype=None
        )
