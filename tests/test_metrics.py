"""Metrics give the numbers of the packages they name, intervals mean what they say, and plugins cannot spoil a run."""

from __future__ import annotations

import json
import math
import pickle
import sys
import unicodedata
from fractions import Fraction

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from recipe_kit.errors import MetricError, RegistryError
from recipe_kit.metrics import (
    Scored,
    Statistics,
    _declare,
    check_options,
    compare,
    estimate,
    get_metric,
    grouped,
    mean,
    metric,
    metric_names,
    note,
    ratio,
    score,
    score_entry,
    select,
)
from recipe_kit.metrics.intervals import sign_test

ANSWERS = ["The cat sat on a mat.", "It rains.\nTake an umbrella.", "", "Walking is healthy"]
REFERENCES = [
    "A cat was sitting on the mat.",
    "Take umbrellas.\nIt will rain today.",
    "Nothing.",
    "Walks are healthy.",
]
HINDI = ["मुझे एक मेज़ बुक करनी है।", "आपका नाम क्या है?"]


def scored(name, answers=ANSWERS, references=REFERENCES, **options):
    return score(name, options, answers, references)


def values(name, answers=ANSWERS, references=REFERENCES, **options):
    (found,) = scored(name, answers, references, **options).values()
    return found.statistics.values().tolist()


# Metrics a recipe may name as `test_metrics:NAME`.


def counts_words(answers, references, *, per: float = 1.0):
    return [len(answer.split()) / per for answer in answers]


def raises(answers, references):
    return [1 / len(answer) for answer in answers]


def too_few(answers, references):
    return [1.0] * (len(answers) - 1)


def not_a_number(answers, references):
    return [0.5, float("nan"), 0.5, 0.5]


def nothing_for_a_row(answers, references):
    return [0.5, 0.5, None, 0.5]


def numbers_as_text(answers, references):
    return ["0.5"] * len(answers)


def one_number(answers, references):
    return 0.5


def no_score(answers, references):
    return {}


def too_few_under_a_name(answers, references):
    return {"long": [1.0] * len(answers), "short": [1.0]}


def refuses_a_row(answers, references):
    raise MetricError("row 2 is empty, which this metric cannot score")


def first_row_for_first_column(answers, references):
    return Statistics(np.ones((len(answers), 2)), lambda sums: sums[0] / sums[1])


def statistics_of_too_few(answers, references):
    return mean([1.0])


def sums_to_nothing(answers, references):
    return ratio([0.0] * len(answers), [0.0] * len(answers))


not_callable = "a sentence"


# ROUGE


@pytest.mark.parametrize("use_stemmer", [True, False])
@pytest.mark.parametrize(("measure", "ending"), [("fmeasure", ""), ("recall", "_recall"), ("precision", "_precision")])
def test_rouge_is_what_rouge_score_gives(use_stemmer, measure, ending):
    """LlamaFactory #2140: its ROUGE differed from rouge_score. #4877: it was wrong for English."""
    found = scored("rouge", use_stemmer=use_stemmer, measure=measure)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=use_stemmer)
    rows = [scorer.score(reference, answer) for answer, reference in zip(ANSWERS, REFERENCES, strict=True)]
    assert {name: entry.statistics.values().tolist() for name, entry in found.items()} == {
        f"{name}{ending}": [getattr(row[name], measure) for row in rows]
        for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")
    }


def test_rouge_of_a_sentence_worked_out_by_hand():
    found = scored("rouge", ["the cat sat"], ["the cat sat on the mat"], use_stemmer=False)
    assert {name: round(entry.statistics.value(), 6) for name, entry in found.items()} == {
        "rouge1": 0.666667,  # 3 of 3 and 3 of 6 words
        "rouge2": 0.571429,  # 2 of 2 and 2 of 5 pairs
        "rougeL": 0.666667,
        "rougeLsum": 0.666667,
    }


def test_rouge_lsum_takes_lines_as_sentences_and_their_order_does_not_matter():
    found = scored("rouge", ["It rains.\nTake an umbrella."], ["Take an umbrella.\nIt rains."])
    assert found["rougeLsum"].statistics.value() == 1
    assert found["rougeL"].statistics.value() == pytest.approx(0.6)


