"""What the proofs share: rows to compare, and the recipe's trainer around a miniature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import trl
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from recipe_kit.arguments import for_trainer
from recipe_kit.errors import first_line
from recipe_kit.labels import IGNORED
from recipe_kit.wiring.small import VOCABULARY

Row = tuple[tuple[int, ...], tuple[int, ...]]  # token ids and labels, equally long

# The options of the recipe that decide which tokens reach the model and how their losses add up. All others (device,
# precision, optimiser, saving, reporting) keep the neutral values of `_arguments`.
KEPT_OPTIONS = (
    "average_tokens_across_devices", "assistant_only_loss", "completion_only_loss", "data_seed", "dataset_kwargs",
    "dataset_text_field", "eos_token", "gradient_accumulation_steps", "label_names", "label_smoothing_factor",
    "length_column_name", "liger_kernel_config", "loss_type", "max_length", "packing", "packing_strategy",
    "pad_to_multiple_of", "pad_token", "padding_free", "per_device_train_batch_size", "remove_unused_columns", "seed",
    "shuffle_dataset", "train_sampling_strategy", "truncation_mode",
)  # fmt: skip

FLOAT32_TOLERANCE = 1e-4  # a share of the largest value; rounding stays below 1e-5, a mistake is above 1e-2


@dataclass
class Setup:
    """What the proofs of one check share."""

    arguments: trl.SFTConfig
    rows: list[Row]
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    attention: str
    trainer_class: type[trl.SFTTrainer]
    folder: Path

    def trainer(self, model: PreTrainedModel, rows: Sequence[Row], **changes: Any) -> trl.SFTTrainer:
        """The trainer the recipe would get, around `model`, with some options changed. Raises RefusedError."""
        ids, labels = zip(*rows, strict=True)
        try:
            trainer = self.trainer_class(
                model=model,
                args=_arguments(self.arguments, self.folder, **changes),
                processing_class=self.tokenizer,
                train_dataset=datasets.Dataset.from_dict({"input_ids": list(ids), "labels": list(labels)}),
            )
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            raise RefusedError(first_line(error)) from error
        trainer.remove_callback(PrinterCallback)
        return trainer


class RefusedError(Exception):
    """The trainer does not accept the recipe's options; the message is its own."""


def _arguments(arguments: trl.SFTConfig, folder: Path, **changes: Any) -> trl.SFTConfig:
    neutral: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    kept = {name: getattr(arguments, name) for name in KEPT_OPTIONS}
    return for_trainer(trl.SFTConfig(**{**neutral, **kept, **changes}))


def pairs(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows as tuples; those from which nothing is learnt are left out, as the trainer leaves out some of them."""
    made = [(tuple(row["input_ids"]), tuple(row["labels"])) for row in rows]
    return [row for row in made if trained(row)]


def trained(row: Row) -> int:
    """Labels that count: the first token has nothing before it and is never learnt."""
    return sum(label != IGNORED for label in row[1][1:])


def tail(row: Row, length: int) -> Row:
    """The last `length` tokens up to the last trained one."""
    ids, labels = row
    end = 1 + max((place for place, label in enumerate(labels) if label != IGNORED), default=len(ids) - 1)
    start = max(0, end - length)
    return ids[start:end], labels[start:end]


def folded(row: Row) -> Row:
    """Token ids and labels within the miniature's vocabulary."""
    ids, labels = row
    small = tuple(label if label == IGNORED else label % VOCABULARY for label in labels)
    return tuple(token % VOCABULARY for token in ids), small
