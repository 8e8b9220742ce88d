"""What a GGUF file must say of a tokenizer so that llama.cpp and Ollama cut text into the tokens that were trained."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ADD_BOS, ADD_EOS, ADD_SPACE = (f"tokenizer.ggml.add_{what}" for what in ("bos_token", "eos_token", "space_prefix"))
SCORES = "tokenizer.ggml.scores"


def tokenizer_settings(weights: Path, tokenizer: Any) -> dict[str, Any]:
    """What the converter has to be told of the tokenizer so that llama.cpp and Ollama tokenise as it was trained.

    A file that does not say whether to add BOS gets it from one program and not from another; and llama.cpp puts a
    space before every text that follows a control token unless the file says that the tokenizer does not.
    """
    import gguf

    settings: dict[str, Any] = {}
    with quietly():
        says = gguf.SpecialVocab(weights).add_special_token.get("bos")
    if says is None:
        settings["add_bos_token"] = bool(_wants_bos(tokenizer))
    if (space := space_prefix(tokenizer)) is not None:
        settings["add_prefix_space"] = space[1]
    return settings


def space_prefix(tokenizer: Any) -> tuple[bool, bool] | None:
    """Whether a SentencePiece vocabulary puts a space before a text, and before one that follows a control token.

    None for other vocabularies, which have no such habit.
    """
    if "▁a" not in tokenizer.get_vocab():
        return None
    control = str(tokenizer.eos_token)
    alone, after = (tokenizer.tokenize(text, add_special_tokens=False)[-1] for text in ("a", f"{control}a"))
    return alone == "▁a", after == "▁a"


def settle_flags(reader: Any, tokenizer: Any, report: Callable[[str], None]) -> bool:
    """Make the file add no token that was not trained; whether it adds BOS.

    The flags are the tokenizer's own and training did not use them: it took the chat template's text as it is.
    """
    for key, value in ((ADD_BOS, _wants_bos(tokenizer)), (ADD_EOS, False)):
        field = reader.get_field(key)
        if field is not None and value is not None and bool(field.contents()) != value:
            field.parts[field.data[0]][0] = value
            report(f"{key} set to {str(value).lower()}, as the model was trained")
    reader.data.flush()
    adds_bos = reader.get_field(ADD_BOS)
    return bool(adds_bos.contents()) if adds_bos else False


def settle_scores(reader: Any, weights: Path, report: Callable[[str], None]) -> None:
    """Give a SentencePiece vocabulary the scores of its merges, where the converter has none.

    Without a tokenizer.model, which transformers no longer saves, it writes one and the same score for all tokens, and
    llama.cpp, which joins what scores best first, then cuts words into other tokens than the tokenizer does.
    """
    scores = reader.get_field(SCORES)
    if scores is None or len({float(scores.parts[index][0]) for index in scores.data}) > 1:
        return
    merges = json.loads((weights / "tokenizer.json").read_text(encoding="utf-8"))["model"].get("merges", [])
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), rank)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    for token, index in zip(tokens, scores.data, strict=True):
        scores.parts[index][0] = -float(ranks.get(token, len(merges)))
    reader.data.flush()
    report("token scores set from the tokenizer's merges")


def _wants_bos(tokenizer: Any) -> bool | None:
    """Whether prompts were trained with a BOS that is to be added to them.

    None where the chat template writes it: then it may be added (and is left out of the text) or not.
    """
    if tokenizer.bos_token is None:
        return False
    if not tokenizer.chat_template:
        return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    chat = [{"role": "user", "content": "a"}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return None if text.startswith(tokenizer.bos_token) else False


def quietly() -> contextlib.redirect_stderr[io.StringIO]:
    """Without progress bars, and without the gguf package's guesses about tokenizer files."""
    return contextlib.redirect_stderr(io.StringIO())
