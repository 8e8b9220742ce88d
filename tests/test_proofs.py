"""Every proof holds on rows as they are prepared, and fails on rows that were damaged in the way it looks for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import datasets
import pytest
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

from recipe_kit import proofs
from recipe_kit.data import prepare
from recipe_kit.errors import DataError, ProofError
from recipe_kit.labels import IGNORED
from recipe_kit.modeling import load_tokenizer
from recipe_kit.proofs import Verdict, tokens
from recipe_kit.recipe import ModelSection, Recipe
from recipe_kit.recipe.schema import ProofName
from turns import assistant, system, user

STYLES = ["chatml", "llama3", "llama2", "tinyllama"]
NAMES = [
    "answers_trained", "end_of_turn_trained", "padding_not_trained", "only_answers_trained", "one_bos",
    "no_forged_turns", "answers_whole", "serving_renders_the_same", "no_overlap", "no_added_tokens",
]  # fmt: skip


CHATS = [
    {"messages": [user("Hi"), assistant("Hello!")]},
    {"messages": [user("Kya haal hai?"), assistant("सब बढ़िया 🐘"), user("Bye"), assistant("Phir milenge!")]},
    {"messages": [system("Be kind."), user("Hi"), assistant("Hello!"), user("Still there?"), assistant("Goodbye.")]},
]
PROMPTS = [
    {"prompt": "Plural of ox?", "completion": "Oxen."},
    {"prompt": [system("Count."), user("1?"), assistant("2."), user("3?")], "completion": [assistant("4.")]},
    {"prompt": [user("1?"), assistant("2.")], "completion": [user("3?"), assistant("4."), user("5?"), assistant("6")]},
]
TEXTS = [{"text": "Rye is sticky."}, {"text": "गेहूँ 🌾\n"}, {"text": "Wet your hands."}]
KINDS = {"messages": CHATS, "prompt_completion": PROMPTS, "text": TEXTS}


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows ready to be proved, or damaged since."""

    recipe: Recipe
    splits: dict
    tokenizer: object

    def verdicts(self, vocab_size=768):
        return proofs.check(self.recipe, self.splits, self.tokenizer, vocab_size=vocab_size)

    def verdict(self, name):
        (verdict,) = [verdict for verdict in self.verdicts() if verdict.name == name]
        return verdict

    def failed(self):
        return [verdict.name for verdict in self.verdicts() if verdict.ok is not True]

    def damaged(self, damage, row=2):
        """The same with one training row changed, by default the third.

        `damage` is given token ids, labels and turn lengths, and gives them back as they are to be.
        """
        train = self.splits["train"]
        rows, details = train.rows.to_list(), train.details.to_list()
        ids, labels, turns = damage(rows[row]["input_ids"], rows[row]["labels"], details[row]["turn_lengths"])
        rows[row] = {"input_ids": ids, "labels": labels}
        details[row]["turn_lengths"] = turns
        damaged = dataclasses.replace(
            train,
            rows=datasets.Dataset.from_list(rows, features=train.rows.features),
            details=datasets.Dataset.from_list(details, features=train.details.features),
        )
        return dataclasses.replace(self, splits={**self.splits, "train": damaged})


