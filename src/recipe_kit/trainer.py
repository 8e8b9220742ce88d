"""TRL's trainer as a run uses it: with fused layers, linear layers computed together."""

from __future__ import annotations

from typing import Any

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig

from recipe_kit import modeling
from recipe_kit.arguments import for_trainer
from recipe_kit.errors import ModelError
from recipe_kit.halving import HalvingTrainer
from recipe_kit.recipe import Recipe
from recipe_kit.speed.choose import Choice
from recipe_kit.speed.layers import fuse_layers
from recipe_kit.speed.projections import compute_together, forget_answers, stream_in_16_bits


class Trainer(HalvingTrainer):
    """The trainer without TRL's model card, which it writes into every checkpoint with a local path in it."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return None

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
        raise ModelError(f"{recipe.method}: {str(error).splitlines()[0]}") from error
    if precision != "bfloat16":
        # TRL makes the adapters of a 4-bit model bfloat16. Float16 training scales its gradients and wants float32
        # parameters; in float32 PEFT loads them as float32 again and gives other logits than the trained model.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if choice.together:
        compute_together(trainer.model, checkpointing=bool(arguments.gradient_checkpointing))
        stream_in_16_bits(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
