"""What a plan holds. The keys are a promise to scripts that read `recipe-kit plan --json`; byte and token counts are
whole numbers, shares lie between 0 and 1, and a part that could not be looked at is null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

SCHEMA_VERSION = 1


class Value(TypedDict):
    """One value of the resolved recipe. `kind` is the layer it comes from, `origin` the place in words."""

    key: str
    value: Any
    kind: str
    origin: str


class RecipePart(TypedDict):
    name: str
    source: str
    profiles: list[str]
    sha256: str
    values: list[Value]


class Bin(TypedDict):
    """Rows of `first` to `last` tokens, both included."""

    first: int
    last: int
    rows: int


class LengthsPart(TypedDict):
    """Tokens a training row has. `quantiles` maps p50, p90, p95, p99 and max to lengths that rows have."""

    rows: int
    max_length: int
    quantiles: dict[str, int]
    bins: list[Bin]


class TurnPart(TypedDict):
    """Trained turns in this place of their chat, 1 for the first. `share` is of all trained tokens."""

    turn: int
    rows: int
    tokens: int
    share: float


class TrainedPart(TypedDict):
    tokens: int
    trained_tokens: int
    share: float
    turns: list[TurnPart]


class PackedPart(TypedDict):
    """Training rows joined to rows of at most `data.max_length` tokens. `filled_share` is of all their slots."""

    strategy: str
    rows: int
    filled_share: float
    estimated: bool


class BatchesPart(TypedDict):
    """What the trainer sees in an epoch. `packed_instead` says what packing would give where it is off."""

    rows: int
    padding_share: float
    packed: PackedPart | None
    packed_instead: PackedPart | None


class StepsPart(TypedDict):
    rows_per_device: int
    accumulation: int
    processes: int
    effective_batch_size: int
    steps_per_epoch: int | None  # None where rows are streamed, and their number is not known
    steps: int
    epochs: float | None
    tokens_per_step: int  # on average
    trained_tokens_per_step: int


class ParametersPart(TypedDict):
    """`base` is the model alone; `share` is trainable parameters of base and adapter together."""

    base: int
    total: int
    trainable: int
    share: float
    saved_bytes: int  # of the adapter's file, or of the model's weights


class DiskUse(TypedDict):
    what: str
    bytes: int
    estimated: bool


class DiskPart(TypedDict):
    """One file system that is written to."""

    folder: str
    free_bytes: int
    needed_bytes: int
    uses: list[DiskUse]
    writable: bool


class Finding(TypedDict):
    """`ok` is null where nothing could be asked."""

    what: str
    ok: bool | None
    detail: str


class VerdictPart(TypedDict):
    name: str
    ok: bool | None
    detail: str
    remedy: str
    fatal: bool


class ProofsPart(TypedDict):
    sample: int | None  # rows looked at in each split; null: all of them
    verdicts: list[VerdictPart]


class QualityPart(TypedDict):
    """`report` is a `recipe_kit.quality.Quality`, `lines` the same for a person."""

    lines: list[str]
    report: Mapping[str, Any]


class MemoryChange(TypedDict):
    """What to write into the recipe, key by key, and what is needed then. `fits` is false where it is not enough."""

    lines: dict[str, Any]
    peak_bytes: int
    needed_bytes: int
    fits: bool


class MemoryPart(TypedDict):
    """Peak GPU memory of one process, estimated from the config; what the largest micro-batch is.

    `peak_bytes` is what `torch.cuda.max_memory_allocated()` would show, with a relative `error`, and `parts` add up to
    it. `needed_bytes` adds what CUDA takes for itself and gaps between blocks. `paged_bytes` of optimiser states lie
    on the card only while there is room, and are in no other number. Where several GPUs share a model, all this is of
    each, `error` is an allowance, and `host_bytes` of each process lie in the machine's memory.
    """

    peak_bytes: int
    phase: str  # of a step: forward, head, backward, end of backward, optimizer
    error: float
    parts: dict[str, int]  # weights, adapter, gradients, optimizer, activations, logits, workspace; gathered, buffers
    paged_bytes: int
    needed_bytes: int
    card: str  # that of this machine, or the one named
    card_bytes: int
    fits: bool
    hopeless: bool  # too large even if the estimate errs by `error`
    rows: int  # of a micro-batch on one device
    tokens: int  # padding included
    trained_tokens: int
    checkpointing: bool
    optim: str
    attention: str
    fused_layers: bool
    change: MemoryChange | None  # where it does not fit
    calibrated_peak_bytes: int | None  # with --calibrate on a GPU
    strategy: str  # none, ddp, fsdp2, zero2, zero3
    processes: int
    host_bytes: int  # offloaded


class TimePart(TypedDict):
    """Training steps alone. `source` is `measured`, `scaled` from another card, or `calibrated` on this machine."""

    card: str
    source: str
    where: str
    tokens_per_second: float  # padding left out, all processes together
    seconds_per_step: float
    hours: float
    price_per_hour: float | None
    cost: float | None


class StageError(TypedDict):
    part: str
    message: str


class Plan(TypedDict):
    schema_version: int
    recipe: RecipePart
    splits: dict[str, dict[str, Any]] | None
    lengths: LengthsPart | None
    trained: TrainedPart | None
    batches: BatchesPart | None
    steps: StepsPart | None
    parameters: ParametersPart | None
    disk: list[DiskPart] | None
    access: list[Finding] | None
    proofs: ProofsPart | None
    quality: QualityPart | None
    memory: MemoryPart | None  # null: not estimated; `not_looked_at` says why
    time: TimePart | None
    notes: list[str]
    errors: list[StageError]
    not_looked_at: dict[str, str]  # part -> why