def test_rouge_says_how_it_was_computed():
    found = scored("rouge")
    assert {name: entry.label for name, entry in found.items()} == {
        "rouge1": "ROUGE-1",
        "rouge2": "ROUGE-2",
        "rougeL": "ROUGE-L",
        "rougeLsum": "ROUGE-Lsum",
    }
    settings = found["rougeL"].settings
    assert settings["package"] == "rouge_score"
    assert settings["version"] == "0.1.2"
    assert settings["stemmer"].startswith("Porter, nltk 3.")
    assert settings["options"] == {"use_stemmer": True, "measure": "fmeasure"}
    assert scored("rouge", measure="recall")["rougeL_recall"].label == "ROUGE-L recall"
    assert "stemmer" not in scored("rouge", use_stemmer=False)["rouge1"].settings


def test_rouge_of_devanagari_is_zero_even_for_equal_texts_and_a_note_says_so():
    """LlamaFactory #6267: all scores were 0.0, after six hours."""
    found = scored("rouge", HINDI, HINDI)
    assert [entry.statistics.value() for entry in found.values()] == [0, 0, 0, 0]
    assert found["rougeL"].note == (
        "100% of the references' letters are outside a-z and 0-9, and rouge_score drops these: ROUGE says little "
        "about such text. Use chrf, which counts the characters of any script."
    )
    assert note("rouge", HINDI) == found["rougeL"].note
    assert scored("chrf", HINDI, HINDI)["chrf"].statistics.value() == 100
    assert note("chrf", HINDI) == ""


@pytest.mark.parametrize(
    ("references", "share"),
    [
        (["abcd नम"], "33%"),
        (["abcdefgh नम"], None),  # a fifth is not more than a fifth
        (["abcdefg नम"], "22%"),
        (["Un café très chaud, à Orléans, s'il vous plaît"], None),
        (["Kal 8 baje 4 logon ke liye table chahiye"], None),
        (["A full English sentence of some length.", "मुझे"], None),
        (["?! ... 👍"], None),
        ([""], None),
    ],
)
def test_a_note_comes_with_more_than_a_fifth_of_letters_that_rouge_score_drops(references, share):
    text = note("rouge", references)
    assert text.startswith(f"{share} of") if share else text == ""


@pytest.mark.reference
def test_rouge_and_chrf_agree_with_their_packages_on_200_real_rows(reference):
    lines = (reference / "data" / "dialogue_summary_mts.test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    references = [row["summary"] for row in rows]
    answers = [row["dialogue"].replace("\n", " ")[: 20 + 3 * index] for index, row in enumerate(rows)]
    assert len(rows) == 200
    found = scored("rouge", answers, references)
    scorer = RougeScorer(list(found), use_stemmer=True)
    expected = [scorer.score(target, answer) for answer, target in zip(answers, references, strict=True)]
    for name, entry in found.items():
        assert entry.statistics.values().tolist() == [row[name].fmeasure for row in expected]
        assert entry.statistics.value() == pytest.approx(math.fsum(row[name].fmeasure for row in expected) / 200)
        assert 0.02 < entry.statistics.value() < 0.6
    for order, name in ((0, "chrf"), (2, "chrf++")):
        ours = scored("chrf", answers, references, word_order=order)[name].statistics.value()
        assert ours == CHRF(word_order=order).corpus_score(answers, [references]).score


# chrF


@pytest.mark.parametrize(
    ("order", "name", "label"), [(0, "chrf", "chrF2"), (1, "chrf+", "chrF2+"), (2, "chrf++", "chrF2++")]
)
def test_chrf_of_corpus_and_rows_is_what_sacrebleu_gives(order, name, label):
    answers, references = [*ANSWERS, "मुझे मेज़ चाहिए", "a"], [*REFERENCES, HINDI[0], "b"]
    entry = scored("chrf", answers, references, word_order=order)[name]
    theirs = CHRF(word_order=order)
    assert entry.statistics.value() == theirs.corpus_score(answers, [references]).score
    assert entry.statistics.values().tolist() == [
        theirs.sentence_score(answer, [reference]).score for answer, reference in zip(answers, references, strict=True)
    ]
    assert entry.label == label == theirs.corpus_score(answers, [references]).name
    assert entry.settings["signature"] == str(theirs.get_signature())
    assert entry.settings["options"] == {"word_order": order}
    assert entry.settings["package"] == "sacrebleu"


def test_chrf_of_some_rows_is_what_sacrebleu_gives_for_them():
    whole = scored("chrf")["chrf"].statistics
    part = select(whole, [True, False, False, True])
    assert part.value() == CHRF().corpus_score([ANSWERS[0], ANSWERS[3]], [[REFERENCES[0], REFERENCES[3]]]).score
    assert part.value() != whole.value()


# Matches and lengths


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "normalised"),
    [
        ("Yes.", "Yes.", 1, 1),
        (" Yes.\n", "Yes.", 1, 1),
        ("yes", "Yes.", 0, 1),
        ("No.", "Yes.", 0, 0),
        ("", "Yes.", 0, 0),
        ("one  two\nthree", "One, two: three!", 0, 1),
        ("it’s fine", "It's fine", 0, 1),
        ("STRASSE", "Straße", 0, 1),
        ("cafe\u0301", "caf\u00e9", 0, 1),
        ("cafe", "café", 0, 0),
        ("ＯＫ", "ok", 0, 1),
        ("10.5", "105", 0, 0),
        ("-5", "5", 0, 1),
        ("$5", "5", 0, 0),
        ("...", "!", 0, 0),
        ("", "...", 0, 0),
        ("👍", "👍", 1, 1),
        ("मुझे एक मेज़ बुक करनी है", "मुझे एक मेज़ बुक करनी है।", 0, 1),
        (unicodedata.normalize("NFD", HINDI[0]), HINDI[0], None, 1),
        ("मुझे एक मेज बुक करना है।", "मुझे एक मेज़ बुक करनी है।", 0, 0),
        ("क्\u200dष", "क्ष", 0, 1),
        ("१२", "12", 0, 0),
    ],
)
def test_what_counts_as_a_match(answer, reference, exact, normalised):
    assert values("normalised_match", [answer], [reference]) == [normalised]
    assert exact is None or values("exact_match", [answer], [reference]) == [exact]


