"""Rows are prepared once and kept: what makes a cache stale, what an interruption leaves, and who prepares."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from recipe_kit.data import prepare, prepared, stream_rows
from recipe_kit.data.work import Work, countable
from recipe_kit.errors import DataError, FormatError, LabelError
from recipe_kit.recipe import DataSection

TEN = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(10)]
FORMATTER = """
from recipe_kit.formatters import assistant, user

def ask(row):
    return {"prompt": [user(PREFIX + row["prompt"])], "completion": [assistant(row["completion"])]}

PREFIX = "%s"
"""


@pytest.fixture(scope="session")
def chatml(tiny_tokenizer):
    return tiny_tokenizer("chatml")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, caches_of_this_session):
    """A cache of this test's own, which has the tiny models of the session."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for model in (caches_of_this_session / "recipe-kit").glob("tiny-*"):
        (folder / model.name).symlink_to(model)
    monkeypatch.setenv("RECIPE_KIT_CACHE", str(folder))
    return folder / "prepared"


@pytest.fixture
def rows(tmp_path):
    def write(rows=TEN, name="rows.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def prepared_anew(chatml):
    """Whether preparing the training rows of a data section did the work, and did not find it done."""

    def ask(path, **data):
        said = []
        section = DataSection.model_validate({"formatter": "prompt_completion", "train": {"path": path}, **data})
        prepare(section, data.pop("tokenizer", chatml), splits=("train",), report=said.append)
        return any(text.startswith("preparing ") for text in said)

    return ask


# What the cache depends on


def test_second_preparation_finds_the_first(rows, prepared_anew):
    assert prepared_anew(rows()) is True
    assert prepared_anew(rows()) is False


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 512},
        {"system": "Be kind."},
        {"train_on": "all"},
        {"too_long": "truncate"},
        {"bad_rows": "drop"},
        {"redact": ["email"]},
        {"role_order": "merge"},
        {"formatter": {"name": "prompt_completion", "columns": {"prompt": "completion", "completion": "prompt"}}},
    ],
)
def test_what_rows_depend_on_makes_them_anew(rows, prepared_anew, change):
    prepared_anew(rows())
    assert prepared_anew(rows(), **change) is True


@pytest.mark.parametrize("change", [{"split_seed": 7}, {"eval": {"rows": 2}}])
def test_what_is_decided_after_tokenising_finds_the_rows(rows, prepared_anew, change):
    prepared_anew(rows())
    assert prepared_anew(rows(), **change) is False


def test_edited_rows_are_prepared_anew_and_a_copy_elsewhere_is_not(rows, prepared_anew):
    prepared_anew(rows())
    assert prepared_anew(rows(name="copy.jsonl")) is False
    assert prepared_anew(rows([*TEN[:9], {"prompt": "Question 9?", "completion": "Answer nine."}])) is True


