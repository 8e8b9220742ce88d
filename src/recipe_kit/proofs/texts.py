"""Proofs on text: a sample of rows, rendered and decoded anew."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_kit.labels import IGNORED, TrainOn, control_texts, special_tokens, trained_turns
from recipe_kit.proofs.verdict import Rows, Verdict, found, spread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_ROWS = 256
SERVED_ROWS = 64  # of them are tokenised anew
_STAND_IN = "\ue000"
_MARKS = re.compile(r"\{%-?\s*(generation)\s*-?%\}")
_REASONING_END = re.compile(r"</think>|<channel\|>")
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
        examples = train.examples
        self.examples: list[Any] = [examples[index] for index in self.indices]
        self.chats = [messages_of(example) for example in self.examples]

    def __len__(self) -> int:
        return len(self.indices)

    def stretches(self, number: int) -> list[tuple[int, int]]:
        """Start and end of each stretch of trained tokens in a row."""
        edges = [0, *(label != IGNORED for label in self.labels[number]), 0]
        changes = [place for place, (one, other) in enumerate(pairwise(edges)) if one != other]
        return list(zip(changes[::2], changes[1::2], strict=True))

    def written_before(self, number: int, message: int) -> str:
        """What the template writes between the message before and this one, without control tokens."""
        text = self.render(number, lambda content: _STAND_IN) or ""
        pieces = self.special_text.sub("", text).split(_STAND_IN)
        return _canonical(pieces[message]) if len(pieces) > message else ""

    def render(self, number: int, content: Callable[[str], str] = str) -> str | None:
        """The chat of a row through `apply_chat_template`, its messages passed through `content`; None for text."""
        chat = self.chats[number]
        if chat is None:
            return None
        turns = [{"role": m["role"], "content": content(m["content"])} for m in chat]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False))


def only_answers_trained(sample: Sample, train_on: TrainOn) -> Verdict:
    """Each stretch of trained tokens, decoded, is an answer that is to be trained, and nothing more.

    Around it may stand what the template writes there after the generation prompt, but nothing of the prompt. The
    first characters of an answer may be missing: where a token holds the end of the prompt and the start of the
    answer, it is the prompt's.
    """
    name = "only_answers_trained"
    if train_on == "all":
        return Verdict(name, True, "data.train_on: all trains prompts too, as the recipe says")
    wrong, shortened, turns = [], 0, 0
    for number, chat in enumerate(sample.chats):
        if chat is None:
            continue
        stretches = sample.stretches(number)
        wanted = trained_turns(chat, train_on)
        turns += len(stretches)
        fine = len(stretches) == len(wanted) or (sample.truncated[number] and len(stretches) < len(wanted))
        for place, (start, end) in enumerate(stretches if fine else ()):
            whole = place < len(stretches) - 1 or not sample.truncated[number]
            missing = _missing(sample, number, wanted[place], sample.labels[number][start:end], whole=whole)
            shortened += bool(missing)
            fine = (
                fine
                and missing is not None
                and (number >= SERVED_ROWS or _after_prompt(sample, number, wanted[place], start))
            )
        if not fine:
            wrong.append(sample.indices[number])
    note = f"; {shortened:,} answers share their first token with the prompt" if shortened else ""
    return found(
        name, wrong, sample.train,
        f"{turns:,} trained turns of {len(sample):,} rows are answers and nothing else{note}",
        "rows with other text trained than answers", "report this with the chat template in use",
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
            expected = int(sample.tokenizer("x")["input_ids"][:1] == [bos])
            expected, begins = max(expected, count), (ids[:1] == [bos]) >= bool(expected)
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
        "rows with control tokens brought by a message", "take the control text out of these rows",
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
    if "strftime_now(" in str(served.chat_template):
        clock = "the chat template asks the clock, so that another day renders another text"
        return Verdict(name, False, clock, "set its date in model.chat_template_kwargs, or write it into the template")
    wrong, compared = [], 0
    for number, ids in enumerate(sample.ids[:SERVED_ROWS]):
        chat = sample.chats[number]
        compared += 1
        if chat is None:
            text = str(sample.examples[number]["text"]).removeprefix(str(served.bos_token or ""))
            plain = list(served(text.removesuffix(str(served.eos_token)))["input_ids"])
            rendered = [*(plain[:-1] if plain[-1:] == [served.eos_token_id] else plain), served.eos_token_id]
        else:
            turns = [{"role": m["role"], "content": m["content"]} for m in chat]
            rendered = list(served.apply_chat_template(turns, tokenize=True, return_dict=False))
        if rendered[: len(ids)] != ids or (len(rendered) != len(ids) and not sample.truncated[number]):
            wrong.append(sample.indices[number])
    return found(
        name, wrong, sample.train, f"{compared:,} rows give the trained token ids with the saved tokenizer",
        "rows with other token ids from the saved tokenizer than are trained",
        "give the template in model.chat_template and its variables in model.chat_template_kwargs",
    )  # fmt: skip


def messages_of(example: Any) -> list[dict[str, Any]] | None:
    """The messages of a formatted row, those of a prompt marked as not trained; None for plain text."""
    if "text" in example:
        return None
    prompt = [{**message, "train": False} for message in example.get("prompt", [])]
    return [*prompt, *example.get("completion", []), *example.get("messages", [])]


def _after_prompt(sample: Sample, number: int, message: int, start: int) -> bool:
    """Whether a trained turn starts no earlier than the generation prompt ends; marks may say otherwise on purpose."""
    if "generation" in _MARKS.findall(str(sample.tokenizer.chat_template)):
        return True
    turns = [{"role": m["role"], "content": m["content"]} for m in (sample.chats[number] or [])[:message]]
    if not turns:
        return True
    prompt = sample.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    same = next(
        (n for n, pair in enumerate(zip(prompt, sample.ids[number], strict=False)) if pair[0] != pair[1]), len(prompt)
    )
    return start >= same


def _missing(sample: Sample, number: int, message: int, ids: list[int], *, whole: bool) -> int | None:
    """How many first characters of the answer a trained turn lacks; None if the turn holds other text than the answer.

    Reasoning may be dropped or rewritten by the template. `whole` says that the turn was not cut at `max_length`.
    """
    answer = (sample.chats[number] or [])[message]["content"]
    run = sample.special_text.sub("", sample.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    core = _canonical(_REASONING.sub(" ", run))
    bare = _canonical(_REASONING.sub(" ", answer))
    said = _canonical(_REASONING_END.split(answer)[-1])  # templates drop the reasoning of earlier turns
    if not whole:  # a character of several tokens may be cut in two
        return 0 if core.rstrip("\ufffd") in bare or core.rstrip("\ufffd") in said else None
    core = core.lstrip("\ufffd")
    if core in (bare, said):
        return 0
    if bare and core.endswith(bare) and sample.written_before(number, message).endswith(core[: -len(bare)].strip()):
        return 0
    lacking = len(bare) - len(core)
    return lacking if 0 < lacking <= 16 and bare.endswith(core) else None


def _canonical(text: str) -> str:
    """Text without what tokenizers that normalise change, nor white space that templates trim."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
