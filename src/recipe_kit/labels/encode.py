"""From a formatted row to token ids and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipe_kit.errors import LabelError
from recipe_kit.labels.control import ControlTexts
from recipe_kit.labels.places import Places, Tokeniser
from recipe_kit.labels.shapes import Outline, Shape, learn, outline, tested_texts
from recipe_kit.labels.spans import (
    Span,
    TrainOn,
    Turns,
    ends_with_special,
    find_spans,
    render,
    render_batch,
    special_tokens,
    trained_turns,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Encoded:
    """One row as the model sees it.

    `labels[i]` is `input_ids[i]` where the token is trained and -100 elsewhere. The shift by one position is left to
    the model. `turn_lengths` counts the trained tokens of each trained turn, its end-of-turn token included.
    """

    input_ids: list[int]
    labels: list[int]
    turn_lengths: list[int]

    @property
    def trained_token_count(self) -> int:
        return sum(label != IGNORED for label in self.labels)


class Labeller:
    """Encodes rows with one tokenizer, many at a time.

    `train_on` chooses the trained turns of a chat: every assistant turn, the last one, or all tokens of the text. A
    message with `"train": False` and every message of a `prompt` is context only. Plain text is trained whole, with
    the tokenizer's own BOS habit and one end-of-text token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, train_on: TrainOn = "assistant") -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self._stop_ids = frozenset(special_tokens(tokenizer).values())
        self._tokenise = Tokeniser(tokenizer)
        self._control = ControlTexts(tokenizer)
        self._tested = tested_texts(tokenizer) if tokenizer.chat_template else ()
        self._shapes: dict[Outline, Shape | None] = {}

    def encode(self, example: Mapping[str, Any]) -> Encoded:
        """One row; raises LabelError. See `encode_batch`."""
        (encoded,) = self.encode_batch([example])
        if isinstance(encoded, LabelError):
            raise encoded
        return encoded

    def encode_batch(self, examples: Sequence[Mapping[str, Any]]) -> list[Encoded | LabelError]:
        """Each row encoded, or why it cannot be: an answer for every row, in order.

        `examples` are what formatters return: `messages`, `prompt` with `completion`, or `text`. A row gives a
        LabelError when a message holds control text, when the template cannot render the chat, when it gives no
        trustworthy span for a trained turn, or when a trained turn ends without a special token.
        """
        results: list[Encoded | LabelError | None] = [None] * len(examples)
        chats: list[tuple[int, Turns, list[int]]] = []
        for place, example in enumerate(examples):
            try:
                if "text" in example:
                    results[place] = _encode_text(str(example["text"]), self.tokenizer)
                else:
                    chats.append((place, *self._chat(example)))
            except LabelError as error:
                results[place] = error
        texts = render_batch([messages for _, messages, _ in chats], self.tokenizer)
        ready: list[tuple[int, str, Turns, list[Span]]] = []
        for (place, messages, trained), text in zip(chats, texts, strict=True):
            try:
                if isinstance(text, LabelError):
                    raise text
                ready.append((place, text, messages, self._spans(text, messages, trained)))
            except LabelError as error:
                results[place] = error
        tokenised = self._tokenise([text for _, text, _, _ in ready])
        for (place, text, messages, spans), tokens in zip(ready, tokenised, strict=True):
            try:
                results[place] = self._label(text, messages, spans, tokens)
            except LabelError as error:
                results[place] = error
        return [result for result in results if result is not None]

    def _chat(self, example: Mapping[str, Any]) -> tuple[Turns, list[int]]:
        """The messages as a template takes them, and which are trained."""
        if "messages" in example:
            messages, trained = example["messages"], trained_turns(example["messages"], self.train_on)
        else:
            messages = [*example["prompt"], *example["completion"]]
            first = len(example["prompt"])
            trained = [first + index for index in trained_turns(example["completion"], self.train_on)]
        if not trained and self.train_on != "all":
            raise LabelError("no assistant turn of this chat is trained: nothing to learn from it")
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        self._control.refuse(plain)
        return plain, trained

    def _spans(self, text: str, messages: Turns, trained: list[int]) -> list[Span]:
        if not trained:
            return []
        if not any(tested in message["content"] for tested in self._tested for message in messages):
            known_by = outline(messages)
            if known_by is not None and known_by not in self._shapes:
                self._shapes[known_by] = learn(known_by, self.tokenizer)
            shape = None if known_by is None else self._shapes[known_by]
            if shape is not None and (spans := shape.spans(text, messages, trained)) is not None:
                return spans
        return find_spans(text, messages, trained, self.tokenizer)

    def _label(self, text: str, messages: Turns, spans: list[Span], tokens: Places) -> Encoded:
        input_ids = tokens.ids
        if self.train_on == "all":
            if messages[-1]["role"] == "assistant" and not ends_with_special(text, self.tokenizer):
                raise _never_stops("the last turn")
            return Encoded(input_ids, list(input_ids), [len(input_ids)])
        labels = [IGNORED] * len(input_ids)
        turn_lengths = []
        for turn, span in enumerate(spans):
            first, last = self._turn_tokens(span, tokens)
            if last < first:
                raise _never_stops(f"trained assistant turn {turn + 1}")
            labels[first : last + 1] = input_ids[first : last + 1]
            turn_lengths.append(last + 1 - first)
        return Encoded(input_ids, labels, turn_lengths)

    def _turn_tokens(self, span: Span, tokens: Places) -> tuple[int, int]:
        """First and last token of one turn, which ends with a special token; the last is -1 if none ends it.

        A token that straddles the border between prompt and answer belongs to the prompt. Templates write white space
        after the token that ends a turn. Other text there means that the last special token opens something.
        """
        first, last = tokens.first_from(span[0]), tokens.first_from(span[1]) - 1
        while last >= first and tokens.ids[last] not in self._stop_ids:
            last -= 1
        if last < first or tokens.between(last, span[1]).strip():
            return first, -1
        return first, last


def encode(
    example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, train_on: TrainOn = "assistant"
) -> Encoded:
    """Token ids and labels of one formatted row; for many rows, keep a `Labeller`. Raises LabelError."""
    return Labeller(tokenizer, train_on=train_on).encode(example)


def render_spans(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, train_on: TrainOn = "assistant"
) -> tuple[str, list[Span]]:
    """The rendered chat, and the character span of each trained assistant turn in it. Raises LabelError."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    text = render(plain, tokenizer)
    return text, find_spans(text, plain, trained_turns(messages, train_on), tokenizer)


def _encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    if tokenizer.eos_token_id is None:
        raise LabelError("plain text needs an end-of-text token, and this tokenizer has no eos_token")
    input_ids: list[int] = list(tokenizer(text)["input_ids"])
    if input_ids[:2] == [tokenizer.bos_token_id] * 2:  # the text brings the one that the tokenizer adds
        input_ids = list(tokenizer(text.removeprefix(str(tokenizer.bos_token)))["input_ids"])
    while input_ids and input_ids[-1] == tokenizer.eos_token_id:
        input_ids.pop()
    input_ids.append(tokenizer.eos_token_id)
    return Encoded(input_ids, list(input_ids), [len(input_ids)])


def _never_stops(turn: str) -> LabelError:
    return LabelError(
        f"{turn} does not end with a special token in this chat template, so the model would never learn to stop; "
        "use a template that writes the end-of-turn token after each answer"
    )
