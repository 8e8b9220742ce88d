"""Proofs that need a model and TRL's trainer: what the trainer makes of prepared rows.

The trainer is the one that will train, built with the recipe's own options, around a miniature of the user's model:
the same architecture in two narrow layers, random weights, float32, on the CPU. What is proved is therefore wiring:
which tokens and labels arrive, what a row can see, what the loss is divided by. Kernels that exist on a GPU only are
looked at with `isolation` on the loaded model.

`check` may run in any rank, before or after torch.distributed is initialised: while it runs, accelerate sees a single
process, so it neither waits for other ranks nor makes them wait. Called on every rank or on one, it says the same.
Random state, environment, log levels and accelerate's state are afterwards what they were, and no file is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import trl
from accelerate.utils import gather_object
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from recipe_kit.errors import ModelError, first_line
from recipe_kit.proofs import Verdict
from recipe_kit.wiring.alone import alone
from recipe_kit.wiring.arrival import labels_reach_the_model
from recipe_kit.wiring.packs import isolation, packed_rows_isolated
from recipe_kit.wiring.setup import RefusedError, Setup, pairs
from recipe_kit.wiring.small import miniature
from recipe_kit.wiring.steps import batch_size_does_not_matter

__all__ = ["check", "isolation", "miniature", "processes_agree"]

PROOFS = (labels_reach_the_model, packed_rows_isolated, batch_size_does_not_matter)


def check(
    arguments: trl.SFTConfig,
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    *,
    attention: str = "auto",
    trainer_class: type[trl.SFTTrainer] = trl.SFTTrainer,
) -> list[Verdict]:
    """Whether the trainer trains these rows as they were prepared: one verdict for each of `PROOFS`.

    `rows` have `input_ids` and `labels` (-100 where nothing is learnt); a sample of 64 is plenty. `config` belongs to
    the model to train, `attention` is the recipe's `model.attention`, and `trainer_class` the trainer that will train.
    A proof that could not be made has `ok=None` and the reason in its detail.
    """
    special = (tokenizer.eos_token, tokenizer.pad_token)
    with alone() as folder:
        setup = Setup(arguments, pairs(rows), tokenizer, config, attention, trainer_class, folder)
        try:
            return [_proved(proof, setup) for proof in PROOFS]
        finally:
            tokenizer.eos_token, tokenizer.pad_token = special  # SFTTrainer sets both from its arguments


def processes_agree(digest: str) -> Verdict:
    """Whether every rank prepared the same rows; all ranks must call it, and all get the same verdict."""
    name = "processes_agree"
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Verdict(name, True, "one process")
    digests: list[str] = gather_object([digest])
    others = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if not others:
        return Verdict(name, True, f"{len(digests)} processes hold the same rows ({digest[:12]})")
    return Verdict(
        name,
        False,
        f"{len(others)} of {len(digests)} processes hold other rows than rank 0 ({digests[0][:12]}): "
        f"rank {others[0]} has {digests[others[0]][:12]}",
        "give every node the same data files, formatter, tokenizer and package versions",
    )


def _proved(proof: Callable[[Setup], Verdict], setup: Setup) -> Verdict:
    name = proof.__name__
    if not setup.rows:
        return Verdict(name, None, "no row has a label after its first token")
    try:
        return proof(setup)
    except RefusedError as error:
        return Verdict(
            name, False, f"{setup.trainer_class.__name__} refuses these options: {error}", "change what it names"
        )
    except ModelError as error:
        return Verdict(name, None, str(error))
    except Exception as error:  # the quirks of an architecture in small must not end a training that may be fine
        return Verdict(name, None, f"the miniature could not be run: {type(error).__name__}: {first_line(error)}")