def test_length_ratio_is_a_ratio_of_sums():
    answers, references = ["one two three four", "नमस्ते दुनिया", ""], ["one", "नमस्ते", "one two"]
    entry = scored("length_ratio", answers, references)["length_ratio"]
    assert entry.statistics.value() == 6 / 4
    assert entry.statistics.values().tolist() == [4, 2, 0]
    assert entry.higher_is_better is None
    assert math.isnan(values("length_ratio", ["one", "two"], ["👍", "two"])[0])  # no word to divide by


@pytest.mark.parametrize("name", ["rouge", "chrf", "exact_match", "normalised_match", "length_ratio"])
def test_an_empty_answer_scores_zero(name):
    for entry in scored(name, ["", " "], ["One.", "Two."]).values():
        assert entry.statistics.value() == 0


@pytest.mark.parametrize("missing", ["", " \n", None])
@pytest.mark.parametrize("name", ["rouge", "chrf", "exact_match", "normalised_match", "length_ratio"])
def test_a_missing_reference_is_refused_with_its_row(name, missing):
    with pytest.raises(MetricError, match=rf"metric '{name}' from package recipe-kit .*: row 3 has no reference"):
        scored(name, ANSWERS, [*REFERENCES[:3], missing])


def test_every_built_in_says_what_decides_its_number():
    assert {"chrf", "exact_match", "length_ratio", "normalised_match", "rouge"} <= set(metric_names())
    for name in ("chrf", "exact_match", "length_ratio", "normalised_match", "rouge"):
        for entry in scored(name).values():
            assert {"package", "version", "options"} <= set(entry.settings)
            assert json.loads(json.dumps(entry.settings)) == entry.settings


# Names, options and plugins


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(RegistryError, match="unknown metric 'rogue'; did you mean rouge"):
        get_metric("rogue")
    with pytest.raises(RegistryError, match="should be a function of answers and references, got str 'a sentence'"):
        get_metric(f"{__name__}:not_callable")


def test_all_wrong_options_are_named_at_once_with_the_nearest():
    with pytest.raises(MetricError) as caught:
        check_options(get_metric("rouge"), {"use_stemer": True, "measure": "f1"})
    assert str(caught.value) == (
        "the rouge metric has no option 'use_stemer'; did you mean use_stemmer?; option 'measure' of the rouge metric "
        "takes Literal['fmeasure', 'precision', 'recall'], got str 'f1'"
    )
    with pytest.raises(MetricError, match="the exact_match metric has no option 'x'; it has none"):
        check_options(get_metric("exact_match"), {"x": 1})
    with pytest.raises(MetricError, match="no option 'references'"):
        check_options(get_metric("chrf"), {"references": []})


def test_an_option_without_default_is_asked_for_and_open_options_are_let_through():
    def needs_a_word(answers, references, *, word: str, **rest):
        return [float(word in answer) for answer in answers]

    with pytest.raises(MetricError, match="the needs_a_word metric needs option 'word'"):
        check_options(needs_a_word, {"other": 1})
    check_options(needs_a_word, {"word": "x", "other": 1})


