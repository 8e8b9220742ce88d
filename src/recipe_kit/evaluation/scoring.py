"""From what both models made of each row to scores with intervals. No model is needed here, only numbers and texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from recipe_kit.errors import MetricError, RecipeKitError
from recipe_kit.evaluation.generation import Answer
from recipe_kit.evaluation.perplexity import RowLoss, score
from recipe_kit.evaluation.questions import Question
from recipe_kit.metrics import Scored, grouped, mean, ratio, score_entry, select
from recipe_kit.metrics import score as score_texts
from recipe_kit.recipe import EvaluationSection
from recipe_kit.run_dir import Group, Score, ScoreEntry

NO_ANSWER: Answer = {"text": "", "tokens": 0, "stopped": False}
LARGEST_LOSS = 300  # nats a token, over a row; twice that has no perplexity that a float can hold
PERPLEXITIES = ("perplexity", "perplexity_all_tokens")
SEEN, NOT_SEEN = "answer also in training", "answer not in training"


@dataclass
class ModelResults:
    """What one model made of the held-out rows and of the prompts, by their places."""

    losses: dict[int, RowLoss]
    answers: dict[int, Answer | None]
    tasks: dict[str, Any]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "losses": {row: asdict(loss) for row, loss in self.losses.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelResults:
        losses = {int(row): RowLoss(**loss) for row, loss in values["losses"].items()}
        return cls(losses, {int(i): a for i, a in values["answers"].items()}, values["tasks"], values["seconds"])

    def loss_line(self, row: int) -> dict[str, Any]:
        """What `scores.jsonl` says of this model's loss on one row; None where it was not measured."""
        loss = self.losses.get(row)
        return {
            "loss_sum": loss.answer_sum if loss else None,
            "tokens": loss.answer_tokens if loss else None,
            "all_loss_sum": loss.every_sum if loss else None,
            "all_tokens": loss.every_tokens if loss else None,
        }  # a loss that is not a number becomes null in the file


@dataclass
class Found:
    """All scores of a run. `answers` has each model's scores of its answers, by the place of the question."""

    losses: dict[str, Score] = field(default_factory=dict)
    scores: dict[str, ScoreEntry] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    answers: dict[str, dict[int, dict[str, float | None]]] = field(default_factory=dict)


Both = dict[str, tuple[Scored, Scored]]  # by name: base, tuned


def all_scores(
    base: ModelResults,
    tuned: ModelResults,
    asked: Sequence[Question],
    seen: list[list[bool]] | None,
    settings: EvaluationSection,
    problems: list[str],
) -> Found:
    """Every score that the settings ask for. What cannot be scored is a sentence in `problems`.

    `seen` says of each row's trained turns whether that answer is also a training answer; None where not known.
    """
    found = Found(answers={"base": {}, "tuned": {}})
    perplexities: Both = {}
    if settings.perplexity and _all_finite(base, tuned, problems):
        for name, results in (("base", base), ("tuned", tuned)):
            losses = results.losses.values()
            found.losses[name] = score(sum(x.answer_sum for x in losses), sum(x.answer_tokens for x in losses))
        perplexities = {
            "perplexity": _perplexity(
                base, tuned, "perplexity", lambda row, loss: (loss.answer_sum, loss.answer_tokens)
            ),
            "perplexity_all_tokens": _perplexity(
                base, tuned, "perplexity, all tokens", lambda row, loss: (loss.every_sum, loss.every_tokens)
            ),
        }  # fmt: skip
    answered, answers = _answers(base, tuned, asked, settings, found, problems)
    by_row = _by_row(answers, [asked[index].row for index in answered])
    found.scores = _entries({**perplexities, **by_row}, settings.seed, problems)
    if seen is not None:
        found.groups = _groups(
            base, tuned, seen, [asked[index] for index in answered], answers, settings, bool(perplexities), problems
        )
    return found


