"""Proofs on text: a sample of rows, rendered and decoded anew."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_kit.labels import IGNORED, control_texts, special_tokens
from recipe_kit.proofs.verdict import Rows, Verdict, found, spread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_ROWS = 256
_REASONING = re.compile(r"</?think>|<\|?channel\|?>\w*")


class Sample:
    """Rows evenly spread over the training rows, with the conversations behind them."""

    def __init__(self, train: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
        self.train, self.tokenizer = train, tokenizer
        self.special = special_tokens(tokenizer)
        self.special_text = re.compile("|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) or "(?!)")
        self.indices = spread(len(train.rows), TEXT_ROWS)
        rows = train.rows.select(self.indices)[:]
        self.ids: list[list[int]] = rows["input_ids"]
        self.labels: list[list[int]] = rows["labels"]
        details = train.details.select(self.indices)[:]
        self.truncated: list[bool] = details["truncated"]
        self.turn_lengths: list[list[int]] = details["turn_lengths"]
        examples = train.examples
        self.examples: list[Any] = [examples[index] for index in self.indices]
        self.chats = [messages_of(example) for example in self.examples]

    def __len__(self) -> int:
        return len(self.indices)

    def render(self, number: int, content: Callable[[str], str] = str) -> str | None:
        """The chat of a row through `apply_chat_template`, its messages passed through `content`; None for text."""
        chat = self.chats[number]
        if chat is None:
            return None
        turns = [{"role": m["role"], "content": content(m["content"])} for m in chat]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False))


def only_answers_trained(sample: Sample, *, whole: bool, last: bool) -> Verdict:
    """Each trained turn, decoded, is an answer of the conversation and the control tokens around it, nothing more.

    The first characters of an answer may be missing: where a token holds the end of the prompt and the start of the
    answer, it is the prompt's. `whole` and `last` say how the recipe trains: all tokens, or not every answer.
    """
    name = "only_answers_trained"
    if whole:
        return Verdict(name, True, "data.train_on: all trains prompts too, as the recipe says")
    wrong, shortened, turns = [], 0, 0
    for number, chat in enumerate(sample.chats):
        if chat is None:
            continue
        runs = _decoded_turns(sample, number)
        answers = [m["content"] for m in chat if m["role"] == "assistant" and m.get("train", True)]
        answers = answers[len(answers) - len(runs) :] if last else answers[: len(runs)]
        turns += len(runs)
        for place, (run, answer) in enumerate(zip(runs, answers, strict=False)):
            whole_turn = place < len(runs) - 1 or not sample.truncated[number]
            missing = _missing(run, answer, sample.special_text, whole_turn=whole_turn)
            shortened += missing is not None and missing > 0
            if missing is None:
                wrong.append(sample.indices[number])
                break
        if not answers or len(answers) != len(runs):
            wrong.append(sample.indices[number])
    note = f"; {shortened:,} answers share their first token with the prompt" if shortened else ""
    return found(
        name, wrong, sample.train,
        f"{turns:,} trained turns of {len(sample):,} rows are answers and nothing else{note}",
        "rows that train other text than their answers", "report this with the chat template in use",
    )  # fmt: skip


def one_bos(sample: Sample) -> Verdict:
    """As many BOS tokens as the template writes, at the same place, and never two in a row."""
    bos, token = sample.tokenizer.bos_token_id, sample.tokenizer.bos_token
    if bos is None:
        return Verdict("one_bos", True, "this tokenizer has no BOS token")
    wrong = []
    for number, ids in enumerate(sample.ids):
        text = sample.render(number)
        count = ids.count(bos)
        if text is None:
            expected, begins = int(count > 0), True
        else:
            expected, begins = text.count(token), text.startswith(token) == (ids[:1] == [bos])
        doubled = any(one == bos == other for one, other in pairwise(ids))
        if doubled or not begins or (count != expected and not sample.truncated[number]):
            wrong.append(sample.indices[number])
    return found(
        "one_bos", wrong, sample.train,
        f"{token} stands where the template writes it, never twice; {len(sample):,} rows",
        f"rows with more or fewer {token} than the template writes",
        "let the template or the tokenizer write it, not both",
    )  # fmt: skip


def no_forged_turns(sample: Sample) -> Verdict:
    """The control tokens of a row are those its template writes around messages that say nothing, in that order."""
    special = sample.special
    ids_of, refused = frozenset(special.values()), len(control_texts(sample.tokenizer))
    wrong, known = [], {}
    for number, ids in enumerate(sample.ids):
        chat = sample.chats[number]
        if chat is None:
            continue
        shape = tuple((m["role"], bool(m["content"].strip())) for m in chat)
        if shape not in known:
            text = sample.render(number, lambda content: "x" if content.strip() else content)
            known[shape] = [special[token] for token in sample.special_text.findall(text or "")]
        brought = [token for token in ids if token in ids_of]
        if brought != (known[shape][: len(brought)] if sample.truncated[number] else known[shape]):
            wrong.append(sample.indices[number])
    return found(
        "no_forged_turns", wrong, sample.train,
        f"every control token was written by the template; {len(sample):,} rows, {refused:,} control texts refused",
        "rows whose messages bring control tokens of their own", "take the control text out of these rows",
    )  # fmt: skip


def serving_renders_the_same(sample: Sample) -> Verdict:
    """The tokenizer, saved and loaded as a server does, renders and tokenises the rows to the trained token ids."""
    from transformers import AutoTokenizer

    name = "serving_renders_the_same"
    with tempfile.TemporaryDirectory() as folder:
        sample.tokenizer.save_pretrained(folder)
        served = AutoTokenizer.from_pretrained(folder)
        files = {path.name for path in Path(folder).iterdir()}
    if sample.tokenizer.chat_template and not served.chat_template:
        missing = f"the chat template is missing from the saved tokenizer ({', '.join(sorted(files))})"
        return Verdict(name, False, missing, "set model.chat_template")
    wrong, compared = [], 0
    for number, ids in enumerate(sample.ids[:64]):
        chat = sample.chats[number]
        if chat is None:
            continue
        turns = [{"role": m["role"], "content": m["content"]} for m in chat]
        rendered = list(served.apply_chat_template(turns, tokenize=True, return_dict=False))
        compared += 1
        if rendered[: len(ids)] != ids or (len(rendered) != len(ids) and not sample.truncated[number]):
            wrong.append(sample.indices[number])
    return found(
        name, wrong, sample.train, f"{compared:,} rows give the trained token ids with the saved tokenizer",
        "rows that the saved tokenizer renders otherwise than they are trained",
        "give the template in model.chat_template and its variables in model.chat_template_kwargs",
    )  # fmt: skip


def messages_of(example: Any) -> list[dict[str, Any]] | None:
    """The messages of a formatted row, those of a prompt marked as not trained; None for plain text."""
    if "text" in example:
        return None
    prompt = [{**message, "train": False} for message in example.get("prompt", [])]
    return [*prompt, *example.get("completion", []), *example.get("messages", [])]


def _decoded_turns(sample: Sample, number: int) -> list[str]:
    trained = [label for label in sample.labels[number] if label != IGNORED]
    texts, start = [], 0
    for length in sample.turn_lengths[number]:
        texts.append(sample.tokenizer.decode(trained[start : start + length], clean_up_tokenization_spaces=False))
        start += length
    return texts


def _missing(run: str, answer: str, special: re.Pattern[str], *, whole_turn: bool) -> int | None:
    """How many first characters of the answer a trained turn lacks; None if the turn holds other text than the answer.

    Reasoning tags and control tokens may stand around the answer, and reasoning may be rewritten by the template.
    """
    core = special.sub("", _REASONING.sub("", run)).strip()
    bare = _REASONING.sub("", answer).strip()
    if not whole_turn:  # cut at max_length; a character of several tokens may be cut in two
        core = core.rstrip("\ufffd")
        return 0 if bare.startswith(core) or core in bare else None
    core = core.lstrip("\ufffd")
    if core == bare or " ".join(core.split()) == " ".join(bare.split()):
        return 0
    lacking = len(bare) - len(core)
    return lacking if 0 < lacking <= 16 and bare.endswith(core) else None
