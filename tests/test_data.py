"""Rows from a file to tokens: where they come from, which are kept, which are held out, and that each is counted."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from recipe_kit.data import load_source, prepare
from recipe_kit.errors import DataError, FormatError
from recipe_kit.formatters import SkipRow, formatter
from recipe_kit.labels import IGNORED
from recipe_kit.recipe import DataSection, Source
from recipe_kit.testing import isolated_registry

TWENTY = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(20)]
HUNDRED = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(100)]


@pytest.fixture(scope="session")
def chatml(tiny_tokenizer):
    return tiny_tokenizer("chatml")


@pytest.fixture
def write(tmp_path):
    """Writes rows as JSON lines, or a text as it is, and gives the path for a recipe."""

    def write_file(content, name="rows.jsonl"):
        file = tmp_path / name
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write_file


@pytest.fixture
def load(chatml):
    """The splits of a data section given as a recipe would."""

    def load_splits(train, splits=("train", "eval", "test"), **data):
        data = {"formatter": "prompt_completion", "train": train, **data}
        return prepare(DataSection.model_validate(data), chatml, splits=splits)

    return load_splits


def answers(split):
    return [example["completion"][0]["content"] for example in split.examples]


def rows_of(path, **options):
    return load_source(Source(path=str(path), **options)).to_list()


# Where rows come from


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"prompt": "Oui?", "completion": "Ça va."}\n{"prompt": "x", "completion": "a, b"}\n'),
        ("a.json", '[{"prompt": "Oui?", "completion": "Ça va."}, {"prompt": "x", "completion": "a, b"}]'),
        ("a.csv", 'prompt,completion\nOui?,Ça va.\nx,"a, b"\n'),
        ("a.tsv", "prompt\tcompletion\nOui?\tÇa va.\nx\ta, b\n"),
        ("A.JSONL", '\ufeff{"prompt": "Oui?", "completion": "Ça va."}\r\n{"prompt": "x", "completion": "a, b"}\r\n'),
    ],
)
def test_text_files_are_read_by_their_ending(write, name, content):
    assert rows_of(write(content, name)) == [
        {"prompt": "Oui?", "completion": "Ça va."},
        {"prompt": "x", "completion": "a, b"},
    ]


def test_parquet_files_are_read(tmp_path):
    import datasets

    datasets.Dataset.from_list(TWENTY).to_parquet(tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == TWENTY


def test_folder_of_files_is_read_by_split(write, tmp_path):
    """alignment-handbook #8: how do I use a local dataset?"""
    write(TWENTY[:3], "train.jsonl")
    write(TWENTY[3:], "test.jsonl")
    assert rows_of(tmp_path) == TWENTY[:3]
    assert rows_of(tmp_path, split="test") == TWENTY[3:]


def test_folder_written_by_save_to_disk_is_read(tmp_path):
    import datasets

    datasets.Dataset.from_list(TWENTY).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=datasets.Dataset.from_list(TWENTY[:3])).save_to_disk(tmp_path / "several")
    assert rows_of(tmp_path / "one") == TWENTY
    assert rows_of(tmp_path / "several") == TWENTY[:3]


def test_file_that_was_edited_is_read_again(write):
    """axolotl #462, #1136: a stale cache after an edit."""
    for answer in ("one", "two", "six"):
        assert rows_of(write([{"prompt": "x", "completion": answer}]))[0]["completion"] == answer


def test_rows_that_ship_with_the_kit_are_read(load):
    splits = load({"sample": "support"}, test={"sample": "support", "split": "test"}, formatter="support")
    assert (splits["train"].counts.kept, splits["test"].counts.kept) == (260, 52)


@pytest.mark.parametrize("where", [{"language": "hi"}, {"language": "hi", "checked": True}])
def test_where_keeps_the_rows_whose_columns_equal_the_values(write, where):
    rows = [
        {"prompt": "a", "language": "hi", "checked": True},
        {"prompt": "b", "language": "en", "checked": True},
        {"prompt": "c", "language": "hi", "checked": "checked" not in where},
    ]
    kept = rows_of(write(rows), where=where)
    assert [row["prompt"] for row in kept] == (["a"] if "checked" in where else ["a", "c"])


