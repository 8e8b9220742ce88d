"""The built-in metrics: answers against references, as texts. Packages are imported when a metric is computed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from recipe_kit import __version__
from recipe_kit.errors import MetricError
from recipe_kit.metrics._declare import metric
from recipe_kit.metrics._statistics import Array, Statistics, ratio
from recipe_kit.quality.text import word_count

ROUGE_TYPES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
LETTERS_MISSED = 0.2  # the share of letters that rouge_score may drop before a note says so
_KEPT_BY_ROUGE = re.compile(r"[a-z0-9]")


def latin_letters_note(references: Sequence[str]) -> str:
    """A sentence when `rouge_score` would drop more than a fifth of the references' letters and digits, else "".

    LlamaFactory #6267: six hours of answers, and every ROUGE was 0.0.
    """
    letters = kept = 0
    for reference in references:
        text = reference.lower()
        kept_here = len(_KEPT_BY_ROUGE.findall(text))
        kept += kept_here
        letters += kept_here if text.isascii() else sum(map(str.isalnum, text))
    if not letters or letters - kept <= LETTERS_MISSED * letters:
        return ""
    return (
        f"{(letters - kept) / letters:.0%} of the references' letters are outside a-z and 0-9, and rouge_score drops "
        "these: ROUGE says little about such text. Use chrf, which counts the characters of any script."
    )


def _rouge_settings(use_stemmer: bool, **_: Any) -> dict[str, Any]:
    settings = {"package": "rouge_score", "version": version("rouge_score")}
    return {**settings, "stemmer": f"Porter, nltk {version('nltk')}"} if use_stemmer else settings


def _score_name(rouge_type: str, measure: str) -> str:
    return rouge_type if measure == "fmeasure" else f"{rouge_type}_{measure}"


@metric(
    "rouge",
    label={
        **ROUGE_TYPES,
        **{_score_name(key, m): f"{label} {m}" for key, label in ROUGE_TYPES.items() for m in ("precision", "recall")},
    },
    describe=_rouge_settings,
    note=latin_letters_note,
)
def rouge(
    answers: Sequence[str],
    references: Sequence[str],
    *,
    use_stemmer: bool = True,
    measure: Literal["fmeasure", "precision", "recall"] = "fmeasure",
) -> dict[str, list[float]]:
    """ROUGE-1, -2, -L and -Lsum, 0 to 1, exactly as `rouge_score` gives them.

    Words are runs of a-z and 0-9 in lower case; all other letters are dropped, and a note says so where that is more
    than a fifth of them. `use_stemmer` cuts English endings (Porter). ROUGE-Lsum takes each line as a sentence:
    for texts of one line it equals ROUGE-L. With another `measure` the scores are named `rouge1_recall` and so on.

    LlamaFactory #2140: a ROUGE of its own words differed from `rouge_score`; #4877: it was wrong for English.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=use_stemmer)
    scored = [scorer.score(reference, answer) for answer, reference in _pairs(answers, references)]
    return {_score_name(key, measure): [float(getattr(row[key], measure)) for row in scored] for key in ROUGE_TYPES}


def _chrf_settings(word_order: Literal[0, 1, 2]) -> dict[str, Any]:
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF(word_order=word_order)
    chrf.corpus_score(["a"], [["a"]])  # a signature is made once the number of references is known: one a row
    return {"package": "sacrebleu", "version": version("sacrebleu"), "signature": str(chrf.get_signature())}


@metric("chrf", label={"chrf": "chrF2", "chrf+": "chrF2+", "chrf++": "chrF2++"}, describe=_chrf_settings)
def chrf(
    answers: Sequence[str], references: Sequence[str], *, word_order: Literal[0, 1, 2] = 0
) -> dict[str, Statistics]:
    """chrF of the whole corpus, 0 to 100, exactly as sacrebleu gives it: overlap of characters, in any script.

    `word_order: 2` counts single words and pairs of words too; that score is chrF++ and named so.
    """
    from sacrebleu.metrics.chrf import CHRF

    for _ in _pairs(answers, references):
        pass
    # What sacrebleu's own bootstrap resamples: three counts a row and order, of answer, reference and both.
    counts = CHRF(word_order=word_order)._extract_corpus_statistics(answers, [references])
    return {"chrf" + "+" * word_order: Statistics(np.array(counts, dtype=np.float64), _chrf_of_counts)}


def _chrf_of_counts(sums: Array) -> Array:
    """sacrebleu's `CHRF._compute_f_score` (2.6) for many sums of counts at a time, (..., 3 * orders) -> (...)."""
    precision, recall, orders = np.zeros((3, *sums.shape[:-1]))
    for place in range(0, sums.shape[-1], 3):  # added one by one, as sacrebleu does: equal to the last bit
        in_answer, in_reference, in_both = sums[..., place], sums[..., place + 1], sums[..., place + 2]
        counted = (in_answer > 0) & (in_reference > 0)
        precision += np.where(counted, in_both / np.maximum(in_answer, 1), 0)
        recall += np.where(counted, in_both / np.maximum(in_reference, 1), 0)
        orders += counted
    precision, recall = precision / np.maximum(orders, 1), recall / np.maximum(orders, 1)
    weighted = 4 * precision + recall  # beta is 2, squared
    found: Array = 100 * np.where(weighted > 0, 5 * precision * recall / np.where(weighted > 0, weighted, 1), 0)
    return found


def _own_settings(**_: Any) -> dict[str, Any]:
    return {"package": "recipe-kit", "version": __version__}


@metric("exact_match", label="Exact match", describe=_own_settings)
def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """The share of answers that are their reference, character by character; white space at both ends is ignored."""
    return [float(answer.strip() == reference.strip()) for answer, reference in _pairs(answers, references)]


@metric("normalised_match", label="Normalised match", describe=_own_settings)
def normalised_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """The share of answers that are their reference but for case, punctuation, white space and forms of letters.

    Folded, in any script: upper and lower case (`ß` is `ss`), every character that Unicode calls punctuation (the
    danda `।` too; the minus sign as typed is a hyphen, so -5 matches 5), runs of white space, invisible characters
    such as the zero-width joiner, and forms that look alike (`ﬁ`, full width, composed accents). Not folded:
    accents and vowel signs, symbols such as `$`, and digits of different scripts.
    """
    return [float(_folded(answer) == _folded(reference)) for answer, reference in _pairs(answers, references)]


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kinds = [(character, unicodedata.category(character)) for character in plain]
    letters = "".join(" " if kind[0] == "P" else "" if kind == "Cf" else character for character, kind in kinds)
    return " ".join(letters.split()) or text.strip()  # a text of punctuation only is not the same as no text


@metric("length_ratio", label="Length ratio", higher_is_better=None, describe=_own_settings)
def length_ratio(answers: Sequence[str], references: Sequence[str]) -> Statistics:
    """Words of all answers for each word of all references: 1 is as long, 2 twice as long.

    A word stands between spaces; Chinese, Japanese, Thai, Lao, Khmer and Burmese count by the letter.
    """
    pairs = list(_pairs(answers, references))
    return ratio([word_count(answer) for answer, _ in pairs], [word_count(reference) for _, reference in pairs])


def _pairs(answers: Sequence[str], references: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Answers with their references. An answer may be empty; a row without reference raises MetricError."""
    for row, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        if not reference or not reference.strip():
            raise MetricError(f"row {row} has no reference to compare its answer with; leave the row out")
        yield answer, reference