def test_options_are_checked_before_a_metric_runs():
    with pytest.raises(MetricError, match="takes Literal"):
        scored("chrf", word_order=3)


def test_a_plain_function_is_a_metric_under_its_own_name():
    found = scored(f"{__name__}:counts_words", per=2.0)
    (entry,) = found.values()
    assert list(found) == ["counts_words"]
    assert entry.statistics.values().tolist() == [3, 2.5, 0, 1.5]
    assert entry.statistics.value() == 1.75
    assert entry.label == "counts_words"
    assert entry.higher_is_better is True
    assert entry.settings["options"] == {"per": 2.0}
    assert "test_metrics.py:" in entry.settings["origin"]


@pytest.fixture
def own_registry(monkeypatch):
    """Metrics registered or installed in a test are gone after it."""
    monkeypatch.setattr(_declare, "registry", _declare.registry.copy())


@pytest.mark.usefixtures("own_registry")
def test_a_decorated_metric_declares_label_direction_settings_and_note():
    @metric(
        "lengths",
        label={"letters": "Letters"},
        higher_is_better=None,
        describe=lambda unit: {"package": "measure", "version": "2", "unit": Fraction(1, 2)},
        note=lambda references: f"{len(references)} references seen",
    )
    def lengths(answers, references, *, unit: int = 1):
        return {"letters": np.array([len(a) for a in answers], dtype=np.float32), "any": [bool(a) for a in answers]}

    found = scored("lengths")
    assert found["letters"].label == "Letters"
    assert found["any"].label == "any"
    assert found["any"].statistics.value() == 0.75
    assert found["letters"].higher_is_better is None
    assert found["letters"].note == "4 references seen" == note("lengths", REFERENCES)
    assert found["letters"].settings == {"package": "measure", "version": "2", "unit": "1/2", "options": {"unit": 1}}


@pytest.mark.usefixtures("own_registry")
def test_an_installed_metric_is_listed_without_import_and_found_by_its_entry_point(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "polite_metrics-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polite-metrics\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[recipe_kit.metrics]\npoliteness = polite_metrics:thanks\n")
    (tmp_path / "polite_metrics.py").write_text(
        "def thanks(answers, references): return ['thank' in answer.lower() for answer in answers]\n"
    )
    assert "politeness" in metric_names()
    assert "polite_metrics" not in sys.modules
    found = score("politeness", {}, ["Thank you!", "No."], ["Thanks.", "No."])
    del sys.modules["polite_metrics"]
    assert list(found) == ["politeness"]
    assert found["politeness"].statistics.value() == 0.5
    assert found["politeness"].settings["origin"] == "package polite-metrics 1.2 (polite_metrics:thanks)"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("raises", "failed: ZeroDivisionError: division by zero. Correct it, or take it out of evaluation.metrics"),
        ("too_few", ": it returned 3 numbers for 4 rows; there should be one a row"),
        ("not_a_number", ": it returned nan for row 1, which is no finite number"),
        ("nothing_for_a_row", ": it returned None for row 2, which is no number"),
        ("numbers_as_text", ": it returned str '0.5' for row 0, which is no number"),
        ("one_number", ": it should return one number a row, got float 0.5"),
        ("no_score", ": it returned no score"),
        ("too_few_under_a_name", ": it returned 1 numbers as 'short' for 4 rows; there should be one a row"),
        ("refuses_a_row", ": row 2 is empty, which this metric cannot score"),
        ("statistics_of_too_few", ": it returned Statistics of 1 rows for 4 rows"),
        ("sums_to_nothing", ": the score of 4 rows together is nan, which is no finite number"),
        (
            "first_row_for_first_column",
            ": the total of its Statistics should turn sums of shape (1, 4, 2) into scores of shape (1, 4), got "
            "IndexError: index 1 is out of bounds for axis 0 with size 1; write sums[..., 0] for the first column",
        ),
    ],
)
def test_a_metric_that_goes_wrong_is_one_sentence_with_its_name_and_origin(name, sentence):
    with pytest.raises(MetricError) as caught:
        scored(f"{__name__}:{name}")
    text = str(caught.value)
    assert text.startswith(f"metric '{name}' from ")
    assert "test_metrics.py:" in text
    assert text.endswith(sentence)
    assert "\n" not in text


def test_no_answers_at_all_is_a_sentence():
    with pytest.raises(MetricError, match="metric 'chrf' from .* has no answer to score"):
        scored("chrf", [], [])