def make_case(folder, tokenizer, rows=CHATS, **sections):
    """Rows written to a file of the working folder, and prepared; `sections` go into the recipe or its data."""
    recipe = {key: sections.pop(key) for key in ("method", "lora", "proofs") if key in sections}
    sources = {"train": rows, **{name: sections.pop(name) for name in ("eval", "test") if name in sections}}
    for name, content in sources.items():
        if isinstance(content, list):
            path = folder / ("rows.jsonl" if name == "train" else f"{name}.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
            sources[name] = {"path": path.name}
    data = {"formatter": "messages", **sources, **sections}
    resolved = Recipe.model_validate(
        {"name": "proved", "model": {"id": "tiny:chatml"}, "method": "lora", "data": data, **recipe}
    )
    return Case(resolved, prepare(resolved.data, tokenizer), tokenizer)


@pytest.fixture
def prepared(tmp_path, monkeypatch, tiny_tokenizer):
    """Rows of a file as training prepares them; further arguments go into the recipe's `data`."""
    monkeypatch.chdir(tmp_path)

    def make(rows=CHATS, style="chatml", *, template=None, tokenizer=None, **sections):
        return make_case(tmp_path, tokenizer or tiny_tokenizer(style, template), rows, **sections)

    return make


def trained(labels):
    return [place for place, label in enumerate(labels) if label != IGNORED]


# Good rows


@pytest.mark.parametrize("train_on", ["assistant", "last_assistant", "all"])
@pytest.mark.parametrize("formatter", KINDS)
@pytest.mark.parametrize("style", STYLES)
def test_every_proof_holds_on_good_rows(prepared, style, formatter, train_on):
    verdicts = prepared(KINDS[formatter], style, formatter=formatter, train_on=train_on).verdicts()
    assert [verdict.name for verdict in verdicts] == NAMES
    assert [str(verdict) for verdict in verdicts if verdict.ok is not True] == []


def test_what_a_proof_looked_at_stands_in_its_sentence(prepared):
    case = prepared(CHATS, "llama3", eval=[{"messages": [user("Why?"), assistant("Because.")]}])
    assert [str(verdict) for verdict in case.verdicts()] == [
        "answers_trained: ok: every row has a trained token; 3 of 3 rows looked at",
        "end_of_turn_trained: ok: 5 trained turns, <|eot_id|> ends 5",
        "padding_not_trained: ok: <|finetune_right_pad_id|> is never trained; 3 of 3 rows looked at",
        "only_answers_trained: ok: 5 trained turns of 3 rows are answers and nothing else",
        "one_bos: ok: <|begin_of_text|> stands where the template writes it, never twice; 3 rows",
        "no_forged_turns: ok: every control token was written by the template; 3 rows, 5 control texts refused",
        "answers_whole: ok: 0 of 3 rows are cut off (0.0 %, limit 5.0 %)",
        "serving_renders_the_same: ok: 3 rows give the trained token ids with the saved tokenizer",
        "no_overlap: ok: 1 of data.eval, none of them among the 3 training rows",
        "no_added_tokens: ok: 768 tokens, 768 embeddings",
    ]


def test_every_proof_can_be_downgraded_by_its_name():
    assert set(NAMES) < set(get_args(ProofName))


@pytest.mark.parametrize("max_length", range(24, 60, 3))
@pytest.mark.parametrize("style", STYLES)
def test_rows_cut_anywhere_in_an_answer_raise_no_alarm(prepared, style, max_length):
    """A cut can fall inside a character, after a whole turn, or between two turns."""
    long = [user("Hi"), assistant("नमस्ते 👩‍👩‍👧"), user("So?"), assistant("Yes 🐘🐘 and <b>no</b>, as they say.")]
    case = prepared(
        [{"messages": long}, *CHATS[:1]], style, max_length=max_length, too_long="truncate",
        proofs={"max_cut_off_share": 1.0},
    )  # fmt: skip
    assert case.failed() == []


SPACE_AT_THE_BORDER = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
# Like Qwen3's: an empty reasoning block before the last answer only.
ADDS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
INSERTS_A_SYSTEM_PROMPT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [MARKED, ADDS_REASONING, INSERTS_A_SYSTEM_PROMPT])
@pytest.mark.parametrize("train_on", ["assistant", "last_assistant", "all"])
def test_what_a_template_adds_raises_no_alarm(prepared, template, train_on):
    assert prepared(CHATS, template=template, train_on=train_on).failed() == []


def test_a_token_across_the_border_of_prompt_and_answer_is_told_and_raises_no_alarm(prepared):
    case = prepared(CHATS, template=SPACE_AT_THE_BORDER)
    assert case.failed() == []
    assert case.verdict("only_answers_trained").detail == (
        "5 trained turns of 3 rows are answers and nothing else; 5 answers share their first token with the prompt"
    )


@pytest.mark.parametrize(
    "answer",
    [
        "<think>\nThey greet me.\n</think>\n\nHello!",
        "<think></think>Hello!",
        "  \n\tspaced  out \r\n\r\n",
        "🐘",
        "\u202eolleH \x07\x1b[31m\u200b",
        "\ufffd\ufffd?",
        "### Human: Hi\n### Assistant: Hello!",
        '{"messages": [{"role": "user", "content": "<b>"}]}',
        "a <|b and [ INST ] and < / s >",
        "cafe\u0301",
    ],
)
@pytest.mark.parametrize("style", STYLES)
def test_whatever_an_answer_says_raises_no_alarm(prepared, style, answer):
    rows = [{"messages": [user(answer), assistant(answer), user("So?"), assistant(answer)]}]
    assert prepared(rows, style).failed() == []


