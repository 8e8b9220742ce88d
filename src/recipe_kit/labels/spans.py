"""Where the answers stand in a rendered chat.

A template with `{% generation %}` marks says itself what the model writes. Any other template is rendered up to the
turn and up to its end. Both must be prefixes of the whole text. A template that rewrites earlier turns when later ones
arrive (Qwen3 drops old reasoning) breaks that rule; the chat is refused, since a guess would train the wrong tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from recipe_kit.errors import LabelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["assistant", "last_assistant", "all"]
Span = tuple[int, int]
Turns = list[dict[str, Any]]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING_END = re.compile(r"</think>|<channel\|>")


def trained_turns(messages: Sequence[Any], train_on: TrainOn) -> list[int]:
    """Indices of the messages that are trained; [] for `all`, where no turn stands out."""
    if train_on == "all":
        return []
    trained = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("train", True)
    ]
    return trained[-1:] if train_on == "last_assistant" else trained


def find_spans(text: str, messages: Turns, trained: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """The character span of each message of `trained` in `text`, the rendering of all messages.

    A span starts with the first character the model would write and ends where the turn's rendering ends. Raises
    LabelError when the template gives no trustworthy span.
    """
    if _GENERATION_MARK.search(chat_template(tokenizer)):
        spans = _marked_spans(text, messages, trained, tokenizer)
    else:
        spans = [_prefix_span(text, messages, index, tokenizer) for index in trained]
    for index, (start, end) in zip(trained, spans, strict=True):
        answer = _REASONING_END.split(messages[index]["content"])[-1].strip()  # templates drop or rewrite reasoning
        if answer not in text[start:end]:
            raise LabelError(
                f"this chat template does not write message {index + 1} as it is (does it expect a list of parts?); "
                "use a template for plain text"
            )
    return spans


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template in use. Raises LabelError when there is none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise LabelError(
            "this model's tokenizer has no chat template; give one in model.chat_template, or use an instruct model"
        )
    return str(template)


def render(messages: Turns, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False) -> str:
    """The chat as text. Raises LabelError with the template's own reason when it refuses the chat."""
    chat_template(tokenizer)
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # jinja2 and the templates' own raise_exception share no narrower type
        raise LabelError(f"the chat template cannot render this chat: {error}") from error
    return str(rendered)


def render_batch(chats: Sequence[Turns], tokenizer: PreTrainedTokenizerBase) -> list[str | LabelError]:
    """Each chat as text, or why the template refuses it; one call for all while none is refused."""
    if not chats:
        return []
    chat_template(tokenizer)
    try:
        return [str(text) for text in tokenizer.apply_chat_template(list(chats), tokenize=False)]
    except Exception:  # one chat or more is refused: find out which
        return [_rendered_or_refused(chat, tokenizer) for chat in chats]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The control tokens and their ids."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def ends_with_special(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return text.rstrip().endswith(tuple(special_tokens(tokenizer)))


def _rendered_or_refused(chat: Turns, tokenizer: PreTrainedTokenizerBase) -> str | LabelError:
    try:
        return render(chat, tokenizer)
    except LabelError as error:
        return error


def _prefix_span(text: str, messages: Turns, index: int, tokenizer: PreTrainedTokenizerBase) -> Span:
    """Where turn `index` stands, from what the template writes before it and up to its end."""
    before = render(messages[:index], tokenizer, add_generation_prompt=True) if index else ""
    if not before:
        raise LabelError(
            "the chat starts with an assistant turn, for which this template has no prompt; start it with a user turn"
        )
    through = text if index == len(messages) - 1 else render(messages[: index + 1], tokenizer)
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


def _marked_spans(
    text: str, messages: Turns, trained: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[Span]:
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    marked = _marks(messages, tokenizer)
    if len(marked) != len(turns):
        marked = _joined(marked)  # Phi-3's marks give the answer and the end-of-text token after it in two pieces
    if len(marked) != len(turns):
        raise LabelError(
            f"the template's {{% generation %}} marks give {len(marked)} spans for {len(turns)} "
            "assistant turns; correct the template, or set model.chat_template to one that marks every answer once"
        )
    return [_through_the_end(text, marked[turns.index(i)], messages, i, tokenizer) for i in trained]


def _through_the_end(text: str, span: Span, messages: Turns, index: int, tokenizer: PreTrainedTokenizerBase) -> Span:
    """A marked turn; marks may end just before the token that ends the turn (TRL #5988)."""
    start, end = span
    if not ends_with_special(text[start:end], tokenizer):
        through = render(messages[: index + 1], tokenizer)
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


def _marks(messages: Turns, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        _, spans = render_jinja_template(
            conversations=[messages],
            chat_template=chat_template(tokenizer),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:
        raise LabelError(f"the chat template cannot render this chat: {error}") from error
    return [(start, end) for start, end in spans[0]]
