"""Worker: unsloth as it installs, on the work's rows. It loads models from folders, so the random model is saved once.

unsloth asks for the GPU when it is imported and wants to come before transformers; it is imported when the worker's
turn has come. Its wheel of xformers is built for CUDA 12 and does not load into a PyTorch for CUDA 13: as it installs,
unsloth then takes PyTorch's attention. The configuration `unsloth-xformers` loads the runtime of CUDA 12 first, from
`nvidia-cuda-runtime-cu12` on the path, so that xformers is found.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any

import rows
import worker
from shapes import SHAPES


def prepare(job: worker.Job) -> None:
    if importlib.util.find_spec("unsloth") is None:
        raise ModuleNotFoundError("unsloth is not installed")


def act(job: worker.Job) -> dict[str, Any]:
    if job["configuration"] == "unsloth-xformers":
        _load_cuda_12()
    from unsloth import FastLanguageModel  # isort: skip
    import torch
    from trl import SFTConfig, SFTTrainer

    work, settings = job["work"], dict(job["settings"])
    checkpointing = settings.pop("gradient_checkpointing")
    folder = _saved_model(job)
    worker.limit_memory(job)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder),
        max_seq_length=work.longest_row,
        dtype=torch.bfloat16,
        load_in_4bit=work.method == "qlora",
        full_finetuning=work.method == "full",
        use_gradient_checkpointing=checkpointing,
    )
    if work.method != "full":
        model = FastLanguageModel.get_peft_model(
            model,
            r=work.rank,
            lora_alpha=work.alpha,
            lora_dropout=0,
            target_modules=list(work.targets),
            use_gradient_checkpointing=checkpointing,
        )
    options = worker.training_options(job) | settings | {"gradient_checkpointing": bool(checkpointing)}
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**options), processing_class=tokenizer, train_dataset=worker.dataset(job)
    )
    job["warmup_seconds"] = float("inf")  # it compiles in its first steps, and that is not to be timed
    return worker.measure(trainer, job, notes=_attention() if job["device"] == "cuda" else {})


def _attention() -> dict[str, bool]:
    """Which packages unsloth has found for its attention; with neither it is PyTorch's."""
    from unsloth.utils import attention_dispatch

    return {"xformers": attention_dispatch.HAS_XFORMERS, "flash-attn": attention_dispatch.HAS_FLASH_ATTENTION}


def _load_cuda_12() -> None:
    for place in sys.path:
        library = Path(place) / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
        if library.is_file():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return


def _saved_model(job: worker.Job) -> Path:
    """The folder of the random model in bfloat16, written by the first worker that needs it."""
    import torch
    from transformers import AutoModelForCausalLM

    shape = SHAPES[job["work"].shape]
    folder = Path(job["models"]) / job["work"].shape
    if not (folder / "tokenizer_config.json").is_file():
        torch.manual_seed(rows.SEED)
        with torch.device(job["device"]):
            model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
        model.save_pretrained(folder)
        worker.tokenizer(shape).save_pretrained(folder)
        del model
        if job["device"] == "cuda":
            torch.cuda.empty_cache()
    return folder


if __name__ == "__main__":
    worker.serve(prepare, act)