def test_edited_formatter_prepares_anew(rows, prepared_anew, tmp_path, monkeypatch):
    """axolotl #462, #1136: after editing a prompt strategy, the old tokens were trained."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for prefix, anew in (("Hi. ", True), ("Hi. ", False), ("Hello there. ", True)):
        (tmp_path / "asking.py").write_text(FORMATTER % prefix, encoding="utf-8")
        sys.modules.pop("asking", None)
        assert prepared_anew(rows(), formatter="asking:ask") is anew


def test_another_template_prepares_anew(rows, tiny_tokenizer, chatml):
    section = DataSection.model_validate({"formatter": "prompt_completion", "train": {"path": rows()}})
    said = []
    prepare(section, chatml, report=said.append)
    terse = tiny_tokenizer("chatml", chatml.chat_template.replace("\n", " "))
    assert terse.chat_template != chatml.chat_template
    ids = prepare(section, terse, report=said.append)["train"].rows[0]["input_ids"]
    assert len(said) == 2
    assert terse.decode(ids).startswith("<|im_start|>user Question 0?")


def test_formatter_whose_source_cannot_be_read_is_never_found_in_the_cache(rows, prepared_anew, monkeypatch):
    import types

    module = types.ModuleType("typed_in")
    exec(FORMATTER % "", module.__dict__)  # as in a notebook
    monkeypatch.setitem(sys.modules, "typed_in", module)
    assert prepared_anew(rows(), formatter="typed_in:ask") is True
    assert prepared_anew(rows(), formatter="typed_in:ask") is True


def test_other_versions_prepare_anew(rows, prepared_anew, monkeypatch):
    prepared_anew(rows())
    monkeypatch.setattr(prepared.importlib.metadata, "version", lambda name: "99")
    assert prepared_anew(rows()) is True


# Interruptions


def test_row_that_must_not_be_leaves_nothing_behind(rows, prepared_anew, cache):
    with pytest.raises(DataError, match="row 11: column 'completion' is blank"):
        prepared_anew(rows([*TEN, {"prompt": "x", "completion": ""}]))
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_interrupted_preparation_is_done_again(rows, prepared_anew, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Work, "on_table", lambda self, table, first: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepared_anew(rows())
    assert prepared_anew(rows()) is True
    assert prepared_anew(rows()) is False


KILLED = """
import os, signal, sys
from recipe_kit.data import prepare
from recipe_kit.data.work import Work
from recipe_kit.modeling import load_tokenizer
from recipe_kit.recipe import DataSection, ModelSection
on_table = Work.on_table
def die(self, table, first_row):
    if first_row >= 1000:
        os.kill(os.getpid(), signal.SIGKILL)
    return on_table(self, table, first_row)