def _entries(scores: Both, seed: int, problems: list[str]) -> dict[str, ScoreEntry]:
    entries = {}
    for name, (base, tuned) in scores.items():
        try:
            entries[name] = score_entry(base, tuned, seed=seed)
        except MetricError as error:
            problems.append(str(error))
    return entries


def _all_finite(base: ModelResults, tuned: ModelResults, problems: list[str]) -> bool:
    fine = True
    for name, results in (("base", base), ("tuned", tuned)):
        bad = [row for row, loss in sorted(results.losses.items()) if not math.isfinite(loss.every_sum)]
        if bad:
            problems.append(
                f"perplexity: the {name} model's loss is not a number on {len(bad)} of {len(results.losses)} rows, "
                f"the first of them row {bad[0] + 1}; training went wrong (lower training.learning_rate), or "
                "the precision is too small (model.dtype: bfloat16 or float32)"
            )
            fine = False
        elif bad := [row for row, loss in results.losses.items() if loss.every_sum > LARGEST_LOSS * loss.every_tokens]:
            problems.append(
                f"perplexity: the {name} model's loss is above {LARGEST_LOSS} nats a token on {len(bad)} of "
                f"{len(results.losses)} rows: it is not a language model any more; training went wrong"
            )
            fine = False
        elif not sum(loss.answer_tokens for loss in results.losses.values()):
            problems.append("perplexity: no held-out row has a trained token to measure")
            return False
    return fine


def _perplexity(
    base: ModelResults, tuned: ModelResults, label: str, part: Callable[[int, RowLoss], tuple[float, int]]
) -> tuple[Scored, Scored]:
    """exp(sum of losses / number of tokens) over rows, of the part of each row's loss that `part` gives."""

    def one(results: ModelResults) -> Scored:
        parts = [part(row, results.losses[row]) for row in sorted(results.losses)]
        parts = [(loss, tokens) for loss, tokens in parts if tokens]  # a row without such tokens says nothing here
        sums, counts = (np.array(values, dtype=np.float64) for values in zip(*parts, strict=True))
        statistics = ratio(sums, counts, after=np.exp)
        return Scored(statistics, label=label, higher_is_better=False, settings={"weighted_by": "tokens"})

    return one(base), one(tuned)


def _answers(
    base: ModelResults,
    tuned: ModelResults,
    asked: Sequence[Question],
    settings: EvaluationSection,
    found: Found,
    problems: list[str],
) -> tuple[list[int], Both]:
    """Scores of each answer to a held-out prompt, and the places of the questions they belong to."""
    held_out = [index for index, question in enumerate(asked) if question.row is not None]
    too_long = [index for index in range(len(asked)) if base.answers.get(index) is None]
    if too_long:
        problems.append(
            f"answers: {len(too_long)} of {len(asked)} prompts are too long for the model's context with "
            f"evaluation.max_new_tokens = {settings.max_new_tokens} after them, and were not answered"
        )
    answered = [index for index in held_out if index not in set(too_long)]
    if not settings.metrics or not answered:
        return [], {}
    results = {"base": base, "tuned": tuned}
    both: Both = {}
    for name, label, direction, fact in (
        ("stop_rate", "answers that end by themselves", True, ended),
        ("answer_tokens", "answer length in tokens", None, length),
    ):
        values = [[fact(r.answers[i] or NO_ANSWER) for i in answered] for r in (base, tuned)]
        one, other = (Scored(mean(v), label=label, higher_is_better=direction, settings={}) for v in values)
        both[name] = (one, other)
    references = [asked[index].reference or "" for index in answered]
    empty = [place for place, text in enumerate(references) if not text.strip()]
    if empty:
        problems.append(
            f"metrics: {len(empty)} of {len(references)} held-out prompts have no reference to compare answers "
            f"with, the first of them in row {(asked[answered[empty[0]]].row or 0) + 1}; the others were scored"
        )
    kept = [place for place in range(len(answered)) if place not in set(empty)]
    if len(kept) < len(answered):
        both = {name: (select_scored(one, kept), select_scored(other, kept)) for name, (one, other) in both.items()}
        answered = [answered[place] for place in kept]
        references = [references[p] for p in kept]
    for metric in settings.metrics if kept else []:
        try:
            scored = {
                name: score_texts(
                    metric.name, metric.options, [(r.answers[i] or NO_ANSWER)["text"] for i in answered], references
                )
                for name, r in results.items()
            }
        except RecipeKitError as error:
            problems.append(f"metric {metric.name}: {error}")
            continue
        same = [name for name in scored["base"] if name in scored["tuned"]]
        if len(same) < len(scored["base"].keys() | scored["tuned"].keys()):
            problems.append(f"metric {metric.name}: it gave the base's answers other scores than the tuned model's")
        for name in same:
            if name in both or name in PERPLEXITIES:
                problems.append(f"metric {metric.name}: there is a score {name!r} already; this one was left out")
                continue
            both[name] = (scored["base"][name], scored["tuned"][name])
            if note := scored["base"][name].note:
                problems.extend([note] if note not in problems else [])
            for which in results:
                for index, value in zip(answered, scored[which][name].statistics.values().tolist(), strict=True):
                    own = found.answers[which].setdefault(index, {})
                    own[name] = value if math.isfinite(value) else None
    return answered, both


