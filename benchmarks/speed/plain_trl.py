"""Worker: TRL's SFTTrainer with PEFT and bitsandbytes, with the settings of the job and no other package."""

from __future__ import annotations

from typing import Any

import worker
from shapes import SHAPES


def prepare(job: worker.Job) -> None:
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    if job["work"].method == "qlora":
        import bitsandbytes  # noqa: F401
    job["dataset"], job["tokenizer"] = worker.dataset(job), worker.tokenizer(SHAPES[job["work"].shape])


def act(job: worker.Job) -> dict[str, Any]:
    from trl import SFTConfig, SFTTrainer

    worker.limit_memory(job)
    work = job["work"]
    trainer = SFTTrainer(
        model=worker.random_model(job),
        args=SFTConfig(**worker.training_options(job) | job["settings"]),
        processing_class=job["tokenizer"],
        train_dataset=job["dataset"],
        peft_config=None if work.method == "full" else worker.lora(work),
    )
    return worker.measure(trainer, job)


if __name__ == "__main__":
    worker.serve(prepare, act)
