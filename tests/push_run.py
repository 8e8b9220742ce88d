"""A finished run folder made by hand, with weights of a few numbers: all that publishing looks at."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from recipe_kit import run_dir
from recipe_kit.recipe import dump_recipe, load_recipe, recipe_digest

RECIPE = """
name: support
model: {id: acme/tiny-base, revision: 0123456789abcdef0123456789abcdef01234567, dtype: float32}
method: lora
data:
  train: {sample: support, limit: 32}
  formatter: support
  max_length: 256
lora: {r: 4, target_modules: [q_proj]}
training: {max_steps: 2, learning_rate: 1.0e-2, use_cpu: true, report_to: []}
"""
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def safetensors(*values: float, name: str = "weight") -> bytes:
    """A file with one float32 tensor."""
    data = struct.pack(f"<{len(values)}f", *values)
    header = json.dumps({name: {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def make_run(folder: Path, *overrides: str, license: str | None = "apache-2.0") -> Path:
    """A run that trained an adapter, or all weights with `method=full`."""
    run = folder / "runs" / "support" / "2026-01-02T03-04-05"
    run.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml", overrides=overrides)
    run_dir.write_text(run / run_dir.RECIPE, dump_recipe(recipe))
    info: dict[str, Any] = {
        "schema_version": 1,
        "recipe_kit_version": "0.1.0",
        "status": "finished",
        "name": recipe.name,
        "method": recipe.method,
        "recipe_sha256": recipe_digest(recipe),
        "started_at": "2026-01-02T03:04:05+00:00",
        "finished_at": "2026-01-02T03:05:05+00:00",
        "command": ["recipe-kit", "train", "support"],
        "git_commit": None,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "hardware": {"device": "cpu", "machine": "x86_64", "cores": 2},
        "processes": 1,
        "seed": 42,
        "notes": [],
        "model": {
            "id": recipe.model.id,
            "revision": recipe.model.revision,
            "dtype": "float32",
            "parameters": 1000,
            "trainable_parameters": 10,
            "trainable_dtype": "float32",
            "chat_template_sha256": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
            "license": {"license": license} if license else None,
        },
        "data": {
            "formatter": {"name": "support", "source_sha256": None},
            "splits": {
                "train": {
                    "sources": [{"sample": "support", "split": "train", "rows": 32, "resolved_revision": None}],
                    "read": 32, "kept": 32, "held_out": 0, "truncated": 0, "dropped": {}, "tokens": 3200,
                    "trained_tokens": 1600, "content_sha256": "ab" * 32,
                }
            },
        },
        "training": {
            "steps": 2, "epochs": 1.0, "effective_batch_size": 8, "train_loss": 6.5, "final_loss": 6.4, "tokens": 3200,
            "seconds": 1.0, "tokens_per_second": 3200.0, "peak_memory_bytes": 600_000_000, "wall_seconds": 2.0,
        },
    }  # fmt: skip
    run_dir.write_json(run / run_dir.RUN, info)
    if recipe.method == "full":
        _model(run / run_dir.MODEL)
    else:
        _tokenizer(run / run_dir.ADAPTER)
        config = {"peft_type": "LORA", "base_model_name_or_path": "/somewhere/base", "revision": None, "r": 4}
        (run / run_dir.ADAPTER / "adapter_config.json").write_text(json.dumps(config))
        (run / run_dir.ADAPTER / "adapter_model.safetensors").write_bytes(safetensors(0.5, -0.25, 1.0))
    return run


def add_merge(run: Path, *, shards: int = 2) -> None:
    """`merged/` and the record of a merge that passed its parity check."""
    merged = run / run_dir.MERGED
    _model(merged, shards)
    record = {
        "at": "2026-01-02T03:06:05+00:00",
        "dtype": "float32",
        "base": "original",
        "base_revision": "0123456789abcdef0123456789abcdef01234567",
        "choice": None,
        "parity": {
            "rows": 4, "positions": 100, "max_logit_gap": 1e-6, "mean_kl": 1e-9, "greedy_agreement": 1.0,
            "allowed": {"mean_kl": 1e-3, "greedy_agreement": 0.99}, "ok": True, "compute_dtype": "float32",
            "rows_from": "eval",
        },
        "adapter_sha256": sha256(run / run_dir.ADAPTER / "adapter_model.safetensors"),
        "files": {path.name: sha256(path) for path in sorted(merged.iterdir())},
        "tensors_changed": 1, "seconds": 0.1, "peak_memory_bytes": 1000, "versions": {}, "notes": [],
    }  # fmt: skip
    run_dir.update(run, merge=record)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tokenizer(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _model(folder: Path, shards: int = 1) -> None:
    _tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": "/somewhere/base"}))
    (folder / "generation_config.json").write_text("{}")
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors(1.0, 2.0))
        return
    names = [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(safetensors(1.0 + number, 2.0, name=f"layer{number}"))
    index = {"metadata": {}, "weight_map": {f"layer{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