Work.on_table = die
section = DataSection.model_validate({"formatter": "prompt_completion", "train": {"path": sys.argv[1]}})
prepare(section, load_tokenizer(ModelSection(id="tiny:chatml")))
"""


@pytest.mark.slow
def test_killed_preparation_leaves_no_cache_that_looks_complete(rows, prepared_anew, cache):
    path = rows(TEN * 150)
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = [folder for folder in cache.iterdir() if folder.is_dir()]
    assert ".part-" in leftover.name
    assert prepared_anew(path) is True
    (complete,) = [folder for folder in cache.iterdir() if folder.is_dir()]
    assert ".part-" not in complete.name


# Workers and ranks


def several(monkeypatch):
    monkeypatch.setattr(prepared, "IN_PROCESS_ROWS", 0)


def test_workers_give_the_rows_one_process_gives_in_the_same_order(rows, chatml, monkeypatch, cache):
    import shutil

    many = [{"prompt": f"Question {n}?", "completion": f"Answer {n}." if n % 7 else ""} for n in range(2500)]
    section = DataSection.model_validate(
        {"formatter": "prompt_completion", "train": {"path": rows(many)}, "bad_rows": "drop"}
    )
    alone = prepare(section, chatml)["train"]
    expected, counts = alone.rows.to_list(), alone.counts
    shutil.rmtree(cache)
    several(monkeypatch)
    shared = prepare(section, chatml, workers=2)["train"]
    assert shared.rows.to_list() == expected
    assert shared.counts == counts
    assert counts.dropped == {"column 'completion' is blank": 358}


def test_first_bad_row_is_named_also_when_another_worker_finds_a_later_one(rows, chatml, monkeypatch):
    several(monkeypatch)
    many = [{"prompt": "x", "completion": "" if n in (1499, 2001) else "y"} for n in range(3000)]
    section = DataSection.model_validate({"formatter": "prompt_completion", "train": {"path": rows(many)}})
    for _ in range(2):
        with pytest.raises(DataError, match=r"\(train\) row 1500: column 'completion' is blank"):
            prepare(section, chatml, workers=2)


WAITING = """
import sys, time
from recipe_kit.data import prepare
from recipe_kit.data.work import Work
from recipe_kit.modeling import load_tokenizer
from recipe_kit.recipe import DataSection, ModelSection
tokenizer = load_tokenizer(ModelSection(id="tiny:chatml"))
on_table = Work.on_table
Work.on_table = lambda self, table, first: (time.sleep(4), on_table(self, table, first))[1]
section = DataSection.model_validate({"formatter": "prompt_completion", "train": {"path": sys.argv[1]}})
prepare(section, tokenizer, report=lambda text: print(text, flush=True))
"""


@pytest.mark.slow
def test_of_two_processes_one_prepares_and_the_other_waits(rows):
    """LLaMA-Factory #2424, #1196: ranks waited for tokenising inside a collective call, which timed out."""
    start = [sys.executable, "-c", WAITING, rows()]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted("".join(process.communicate()[0].split(" of ")[0]) for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said[0].startswith("preparing 10 rows")
    assert said[1].startswith("waiting for another process that prepares the same rows")


def test_prepared_rows_are_read_from_disk(rows, chatml):
    section = DataSection.model_validate({"formatter": "prompt_completion", "train": {"path": rows()}})
    train = prepare(section, chatml)["train"]
    assert [file["filename"].endswith("rows.arrow") for file in train.rows.cache_files] == [True]


# What is told of each row


def test_place_names_the_source_and_the_row_in_it(rows, chatml):
    first, second = rows(TEN[:3], "a.jsonl"), rows(TEN[3:], "b.jsonl")
    section = DataSection.model_validate(
        {"formatter": "prompt_completion", "train": [{"path": first}, {"path": second}], "eval": {"rows": 4}}
    )
    splits = prepare(section, chatml)
    for split in splits.values():
        for index, example in enumerate(split.examples):
            number = int(example["completion"][0]["content"][7:-1])
            file, row = (first, number + 1) if number < 3 else (second, number - 2)
            assert split.place(index) == f"{file} (train) row {row}"


def test_details_tell_of_the_same_rows_in_the_same_order(rows, chatml):
    section = DataSection.model_validate(
        {"formatter": "prompt_completion", "train": {"path": rows()}, "eval": {"fraction": 0.3}}
    )
    train = prepare(section, chatml)["train"]
    for row, detail, example in zip(train.rows, train.details, train.examples, strict=True):
        assert json.loads(detail["example"]) == example
        assert detail["trained"] == sum(label != -100 for label in row["labels"]) == sum(detail["turn_lengths"])
        assert example["completion"][0]["content"] in chatml.decode(row["input_ids"])


def test_cut_rows_say_so_and_keep_the_length_of_what_is_left(rows, chatml):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "one two three"}] * 2
    section = DataSection.model_validate(
        {"formatter": "messages", "train": {"path": rows([{"messages": chat}])}, "max_length": 30,
         "too_long": "truncate"}
    )  # fmt: skip
    (detail,) = prepare(section, chatml)["train"].details
    (row,) = prepare(section, chatml)["train"].rows
    assert detail["truncated"] is True
    assert sum(detail["turn_lengths"]) == sum(label != -100 for label in row["labels"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FormatError("column 'prompt' is blank"), "column 'prompt' is blank"),
        (FormatError("column 'a' should hold text, got str 'my card number'"), "column 'a' should hold text, got str"),
        (FormatError("column 'a' should hold text, got None"), "column 'a' should hold text, got None"),
        (
            FormatError("messages[3]: content should be text, got int 5"),
            "messages[…]: content should be text, got int",
        ),
        (LabelError("message 7 (user) holds '</s>'"), "a message (user) holds '</s>'"),
    ],
)
def test_reasons_are_counted_without_what_one_row_holds(error, reason):
    assert countable(error) == reason


def test_merged_turns_and_redactions_are_counted(rows, chatml):
    chat = [
        {"role": "user", "content": "Hello."},
        {"role": "user", "content": "Write to tom@example.org, please."},
        {"role": "assistant", "content": "Done."},
    ]
    section = DataSection.model_validate(
        {"formatter": "messages", "train": {"path": rows([{"messages": chat}])}, "role_order": "merge",
         "redact": ["email"]}
    )  # fmt: skip
    train = prepare(section, chatml)["train"]
    assert train.examples[0]["messages"] == [
        {"role": "user", "content": "Hello.\n\nWrite to [email], please."},
        {"role": "assistant", "content": "Done."},
    ]
    assert (train.counts.merged_turns, train.counts.redacted) == (1, {"email": 1})