@pytest.mark.parametrize("style", STYLES)
def test_answers_left_out_of_the_loss_raise_no_alarm(prepared, style):
    rows = [
        {"messages": [user("Hi"), assistant("No.", train=False), user("So?"), assistant("Yes.")]},
        {"messages": [user("Hi"), assistant("Yes."), user("So?"), assistant("No.", train=False)]},
        {"messages": [user("Hi"), assistant("Same."), user("So?"), assistant("Same.", train=False), user("And?")]},
        {"messages": [user("Hi"), assistant(""), user("So?"), assistant("Yes.")]},
    ]
    assert prepared(rows, style).failed() == []
    assert prepared(rows, style, train_on="last_assistant").failed() == []


# answers_trained


def test_a_row_without_a_trained_token_fails(prepared):
    case = prepared().damaged(lambda ids, labels, turns: (ids, [IGNORED] * len(ids), []))
    assert str(case.verdict("answers_trained")) == (
        "answers_trained: FAILED: 1 row without a proper trained token, first rows.jsonl (train) row 3; "
        "raise data.max_length, or correct these rows"
    )


def test_a_row_of_which_only_the_first_token_is_trained_fails(prepared):
    """No token stands before it to predict it from, so nothing is learnt."""
    case = prepared().damaged(lambda ids, labels, turns: (ids, [ids[0]] + [IGNORED] * (len(ids) - 1), [1]))
    assert (
        case.verdict("answers_trained").detail
        == "1 row without a proper trained token, first rows.jsonl (train) row 3"
    )


def test_rows_that_many_looked_at_stand_for_all_and_it_is_said(prepared, monkeypatch):
    case = prepared()
    monkeypatch.setattr(tokens, "COLUMN_ROWS", 2)
    assert case.verdict("answers_trained").detail == "every row has a trained token; 2 of 3 rows looked at"
    assert [proofs.spread(10, 3), proofs.spread(3, 10), proofs.spread(0, 3)] == [[0, 3, 6], [0, 1, 2], []]


# end_of_turn_trained


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("turn", [0, 1])
def test_a_turn_whose_end_is_not_trained_fails(prepared, style, turn):
    """TRL #1623: Guanaco runs never learnt to stop."""

    def forget_the_end(ids, labels, turns):
        last = trained(labels)[sum(turns[: turn + 1]) - 1]
        shorter = [length - (number == turn) for number, length in enumerate(turns)]
        return ids, [*labels[:last], IGNORED, *labels[last + 1 :]], shorter

    case = prepared(CHATS, style).damaged(forget_the_end)
    assert case.failed() == ["end_of_turn_trained"]
    assert case.verdict("end_of_turn_trained").detail == (
        "1 row with a trained turn that no end-of-turn token closes, first rows.jsonl (train) row 3"
    )


@pytest.mark.parametrize("rows", [CHATS, TEXTS], ids=["messages", "text"])
def test_an_end_that_is_no_control_token_fails_also_if_all_is_trained(prepared, rows):
    def with_a_full_stop(ids, labels, turns):
        ids = [*ids[:-2], *[ids[-3]] * 3]
        return ids, list(ids), [len(ids)]

    formatter = "messages" if rows is CHATS else "text"
    case = prepared(rows, formatter=formatter, train_on="all").damaged(with_a_full_stop)
    assert case.verdict("end_of_turn_trained").ok is False


def test_a_turn_that_was_cut_short_is_excused_and_counted(prepared):
    case = prepared(max_length=25, too_long="truncate", proofs={"max_cut_off_share": 1.0})
    cut = case.splits["train"].counts.truncated
    assert cut >= 1
    verdict = case.verdict("end_of_turn_trained")
    assert verdict.ok is True
    assert verdict.detail.endswith(f"; {cut} are cut short")


# padding_not_trained


def test_a_trained_padding_token_fails(prepared):
    case = prepared()

    def train_padding(ids, labels, turns):
        first = trained(labels)[0]
        return ids, [*labels[:first], case.tokenizer.pad_token_id, *labels[first + 1 :]], turns

    assert str(case.damaged(train_padding).verdict("padding_not_trained")) == (
        "padding_not_trained: FAILED: 1 row with the padding token <|endoftext|> trained, "
        "first rows.jsonl (train) row 3; set model.pad_token to a token that no answer holds"
    )