def test_limit_counts_the_rows_that_where_kept(write):
    rows = [{"prompt": str(n), "even": n % 2 == 0} for n in range(10)]
    kept = rows_of(write(rows), where={"even": True}, limit=3)
    assert [row["prompt"] for row in kept] == ["0", "2", "4"]
    assert len(rows_of(write(rows), limit=99)) == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl: the file is empty"),
        ("a.jsonl", "\n\n", r"a\.jsonl: the file holds no rows"),
        ("a.json", "[]", r"a\.json: the file holds no rows"),
        ("a.csv", "prompt,completion\n", r"a\.csv: the file holds no rows"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2,\n', r"a\.jsonl: cannot read this file as json: line 3, column 9: "),
        (
            "a.jsonl",
            '{"a": 1}\nhello\n',
            r"a\.jsonl: cannot read this file as json: line 2, column 1: Expecting value",
        ),
        ("a.json", '[{"prompt": "a"', r"a\.json: cannot read this file as json: "),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"a\.csv: cannot read this file as csv: .*Expected 2 fields in line 3, saw 3"),
        ("a.parquet", "no parquet", r"a\.parquet: cannot read this file as parquet"),
        ("a.txt", "Hello", r"a\.txt: cannot read \.txt files; expected \.json, \.jsonl, \.csv, \.tsv, \.parquet"),
    ],
)
def test_file_that_cannot_be_read_is_named_with_the_reason(write, name, content, message):
    with pytest.raises(DataError, match=message):
        rows_of(write(content, name))


def test_missing_file_names_the_nearest_one(write, tmp_path):
    write(TWENTY, "support.jsonl")
    with pytest.raises(DataError, match=r"suport\.jsonl: no such file or folder; did you mean support\.jsonl\?"):
        rows_of(tmp_path / "suport.jsonl")


def test_missing_split_of_a_folder_names_those_there_are(write, tmp_path):
    write(TWENTY, "train.jsonl")
    with pytest.raises(DataError, match=r'Unknown split "trian"\. Should be one of \[\'train\'\]'):
        rows_of(tmp_path, split="trian")


def test_missing_sample_names_the_nearest_one(load):
    with pytest.raises(DataError, match="no shipped sample named 'suport'; did you mean support"):
        load({"sample": "suport"})


def test_hub_dataset_is_one_sentence_when_there_is_no_network(load):
    with pytest.raises(DataError) as caught:
        load({"id": "somebody/something"})
    assert str(caught.value).startswith("somebody/something (train): cannot get this dataset from the Hub (")
    assert str(caught.value).endswith("or name a local file in data: path")
    assert "\n" not in str(caught.value)


def test_unknown_column_in_where_names_the_nearest_one(write):
    with pytest.raises(DataError, match=r"has no column 'promt' to select on;.*did you mean prompt\?"):
        rows_of(write(TWENTY), where={"promt": "x"})


def test_where_that_no_row_matches_is_an_error(write):
    with pytest.raises(DataError, match="no rows match `where`"):
        rows_of(write(TWENTY), where={"prompt": "x"})


def test_missing_column_names_the_file_and_the_nearest_column(write, load):
    """autotrain #226, #291, #423: KeyError: 'text'."""
    path = write([{"promt": "Why?", "completion": "Because."}])
    with pytest.raises(DataError) as caught:
        load({"path": path})
    assert str(caught.value) == (
        f"{path} (train): the prompt_completion formatter needs column 'prompt'; the rows have 'promt', 'completion'; "
        "did you mean 'promt'? Set data.formatter.columns: {prompt: promt}"
    )


def test_option_that_a_formatter_does_not_have_is_found_before_a_row_is_read(load):
    with pytest.raises(
        FormatError, match="the prompt_completion formatter has no option 'sytem'; did you mean system"
    ):
        load({"path": "nowhere.jsonl"}, formatter={"name": "prompt_completion", "options": {"sytem": "x"}})


# Rows that do not arrive


ONE_BLANK = [*TWENTY[:2], {"prompt": "Why?", "completion": " "}, *TWENTY[2:4]]


def test_bad_row_names_file_split_and_row(write, load):
    path = write(ONE_BLANK)
    with pytest.raises(DataError) as caught:
        load({"path": path})
    assert str(caught.value) == (
        f"{path} (train) row 3: column 'completion' is blank; correct the row, or set data.bad_rows: drop"
    )


def test_bad_rows_are_dropped_and_counted_by_reason_if_the_recipe_says_so(write, load):
    rows = [*ONE_BLANK, {"prompt": "Why?", "completion": ""}, {"prompt": None, "completion": "Because."}]
    train = load({"path": write(rows)}, bad_rows="drop")["train"]
    assert answers(train) == ["Answer 0.", "Answer 1.", "Answer 2.", "Answer 3."]
    assert (train.counts.read, train.counts.kept) == (7, 4)
    assert train.counts.dropped == {"column 'completion' is blank": 2, "column 'prompt' should hold text, got None": 1}


