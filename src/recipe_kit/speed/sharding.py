"""Memory of one GPU among several, by strategy: what each of N processes holds whole, what a share of, and when.

What a GPU computes with, activations and logits, is that of its own micro-batch and the same under every strategy
(`moments.py`). What it holds differs; N processes, 16-bit arithmetic, AdamW:

    strategy   weights    gathered for computing         gradients          optimiser, masters
    ddp        whole      -                              whole, and copies  whole
    zero2      whole, 16  -                              a share, float32   a share, float32
    zero3      a share    up to 1e9 values               a share, float32   a share, float32
    fsdp2      a share    two units, and the head        a share            a share

Sources: ZeRO (Rajbhandari et al., 2020, arXiv:1910.02054, section 3 and figure 1) for what is divided; `fully_shard`
of torch 2.13 and `fsdp2_prepare_model` of accelerate 1.15 for units, their types and when they are gathered;
`runtime/zero/stage_1_and_2.py`, `stage3.py` and `config.py` of DeepSpeed 0.19.8 for buffers and their sizes.
Read, and held against nineteen runs on two GPUs (benchmarks/README.md); `ERROR` allows for what those are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Unpack

from transformers import PretrainedConfig

from recipe_kit.recipe import Recipe
from recipe_kit.speed import memory, parameters
from recipe_kit.speed.memory import Estimate
from recipe_kit.speed.moments import Moment, StepOptions, Work, accumulates, computing_itemsize, moments
from recipe_kit.speed.parameters import Tensor
from recipe_kit.speed.units import PACKED, Model, Unit, look

STRATEGIES = ("none", "ddp", "fsdp2", "zero2", "zero3")
SHARDED = ("fsdp2", "zero2", "zero3")
ERROR = 0.25  # relative; an allowance: nineteen runs on two H100s had 2.4 % more at most

_FLOAT32 = 4  # bytes of a value: of DeepSpeed's copies of what it trains in 16 bits, and of all sums of gradients
REDUCE_VALUES = 50_000_000  # of a bucket of gradients on their way (stage 2), in the configuration that ships
_LIVE_VALUES = 1_000_000_000  # DeepSpeed's defaults: of gathered weights,
_STEP_VALUES = 1_000_000_000  # and of a group that is updated at once (both stage 3)


@dataclass(frozen=True)
class Sharded(Estimate):
    """Bytes on one GPU, part by part; they add up to `peak`.

    `gathered` are weights of other GPUs while they are computed with, `buffers` gradients on their way. `host` bytes
    of each process lie in the machine's memory (offloading), and are in no other number.
    """

    gathered: int = 0
    buffers: int = 0
    host: int = 0

    @property
    def error(self) -> float:
        return ERROR

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "gathered": self.gathered, "buffers": self.buffers}


def estimate(
    recipe: Recipe,
    config: PretrainedConfig,
    precision: str,
    work: Work,
    *,
    strategy: str,
    processes: int,
    offload: bool = False,
    **options: Unpack[StepOptions],
) -> Estimate | None:
    """The peak of one of `processes` GPUs; None where `memory.unsupported` has a reason.

    `strategy` is one of `STRATEGIES`; `offload` keeps what is divided in the machine's memory (under zero2 all but
    the weights). Everything else is as for `memory.estimate`, which answers for `none` and `ddp`.
    """
    if strategy not in SHARDED:
        return memory.estimate(recipe, config, precision, work, processes=processes, **options)
    if memory.unsupported(recipe, config):
        return None
    compute, _ = computing_itemsize(recipe, precision)
    rounded = None if strategy == "fsdp2" and recipe.method == "qlora" else compute
    found = moments(recipe, config, precision, work, itemsize=rounded, **options)
    model, hidden = look(recipe, config, precision), int(config.get_text_config().hidden_size)
    run = _Run(recipe, model, hidden, compute, options["optim"], processes, offload, accumulates(recipe, options))
    return _added_up(_fsdp2(run) if strategy == "fsdp2" else _zero(run, stage=int(strategy[-1])), found)


@dataclass(frozen=True)
class _Run:
    """What decides the bytes of one process. `compute` are those of a value in matrix products."""

    recipe: Recipe
    model: Model
    hidden: int
    compute: int
    optim: str
    processes: int
    offload: bool
    accumulates: bool

    @property
    def full(self) -> bool:
        return self.recipe.method == "full"

    @property
    def divides_4_bits(self) -> bool:
        """Whether 4-bit weights lie in a type that can be sharded, as they do unless the recipe wants bytes."""
        return "int8" not in str(self.recipe.quantization.get("bnb_4bit_quant_storage"))


@dataclass(frozen=True)
class _Held:
    """Bytes on one GPU by what they are; those in a dict are there at the named moment of a step."""

    weights: int
    adapter: int
    optimizer: int
    paged: int
    host: int
    roots: int  # of all second moments at once, in AdamW's plainest form
    gradients: dict[str, int]
    gathered: dict[str, int]
    buffers: dict[str, int]


def _fsdp2(run: _Run) -> _Held:
    """Each weight is cut along its first dimension; layers, embeddings and tail are gathered in the computing type.

    Beside 4-bit weights nothing is rounded when it is gathered, nor its gradient before it is sent.

    In mixed precision what is trained is kept in float32, with its gradients. Where a recipe sets `sync_each_batch` to
    false, micro-batches before the last of a step send nothing: their gradients are summed whole, in float32, in which
    they are sent (`trainer.make_trainer`).
    """
    model, compute = run.model, run.compute
    divided = [t for t in model.frozen if run.divides_4_bits or t.dtype != PACKED]
    whole = model.whole + _bytes(model.frozen) - _bytes(divided)
    trained = [_piece(replace(t, itemsize=_FLOAT32) if compute < 4 else t, run.processes) for t in model.trained]
    kept, adapter = _bytes([_piece(t, run.processes) for t in divided]), _bytes(trained)
    states, paged = parameters.optimizer_bytes(run.optim, trained), parameters.paged_bytes(run.optim, trained)

    together = _FLOAT32 if run.recipe.method == "qlora" else compute

    def gathered(unit: Unit) -> int:
        tensors = (t for t in unit.tensors if run.divides_4_bits or t.dtype != PACKED)
        return sum(t.values * min(together, t.itemsize) for t in tensors)

    def sent(unit: Unit) -> int:
        return (together + _FLOAT32) * unit.trained_values

    embeddings, tail = gathered(model.embeddings), gathered(model.tail)
    layer, sent_layer = max(map(gathered, model.layers)), max(map(sent, model.layers))
    waiting = sent(model.tail) if model.tied else 0  # tied embeddings are the last to be done with
    on_card = 0 if run.offload else 1
    gradients = on_card * adapter
    before = gradients if run.accumulates else 0  # of the micro-batches before this one
    if run.accumulates and not syncs_each_batch(run.recipe):
        before = _FLOAT32 * sum(t.values for t in model.trained)
    return _Held(
        weights=whole + on_card * (kept + (adapter if run.full else 0)),
        adapter=0 if run.full else on_card * adapter,
        optimizer=on_card * (states - paged),
        paged=on_card * paged,
        host=(1 - on_card) * (kept + 2 * adapter + states),
        roots=gradients if run.optim == "adamw_torch" else 0,
        gradients={
            "forward": before, "head": before, "backward": max(before, gradients), "end of backward": gradients,
            "optimizer": gradients,
        },
        gathered={
            "forward": layer + max(layer, embeddings, tail), "head": layer + tail,
            "backward": layer + (layer + tail if model.tied else max(layer, tail)),
            "end of backward": layer + max(embeddings, tail if model.tied else 0),
        },
        buffers={
            "backward": max(sent_layer + waiting, sent(model.tail)),
            "end of backward": max(sent(model.embeddings), waiting),
        },
    )  # fmt: skip


def _zero(run: _Run, *, stage: int) -> _Held:
    """DeepSpeed trains all weights in the computing type and updates flat pieces of float32 copies.

    Sizes of stage 3 follow the width of the model where the configuration says `auto`, as those that ship do. Stage 2
    fills one bucket while it sends another, put together anew; what is larger than a bucket goes without one.
    """
    model, compute = run.model, run.compute

    def kept(tensors: list[Tensor]) -> int:
        held = 0
        for tensor in tensors:
            size = tensor.values * min(compute, tensor.itemsize)
            small = tensor.values <= 10 * run.hidden
            divided = stage == 3 and (run.divides_4_bits if tensor.dtype == PACKED else not small)
            held += math.ceil(size / run.processes) if divided else size
        return held

    weights, adapter = kept(model.frozen), kept(model.trained)
    gathered = bucket = 0
    if stage == 3:
        everything = sum(t.values * min(compute, t.itemsize) for t in (*model.frozen, *model.trained))
        together = min(everything, compute * (_LIVE_VALUES + run.hidden**2))
        gathered = max(0, together - (0 if run.offload else weights + adapter))
        bucket = compute * run.hidden**2
    sizes = [tensor.values for tensor in model.trained]
    sending = bucket or compute * (2 * REDUCE_VALUES + min(sum(sizes), max(REDUCE_VALUES, *sizes)))
    sending += compute * max(unit.trained_values for unit in model.units)
    values = math.ceil(sum(sizes) / run.processes)
    flat = Tensor("flat", (values,), "F32", _FLOAT32)
    states, paged = parameters.optimizer_bytes(run.optim, [flat]), parameters.paged_bytes(run.optim, [flat])
    on_card = 0 if run.offload else 1
    gradients = on_card * flat.bytes
    update = on_card * _FLOAT32 * (values if stage == 2 else min(values, _STEP_VALUES))
    before = gradients if run.accumulates or stage == 3 else 0
    away = run.offload and stage == 3  # weights too
    return _Held(
        weights=model.whole + (0 if away else weights + (adapter if run.full else 0)),
        adapter=0 if away or run.full else adapter,
        optimizer=on_card * (flat.bytes + states - paged),
        paged=on_card * paged,
        host=(1 - on_card) * (2 * flat.bytes + states) + (weights + adapter if away else 0),
        roots=gradients if run.optim == "adamw_torch" else 0,
        gradients={
            "forward": before, "head": before, "backward": gradients, "end of backward": gradients,
            "optimizer": gradients + update,
        },
        gathered=dict.fromkeys(("forward", "head", "backward", "end of backward"), gathered),
        buffers={
            **dict.fromkeys(("forward", "optimizer"), bucket),
            **dict.fromkeys(("head", "backward", "end of backward"), sending),
        },
    )  # fmt: skip


def _added_up(held: _Held, step: dict[str, Moment]) -> Sharded:
    fixed = held.weights + held.adapter + held.optimizer
    found: dict[str, dict[str, int]] = {}
    for name, moment in step.items():
        workspace = moment.workspace
        if name == "optimizer":  # as many roots as there are states here
            workspace = step["end of backward"].workspace + held.roots
        found[name] = {
            "gradients": held.gradients.get(name, 0),
            "activations": moment.activations,
            "logits": moment.logits,
            "workspace": workspace,
            "gathered": held.gathered.get(name, 0),
            "buffers": held.buffers.get(name, 0),
        }
    phases = {name: fixed + sum(parts.values()) for name, parts in found.items()}
    peak = found[max(phases, key=lambda name: phases[name])]
    return Sharded(
        weights=held.weights, adapter=held.adapter, optimizer=held.optimizer, phases=phases, paged=held.paged,
        host=held.host, **peak,
    )  # fmt: skip


def _piece(tensor: Tensor, processes: int) -> Tensor:
    """The largest of the pieces that `torch.chunk` cuts along the first dimension."""
    first, *others = tensor.shape or (1,)
    return replace(tensor, shape=(math.ceil(first / processes), *others))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.bytes for tensor in tensors)


def syncs_each_batch(recipe: Recipe) -> bool:
    """Whether FSDP2 shares gradients out after each micro-batch, as `arguments.py` wants, or once a step."""
    options = recipe.training.get("accelerator_config") or {}
    kwargs = options.get("gradient_accumulation_kwargs") if isinstance(options, dict) else None
    return bool((kwargs or {}).get("sync_each_batch", True))