@pytest.mark.parametrize("style", STYLES)
def test_a_padding_token_that_ends_answers_fails(prepared, style):
    """TRL #2059: with pad = eos the end token is masked as padding, and never learnt."""
    case = prepared(CHATS, style)
    case.tokenizer.pad_token = case.tokenizer.eos_token
    assert case.failed() == ["padding_not_trained"]
    assert case.verdict("padding_not_trained").detail.startswith("3 rows with the padding token ")


# only_answers_trained


def train_the_system_prompt(ids, labels, turns):
    first = trained(labels)[0]
    return ids, [*ids[:first], *labels[first:]], [turns[0] + first, *turns[1:]]


def train_the_header_of_the_first_answer(ids, labels, turns):
    first = trained(labels)[0]
    return ids, [*labels[: first - 4], *ids[first - 4 : first], *labels[first:]], [turns[0] + 4, *turns[1:]]


def train_a_question_as_a_turn_of_its_own(ids, labels, turns):
    first, second = trained(labels)[turns[0] - 1] + 1, trained(labels)[turns[0]]
    return ids, [*labels[:first], *ids[first:second], *labels[second:]], [turns[0], second - first, turns[1]]


def swap_the_answers(ids, labels, turns):
    places = trained(labels)
    first, second = places[: turns[0]], places[turns[0] :]
    given = dict(zip(places, [labels[place] for place in [*second, *first]], strict=True))
    return ids, [given.get(place, IGNORED) for place in range(len(ids))], turns[::-1]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "damage",
    [
        train_the_system_prompt,
        train_the_header_of_the_first_answer,
        train_a_question_as_a_turn_of_its_own,
        swap_the_answers,
    ],
)
def test_rows_that_train_other_text_than_their_answers_fail(prepared, style, damage):
    """axolotl #3098: system text was left in the loss."""
    verdict = prepared(CHATS, style).damaged(damage).verdict("only_answers_trained")
    assert str(verdict) == (
        "only_answers_trained: FAILED: 1 row with other text trained than answers, "
        "first rows.jsonl (train) row 3; report this with the chat template in use"
    )


def test_an_answer_of_which_the_front_half_is_not_trained_fails(prepared):
    rows = [*CHATS[:2], {"messages": [user("Hi"), assistant("Hello!"), user("Why?"), assistant("Because " * 20)]}]
    first_half = prepared(rows).damaged(
        lambda ids, labels, turns: (
            ids,
            [IGNORED if place in trained(labels)[turns[0] : -20] else label for place, label in enumerate(labels)],
            [turns[0], 20],
        )
    )
    assert first_half.failed() == ["only_answers_trained"]


@pytest.mark.parametrize("train_on", ["assistant", "last_assistant"])
def test_a_turn_marked_not_to_be_trained_that_is_trained_fails(prepared, train_on):
    rows = [
        *CHATS[:2],
        {"messages": [user("Hi"), assistant("Wrong answer.", train=False), user("So?"), assistant("Yes.")]},
    ]

    both = prepared([*CHATS[:2], {"messages": [{**turn, "train": True} for turn in rows[2]["messages"]]}])
    (_, _, trained_row), (_, _, detail) = both.splits["train"].rows, both.splits["train"].details
    assert len(detail["turn_lengths"]) == 2
    case = prepared(rows, train_on=train_on).damaged(
        lambda ids, labels, turns: (ids, trained_row["labels"], detail["turn_lengths"])
    )
    assert case.failed() == ["only_answers_trained"]


def test_prompts_may_be_trained_where_the_recipe_says_so(prepared):
    assert prepared(train_on="all").verdict("only_answers_trained").detail == (
        "data.train_on: all trains prompts too, as the recipe says"
    )


# one_bos


def begin_twice(ids, labels, turns):
    return [ids[0], *ids], [IGNORED, *labels], turns


def begin_without(ids, labels, turns):
    return ids[1:], labels[1:], turns


@pytest.mark.parametrize("style", ["llama3", "llama2"])
@pytest.mark.parametrize("damage", [begin_twice, begin_without])
def test_a_bos_too_many_or_too_few_fails(prepared, style, damage):
    """alignment-handbook #127, OpenRLHF #393, vLLM #27515: double BOS."""
    case = prepared(CHATS, style)
    assert str(case.damaged(damage).verdict("one_bos")) == (
        f"one_bos: FAILED: 1 row with more or fewer {case.tokenizer.bos_token} than the template writes, "
        "first rows.jsonl (train) row 3; let the template or the tokenizer write it, not both"
    )


