"""Which prompts both models answer: held-out ones for the metrics, a few of them to read, and the recipe's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from recipe_kit import data
from recipe_kit.errors import LabelError
from recipe_kit.evaluation.generation import prompt_ids
from recipe_kit.labels.spans import TrainOn, trained_turns
from recipe_kit.recipe import Recipe


@dataclass(frozen=True)
class Question:
    """A prompt for both models: a chat up to one of its answers, or a prompt that the recipe names."""

    row: int | None  # place in the held-out split; None for the recipe's own
    turn: int  # which of the row's trained answers it asks for, from 0
    messages: list[dict[str, Any]]
    reference: str | None
    ids: list[int]
    shown: bool  # kept to be read side by side


def questions(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, held_out: data.Split, count: int
) -> tuple[list[Question], bool]:
    """The prompts to answer, held-out ones first, and whether the held-out rows have any.

    A chat of several turns asks for each of its answers, with what came before it as the data has it. Rows of plain
    text have no prompt. Without metrics only those are answered that are kept to read. Raises LabelError for a prompt
    that the chat template refuses.
    """
    settings = recipe.evaluation
    chats = [
        (row, turn, messages, reference)
        for row, example in enumerate(held_out.examples[:count])
        for turn, (messages, reference) in enumerate(turns(example, recipe.data.train_on))
        if messages
    ]
    places = list(range(len(chats)))
    answered = spread(places, settings.answers or len(places)) if settings.metrics else []
    shown = set(spread(answered or places, settings.samples))
    found = []
    for place in sorted({*answered, *shown}):
        row, turn, messages, reference = chats[place]
        ids = prompt_ids(tokenizer, messages)
        found.append(Question(row, turn, messages, reference, ids, place in shown))
    return [*found, *own_prompts(recipe, tokenizer)], bool(chats)


def own_prompts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """The prompts that the recipe names, each after its system prompt. Raises LabelError, naming the one at fault."""
    system = [{"role": "system", "content": recipe.data.system}] if recipe.data.system else []
    found = []
    for number, prompt in enumerate(recipe.evaluation.prompts, 1):
        messages = [*system, {"role": "user", "content": prompt}]
        try:
            ids = prompt_ids(tokenizer, messages)
        except LabelError as error:
            raise LabelError(f"evaluation.prompts, prompt {number}: {error}") from error
        found.append(Question(None, 0, messages, None, ids, True))
    return found


def spread(values: Sequence[int], number: int) -> list[int]:
    """`number` of the values, evenly spread over them."""
    number = min(number, len(values))
    return [values[index * len(values) // number] for index in range(number)]


def turns(example: Mapping[str, Any], train_on: TrainOn) -> list[tuple[list[dict[str, Any]], str]]:
    """The answers a row trains, each as the messages before it and its text; with `all`, its last answer.

    [] for plain text.
    """
    before = list(example.get("prompt", []))
    own = [*example.get("completion", []), *example.get("messages", [])]
    trained = trained_turns(own, train_on)
    if train_on == "all":
        trained = [index for index, message in enumerate(own) if message["role"] == "assistant"][-1:]
    plain = [{"role": message["role"], "content": message["content"]} for message in (*before, *own)]
    return [(plain[: len(before) + index], str(own[index]["content"]).strip()) for index in trained]