# Statistics


def test_perplexity_is_a_ratio_of_sums_and_a_row_without_tokens_has_none_of_its_own():
    perplexity = ratio([2.0, 6.0, 0.0], [2, 1, 0], np.exp)
    assert perplexity.value() == pytest.approx(math.exp(8 / 3))
    assert perplexity.values()[:2] == pytest.approx([math.exp(1), math.exp(6)])
    assert math.isnan(perplexity.values()[2])
    assert pickle.loads(pickle.dumps(perplexity)).value() == perplexity.value()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_with_its_row(wrong):
    with pytest.raises(MetricError, match=f"row 1 has {wrong} where a finite number is needed"):
        ratio([2.0, wrong], [1, 1], np.exp)


def test_a_score_of_no_rows_or_beyond_all_numbers_is_refused():
    with pytest.raises(MetricError, match="there is no row to score"):
        estimate(select(mean([1.0, 2.0]), [False, False]), seed=0)
    with pytest.raises(MetricError, match="the score of 1 rows together is inf"):
        estimate(ratio([1000.0], [1], np.exp), seed=0)


# Intervals


def test_the_interval_of_a_mean_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rows = np.random.default_rng(7).exponential(2.0, 80)
    ours = estimate(mean(rows), seed=1, resamples=20_000)
    theirs = stats.bootstrap((rows,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert ours["value"] == pytest.approx(rows.mean())
    assert ours["low"] == pytest.approx(theirs.low, abs=0.02)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.02)
    assert ours["high"] - ours["low"] == pytest.approx(2 * 1.96 * rows.std() / 80**0.5, rel=0.05)


def test_the_interval_of_a_ratio_of_sums_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(3)
    tokens = random.integers(5, 60, 60)
    losses = tokens * random.normal(2.0, 0.4, 60)
    ours = estimate(ratio(losses, tokens, np.exp), seed=1, resamples=20_000)
    theirs = stats.bootstrap(
        (losses, tokens),
        lambda loss, count, axis: np.exp(loss.sum(axis) / count.sum(axis)),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=2,
    ).confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), rel=0.01)


def test_the_interval_covers_the_truth_in_about_95_of_100_experiments():
    random = np.random.default_rng(11)
    covered = 0
    for experiment in range(400):
        found = estimate(mean(random.normal(3.0, 1.0, 50)), seed=experiment, resamples=400)
        covered += found["low"] <= 3.0 <= found["high"]
    assert 0.91 <= covered / 400 <= 0.98


def test_the_same_seed_gives_the_same_interval_and_blocks_do_not_matter(monkeypatch):
    rows = mean(np.arange(30) ** 2)
    first = estimate(rows, seed=5)
    assert estimate(rows, seed=5) == first
    assert estimate(rows, seed=6) != first
    monkeypatch.setattr("recipe_kit.metrics.intervals._WEIGHTS_AT_ONCE", 100)
    assert estimate(rows, seed=5) == pytest.approx(first)


def test_one_row_has_no_spread():
    assert estimate(mean([0.3]), seed=0) == {"value": 0.3, "low": 0.3, "high": 0.3}
    found = compare(mean([0.3]), mean([0.5]), seed=0)
    assert found["difference"] == {"value": 0.2, "low": 0.2, "high": 0.2}
    assert (found["tuned_better"], found["base_better"], found["ties"], found["p_value"]) == (1, 0, 0, 1.0)


def test_the_paired_difference_is_surer_than_the_two_scores():
    random = np.random.default_rng(5)
    ease = random.normal(0.0, 1.0, 200)  # of a row, for both models
    base, tuned = ease + random.normal(0.0, 0.1, 200), ease + 0.1 + random.normal(0.0, 0.1, 200)
    found = compare(mean(base), mean(tuned), seed=1)
    unpaired = sum(found[which]["high"] - found[which]["low"] for which in ("base", "tuned")) / 2**0.5
    assert found["difference"]["high"] - found["difference"]["low"] < unpaired / 4
    assert found["difference"]["low"] > 0
    assert found["base"]["high"] > found["tuned"]["low"]
    assert found["difference"]["value"] == pytest.approx(np.mean(tuned - base))


def test_equal_models_differ_by_exactly_nothing():
    found = compare(mean([0.1, 0.7, 0.4]), mean([0.1, 0.7, 0.4]), seed=1)
    assert found["difference"] == {"value": 0, "low": 0, "high": 0}
    assert (found["ties"], found["p_value"]) == (3, 1.0)


