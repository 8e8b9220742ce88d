"""Proofs about the user's own rows: named checks with a reason and a remedy, made before the first step.

Each looks at what will be trained from another side than the code that made it: at token ids as they lie on disk, at
the chat rendered anew, at the tokenizer as a server will load it. A failed proof ends the run, unless the recipe
names it in `proofs.warn`. Those that need a model are in `wiring`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from recipe_kit.errors import ProofError
from recipe_kit.labels import TrainOn
from recipe_kit.proofs.splits import answers_whole, no_added_tokens
from recipe_kit.proofs.splits import no_overlap as no_overlap
from recipe_kit.proofs.texts import Sample, no_forged_turns, one_bos, only_answers_trained, serving_renders_the_same
from recipe_kit.proofs.tokens import column_proofs
from recipe_kit.proofs.verdict import Rows
from recipe_kit.proofs.verdict import Verdict as Verdict
from recipe_kit.proofs.verdict import spread as spread
from recipe_kit.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check(
    recipe: Recipe, splits: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, vocab_size: int | None = None
) -> list[Verdict]:
    """`check_rows` under the recipe's own settings, each verdict fatal unless the recipe downgrades it by name."""
    verdicts = check_rows(
        splits,
        tokenizer,
        train_on=recipe.data.train_on,
        max_cut_off_share=recipe.proofs.max_cut_off_share,
        vocab_size=vocab_size,
        trains_embeddings=recipe.trains_embeddings,
    )
    if recipe.data.streaming:
        left_out = Verdict("no_overlap", True, "rows that are measured on are left out of the stream")
        verdicts = [left_out if verdict.name == left_out.name else verdict for verdict in verdicts]
    return with_fatality(verdicts, recipe)


def check_rows(
    splits: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: TrainOn = "assistant",
    max_cut_off_share: float = 0.05,
    vocab_size: int | None = None,
    trains_embeddings: bool = False,
) -> list[Verdict]:
    """Every proof that needs rows and tokenizer only, on `splits["train"]`, a `data.Split`.

    `vocab_size` is the number of embeddings of the model; None leaves `no_added_tokens` unchecked. Other splits are
    compared with the training rows.
    """
    train: Rows = splits["train"]
    sample = Sample(train, tokenizer)
    return [
        *column_proofs(train, tokenizer, whole=train_on == "all"),
        only_answers_trained(sample, train_on),
        one_bos(sample),
        no_forged_turns(sample),
        answers_whole(train, max_cut_off_share),
        serving_renders_the_same(sample),
        no_overlap(splits),
        no_added_tokens(tokenizer, vocab_size, trains_embeddings=trains_embeddings),
    ]


def with_fatality(verdicts: Sequence[Verdict], recipe: Recipe) -> list[Verdict]:
    """The verdicts, each fatal unless the recipe downgrades it by name."""
    return [replace(verdict, fatal=verdict.name not in recipe.proofs.warn) for verdict in verdicts]


def require(verdicts: Sequence[Verdict], report: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """The verdicts as they are recorded; failures that are only warnings are reported. Raises ProofError."""
    failed = [verdict for verdict in verdicts if verdict.ok is False]
    fatal = [verdict for verdict in failed if verdict.fatal]
    if fatal:
        raise ProofError(
            "\n".join(str(verdict) for verdict in fatal)
            + f"\nto train all the same: proofs: {{warn: [{', '.join(verdict.name for verdict in fatal)}]}}"
        )
    for verdict in failed:
        report(str(verdict))
    unchecked = "".join(f"; {v.name} not checked: {v.detail}" for v in verdicts if v.ok is None)
    report(f"{sum(verdict.ok is True for verdict in verdicts)} of {len(verdicts)} proofs hold{unchecked}")
    return [asdict(verdict) for verdict in verdicts]