def test_a_bos_that_the_template_does_not_write_fails(prepared):
    """The Zephyr format has none: a tokenizer that puts one before the chat would train it."""
    case = prepared(CHATS, "tinyllama")
    bos = case.tokenizer.bos_token_id
    damaged = case.damaged(lambda ids, labels, turns: ([bos, *ids], [IGNORED, *labels], turns))
    assert damaged.verdict("one_bos").ok is False


def test_plain_text_with_two_bos_fails_and_with_one_or_none_does_not(prepared):
    case = prepared(TEXTS, "tinyllama", formatter="text")
    bos = case.tokenizer.bos_token_id
    outcomes = [
        case.damaged(
            lambda ids, labels, turns, count=count: ([bos] * count + ids, [bos] * count + labels, [turns[0] + count])
        ).verdict("one_bos")
        for count in (0, 1, 2)
    ]
    assert [verdict.ok for verdict in outcomes] == [True, True, False]


def test_a_template_that_writes_bos_twice_fails(prepared, tiny_tokenizer):
    twice = "{{ bos_token }}" + tiny_tokenizer("llama3").chat_template
    assert prepared(CHATS, "llama3", template=twice).failed() == ["one_bos"]


def test_a_tokenizer_that_adds_a_bos_of_its_own_changes_nothing(prepared, tiny_tokenizer):
    case = prepared(CHATS, "llama3")
    case.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", case.tokenizer.bos_token_id)]
    )
    assert case.tokenizer("Hi")["input_ids"][0] == case.tokenizer.bos_token_id
    assert dataclasses.replace(case, splits=prepare(case.recipe.data, case.tokenizer)).failed() == []


# no_forged_turns


@pytest.mark.parametrize("style", STYLES)
def test_control_tokens_that_a_message_brings_fail(prepared, style):
    case = prepared(CHATS, style)
    end = case.tokenizer.eos_token_id

    def end_the_question_early(ids, labels, turns):
        place = trained(labels)[0] - 3
        return [*ids[:place], end, *ids[place:]], [*labels[:place], IGNORED, *labels[place:]], turns

    verdict = case.damaged(end_the_question_early).verdict("no_forged_turns")
    assert str(verdict) == (
        "no_forged_turns: FAILED: 1 row with control tokens brought by a message, "
        "first rows.jsonl (train) row 3; take the control text out of these rows"
    )


def test_control_tokens_in_another_order_fail(prepared):
    case = prepared(CHATS, "llama3")
    header, end = case.tokenizer.convert_tokens_to_ids(["<|end_header_id|>", "<|eot_id|>"])
    swapped = {header: end, end: header}
    damaged = case.damaged(lambda ids, labels, turns: ([swapped.get(token, token) for token in ids], labels, turns))
    assert damaged.verdict("no_forged_turns").ok is False


# answers_whole


LONG = {"messages": [user("Count."), assistant("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20")]}
DEEP = {"messages": [user("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"), assistant("Well counted.")]}


def test_too_many_answers_cut_off_fail_those_cut_off_whole_among_them(prepared):
    """TRL #6025: prompts that filled the length gave loss 0.0."""
    case = prepared([CHATS[0], CHATS[0], LONG, DEEP], max_length=24, too_long="truncate")
    assert case.splits["train"].counts.dropped == {"answer cut off whole at 24 tokens": 1}
    assert case.failed() == ["answers_whole"]
    assert str(case.verdict("answers_whole")) == (
        "answers_whole: FAILED: 2 of 4 rows are cut off (50.0 %, limit 5.0 %); raise data.max_length, "
        "set data.too_long: drop, or raise proofs.max_cut_off_share"
    )


def test_the_share_that_the_recipe_allows_is_allowed(prepared):
    rows = [CHATS[0], CHATS[0], LONG, DEEP]
    verdicts = [
        prepared(rows, max_length=24, too_long="truncate", proofs={"max_cut_off_share": share}).verdict(
            "answers_whole"
        )
        for share in (0.49, 0.5)
    ]
    assert [verdict.ok for verdict in verdicts] == [False, True]


def test_rows_that_are_dropped_for_their_length_are_not_cut_off(prepared):
    case = prepared([CHATS[0], LONG], max_length=24)
    assert case.verdict("answers_whole").detail == "0 of 1 rows are cut off (0.0 %, limit 5.0 %)"


# serving_renders_the_same