@pytest.mark.parametrize(("higher_is_better", "tuned", "base"), [(True, 3, 1), (False, 1, 3), (None, 3, 1)])
def test_rows_are_won_in_the_direction_of_the_score(higher_is_better, tuned, base):
    values_of_base, values_of_tuned = [1.0, 1.0, 1.0, 5.0, 2.0, 2.0], [2.0, 3.0, 4.0, 1.0, 2.0, 2.0 + 1e-13]
    found = compare(mean(values_of_base), mean(values_of_tuned), seed=0, higher_is_better=higher_is_better)
    assert (found["tuned_better"], found["base_better"], found["ties"], found["rows"]) == (tuned, base, 2, 6)
    assert found["p_value"] == pytest.approx(0.625)


def test_rows_without_tokens_count_in_the_sums_and_are_ties():
    base, tuned = ratio([4.0, 6.0, 0.0], [2, 2, 0], np.exp), ratio([2.0, 8.0, 0.0], [2, 2, 0], np.exp)
    found = compare(base, tuned, seed=0, higher_is_better=False)
    assert (found["tuned_better"], found["base_better"], found["ties"]) == (1, 1, 1)
    assert math.isfinite(found["difference"]["low"]) and math.isfinite(found["difference"]["high"])


@pytest.mark.parametrize(
    ("wins", "losses"), [(0, 0), (1, 0), (5, 5), (6, 5), (9, 1), (40, 8), (2600, 2400), (1, 4999)]
)
def test_the_sign_test_is_exact(wins, losses):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    assert sign_test(losses, wins) == sign_test(wins, losses)


def test_the_sign_test_of_9_rows_against_1_worked_out_by_hand():
    assert sign_test(9, 1) == 2 * (1 + 10) / 1024


def test_a_part_of_the_rows_is_chosen_by_a_mask_or_by_row_numbers():
    whole = mean([1.0, 2.0, 6.0])
    assert select(whole, [True, False, True]).value() == 3.5
    assert select(whole, [0, 2]).value() == 3.5
    assert select(whole, np.array([1])).value() == 2
    assert len(select(whole, []).rows) == 0
    with pytest.raises(ValueError, match="a mask has one bool a row"):
        select(whole, [True])


def test_an_entry_of_metrics_json_is_what_readers_expect():
    base = scored("rouge", ["a cat", "rain", "nothing"], ["a cat sat", "sun", "much"])["rouge1"]
    tuned = scored("rouge", ["a cat sat", "sun", "nothing"], ["a cat sat", "sun", "much"])["rouge1"]
    entry = score_entry(base, tuned, seed=42)
    assert list(entry) == [
        *("label", "base", "tuned", "difference", "higher_is_better", "rows", "tuned_better", "base_better"),
        *("ties", "p_value", "settings"),
    ]
    assert entry["label"] == "ROUGE-1"
    assert entry["base"]["value"] == pytest.approx(0.8 / 3)
    assert entry["tuned"]["value"] == pytest.approx(2 / 3)
    assert entry["difference"]["low"] <= entry["difference"]["value"] <= entry["difference"]["high"]
    assert (entry["tuned_better"], entry["base_better"], entry["ties"]) == (2, 0, 1)
    assert entry["p_value"] == 0.5
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_an_entry_carries_the_note_and_a_failure_names_the_score():
    hindi = scored("rouge", HINDI, HINDI)["rougeL"]
    assert score_entry(hindi, hindi, seed=0)["note"] == hindi.note
    loss = Scored(ratio([0.0], [0], np.exp), "Perplexity", higher_is_better=False)
    with pytest.raises(MetricError, match="^Perplexity: the score of 1 rows together is nan"):
        score_entry(loss, loss, seed=0)


def test_memory_stays_small_for_many_rows():
    import tracemalloc

    rows = mean(np.random.default_rng(0).random(50_000))
    tracemalloc.start()
    try:
        found = estimate(rows, seed=0, resamples=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["low"] < found["value"] < found["high"]
    assert peak < 40 * 2**20  # with all 60 resamples at once it would be more than 48


def test_answers_of_one_chat_are_summed_into_one_row_and_the_score_stays_the_same() -> None:
    answers = mean([1.0, 0.0, 0.5, 1.0])
    chats = grouped(answers, [7, 7, 9, 7])
    assert chats.rows.tolist() == [[2.0, 3.0], [0.5, 1.0]]
    assert chats.value() == answers.value() == 0.625