def ended(answer: Answer) -> float:
    """Whether an answer ended by itself; one that says nothing did not begin."""
    return float(bool(answer["stopped"] and answer["tokens"]))


def length(answer: Answer) -> float:
    return float(answer["tokens"])


def _by_row(scores: Both, rows: Sequence[int | None]) -> Both:
    """Scores of answers as scores of the held-out rows they belong to."""

    def one(scored: Scored) -> Scored:
        return replace(scored, statistics=grouped(scored.statistics, np.asarray(rows)))

    return {name: (one(base), one(tuned)) for name, (base, tuned) in scores.items()}


def select_scored(scored: Scored, places: Sequence[int]) -> Scored:
    """The same score of some of its rows."""
    return replace(scored, statistics=select(scored.statistics, np.asarray(places, dtype=np.int64)))


def _groups(
    base: ModelResults,
    tuned: ModelResults,
    seen: list[list[bool]],
    answered: Sequence[Question],
    answers: Both,
    settings: EvaluationSection,
    with_perplexity: bool,
    problems: list[str],
) -> dict[str, Group]:
    """The scores of answers that also occur in training and of those that do not; {} where one kind is missing.

    A model can know a repeated answer by heart, so only the others tell what it can do with a new one.
    """
    flat = [flag for flags in seen for flag in flags]
    if not any(flat) or all(flat):
        return {}
    of_answers = np.array([seen[q.row or 0][q.turn : q.turn + 1] == [True] for q in answered], dtype=bool)
    groups: dict[str, Group] = {}
    for label, wanted in ((SEEN, True), (NOT_SEEN, False)):
        both: Both = {}
        if with_perplexity:

            def part(row: int, loss: RowLoss, wanted: bool = wanted) -> tuple[float, int]:
                flags = seen[row]
                if not flags:  # no turn stands out
                    return 0.0, 0
                if len(flags) != len(loss.turns):  # two answers without a word between: the row goes as a whole
                    return (loss.answer_sum, loss.answer_tokens) if all(flags) == wanted else (0.0, 0)
                turns = [turn for turn, flag in zip(loss.turns, flags, strict=True) if flag == wanted]
                return sum(loss for loss, _ in turns), sum(number for _, number in turns)

            both["perplexity"] = _perplexity(base, tuned, "perplexity", part)
        places = np.flatnonzero(of_answers == wanted).tolist()
        if places:
            chosen = {name: (select_scored(b, places), select_scored(t, places)) for name, (b, t) in answers.items()}
            both |= _by_row(chosen, [answered[place].row for place in places])
        groups[label] = {
            "rows": sum(wanted in flags for flags in seen),
            "scores": _entries(both, settings.seed, problems),
        }
    return groups