def test_a_template_changed_after_the_rows_were_prepared_fails(prepared):
    """axolotl #1832: the format that was trained was not the tokenizer's template."""
    case = prepared()
    case.tokenizer.chat_template = INSERTS_A_SYSTEM_PROMPT
    assert str(case.verdict("serving_renders_the_same")) == (
        "serving_renders_the_same: FAILED: 2 rows with other token ids from the saved tokenizer than are trained, "
        "first rows.jsonl (train) row 1; give the template in model.chat_template and its variables in "
        "model.chat_template_kwargs"
    )


def test_a_template_that_asks_the_clock_fails(prepared):
    case = prepared()
    case.tokenizer.chat_template = "{{ strftime_now('%H:%M:%S.%f') }}" + case.tokenizer.chat_template
    assert case.verdict("serving_renders_the_same").detail.startswith("the chat template asks the clock")


@pytest.fixture
def saved_otherwise(monkeypatch):
    """Tokenizers leave another folder than they should: `change` is called with it."""

    def patch(tokenizer, change):
        save = type(tokenizer).save_pretrained

        def save_and_change(self, folder, **options):
            save(self, folder, **options)
            change(Path(folder))

        monkeypatch.setattr(type(tokenizer), "save_pretrained", save_and_change)

    return patch


def test_a_saved_tokenizer_without_its_template_fails(prepared, saved_otherwise):
    """LLaMA-Factory #8399: the template was missing from the saved tokenizer."""
    case = prepared()
    saved_otherwise(case.tokenizer, lambda folder: (folder / "chat_template.jinja").unlink())
    assert str(case.verdict("serving_renders_the_same")) == (
        "serving_renders_the_same: FAILED: the chat template is missing from the saved tokenizer "
        "(tokenizer.json, tokenizer_config.json); set model.chat_template"
    )