def test_chat_that_cannot_be_labelled_is_a_bad_row(write, load):
    rows = [
        {"messages": [{"role": "assistant", "content": "Hello!"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    ]
    path = write(rows)
    with pytest.raises(DataError, match=r"rows\.jsonl \(train\) row 1: the chat starts with an assistant turn"):
        load({"path": path}, formatter="messages")
    counts = load({"path": path}, formatter="messages", bad_rows="drop")["train"].counts
    assert (counts.kept, counts.dropped.total()) == (1, 1)


def test_row_that_a_formatter_skips_is_counted_and_is_no_error(write, load):
    with isolated_registry():

        @formatter("even_only", columns=["prompt", "completion"])
        def even_only(row):
            if row["prompt"].endswith(("1?", "3?")):
                raise SkipRow("an odd question")
            return {"prompt": [{"role": "user", "content": row["prompt"]}],
                    "completion": [{"role": "assistant", "content": row["completion"]}]}  # fmt: skip

        train = load({"path": write(TWENTY[:5])}, formatter="even_only")["train"]
    assert answers(train) == ["Answer 0.", "Answer 2.", "Answer 4."]
    assert train.counts.as_dict() == {
        "read": 5,
        "kept": 3,
        "held_out": 0,
        "truncated": 0,
        "dropped": {"an odd question": 2},
        "tokens": sum(len(ids) for ids in train.rows["input_ids"]),
        "trained_tokens": sum(label != IGNORED for labels in train.rows["labels"] for label in labels),
        "merged_turns": 0,
        "redacted": {},
    }


def tokens(text, chatml):
    return len(chatml(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def long_and_short(write, chatml):
    """A path, and the lengths of a short row, a long row's prompt, and the long row."""
    short = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    question = "Count to fifteen, one number after the other!"
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    counted = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"
    path = write([{"prompt": "Hi", "completion": "Hello"}, {"prompt": question, "completion": counted}])
    return path, tokens(short, chatml), tokens(prompt, chatml), tokens(f"{prompt}{counted}<|im_end|>\n", chatml)


def test_row_of_exactly_the_longest_length_is_kept(load, long_and_short):
    path, _, _, longest = long_and_short
    counts = load({"path": path}, max_length=longest, too_long="error")["train"].counts
    assert (counts.kept, counts.truncated, counts.dropped) == (2, 0, {})


def test_longer_row_is_dropped_and_counted(load, long_and_short):
    """TRL #3449, transformers #30998: rows were cut in silence."""
    path, short, _, longest = long_and_short
    train = load({"path": path}, max_length=longest - 1)["train"]
    assert train.counts.dropped == {f"longer than {longest - 1} tokens": 1}
    assert (train.counts.kept, train.counts.tokens, train.counts.truncated) == (1, short, 0)


def test_longer_row_is_an_error_if_the_recipe_says_so(load, long_and_short):
    path, _, _, longest = long_and_short
    with pytest.raises(DataError, match=rf"\(train\) row 2: {longest} tokens, over data\.max_length {longest - 1};"):
        load({"path": path}, max_length=longest - 1, too_long="error")


def test_longer_row_is_cut_and_counted_if_the_recipe_says_so(load, long_and_short):
    path, _, prompt, _ = long_and_short
    train = load({"path": path}, max_length=prompt + 3, too_long="truncate")["train"]
    assert (train.counts.kept, train.counts.truncated, train.counts.dropped) == (2, 1, {})
    assert len(train.rows[1]["input_ids"]) == prompt + 3
    assert train.rows[1]["labels"] == [IGNORED] * prompt + train.rows[1]["input_ids"][prompt:]


def test_row_whose_answer_would_be_cut_off_whole_is_dropped(load, long_and_short):
    """TRL #6025, #6320: a prompt that fills the length gave loss 0.0 and NaN gradients."""
    path, _, prompt, _ = long_and_short
    counts = load({"path": path}, max_length=prompt, too_long="truncate")["train"].counts
    assert counts.dropped == {f"answer cut off whole at {prompt} tokens": 1}
    assert (counts.kept, counts.truncated) == (1, 0)


def test_split_with_nothing_left_is_an_error_that_names_the_reasons(write, load):
    path = write([*TWENTY[:2], {"prompt": "Why?", "completion": ""}])
    with pytest.raises(DataError) as caught:
        load({"path": path}, max_length=3, bad_rows="drop")
    assert str(caught.value) == (
        "data.train: none of 3 rows is left (2 × longer than 3 tokens; 1 × column 'completion' is blank)"
    )


# Mixtures


def test_sources_are_mixed_each_with_its_own_formatter(write, load):
    train = load(
        [
            {"path": write(TWENTY[:2])},
            {
                "path": write([{"instruction": "Name a colour.", "output": "Green."}], "alpaca.jsonl"),
                "formatter": {"name": "alpaca", "options": {"system": "Be brief."}},
            },
        ]
    )["train"]
    assert answers(train) == ["Answer 0.", "Answer 1.", "Green."]
    assert train.examples[2]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert [source["rows"] for source in train.sources] == [2, 1]


def test_weight_of_a_half_keeps_about_half_of_the_rows_always_the_same(write, load):
    path = write(HUNDRED)
    train = load({"path": path, "weight": 0.5})["train"]
    assert 35 <= train.counts.kept <= 65
    assert len(set(answers(train))) == train.counts.kept
    assert train.counts.dropped == {"left out by weight 0.5": 100 - train.counts.kept}
    assert answers(load({"path": path, "weight": 0.5})["train"]) == answers(train)
    assert answers(load({"path": path, "weight": 0.5}, split_seed=7)["train"]) != answers(train)


def test_whole_weights_repeat_every_row_and_the_fraction_adds_some(write, load):
    path = write(HUNDRED)
    assert set(Counter(answers(load({"path": path, "weight": 2.0})["train"])).values()) == {2}
    counts = Counter(answers(load({"path": path, "weight": 1.5})["train"]))
    assert len(counts) == 100
    assert set(counts.values()) == {1, 2}
    assert 135 <= counts.total() <= 165


# The held-out split


def split_of(splits):
    return sorted(answers(splits["train"])), sorted(answers(splits["eval"]))


@pytest.mark.parametrize("rule", [{"fraction": 0.2}, {"rows": 20}])
def test_held_out_rows_leave_the_training_rows(write, load, rule):
    splits = load({"path": write(HUNDRED)}, eval=rule)
    train, held_out = split_of(splits)
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(row["completion"] for row in HUNDRED)
    assert 10 <= len(held_out) <= 30
    assert splits["train"].counts.held_out == splits["eval"].counts.read == splits["eval"].counts.kept == len(held_out)
    assert splits["train"].counts.dropped == {}
    assert splits["train"].counts.read == 100
    assert len(held_out) == 20 or "fraction" in rule


@pytest.mark.parametrize("rule", [{"fraction": 0.2}, {"rows": 20}])
def test_same_rows_are_held_out_on_every_call_and_in_any_order_of_the_file(write, load, rule):
    """TRL's own split has no seed: each rank and each resume drew another test set."""
    shuffled = random.Random(1).sample(HUNDRED, 100)
    assert shuffled != HUNDRED
    first = split_of(load({"path": write(HUNDRED)}, eval=rule))
    assert split_of(load({"path": write(HUNDRED)}, eval=rule)) == first
    assert split_of(load({"path": write(shuffled)}, eval=rule)) == first


def test_no_row_switches_sides_when_rows_are_added(write, load):
    train, held_out = split_of(load({"path": write(HUNDRED[:60])}, eval={"fraction": 0.2}))
    later_train, later_held_out = split_of(load({"path": write(HUNDRED)}, eval={"fraction": 0.2}))
    assert set(train) < set(later_train)
    assert set(held_out) < set(later_held_out)


def test_seed_decides_which_rows_are_held_out(write, load):
    path = write(HUNDRED)
    assert split_of(load({"path": path}, eval={"rows": 20}, split_seed=1)) != split_of(
        load({"path": path}, eval={"rows": 20}, split_seed=2)
    )


def test_system_prompt_does_not_decide_which_rows_are_held_out(write, load):
    """Two recipes that differ in the prompt alone are measured on the same rows."""
    path = write(HUNDRED)
    plain = load({"path": path}, eval={"rows": 20})
    kind = load({"path": path}, eval={"rows": 20}, system="Be kind.")
    assert split_of(plain) == split_of(kind)
    assert plain["eval"].content_sha256 == kind["eval"].content_sha256


def test_equal_rows_go_together_and_are_measured_once(write, load):
    splits = load({"path": write([*HUNDRED, *HUNDRED])}, eval={"fraction": 0.2})
    train, held_out = split_of(splits)
    assert not set(train) & set(held_out)
    assert set(Counter(train).values()) == {2}
    assert set(Counter(held_out).values()) == {1}
    assert splits["train"].counts.held_out == 2 * len(held_out)
    assert len(train) + 2 * len(held_out) == 200


def test_rows_of_a_mixture_that_are_held_out_are_so_for_every_copy(write, load):
    train, held_out = split_of(load({"path": write(HUNDRED), "weight": 3.0}, eval={"rows": 10}))
    assert len(held_out) == 10
    assert len(train) == 270
    assert not set(train) & set(held_out)


def test_eval_rows_are_the_same_when_only_they_are_asked_for(write, load):
    path = write(HUNDRED)
    every = load({"path": path}, eval={"fraction": 0.2})
    alone = load({"path": path}, splits=("eval",), eval={"fraction": 0.2})
    assert list(alone) == ["eval"]
    assert alone["eval"].rows.to_list() == every["eval"].rows.to_list()
    assert alone["eval"].content_sha256 == every["eval"].content_sha256
    assert alone["eval"].counts == every["eval"].counts
    train = load({"path": path}, splits=("train",), eval={"fraction": 0.2})["train"]
    assert answers(train) == answers(every["train"])


def test_training_rows_are_not_read_for_the_test_rows(write, load):
    test = {"path": write(TWENTY)}
    splits = load({"path": "nowhere.jsonl"}, splits=("test",), eval={"rows": 5}, test=test)
    assert splits["test"].counts.kept == 20


@pytest.mark.parametrize("rows", [20, 21])
def test_holding_out_every_row_is_an_error(write, load, rows):
    with pytest.raises(DataError, match=r"data\.eval: holding out 20 of 20 different rows leaves none to train on"):
        load({"path": write(TWENTY)}, eval={"rows": rows})


def test_even_a_small_fraction_holds_out_one_row(write, load):
    assert load({"path": write(TWENTY)}, eval={"fraction": 0.0001})["eval"].counts.kept == 1


# What is prepared


def test_split_that_the_recipe_does_not_name_is_left_out(write, load):
    path = write(TWENTY)
    assert list(load({"path": path})) == ["train"]
    assert list(load({"path": path}, test={"path": path})) == ["train", "test"]
    assert list(load({"path": path}, eval={"rows": 2}, test={"path": path})) == ["train", "eval", "test"]


def test_rows_are_the_tokens_and_labels_of_the_examples_in_order(write, load, chatml):
    train = load({"path": write(TWENTY)})["train"]
    assert train.rows.column_names == ["input_ids", "labels"]
    assert answers(train) == [row["completion"] for row in TWENTY]
    trained = [[label for label in labels if label != IGNORED] for labels in train.rows["labels"]]
    assert [chatml.decode(ids) for ids in trained] == [f"{row['completion']}<|im_end|>" for row in TWENTY]
    assert train.counts.tokens == sum(map(len, train.rows["input_ids"]))
    assert train.counts.trained_tokens == sum(map(len, trained))


def test_train_on_is_for_every_split(write, load, chatml):
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}] * 2}]
    splits = load({"path": write(rows)}, formatter="messages", train_on="last_assistant", test={"path": write(rows)})
    for split in splits.values():
        assert split.counts.trained_tokens == tokens("Hello!<|im_end|>", chatml)


def test_system_prompt_is_put_before_conversations_that_have_none(write, load, chatml):
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
        {
            "messages": [
                {"role": "system", "content": "Be rude."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "What?"},
            ]
        },
    ]
    train = load({"path": write(rows)}, formatter="messages", system="Be kind.")["train"]
    texts = [chatml.decode(ids) for ids in train.rows["input_ids"]]
    assert texts[0].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")
    assert texts[1].startswith("<|im_start|>system\nBe rude.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")


