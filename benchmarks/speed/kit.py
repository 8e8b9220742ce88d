"""Worker: recipe-kit as `recipe-kit train` trains: what the recipe leaves open is chosen for the card."""

from __future__ import annotations

from typing import Any

import plain_trl
import recipes_of
import worker
from works import Work


def prepare(job: worker.Job) -> None:
    plain_trl.prepare(job)
    import recipe_kit.trainer  # noqa: F401


def act(job: worker.Job) -> dict[str, Any]:
    from recipe_kit.trainer import make_trainer

    worker.limit_memory(job)
    work: Work = job["work"]
    asked = {"checkpointing": work.checkpointing or "auto", "device": job["device"]} | job["settings"]
    recipe = recipes_of.recipe_of(work, steps=job["warmup"] + job["steps"], folder=job["folder"], **asked)
    lengths = [len(ids) for ids in job["dataset"]["input_ids"]]
    precision, choice, arguments = recipes_of.settle(recipe, recipes_of.config_of(work), lengths, folder=job["folder"])
    arguments.disable_tqdm = True
    model = worker.random_model(job, attention=recipes_of.attention_of(choice))
    trainer = make_trainer(recipe, model, job["tokenizer"], arguments, choice, precision, job["dataset"])
    notes = {
        "attention": choice.attention,
        "kernels": choice.kernels,
        "together": choice.together,
        "settings": choice.training,
        "estimated_peak_bytes": choice.estimate.peak if choice.estimate else None,
        "notes": choice.notes,
    }
    found = worker.measure(trainer, job, notes)
    return found | {"parts": trainer.watch.parts}


if __name__ == "__main__":
    worker.serve(prepare, act)