def test_a_tokenizer_that_splits_words_otherwise_once_saved_fails(prepared, saved_otherwise):
    def forget_the_merges(folder):
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        stored["model"]["merges"] = []
        (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")

    case = prepared()
    saved_otherwise(case.tokenizer, forget_the_merges)
    assert case.failed() == ["serving_renders_the_same"]


# no_overlap


def test_rows_that_are_measured_on_and_trained_on_fail(prepared):
    case = prepared(eval=[{"messages": [user("Why?"), assistant("Because.")]}, CHATS[1]], test=CHATS[:2])
    assert str(case.verdict("no_overlap")) == (
        "no_overlap: FAILED: rows that are measured on and trained on: 1 of data.eval and 2 of data.test, "
        "first eval.jsonl (train) row 2 = rows.jsonl (train) row 2; take them out of one side, or hold rows out with "
        "data.eval: {fraction: 0.05}"
    )


def test_rows_that_are_held_out_do_not_overlap(prepared):
    rows = [{"messages": [user(f"{n}?"), assistant(f"{n}.")]} for n in range(10)]
    assert prepared([*rows, *rows], eval={"rows": 3}).verdict("no_overlap").detail == (
        "3 of data.eval, none of them among the 14 training rows"
    )


def test_a_system_prompt_of_the_recipe_does_not_hide_an_overlap(prepared):
    assert prepared(eval=CHATS[:1], system="Be brief.").failed() == ["no_overlap"]


# no_added_tokens


def test_a_token_without_an_embedding_fails(prepared):
    """unsloth #237, PEFT #1457."""
    case = prepared()
    case.tokenizer.add_tokens(["<ticket>", "<order>"])
    assert str(case.verdict("no_added_tokens")) == (
        "no_added_tokens: FAILED: tokens of the tokenizer without an embedding in the model: 2 (770 tokens, 768 "
        "embeddings); use the model's own tokenizer, or train and save them: "
        "lora: {modules_to_save: [embed_tokens, lm_head]}"
    )


@pytest.mark.parametrize(
    ("method", "lora", "ok"),
    [
        ("full", {}, True),
        ("lora", {"modules_to_save": ["embed_tokens", "lm_head"]}, True),
        ("lora", {"modules_to_save": ["embed_tokens"]}, False),
        ("qlora", {}, False),
    ],
)
def test_added_tokens_are_allowed_only_if_their_embeddings_are_trained_and_saved(prepared, method, lora, ok):
    case = prepared(method=method, lora=lora)
    case.tokenizer.add_tokens(["<ticket>"])
    verdict = case.verdict("no_added_tokens")
    assert verdict.ok is ok
    assert verdict.detail.startswith("tokens of the tokenizer without an embedding in the model: 1")


def test_more_embeddings_than_tokens_are_fine(prepared):
    (verdict,) = [verdict for verdict in prepared().verdicts(vocab_size=1024) if verdict.name == "no_added_tokens"]
    assert str(verdict) == "no_added_tokens: ok: 768 tokens, 1,024 embeddings"


def test_what_cannot_be_known_is_not_checked_and_is_not_held_against_the_run(prepared):
    verdicts = prepared().verdicts(vocab_size=None)
    said = []
    proofs.require(verdicts, said.append)
    assert said == ["9 of 10 proofs hold; no_added_tokens not checked: the model's configuration could not be read"]


# What follows from a failure


def test_a_failed_proof_ends_the_run_with_the_way_to_downgrade_it(prepared):
    case = prepared(eval=CHATS[:1], max_length=40, too_long="truncate")
    said = []
    with pytest.raises(ProofError) as caught:
        proofs.require(case.verdicts(), said.append)
    first, second, last = str(caught.value).splitlines()
    assert first.startswith("answers_whole: FAILED: ")
    assert second.startswith("no_overlap: FAILED: ")
    assert last == "to train all the same: proofs: {warn: [answers_whole, no_overlap]}"
    assert said == []


def test_a_proof_named_in_warn_is_reported_recorded_and_not_fatal(prepared):
    case = prepared(eval=CHATS[:1], proofs={"warn": ["no_overlap"]})
    said = []
    record = proofs.require(case.verdicts(), said.append)
    assert said == [
        "no_overlap: warning: rows that are measured on and trained on: 1 of data.eval, first eval.jsonl (train) "
        "row 1 = rows.jsonl (train) row 1; take them out of one side, or hold rows out with data.eval: "
        "{fraction: 0.05}",
        "9 of 10 proofs hold",
    ]
    assert [entry["name"] for entry in record] == NAMES
    assert {entry["name"]: entry["fatal"] for entry in record if not entry["fatal"]} == {"no_overlap": False}
    assert json.loads(json.dumps(record)) == record


def test_only_the_named_proof_is_downgraded(prepared):
    case = prepared(
        eval=CHATS[:1], max_length=25, too_long="truncate", proofs={"warn": ["no_overlap"]}
    )  # fmt: skip
    with pytest.raises(ProofError, match=r"^answers_whole: FAILED: .*\nto train all .* \{warn: \[answers_whole\]\}$"):
        proofs.require(case.verdicts())


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (Verdict("one_bos", True, "fine"), "one_bos: ok: fine"),
        (Verdict("one_bos", None, "no rows"), "one_bos: not checked: no rows"),
        (Verdict("one_bos", False, "two", "write one"), "one_bos: FAILED: two; write one"),
        (Verdict("one_bos", False, "two", "write one", fatal=False), "one_bos: warning: two; write one"),
    ],
)
def test_a_verdict_is_a_sentence(verdict, sentence):
    assert str(verdict) == sentence


# Real tokenizers and rows


@pytest.mark.reference
@pytest.mark.parametrize("name", ["llama3_2", "llama2", "tinyllama", "smollm2"])
@pytest.mark.parametrize(
    ("formatter", "file"),
    [
        ("support", "customer_support.train.jsonl"),
        ("messages", "hinglish_restaurant.train.jsonl"),
        ("guanaco", "guanaco_en.train.jsonl"),
        ("dialogue_summary", "dialogue_summary_mts.train.jsonl"),
    ],
)
def test_no_proof_raises_an_alarm_on_real_rows_with_real_tokenizers(reference, name, formatter, file):
    tokenizer = load_tokenizer(ModelSection(id=str(reference / "tokenizers" / name)))
    for options in (
        {"train_on": "assistant"},
        {"train_on": "last_assistant", "system": "Aap ek sahayak hain. 🙂"},
        {"train_on": "all"},
        {"max_length": 160, "too_long": "truncate"},
    ):
        data = {"formatter": formatter, "train": {"path": str(reference / "data" / file), "limit": 150},
                "max_length": 2048, **options}  # fmt: skip
        recipe = Recipe.model_validate(
            {"name": "real", "model": {"id": "org/real"}, "method": "lora", "data": data,
             "proofs": {"max_cut_off_share": 1.0}}
        )  # fmt: skip
        splits = prepare(recipe.data, tokenizer)
        assert splits["train"].counts.kept > 80
        verdicts = proofs.check(recipe, splits, tokenizer, vocab_size=len(tokenizer))
        assert [str(verdict) for verdict in verdicts if verdict.ok is not True] == []


