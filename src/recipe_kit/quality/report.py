"""What the quality report holds, and how a person reads it.

Rows are numbered from 1, in the order they were given. Of each finding the report keeps counts and the first few
places; it never holds a row's text.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from recipe_kit.quality.repairs import Kind
from recipe_kit.quality.text import Script

MAX_EXAMPLES = 3  # pairs of rows
MAX_ROWS = 5  # row numbers
_PERSONAL: dict[Kind, str] = {
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "card": "payment card numbers",
}
HINDI_FLOOR = 0.01  # share of rows in Devanagari or in romanised Hindi from which Hindi is reported


class Found(TypedDict):
    """Rows with a finding, and the numbers of the first of them."""

    rows: int
    first: list[int]


class Personal(Found):
    """`findings` counts places, of which a row may have several."""

    findings: int


class Pair(TypedDict):
    """Two rows that repeat one another: `other` comes earlier in the split or, for overlap, in train."""

    row: int
    other: int
    jaccard: NotRequired[float]


class Repeats(TypedDict):
    """Rows that repeat another one, and the first pairs."""

    rows: int
    pairs: list[Pair]


class NearDuplicates(Repeats):
    """`rows` nearly repeat the first row of one of `groups`; `examined` different rows were compared."""

    examined: int
    groups: int


class NearOverlap(Repeats):
    """`rows` of `examined` evaluation rows nearly repeat one of `train_examined` training rows."""

    examined: int
    train_examined: int


class Overlap(TypedDict):
    """Rows of an evaluation split that are in train: whole; up to the last answer, less case and spacing; or nearly.

    Rows in `exact` are in neither of the others; a row can be in both of those.
    """

    exact: Repeats
    prompt: Repeats
    near: NearOverlap | None


class Spread(TypedDict):
    mean: float
    median: int
    p95: int


class Answers(TypedDict):
    """Lengths of the answers to learn: assistant turns, less those with `train: False`; a plain text is one answer."""

    count: int
    words: Spread
    characters: Spread


class Scripts(TypedDict):
    """Words with a letter, and rows, by script; system turns are left out. A row in `other` has neither of the two."""

    words: dict[Script, int]
    devanagari_rows: int
    latin_rows: int
    both_rows: int
    other_rows: int


class Romanised(TypedDict):
    """Rows that read as romanised Hindi, and the words in them that are on a list of frequent function words.

    An estimate: a row counts with two different words of the list that make up 5 % of its Latin words. Function
    words are about a quarter of running text, so `words` is a lower bound.
    """

    rows: int
    words: int


class SplitQuality(TypedDict):
    rows: int
    words: int  # of all turns; token counts divided by this are tokens per word
    exact_duplicates: Repeats
    near_duplicates: NearDuplicates | None
    empty_answers: Found
    short_answers: Found
    short_answers_are_labels: bool  # half of the rows or more have one: labels, as it seems, and meant
    repeated_roles: Found
    starts_with_assistant: Found
    ends_unanswered: Found
    personal: dict[Kind, Personal]
    answers: Answers
    scripts: Scripts
    romanised: Romanised | None  # None below the floor


class NearSettings(TypedDict):
    """How near duplicates were looked for; `why_not` is empty when they were."""

    why_not: str
    threshold: float
    limit: int | None


class Quality(TypedDict):
    """`overlap` has an entry for each split other than train, when there is a train split."""

    splits: dict[str, SplitQuality]
    overlap: dict[str, Overlap]
    near: NearSettings


def lines(report: Quality) -> list[str]:
    """The report for a person: a finding a line, warnings first; the last line says what was looked for."""
    return [*warnings(report), *_remarks(report), _looked_for(report)]


def warnings(report: Quality) -> list[str]:
    """The findings to look at before training; empty for data without any."""
    found = []
    for name, overlap in report["overlap"].items():
        of = f"{report['splits'][name]['rows']:,} rows"
        for key, words in (("exact", "in train, word for word"), ("prompt", "prompt in train, with another answer")):
            repeats: Repeats = overlap[key]  # type: ignore[literal-required]
            if repeats["rows"]:
                found.append(f"{name}: {words}: {repeats['rows']:,} of {of} ({_pairs(repeats, 'train row')})")
        if (near := overlap["near"]) and near["rows"]:
            found.append(
                f"{name}: nearly the same in train: {near['rows']:,} of {near['examined']:,} rows compared with "
                f"{near['train_examined']:,} ({_pairs(near, 'train row')})"
            )
    for name, split in report["splits"].items():
        found += [f"{name}: {line}" for line in _split_warnings(split, report["near"]["threshold"])]
    return found


def _split_warnings(split: SplitQuality, threshold: float) -> list[str]:
    of, found = f"{split['rows']:,} rows", []
    if (exact := split["exact_duplicates"])["rows"]:
        found.append(f"repeats of an earlier row, word for word: {exact['rows']:,} of {of} ({_pairs(exact, 'row')})")
    if (near := split["near_duplicates"]) and near["rows"]:
        found.append(
            f"near repeats of an earlier row: {near['rows']:,} of {near['examined']:,} different rows, in "
            f"{near['groups']:,} {'groups' if near['groups'] > 1 else 'group'} ({_pairs(near, 'row')}; "
            f"counted from an estimated Jaccard of {threshold:g})"
        )
    turns: list[tuple[str, Found]] = [
        ("empty answers", split["empty_answers"]),
        ("two turns of one role one after another", split["repeated_roles"]),
        ("an answer before any question", split["starts_with_assistant"]),
        ("a last question without an answer", split["ends_unanswered"]),
    ]
    if not split["short_answers_are_labels"]:
        turns.insert(1, ("no answer longer than two words", split["short_answers"]))
    found += [f"{words}: {rows['rows']:,} of {of} ({_rows(rows)})" for words, rows in turns if rows["rows"]]
    for kind, words in _PERSONAL.items():
        personal = split["personal"][kind]
        if personal["rows"]:
            found.append(f"{words}: {personal['findings']:,} in {personal['rows']:,} of {of} ({_rows(personal)})")
    return found


def _remarks(report: Quality) -> list[str]:
    remarks = []
    for name, split in report["splits"].items():
        words, characters = split["answers"]["words"], split["answers"]["characters"]
        remarks.append(
            f"{name}: {split['rows']:,} rows, {split['words']:,} words; {split['answers']['count']:,} answers of "
            f"{words['mean']:,.1f} words in the mean (median {words['median']:,}, 95 % up to {words['p95']:,}) and "
            f"{characters['mean']:,.1f} characters (median {characters['median']:,}, 95 % up to {characters['p95']:,})"
        )
        if split["short_answers_are_labels"]:
            short = f"{split['short_answers']['rows']:,} of {split['rows']:,} rows"
            remarks.append(f"{name}: answers of one or two words, taken for labels: {short}")
        remarks += [f"{name}: {line}" for line in _language(split)]
    if report["near"]["why_not"]:
        remarks.append(f"near duplicates: not looked for; {report['near']['why_not']}")
    return remarks


def _language(split: SplitQuality) -> list[str]:
    scripts, romanised, found = split["scripts"], split["romanised"], []
    words = scripts["words"]
    total = sum(words.values()) or 1
    if words["devanagari"] + words["other"] >= HINDI_FLOOR * total:
        found.append(
            f"scripts: {words['devanagari'] / total:.1%} of words Devanagari, {words['latin'] / total:.1%} Latin, "
            f"{words['other'] / total:.1%} other; rows: {scripts['devanagari_rows']:,} Devanagari only, "
            f"{scripts['latin_rows']:,} Latin only, {scripts['both_rows']:,} both"
        )
    if romanised and romanised["rows"]:
        share = romanised["words"] / (words["latin"] or 1)
        found.append(
            f"romanised Hindi, estimated: {romanised['rows']:,} of {split['rows']:,} rows; "
            f"{share:.1%} of Latin words are Hindi function words"
        )
    return found


def _looked_for(report: Quality) -> str:
    parts = ["repeated rows", "empty and short answers", "role order", "e-mail addresses, phone and card numbers"]
    if not report["near"]["why_not"]:
        limit = report["near"]["limit"]
        most = "" if limit is None else f", at most {limit:,} rows a split"
        parts.insert(1, f"near repeats (estimated Jaccard from {report['near']['threshold']:g}{most})")
    if report["overlap"]:
        parts.insert(0, f"rows of {' and '.join(report['overlap'])} in train")
    return f"looked for: {'; '.join(parts)}; scripts and romanised Hindi"


def _rows(found: Found) -> str:
    numbers = ", ".join(f"{number:,}" for number in found["first"])
    return f"{'row' if found['rows'] == 1 else 'rows'} {numbers}{', …' if found['rows'] > len(found['first']) else ''}"


def _pairs(repeats: Repeats, other: str) -> str:
    shown = []
    for pair in repeats["pairs"]:
        jaccard = f": {pair['jaccard']:.2f}" if "jaccard" in pair else ""
        shown.append(f"row {pair['row']:,} like {other} {pair['other']:,}{jaccard}")
    return ", ".join([*shown, "…"] if repeats["rows"] > len(shown) else shown)
