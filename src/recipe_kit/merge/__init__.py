"""An adapter into its base's 16-bit weights: merged, checked against the adapter, and only then kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from recipe_kit import modeling, provenance, run_dir
from recipe_kit.errors import MergeError
from recipe_kit.lock import recipe_of
from recipe_kit.merge import choice, folder, layout, nf4, parity, rows, shards, weights, whole
from recipe_kit.merge.adapter import Adapter, open_adapter
from recipe_kit.recipe import Recipe
from recipe_kit.run_dir import RunInfo

DTYPES = ("bfloat16", "float16", "float32")
BASES = ("auto", "original", "nf4")

Report = Callable[[str], None]


@dataclass
class _Job:
    """A merge of which everything that can be looked at without weights has been."""

    run: Path
    info: RunInfo
    recipe: Recipe
    adapter: Adapter
    tokenizer: PreTrainedTokenizerBase
    sources: dict[str, weights.Source]  # by the base they merge into
    dtype: str
    report: Report
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> layout.Layout:
        return next(iter(self.sources.values())).layout

    def note(self, text: str | None) -> None:
        if text and text not in self.notes:
            self.notes.append(text)
            self.report(text)


def merge(
    run: str | Path, *, dtype: str | None = None, base: str | None = None, report: Report = lambda text: None
) -> dict[str, Any]:
    """Merge a finished run's adapter into `merged/` of its folder; the record of it, as `run.json` keeps it.

    `dtype` is bfloat16, float16 or float32; None takes `publish.merged_dtype`, else `model.dtype`. `base` is original,
    nf4 (the weights as 4 bits made them, of a QLoRA run) or auto, which measures both; None takes
    `publish.merged_base`. Raises MergeError or ModelError, and then leaves no merged weights that were not there
    before.
    """
    started = time.monotonic()
    job = _prepare(run_dir.find(run), dtype, base, report)
    with folder.part_folder(job.run) as part, shards.disk_full_explained(job.run):
        needed = len(job.sources) * job.layout.parameter_count * getattr(torch, job.dtype).itemsize
        shards.check_space(job.run, needed)
        changed = {kind: _write(job, source, part / kind) for kind, source in job.sources.items()}
        peak = _peak_memory_bytes()
        kind, chosen, verdict = _check(job, part)
        record = {
            "at": provenance.now(),
            "dtype": job.dtype,
            "base": kind,
            "base_revision": job.info["model"].get("revision"),
            "choice": chosen,
            "parity": verdict,
            "adapter_sha256": job.adapter.sha256,
            "files": {file.name: run_dir.sha256(file) for file in sorted((part / kind).iterdir())},
            "tensors_changed": changed[kind],
            "seconds": round(time.monotonic() - started, 3),
            "peak_memory_bytes": peak,  # of this process while the weights were merged, before models were compared
            "versions": provenance.versions(),
            "notes": job.notes,
        }
        folder.keep(part / kind, job.run, record)
    return record


def _prepare(run: Path, dtype: str | None, base: str | None, report: Report) -> _Job:
    """Everything that can be wrong looked at, from headers and the adapter alone. Raises MergeError or ModelError."""
    info = run_dir.require_finished(run)
    if info["method"] == "full":
        raise MergeError(f"{run}: nothing to merge: a run with method full has whole weights in {run_dir.MODEL}/")
    run_dir.check_changeable(run)
    recipe = recipe_of(run)
    kinds = _bases(recipe, base)
    adapter = open_adapter(run / run_dir.ADAPTER, recipe, info)
    source, tokenizer = _source(recipe, info, adapter)
    dtype = dtype or recipe.publish.merged_dtype or _own_dtype(recipe, info)
    job = _Job(run, info, recipe, adapter, tokenizer, {k: _with_base(source, k) for k in kinds}, dtype, report)
    if job.layout.whole is not None:
        job.note(f"merged by PEFT in memory, for {job.layout.whole}")
    return job


def _check(job: _Job, part: Path) -> tuple[str, dict[str, Any] | None, dict[str, Any]]:
    """The base to keep, what was measured to choose it, and the gate's verdict. Raises MergeError when it fails."""
    held_out = rows.find(job.recipe, job.tokenizer, job.info, max(choice.ROWS, parity.ROWS))
    job.note(held_out.note)
    if held_out.reason:
        job.report(held_out.reason)
    arithmetic = parity.arithmetic(job.recipe, job.layout.parameter_count, job.dtype)
    try:
        kind, chosen = _choose(job, part, held_out, arithmetic)
        job.report("comparing the merged model with the adapter model")
        ids = [row.ids[: parity.TOKENS] for row in held_out.rows[: parity.ROWS]]
        seen = parity.observe(whole.adapter_model(job.sources[kind], job.tokenizer, arithmetic), ids)
        parity.free_memory()  # one model in memory at a time
        merged = parity.load_merged(part / kind, job.recipe, arithmetic)
        verdict = parity.compare(seen, merged, ids, job.dtype) | {"rows_from": held_out.rows_from}
        parity.require(verdict, job.dtype)
    except torch.cuda.OutOfMemoryError as error:
        raise MergeError(
            f"{job.run}: the GPU's memory does not hold the model that the merged one is compared with; merge on the "
            "CPU: `CUDA_VISIBLE_DEVICES= recipe-kit merge ...`"
        ) from error
    except MergeError:
        folder.discard_if_stale(job.run, job.adapter.sha256, part)
        raise
    return kind, chosen, verdict


