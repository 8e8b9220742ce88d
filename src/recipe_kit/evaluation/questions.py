"""Which prompts both models answer: held-out ones for the metrics, a few of them to read, and the recipe's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from recipe_kit import data
from recipe_kit.evaluation.generation import prompt_ids, split_last_turn
from recipe_kit.labels.spans import TrainOn, trained_turns
from recipe_kit.recipe import Recipe


@dataclass(frozen=True)
class Question:
    """A prompt for both models. `row` is its place in the held-out split, None for one that the recipe names."""

    row: int | None
    messages: list[dict[str, Any]]
    reference: str | None
    ids: list[int]
    shown: bool  # kept to be read side by side


def questions(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, held_out: data.Split, count: int
) -> tuple[list[Question], bool]:
    """The prompts to answer, held-out ones first, and whether the held-out rows have any.

    Rows of plain text have no prompt. Without metrics only as many rows are answered as are kept to read.
    Raises LabelError for a prompt that the chat template refuses.
    """
    settings = recipe.evaluation
    examples = held_out.examples[:count] if settings.metrics or settings.samples else []
    chats = {row: chat for row, chat in enumerate(map(split_last_turn, examples)) if chat is not None and chat[0]}
    rows = list(chats)
    answered = spread(rows, settings.answers or len(rows)) if settings.metrics else []
    shown = spread(answered or rows, settings.samples)
    found = []
    for row in sorted({*answered, *shown}):
        messages, reference = chats[row]
        found.append(Question(row, messages, reference, prompt_ids(tokenizer, messages), row in shown))
    system = [{"role": "system", "content": recipe.data.system}] if recipe.data.system else []
    for prompt in settings.prompts:
        messages = [*system, {"role": "user", "content": prompt}]
        found.append(Question(None, messages, None, prompt_ids(tokenizer, messages), True))
    return found, bool(rows)


def spread(values: Sequence[int], number: int) -> list[int]:
    """`number` of the values, evenly spread over them."""
    number = min(number, len(values))
    return [values[index * len(values) // number] for index in range(number)]


def learnt_texts(example: Mapping[str, Any], train_on: TrainOn) -> list[str]:
    """The answers of a row that are trained, as text; [] for plain text and for `all`, where no turn stands out."""
    messages = example.get("completion") or example.get("messages") or []
    return [str(messages[index]["content"]).strip() for index in trained_turns(messages, train_on)]