def test_system_prompt_is_put_before_a_prompt_and_not_before_plain_text(write, load, chatml):
    train = load({"path": write(TWENTY[:1])}, system="Be kind.")["train"]
    assert train.examples[0]["prompt"][0] == {"role": "system", "content": "Be kind."}
    text = load({"path": write([{"text": "Rye."}])}, formatter="text", system="Be kind.")["train"]
    assert chatml.decode(text.rows[0]["input_ids"]) == "Rye.<|im_end|>"


def test_content_hash_is_the_same_in_any_order_and_another_after_an_edit(write, load):
    def digest(rows):
        return load({"path": write(rows)})["train"].content_sha256

    first = digest(TWENTY)
    assert len(first) == 64
    assert digest(TWENTY[::-1]) == first
    assert digest([{**row, "id": n} for n, row in enumerate(TWENTY)]) == first  # a column that no formatter reads
    assert digest([*TWENTY[:19], {"prompt": "Question 19?", "completion": "Answer 19!"}]) != first
    assert digest(TWENTY[:19]) != first
    assert digest([*TWENTY, TWENTY[0]]) != first


def test_sources_say_what_was_read(write, load):
    path = write(TWENTY)
    assert load({"path": path, "limit": 5})["train"].sources == [
        {"path": path, "split": "train", "limit": 5, "rows": 5, "resolved_revision": None}
    ]
