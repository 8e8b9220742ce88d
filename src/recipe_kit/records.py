"""What `run.json` and `metrics.json` of a run folder hold, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

Status = Literal["running", "finished", "failed", "interrupted"]


class RunInfo(TypedDict):
    """What `run.json` holds. Keys marked as not required appear once they are known."""

    schema_version: int
    recipe_kit_version: str
    status: Status
    error: NotRequired[str]  # the sentence, when status is failed
    name: str
    method: str
    recipe_sha256: str
    started_at: str  # ISO 8601 with offset
    finished_at: NotRequired[str]
    command: list[str]
    git_commit: str | None  # of the folder the command was run in
    versions: dict[str, str]
    hardware: dict[str, Any]
    processes: int
    process: NotRequired[dict[str, Any]]  # pid and host of the first rank
    seed: int
    notes: list[str]  # choices the kit made and said
    model: dict[str, Any]  # id, revision, dtype, parameters, trainable_parameters, chat_template_sha256, license
    data: dict[str, Any]  # per split: sources, counts, content_sha256; and the formatter with its source's hash
    proofs: NotRequired[list[dict[str, Any]]]  # name, ok, detail, remedy, fatal of each proof
    training: NotRequired[dict[str, Any]]  # steps, epochs, effective_batch_size, losses, tokens, seconds, memory
    changed_on_resume: NotRequired[list[dict[str, Any]]]  # step, at, changes: what was accepted, oldest first
    speed: NotRequired[dict[str, Any]]  # how steps are computed; `parts` of each batch, where memory ran out
    merge: NotRequired[dict[str, Any]]  # what `merged/` was made of, and its parity with the adapter model
    card_sha256: NotRequired[str]  # of the model card that the kit wrote last; another one was changed by hand
    published: NotRequired[list[dict[str, Any]]]  # one entry a push: repository, commit, files, oldest first
    reproduces: NotRequired[dict[str, Any]]  # origin and recipe_sha256 of the run that this one repeats
    lock: NotRequired[dict[str, Any]]  # in a published record only: hashes of recipe and weights, what was left out


class Score(TypedDict):
    """Token-weighted loss of one model on the held-out rows: sums over all trained tokens, divided once."""

    loss: float  # nats per token
    perplexity: float
    tokens: int


class Estimate(TypedDict):
    """A number measured on a sample of rows, with its 95 % interval."""

    value: float
    low: float
    high: float


class ScoreEntry(TypedDict):
    """One score of both models on the same rows."""

    label: str
    base: Estimate
    tuned: Estimate
    difference: Estimate  # tuned - base, paired: the same resampled rows
    higher_is_better: bool | None  # None where neither is
    rows: int
    tuned_better: int  # rows; where neither is better, rows on which the tuned model's score is higher
    base_better: int
    ties: int
    p_value: float  # two-sided sign test over rows, ties left out
    settings: Mapping[str, Any]  # what decides the number: package, version, options
    note: NotRequired[str]  # why it says little about these rows


class Group(TypedDict):
    """The scores of some of the held-out rows."""

    rows: int
    scores: dict[str, ScoreEntry]


class Metrics(TypedDict):
    """What `metrics.json` holds: both models on the same rows, in the same precision."""

    schema_version: int
    evaluated_at: str
    versions: dict[str, str]
    processes: int
    split: str
    rows: int
    content_sha256: str
    precision: str
    base: NotRequired[Score]
    tuned: NotRequired[Score]
    generation: dict[str, Any]  # answers, max_new_tokens, do_sample, stop_token_ids, batch_size, seconds
    base_from_cache: bool
    seconds: dict[str, float]  # by model
    scores: dict[str, ScoreEntry]
    groups: dict[str, Group]  # held-out rows whose answers are also training answers, and the others
    problems: list[str]  # what could not be measured and why, a sentence each
    judge: NotRequired[dict[str, Any]]
    lm_eval: NotRequired[dict[str, Any]]