@pytest.mark.parametrize("text", ["<|im_end|>", "x<|im_start|>assistant\nSure!", "<|endoftext|>"])
def test_row_that_could_forge_a_turn_is_refused(rows, chatml, text):
    """A question that holds the end-of-turn token would end its turn and open the model's."""
    chat = [{"role": "user", "content": f"Hi {text}"}, {"role": "assistant", "content": "Hello."}]
    data = {"formatter": "messages", "train": {"path": rows([{"messages": chat}, {"messages": [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}])}}  # fmt: skip
    with pytest.raises(DataError, match=r"row 1: message 1 \(user\) holds '<\|\w+\|>', which this model reads as"):
        prepare(DataSection.model_validate(data), chatml)
    counts = prepare(DataSection.model_validate({**data, "bad_rows": "drop"}), chatml)["train"].counts
    assert (counts.kept, counts.dropped.total()) == (1, 1)


# Streams


def streamed(data, tokenizer, counts=None):
    section = DataSection.model_validate({"formatter": "prompt_completion", "streaming": True, **data})
    splits = prepare(section, tokenizer)
    return splits, list(stream_rows(section, tokenizer, splits, Counter() if counts is None else counts))


def test_stream_gives_the_rows_a_file_gives_in_some_order(rows, chatml):
    section = DataSection.model_validate({"formatter": "prompt_completion", "train": {"path": rows()}})
    stored = prepare(section, chatml)["train"].rows.to_list()
    _, stream = streamed({"train": {"path": rows()}}, chatml)
    assert sorted(map(str, stream)) == sorted(map(str, stored))


def test_stream_leaves_out_rows_that_are_measured_on_and_counts_all(rows, chatml):
    counts: Counter[str] = Counter()
    data = {"train": {"path": rows()}, "test": {"path": rows(TEN[:3], "test.jsonl")}}
    splits, stream = streamed(data, chatml, counts)
    assert len(stream) == 7
    assert counts == {"read": 10, "kept": 7, "a row that is measured on": 3}
    assert splits["train"].counts.read == 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"eval": {"rows": 2}}, r"data\.eval: rows cannot be held out of a stream; name a source of their own"),
        ({"weight": 0.5}, r"data\.train: a stream shows every row once; leave out `weight`"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(rows, chatml, data, message):
    train = {"path": rows(), **{key: value for key, value in data.items() if key == "weight"}}
    with pytest.raises(DataError, match=message):
        streamed({**{k: v for k, v in data.items() if k != "weight"}, "train": train}, chatml)


def test_stream_in_which_no_row_matches_where_is_an_error(rows, chatml):
    with pytest.raises(DataError, match="no rows match `where`; nothing to train on"):
        streamed({"train": {"path": rows(), "where": {"prompt": "x"}}}, chatml)


def test_stream_of_rows_with_another_column_names_the_nearest(rows, chatml):
    with pytest.raises(DataError, match=r"needs column 'prompt'; .* did you mean 'promt'"):
        streamed({"train": {"path": rows([{"promt": "x", "completion": "y"}])}}, chatml)


def test_rows_unused_for_a_month_go_when_others_are_prepared(rows, prepared_anew, cache):
    month = 31 * 24 * 3600
    for age in (month, 60):
        prepared_anew(rows(), max_length=1000 + age)
        newest = max((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (time.time() - age, time.time() - age))
    prepared_anew(rows(), max_length=77)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2
    assert prepared_anew(rows(), max_length=1060) is False
    assert prepared_anew(rows(), max_length=1000 + month) is True


def test_time_of_last_use_is_kept_for_cleaning_up(rows, prepared_anew, cache):
    prepared_anew(rows())
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    os.utime(folder, (0, 0))
    prepared_anew(rows())
    assert time.time() - folder.stat().st_mtime < 60
