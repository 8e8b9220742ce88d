"""Which tokens a model learns from: a conversation becomes token ids and labels.

The text is rendered once with the model's own chat template and tokenised once, so that training sees exactly the
tokens that serving will see. Each assistant turn is found as a span of characters in that text, in one of two ways:

- a template with `{% generation %}` marks says itself what the model writes;
- any other template is rendered up to the turn and up to its end. Both must be prefixes of the whole text. A template
  that rewrites earlier turns when later ones arrive (Qwen3 drops old reasoning) breaks that rule; the row is refused,
  since a guess would train the wrong tokens.

The trained tokens go through the special token that ends the turn, and no further: a model that never learns it never
stops. A token that straddles the border between prompt and answer belongs to the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from recipe_kit.errors import LabelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that torch's cross entropy leaves out
TrainOn = Literal["assistant", "last_assistant", "all"]
Span = tuple[int, int]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING_END = re.compile(r"</think>|<channel\|>")


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


def encode(
    example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, train_on: TrainOn = "assistant"
) -> Encoded:
    """Token ids and labels of one formatted row.

    `example` is what a formatter returns: `messages`, `prompt` with `completion`, or `text`. `train_on` chooses the
    trained turns of a chat: every assistant turn, the last one, or all tokens of the text. A message with
    `"train": False` and every message of a `prompt` is context only. Plain text is trained whole, with the tokenizer's
    own BOS habit and one end-of-text token.

    Raises LabelError when the template cannot render the chat, when it gives no trustworthy span for a trained turn,
    or when a trained turn ends without a special token.
    """
    if "text" in example:
        return _encode_text(str(example["text"]), tokenizer)
    messages = _messages(example)
    text, spans = render_spans(messages, tokenizer, train_on=train_on)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids: list[int] = encoding["input_ids"]
    if train_on == "all":
        if messages[-1]["role"] == "assistant" and not _ends_with_special(text, tokenizer):
            raise _never_stops("the last turn")
        return Encoded(input_ids, list(input_ids), [len(input_ids)])
    if not spans:
        raise LabelError("no assistant turn of this chat is trained: nothing to learn from it")
    stop_ids = frozenset(special_tokens(tokenizer).values())
    labels = [IGNORED] * len(input_ids)
    turn_lengths = []
    for turn, span in enumerate(spans):
        indices = _turn_tokens(span, text, input_ids, encoding["offset_mapping"], stop_ids)
        if not indices:
            raise _never_stops(f"trained assistant turn {turn + 1}")
        for index in indices:
            labels[index] = input_ids[index]
        turn_lengths.append(len(indices))
    return Encoded(input_ids, labels, turn_lengths)


def render_spans(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, train_on: TrainOn = "assistant"
) -> tuple[str, list[Span]]:
    """The rendered chat, and the character span of each trained assistant turn in it.

    A span starts with the first character the model would write and ends where the turn's rendering ends.
    """
    plain = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    assistant_turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    trained = [index for index in assistant_turns if messages[index].get("train", True)]
    if train_on == "last_assistant":
        trained = trained[-1:]
    if train_on == "all":
        return _render(plain, tokenizer), []
    if _has_generation_marks(tokenizer):
        text, marked = _render_marked(plain, tokenizer)
        if len(marked) != len(assistant_turns):
            marked = _joined(marked)  # Phi-3's marks give the answer and the end-of-text token after it in two pieces
        if len(marked) != len(assistant_turns):
            raise LabelError(
                f"the template's {{% generation %}} marks give {len(marked)} spans for {len(assistant_turns)} "
                "assistant turns; correct the template, or set model.chat_template to one that marks every answer once"
            )
        spans = [_marked_span(text, marked[assistant_turns.index(i)], plain, i, tokenizer) for i in trained]
    else:
        text = _render(plain, tokenizer)
        spans = [_prefix_span(text, plain, index, tokenizer) for index in trained]
    for index, (start, end) in zip(trained, spans, strict=True):
        answer = _REASONING_END.split(plain[index]["content"])[-1].strip()  # templates drop or rewrite the reasoning
        if answer not in text[start:end]:
            raise LabelError(
                f"this chat template does not write message {index + 1} as it is (does it expect a list of parts?); "
                "use a template for plain text"
            )
    return text, spans


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The control tokens and their ids."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def _messages(example: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "messages" in example:
        return list(example["messages"])
    context = [{**message, "train": False} for message in example["prompt"]]
    return [*context, *example["completion"]]


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


def _prefix_span(text: str, messages: list[dict[str, Any]], index: int, tokenizer: PreTrainedTokenizerBase) -> Span:
    """Where turn `index` stands, from what the template writes before it and up to its end."""
    before = _render(messages[:index], tokenizer, add_generation_prompt=True) if index else ""
    if not before:
        raise LabelError(
            "the chat starts with an assistant turn, for which this template has no prompt; start it with a user turn"
        )
    through = text if index == len(messages) - 1 else _render(messages[: index + 1], tokenizer)
    if not text.startswith(through):
        raise LabelError(
            f"this chat template writes message {index + 1} differently once later messages follow, so its tokens "
            "cannot be told for certain; set data.train_on: last_assistant, or give model.chat_template a version "
            "with {% generation %} marks"
        )
    if not through.startswith(before):
        raise LabelError(
            f"this chat template opens message {index + 1} with other text than it gives the model to answer from, so "
            "training and serving would disagree; give model.chat_template a version with {% generation %} marks"
        )
    return len(before), len(through)


def _marked_span(
    text: str, span: Span, messages: list[dict[str, Any]], index: int, tokenizer: PreTrainedTokenizerBase
) -> Span:
    """A marked turn; marks may end just before the token that ends the turn (TRL #5988)."""
    start, end = span
    if not _ends_with_special(text[start:end], tokenizer):
        through = _render(messages[: index + 1], tokenizer)
        if text.startswith(through):
            return start, max(end, len(through))
    return span


def _joined(spans: list[Span]) -> list[Span]:
    """The spans, with those that touch made one."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _turn_tokens(
    span: Span, text: str, input_ids: list[int], offsets: Sequence[Span], stop_ids: frozenset[int]
) -> list[int]:
    """Indices of the tokens of one turn, through the special token that ends it; [] if none does.

    Templates write white space after it. Other text there means that the last special token opens something.
    """
    start, end = span
    inside = [index for index, (left, _) in enumerate(offsets) if start <= left < end]
    stops = [index for index in inside if input_ids[index] in stop_ids]
    if not stops or text[offsets[stops[-1]][1] : end].strip():
        return []
    return [index for index in inside if index <= stops[-1]]


def _ends_with_special(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return text.rstrip().endswith(tuple(special_tokens(tokenizer)))


def _never_stops(turn: str) -> LabelError:
    return LabelError(
        f"{turn} does not end with a special token in this chat template, so the model would never learn to stop; "
        "use a template that writes the end-of-turn token after each answer"
    )


def _has_generation_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(_GENERATION_MARK.search(_template(tokenizer)))


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise LabelError(
            "this model's tokenizer has no chat template; give one in model.chat_template, or use an instruct model"
        )
    return str(template)


def _render(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    _template(tokenizer)
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # jinja2 and the templates' own raise_exception share no narrower type
        raise LabelError(f"the chat template cannot render this chat: {error}") from error
    return str(rendered)


def _render_marked(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, spans = render_jinja_template(
            conversations=[messages],
            chat_template=_template(tokenizer),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:
        raise LabelError(f"the chat template cannot render this chat: {error}") from error
    return rendered[0], [tuple(span) for span in spans[0]]
