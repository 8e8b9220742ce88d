"""Two records of one recipe: what differs, which numbers agree, and the sentence that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipe_kit.recipe import Recipe
from recipe_kit.reproduce import facts
from recipe_kit.reproduce.facts import Fact
from recipe_kit.reproduce.tolerances import Check, check_scores, check_training
from recipe_kit.run_dir import Metrics, RunInfo

_NAMED = 3  # numbers that a sentence names
_OTHER_ROWS = ("measured: rows", "measured: split", "measured: content")


@dataclass(frozen=True)
class Record:
    """What is known of one run. `weights` are the hashes of the files it saved, by name."""

    info: RunInfo
    metrics: Metrics | None = None
    recipe: Recipe | None = None
    weights: dict[str, str] | None = None


@dataclass(frozen=True)
class Comparison:
    """The new run against the recorded one."""

    checks: list[Check]
    differs: list[Fact]
    notes: list[str]
    same_weights: bool | None  # None where one side's files are gone

    @property
    def reproduced(self) -> bool:
        return bool(self.checks) and all(check.within for check in self.checks)

    @property
    def sentence(self) -> str:
        """The verdict for a person: how many numbers agree, or which do not."""
        if not self.checks:
            return "not compared: the recorded run has neither scores nor a training loss"
        outside = [check for check in self.checks if not check.within]
        count = f"{len(self.checks)} {'number' if len(self.checks) == 1 else 'numbers'}"
        if not outside:
            exactly = "; the weights are bit-identical" if self.same_weights else ""
            return f"reproduced: {count} within what is allowed{exactly}"
        named = "; ".join(describe(check) for check in outside[:_NAMED])
        more = f"; and {len(outside) - _NAMED} more" if len(outside) > _NAMED else ""
        return f"not reproduced: {len(outside)} of {count} outside what is allowed: {named}{more}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "reproduced": self.reproduced,
            "sentence": self.sentence,
            "same_weights": self.same_weights,
            "notes": self.notes,
            "scores": [{**check.__dict__, "within": check.within} for check in self.checks],
            "differs": [fact.__dict__ for fact in self.differs],
        }


def compare(then: Record, now: Record) -> Comparison:
    """Hold every recorded number of `then` against `now`, and list what is not equal about the two."""
    notes: list[str] = []
    checks: list[Check] = []
    found = [*facts.environment(then.info, now.info), *facts.rows(then.info, now.info)]
    if then.recipe and now.recipe:
        found += facts.recipes(then.recipe, now.recipe)
    if then.metrics and then.metrics.get("scores"):
        alike = False
        if now.metrics:
            alike = facts.same_machine((then.info, then.metrics), (now.info, now.metrics))
            found += facts.measurement(then.metrics, now.metrics)
            if any(not fact.equal and fact.what in _OTHER_ROWS for fact in found):
                notes.append("the scores were measured on other rows: a gap says little")
        else:
            notes.append("the new run was not measured; see its notes in run.json")
        checks += check_scores(then.metrics, now.metrics, same_machine=alike)
    else:
        notes.append("the recorded run was not measured: only its training loss is compared, which is a weak test")
    checks += check_training(then.info, now.info)
    found += facts.training(then.info, now.info)
    same = then.weights == now.weights if then.weights and now.weights else None
    return Comparison(checks, [fact for fact in found if not fact.equal], notes, same)


def describe(check: Check) -> str:
    """`perplexity of the tuned model was 2.18 and is 2.31 (5.8 % apart, 5.0 % allowed)`."""
    whose = check.label if check.which == "training" else f"{check.label} of the {check.which} model"
    if check.now is None:
        return f"{whose} was {number(check.then)} and is no number now"
    gap, allowed = gap_and_allowed(check)
    return f"{whose} was {number(check.then)} and is {number(check.now)} ({gap} apart, {allowed} allowed)"


def gap_and_allowed(check: Check) -> tuple[str, str]:
    """As shown: percentages where the check is relative."""
    if check.gap is None:
        return "–", _percent(check.allowed) if check.relative else number(check.allowed)
    if check.relative:
        return _percent(check.gap), _percent(check.allowed)
    return number(check.gap), number(check.allowed)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if abs(value) < 100 else f"{value:,.2f}"


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %" if share else "0 %"
