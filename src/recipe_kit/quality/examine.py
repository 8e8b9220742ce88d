"""One pass over formatted rows that counts what is worth knowing before training on them.

What stays in memory is counters, a hash of each different row and prompt (about 0.3 KB a row together) and, for near
duplicates, the signatures of `repeats.Sample`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from recipe_kit.formatters import Example, Message
from recipe_kit.quality import repeats
from recipe_kit.quality.repairs import KINDS, find_personal
from recipe_kit.quality.report import (
    HINDI_FLOOR,
    MAX_EXAMPLES,
    MAX_ROWS,
    Found,
    Overlap,
    Quality,
    Repeats,
    Romanised,
    Scripts,
    SplitQuality,
    Spread,
)
from recipe_kit.quality.text import romanised_words, script_counts, word_count

SHORT_WORDS, SHORT_CHARACTERS = 3, 20  # an answer below both is short
ROMANISED_SHARE = 0.05  # of a row's Latin words, from which it reads as romanised Hindi
PROGRESS_ROWS = 1000
_ROLE_FAULTS = ("repeated_roles", "starts_with_assistant", "ends_unanswered")
_FINDINGS = ("empty_answers", "short_answers", *_ROLE_FAULTS, *KINDS)

Progress = Callable[[str, int], None]


def examine(
    splits: Mapping[str, Iterable[Example]],
    *,
    near: bool = True,
    near_threshold: float = 0.8,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Quality:
    """What is worth knowing about the formatted rows of each split; every split but `train` is compared with train.

    Each iterable is read once. Two rows are the same when their turns have the same roles and contents, whether they
    come as `messages` or as `prompt` and `completion`. An answer is short with fewer than 3 words and fewer than 20
    characters, so that a link, a formula or a long compound is not; a row counts when its longest answer is short, so
    that a closing "You're welcome" does not. Where half of the rows have such answers, they are taken for labels.

    Near duplicates take most of the time: a fifth of a millisecond for a row of 1,000 characters. `limit` is the
    number of different rows of each split that are compared, spread evenly by a hash of their content; two near rows
    of which one is not chosen are not seen. `progress` is called with a split's name and the rows read so far, every
    1,000 rows and at the end of the split. datasketch raises ValueError for a `near_threshold` outside 0 to 1.
    """
    sign = repeats.signer() if near else None
    why_not = "" if sign else repeats.MISSING if near else "switched off"
    train: _Tally | None = None
    tallies: dict[str, _Tally] = {}
    for name in sorted(splits, key=lambda name: name != "train"):  # train first: the others are compared with it
        tally = _Tally(repeats.Sample(limit), sign, train)
        for example in splits[name]:
            tally.add(_turns(example))
            if progress and tally.rows % PROGRESS_ROWS == 0:
                progress(name, tally.rows)
        if progress and tally.rows % PROGRESS_ROWS:
            progress(name, tally.rows)
        tallies[name] = tally
        train = tally if name == "train" else train
    return {
        "splits": {name: _split_quality(tallies[name], near_threshold) for name in splits},
        "overlap": {name: _overlap(tallies[name], near_threshold) for name in splits if tallies[name].train},
        "near": {"why_not": why_not, "threshold": near_threshold, "limit": limit},
    }


def _no_repeats() -> Repeats:
    return {"rows": 0, "pairs": []}


@dataclass
class _Rows:
    """A count of rows and of findings in them, and the numbers of the first rows."""

    rows: int = 0
    findings: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, row: int, findings: int = 1) -> None:
        if not findings:
            return
        self.rows += 1
        self.findings += findings
        if len(self.first) < MAX_ROWS:
            self.first.append(row)

    def found(self) -> Found:
        return {"rows": self.rows, "first": self.first}


@dataclass
class _Tally:
    """What is known of a split so far. `train` is the finished tally to compare with, for the other splits."""

    sample: repeats.Sample
    sign: repeats.Sign | None
    train: _Tally | None
    rows: int = 0
    words: int = 0
    contents: dict[int, int] = field(default_factory=dict)  # hash of a row -> the first row with it
    prompts: dict[int, int] = field(default_factory=dict)  # hash of all before a row's last answer -> the first row
    duplicates: Repeats = field(default_factory=_no_repeats)
    exact: Repeats = field(default_factory=_no_repeats)
    same_prompt: Repeats = field(default_factory=_no_repeats)
    in_train: set[int] = field(default_factory=set)  # rows whose whole content is in train
    findings: dict[str, _Rows] = field(default_factory=lambda: {name: _Rows() for name in _FINDINGS})
    answer_words: Counter[int] = field(default_factory=Counter)
    answer_characters: Counter[int] = field(default_factory=Counter)
    script_words: Counter[str] = field(default_factory=Counter)
    script_rows: Counter[str] = field(default_factory=Counter)
    romanised_rows: int = 0
    romanised_words: int = 0

    def add(self, turns: Sequence[Message]) -> None:
        self.rows += 1
        self._count_repeats(turns)
        self._count_answers(turns)
        self._count_scripts([turn["content"] for turn in turns if turn["role"] != "system"])
        for name, wrong in _role_faults([turn["role"] for turn in turns]).items():
            self.findings[name].add(self.rows, wrong)
        personal = Counter(kind for turn in turns for _, _, kind in find_personal(turn["content"]))
        for kind in personal:
            self.findings[kind].add(self.rows, personal[kind])

    def _count_repeats(self, turns: Sequence[Message]) -> None:
        content = _digest(turns)
        first = self.contents.setdefault(content, self.rows)
        if first != self.rows:
            _add_pair(self.duplicates, self.rows, first)
        elif self.sign and self.sample.wants(content):
            signature = self.sign([turn["content"] for turn in turns if turn["role"] != "system"])
            if signature is not None:
                self.sample.add(content, self.rows, signature)
        question = _prompt(turns)
        prompt = _digest(question) if question else None
        if prompt is not None:
            self.prompts.setdefault(prompt, self.rows)
        if self.train and content in self.train.contents:
            self.in_train.add(self.rows)
            _add_pair(self.exact, self.rows, self.train.contents[content])
        elif self.train and prompt is not None and prompt in self.train.prompts:
            _add_pair(self.same_prompt, self.rows, self.train.prompts[prompt])

    def _count_answers(self, turns: Sequence[Message]) -> None:
        longest, empty = (0, 0), 0
        for turn in turns:
            words = word_count(turn["content"])
            self.words += words
            if turn["role"] not in ("assistant", "text") or not turn.get("train", True):
                continue
            characters = len(turn["content"])
            self.answer_words[words] += 1
            self.answer_characters[characters] += 1
            empty += not turn["content"].strip()
            longest = (max(longest[0], words), max(longest[1], len(turn["content"].strip())))
        self.findings["empty_answers"].add(self.rows, empty)
        if 0 < longest[1] < SHORT_CHARACTERS and longest[0] < SHORT_WORDS:
            self.findings["short_answers"].add(self.rows)

    def _count_scripts(self, texts: Sequence[str]) -> None:
        text = "\n".join(texts)
        words = script_counts(text)
        self.script_words.update(words)
        kind = {(True, True): "both", (True, False): "devanagari", (False, True): "latin", (False, False): "other"}
        self.script_rows[kind[words["devanagari"] > 0, words["latin"] > 0]] += 1
        romanised = romanised_words(text)
        if len(set(romanised)) > 1 and len(romanised) >= ROMANISED_SHARE * words["latin"]:
            self.romanised_rows += 1
            self.romanised_words += len(romanised)


def _turns(example: Example) -> list[Message]:
    """The turns of an example in order; a plain text is one turn of the role `text`."""
    parts = cast(Mapping[str, Any], example)
    if "text" in parts:
        return [{"role": "text", "content": parts["text"]}]
    context = [{**turn, "train": False} for turn in parts.get("prompt", ())]
    return [*cast(list[Message], context), *parts.get("completion", ()), *parts.get("messages", ())]


def _prompt(turns: Sequence[Message]) -> list[Message]:
    """All that stands before the last answer, less system turns, case and spacing; [] where nothing does."""
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    return [
        {"role": turn["role"], "content": " ".join(turn["content"].casefold().split())}
        for turn in turns[:last]
        if turn["role"] != "system"
    ]


def _digest(turns: Sequence[Message]) -> int:
    """64 bits of what was said by whom; by chance, two of a million rows agree in one report of 30 million."""
    text = json.dumps([(turn["role"], turn["content"]) for turn in turns], ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _role_faults(roles: Sequence[str]) -> dict[str, bool]:
    spoken = [role for role in roles if role != "system"]
    return {
        "repeated_roles": any(first == second != "tool" for first, second in pairwise(roles)),
        "starts_with_assistant": spoken[:1] == ["assistant"],
        "ends_unanswered": spoken[-1:] == ["user"],
    }


def _add_pair(repeats: Repeats, row: int, other: int) -> None:
    repeats["rows"] += 1
    if len(repeats["pairs"]) < MAX_EXAMPLES:
        repeats["pairs"].append({"row": row, "other": other})


def _split_quality(tally: _Tally, threshold: float) -> SplitQuality:
    found = tally.findings
    short = found["short_answers"].rows
    signatures = tally.sample.signatures()
    return {
        "rows": tally.rows,
        "words": tally.words,
        "exact_duplicates": tally.duplicates,
        "near_duplicates": repeats.near_duplicates(signatures, threshold) if tally.sign else None,
        "empty_answers": found["empty_answers"].found(),
        "short_answers": found["short_answers"].found(),
        "short_answers_are_labels": short > 1 and short * 2 >= tally.rows,
        "repeated_roles": found["repeated_roles"].found(),
        "starts_with_assistant": found["starts_with_assistant"].found(),
        "ends_unanswered": found["ends_unanswered"].found(),
        "personal": {kind: {**found[kind].found(), "findings": found[kind].findings} for kind in KINDS},
        "answers": {
            "count": tally.answer_words.total(),
            "words": _spread(tally.answer_words),
            "characters": _spread(tally.answer_characters),
        },
        "scripts": _scripts(tally),
        "romanised": _romanised(tally),
    }


def _overlap(tally: _Tally, threshold: float) -> Overlap:
    near = None
    if tally.sign and tally.train:
        other = {row: sign for row, sign in tally.sample.signatures().items() if row not in tally.in_train}
        near = repeats.near_overlap(tally.train.sample.signatures(), other, threshold)
    return {"exact": tally.exact, "prompt": tally.same_prompt, "near": near}


def _scripts(tally: _Tally) -> Scripts:
    words, rows = tally.script_words, tally.script_rows
    return {
        "words": {"devanagari": words["devanagari"], "latin": words["latin"], "other": words["other"]},
        "devanagari_rows": rows["devanagari"],
        "latin_rows": rows["latin"],
        "both_rows": rows["both"],
        "other_rows": rows["other"],
    }


def _romanised(tally: _Tally) -> Romanised | None:
    in_devanagari = tally.script_rows["devanagari"] + tally.script_rows["both"]
    if max(in_devanagari, tally.romanised_rows) < max(1, HINDI_FLOOR * tally.rows):
        return None
    return {"rows": tally.romanised_rows, "words": tally.romanised_words}


def _spread(lengths: Counter[int]) -> Spread:
    """Mean, median and 95th percentile (nearest rank) of counted lengths; zeros when there are none."""
    total = lengths.total()
    if not total:
        return {"mean": 0.0, "median": 0, "p95": 0}
    mean = sum(length * count for length, count in lengths.items()) / total
    return {"mean": round(mean, 1), "median": _rank(lengths, 0.5 * total), "p95": _rank(lengths, 0.95 * total)}


def _rank(lengths: Counter[int], rank: float) -> int:
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= rank:
            break
    return length