def test_rows_that_a_stream_leaves_out_are_no_overlap(prepared):
    case = prepared(eval=CHATS[:1], streaming=True)
    assert case.failed() == []
    assert case.verdict("no_overlap").detail == "rows that are measured on are left out of the stream"


# What once went unnoticed, or raised an alarm for nothing


@pytest.mark.parametrize("turns", [[], [0], None])
def test_a_row_without_labels_is_a_verdict_whatever_is_said_of_its_turns(prepared, turns):
    case = prepared().damaged(lambda ids, labels, t: (ids, [IGNORED] * len(ids), t if turns is None else turns))
    assert (
        case.verdict("answers_trained").detail
        == "1 row without a proper trained token, first rows.jsonl (train) row 3"
    )


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_labels_that_are_not_the_token_at_their_place_fail(prepared, train_on):
    case = prepared(train_on=train_on).damaged(lambda ids, labels, turns: (ids, [labels[-1], *labels[:-1]], turns))
    assert "answers_trained" in case.failed()


def test_a_line_break_trained_after_the_end_token_fails(prepared):
    case = prepared(CHATS[:1]).damaged(lambda ids, labels, turns: (ids, [*labels[:-1], ids[-1]], turns), row=0)
    assert case.failed() == ["end_of_turn_trained"]


def test_the_end_of_a_header_trained_before_an_answer_fails(prepared):
    def one_more(ids, labels, turns):
        first = trained(labels)[0]
        return ids, [*labels[: first - 1], ids[first - 1], *labels[first:]], [turns[0] + 1, *turns[1:]]

    assert prepared(CHATS, "llama3").damaged(one_more).failed() == ["only_answers_trained"]


def test_every_answer_trained_where_only_the_last_should_be_fails(prepared):
    both = prepared().splits["train"]
    case = prepared(train_on="last_assistant")
    damaged = case.damaged(lambda ids, labels, turns: (ids, both.rows[2]["labels"], both.details[2]["turn_lengths"]))
    assert (case.failed(), damaged.failed()) == ([], ["only_answers_trained"])


def test_rows_that_are_all_refused_end_in_a_sentence(prepared):
    with pytest.raises(DataError, match=r"none of 1 rows is left \(1 × "):
        prepared([{"messages": [user("q"), assistant(" ")]}], bad_rows="drop")


@pytest.mark.parametrize("answer", ["cafe\u0301 au lait", "\u0958\u0932\u092e yahan hai"])
def test_a_tokenizer_that_normalises_raises_no_alarm(prepared, tiny_tokenizer, answer):
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert prepared([{"messages": [user("q"), assistant(answer)]}], tokenizer=tokenizer).failed() == []


@pytest.mark.parametrize(
    "name",
    ["gptoss_training", "muse_glimmer", "muse_glimmer_training", "deepseekv3_training", "glm4moe_training", "lfm2_2_5",
     "nemotron_3_nano_training"],
)  # fmt: skip
@pytest.mark.parametrize("reasoned", [False, True])
def test_templates_that_write_or_drop_text_around_answers_raise_no_alarm(prepared, name, reasoned):
    from recipe_kit.modeling import pin_template
    from test_labels_batch import ANSWERS, chat, trl_tokenizer

    reasoning = "<think>\nThey greet me, so I greet them back kindly.\n</think>\n\n" if reasoned else ""
    tokenizer = trl_tokenizer(name)
    tokenizer.chat_template = pin_template(tokenizer.chat_template, {})
    rows = [{"messages": chat(name, 3, [reasoning + answer for answer in ANSWERS])}]
    case = prepared(rows, tokenizer=tokenizer, max_length=4096)
    assert [str(verdict) for verdict in case.verdicts(vocab_size=9999) if verdict.ok is not True] == []


def test_a_bos_that_the_tokenizer_adds_is_missed_in_plain_text(prepared):
    case = prepared(TEXTS, "tinyllama", formatter="text")
    case.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", case.tokenizer.bos_token_id)]
    )
    assert case.failed() == ["one_bos", "serving_renders_the_same"]


def test_a_clock_that_cannot_be_pinned_fails(prepared, tiny_tokenizer):
    template = "{% set f = '%d %b %Y' %}{{ strftime_now(f) }}" + tiny_tokenizer("chatml").chat_template
    assert prepared(template=template).failed() == ["serving_renders_the_same"]
