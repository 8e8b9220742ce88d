"""The rows that a merged model is checked on: the first held-out ones of its run, or prompts of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from recipe_kit import data
from recipe_kit.errors import LabelError, RecipeKitError
from recipe_kit.evaluation import split_name
from recipe_kit.evaluation.generation import prompt_ids
from recipe_kit.recipe import Recipe
from recipe_kit.run_dir import RunInfo

OWN_PROMPTS = (
    "What is the capital of Portugal, and what is it known for?",
    "Write three short sentences about rain in the mountains.",
    "Explain in one paragraph how a bicycle stays upright.",
    "List the numbers from one to twenty in words.",
    "My order has not arrived yet. What should I do?",
    "Summarise: the meeting was moved from Tuesday to Thursday because the room is being painted.",
    "Translate to French: good morning, I would like two coffees.",
    "Write a Python function that returns the largest of three numbers.",
)


class Row(NamedTuple):
    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Rows:
    """Rows with labels where they are the run's own; without, for prompts."""

    rows: list[Row]
    rows_from: str  # the split, or `built-in prompts`
    note: str | None = None  # that they are not the run's own, or what is different about them
    reason: str | None = None  # why the run's own cannot be had, which may name a folder of this machine

    @property
    def are_held_out(self) -> bool:
        return self.rows_from != "built-in prompts"


def find(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, info: RunInfo, most: int) -> Rows:
    """The first `most` held-out rows of a run, or prompts of our own where they cannot be had any more."""
    name = split_name(recipe)
    if getattr(recipe.data, name) is None:
        return Rows(_own(tokenizer), "built-in prompts", "the recipe holds no rows out: checked on built-in prompts")
    try:
        split = data.prepare(recipe.data, tokenizer, splits=(name,))[name]
    except RecipeKitError as error:
        note = f"checked on built-in prompts, for the rows of data.{name} cannot be had any more"
        return Rows(_own(tokenizer), "built-in prompts", note, str(error))
    first = split.rows.select(range(min(most, len(split.rows))))
    rows = [Row(list(ids), list(labels)) for ids, labels in zip(first["input_ids"], first["labels"], strict=True)]
    recorded = info["data"].get("splits", {}).get(name, {}).get("content_sha256")
    changed = recorded is not None and recorded != split.content_sha256
    note = f"data.{name} has changed since this run was trained: checked on its rows as they are now"
    return Rows(rows, name, note if changed else None)


def _own(tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    found = []
    for prompt in OWN_PROMPTS:
        try:
            ids = prompt_ids(tokenizer, [{"role": "user", "content": prompt}])
        except LabelError:  # no template, or one that wants more than a question
            ids = list(tokenizer(prompt)["input_ids"])
        found.append(Row(ids, []))
    return found