def _own_dtype(recipe: Recipe, info: RunInfo) -> str:
    """`model.dtype`, or what the run made of `auto`."""
    if recipe.model.dtype != "auto":
        return str(recipe.model.dtype)
    used = info["model"].get("dtype")
    return str(used) if used in DTYPES else "bfloat16"


def _bases(recipe: Recipe, base: str | None) -> list[str]:
    """The bases to merge into: two where they are to be compared."""
    wanted = base or recipe.publish.merged_base
    if wanted not in BASES:
        raise MergeError(f"--base {wanted}: expected one of {', '.join(BASES)}")
    if recipe.method == "qlora":
        return ["original", "nf4"] if wanted == "auto" else [wanted]
    if base == "nf4":
        raise MergeError("--base nf4: this run was not trained on 4-bit weights (method: lora); merge without it")
    return ["original"]


def _source(recipe: Recipe, info: RunInfo, adapter: Adapter) -> tuple[weights.Source, PreTrainedTokenizerBase]:
    """What is merged, with all that can be wrong about it looked at; reads headers and no weights."""
    config = modeling.load_config(recipe.model)
    if getattr(config, "quantization_config", None) is not None:
        raise MergeError(
            f"model.id: {recipe.model.id} is stored quantised, and merging into such weights loses what was learnt; "
            "use the adapter as it is, or train on the 16-bit model"
        )
    recorded, found = info["model"].get("revision"), getattr(config, "_commit_hash", None)
    if recorded and found and recorded != found:
        raise MergeError(
            f"model.id: this run was trained on commit {recorded[:12]} of {recipe.model.id}, and its revision "
            f"{recipe.model.revision} is {found[:12]} now; set model.revision in {run_dir.RECIPE} to the commit"
        )
    saved: dict[str, Any] = {
        "id": str(adapter.folder),
        "revision": None,
        "chat_template": None,
        "chat_template_kwargs": {},
    }
    tokenizer = modeling.load_tokenizer(recipe.model.model_copy(update=saved))
    trained_with = info["model"].get("chat_template_sha256")
    if trained_with not in (None, modeling.template_hash(tokenizer)):
        raise MergeError(
            f"{adapter.folder}: its chat template is not the one that this run was trained with; restore the adapter "
            "of this run"
        )
    base = shards.find_base(recipe.model)
    plan = layout.build(recipe, config, adapter, base, len(tokenizer))
    layout.check_biases(plan, adapter)
    return weights.Source(recipe, adapter, plan, base, _trained_in(recipe, info)), tokenizer


def _with_base(source: weights.Source, kind: str) -> weights.Source:
    if kind == "original":
        return source
    return replace(source, quantised=nf4.quantised(source.recipe, source.layout.config, source.trained_in))


def _trained_in(recipe: Recipe, info: RunInfo) -> str:
    """The precision the base was loaded in for training, which another machine may not have."""
    precision = "float16" if recipe.training.get("fp16") else recipe.model.dtype
    precision = "bfloat16" if precision == "auto" else precision
    if precision == "float16" and info["hardware"].get("device") == "cpu":
        return "float32"
    fell_back = any(note.endswith("computing in float16") for note in info["notes"])
    return "float16" if fell_back else str(precision)


def _write(job: _Job, source: weights.Source, path: Path) -> int:
    """One merged folder, complete but unchecked; how many tensors are not the base's. Raises MergeError for none."""
    job.report(f"merging into {'the original weights' if source.quantised is None else 'the weights after 4 bits'}")
    path.mkdir()
    dtype = getattr(torch, job.dtype)
    outcome = (
        weights.write(source, path, dtype)
        if source.layout.whole is None
        else whole.write(source, job.tokenizer, path, dtype)
    )
    if not outcome.changed:
        raise MergeError(
            f"{job.adapter.folder}: merging changes nothing: every update is zero or lost in rounding to {job.dtype}; "
            "look whether the run learnt anything (`recipe-kit report`)"
        )
    if outcome.untied:
        job.note("embeddings and output head share no weights any more: the adapter changed one of them")
    job.note(
        folder.add_companions(
            path, job.recipe.model, source.layout, job.adapter.folder, job.tokenizer,
            dtype=job.dtype, untied=outcome.untied,
        )
    )  # fmt: skip
    return len(outcome.changed)


def _choose(job: _Job, part: Path, held_out: rows.Rows, arithmetic: str) -> tuple[str, dict[str, Any] | None]:
    """The base to keep, and what was measured for it; None where there was nothing to choose."""
    if len(job.sources) == 1:
        return next(iter(job.sources)), None
    if not held_out.are_held_out:
        reason = "no held-out rows to measure either base on: the original weights"
        return "original", {"reason": reason, "rows": 0, "tokens": 0, "loss": {}}
    job.report("measuring both bases on held-out rows")
    folders = {name: part / name for name in job.sources}
    source, few = job.sources["original"], held_out.rows[: choice.ROWS]
    kind, chosen = choice.choose(folders, source, job.tokenizer, few, arithmetic)
    job.report(f"kept: {kind}, {chosen['reason']}")
    return kind, chosen


def _peak_memory_bytes() -> int:
    """The most memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # a child's ru_maxrss begins with its parent's
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource

    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes if sys.platform == "darwin" else kibibytes * 1024
