"""What is proved and examined before a training: rows, trainer, duplicates, overlap and personal data."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from recipe_kit.plan.shape import ProofsPart, QualityPart
from recipe_kit.plan.stages import Report, Stages
from recipe_kit.recipe import Recipe

if TYPE_CHECKING:
    import trl
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from recipe_kit.data import Split

_WIRING_ROWS = 64  # rows that go through the trainer in miniature
_NEAR_ROWS = 20_000  # rows of each split that are compared for near duplicates, the slowest part of a plan


def prove(
    recipe: Recipe,
    stages: Stages,
    splits: dict[str, Split] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    arguments: trl.SFTConfig | None,
    config: PretrainedConfig | None,
    sample: int | None,
    processes: int,
    attention: str,
) -> ProofsPart | None:
    """Every proof's verdict: those about rows, then those about the trainer, on a model in miniature."""
    if splits is None or tokenizer is None:
        stages.leave_out("proofs", stages.not_looked_at.get("rows", "the rows could not be prepared"))
        return None
    from recipe_kit import proofs, wiring

    stages.report("proving rows and trainer")
    shown = splits if sample is None else {name: _evenly(split, sample) for name, split in splits.items()}
    vocabulary = config.get_text_config().vocab_size if config is not None else None
    verdicts = stages.run("proofs", lambda: proofs.check(recipe, shown, tokenizer, vocab_size=vocabulary)) or []
    if sample is not None and not recipe.data.streaming:  # rows of the sample could overlap with rows outside it
        overlap = proofs.no_overlap(splits)
        verdicts = [overlap if verdict.name == overlap.name else verdict for verdict in verdicts]
    train = splits["train"]
    some = train.rows.select(proofs.spread(len(train.rows), _WIRING_ROWS))
    wired = stages.run(
        "trainer",
        lambda a, c: wiring.check(a, some, tokenizer, c, attention=attention),
        {"training section": arguments, "config": config},
    )
    agreed = wiring.processes_agree(train.content_sha256)
    if processes > 1:
        agreed = replace(agreed, ok=None, detail=f"looked at when the {processes} processes have started")
    whole = proofs.with_fatality([*verdicts, *(wired or []), agreed], recipe)
    found: list[Any] = [asdict(verdict) for verdict in whole]
    return {"sample": sample, "verdicts": found}


def _evenly(split: Split, count: int) -> Split:
    """The split with `count` of its rows, evenly spread; its counts are still those of all rows."""
    from recipe_kit.proofs import spread

    kept = spread(len(split.rows), count)
    rows, details = split.rows.select(kept), split.details.select(kept)
    return replace(split, rows=rows, details=details, digests=split.digests[kept], source_of=split.source_of[kept])


def quality_of(splits: dict[str, Split], sample: int | None, report: Report) -> QualityPart:
    """What stands out in the rows of all splits; near duplicates among `sample` rows of each at most."""
    from recipe_kit import quality

    report("looking for duplicates, overlap and personal data")
    examples = {name: split.examples for name, split in splits.items()}
    found = quality.examine(examples, limit=sample or _NEAR_ROWS)
    return {"lines": quality.lines(found), "report": found}
