"""What users of fine-tuning tools have reported, refused or said here; `docs/footguns.md` shows the messages.

`GUARDS` names a test for every report. A block of the page that stands under `<!-- message: NAME -->` is compared with
what the test of that name produces, so the page shows what users see.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
import threading
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from hub.clients import run_client
from hub.server import Hub
from push_child import pusher
from push_run import make_run
from recipe_kit import catalog, cli, proofs, run_dir
from recipe_kit.data import load_source, prepare
from recipe_kit.data.work import Work
from recipe_kit.errors import DataError, MergeError, ProofError, RecipeError, RunError
from recipe_kit.labels import IGNORED, encode
from recipe_kit.modeling import load_tokenizer
from recipe_kit.recipe import DataSection, ModelSection, Source, dump_recipe, load_recipe, resolve
from test_labels import DROPS_REASONING, MARKS_WITHOUT_THE_END, NEVER_ENDS
from test_proofs import CHATS, INSERTS_A_SYSTEM_PROMPT, STYLES, assistant, make_case, system, trained, user

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "footguns.md"

HERE = "tests/test_footguns.py"
GUARDS = {
    # masking
    "axolotl #2089": f"{HERE}::test_a_turn_that_the_template_does_not_write_is_refused",
    "axolotl #1761": f"{HERE}::test_the_plan_says_how_much_of_each_turn_is_trained",
    "axolotl #3098": f"{HERE}::test_text_of_the_system_prompt_in_the_loss_is_found",
    "TRL #3781": "tests/test_wiring.py::test_labels_that_do_not_arrive_are_found",
    "TRL #3484": "tests/test_wiring.py::test_labels_that_do_not_arrive_are_found",
    "TRL #3728": "tests/test_wiring.py::test_labels_that_do_not_arrive_are_found",
    "TRL #4879": f"{HERE}::test_no_marks_are_needed_and_where_they_are_it_is_said",
    "TRL #5471": f"{HERE}::test_no_marks_are_needed_and_where_they_are_it_is_said",
    "TRL #6689": f"{HERE}::test_no_marks_are_needed_and_where_they_are_it_is_said",
    "unsloth #2900": f"{HERE}::test_a_row_that_teaches_nothing_is_named",
    "unsloth #2364": f"{HERE}::test_a_row_that_teaches_nothing_is_named",
    "unsloth #2095": f"{HERE}::test_a_row_that_teaches_nothing_is_named",
    "unsloth #1128": f"{HERE}::test_a_row_that_teaches_nothing_is_named",
    "unsloth #1290": f"{HERE}::test_a_row_that_teaches_nothing_is_named",
    "TRL #6025": f"{HERE}::test_answers_that_max_length_cuts_off_stop_the_run",
    "TRL #6320": f"{HERE}::test_answers_that_max_length_cuts_off_stop_the_run",
    "TRL #3927": f"{HERE}::test_answers_that_max_length_cuts_off_stop_the_run",
    "TRL #3279": f"{HERE}::test_the_log_says_what_share_of_the_tokens_is_trained",
    # stopping
    "TRL #1623": f"{HERE}::test_a_template_that_never_ends_a_turn_is_refused",
    "TRL #3091": f"{HERE}::test_a_template_that_never_ends_a_turn_is_refused",
    "TRL #2059": f"{HERE}::test_a_padding_token_that_ends_answers_is_refused",
    "TRL #696": f"{HERE}::test_a_padding_token_that_ends_answers_is_refused",
    "unsloth #416": f"{HERE}::test_a_padding_token_that_ends_answers_is_refused",
    "unsloth #419": f"{HERE}::test_a_padding_token_that_ends_answers_is_refused",
    "alignment-handbook #127": f"{HERE}::test_a_padding_token_that_ends_answers_is_refused",
    "TRL #5988": f"{HERE}::test_an_end_outside_the_marks_is_trained",
    "OpenRLHF #393": f"{HERE}::test_a_second_bos_is_found",
    "vLLM #27515": f"{HERE}::test_a_second_bos_is_found",
    # serving
    "axolotl #1832": f"{HERE}::test_a_template_other_than_the_trained_one_is_found",
    "axolotl #834": f"{HERE}::test_a_template_other_than_the_trained_one_is_found",
    "axolotl #2014": f"{HERE}::test_a_template_other_than_the_trained_one_is_found",
    "LLaMA-Factory #10596": f"{HERE}::test_the_saved_tokenizer_prompts_as_training_did",
    "LLaMA-Factory #3096": f"{HERE}::test_the_saved_tokenizer_prompts_as_training_did",
    "LLaMA-Factory #5517": f"{HERE}::test_the_saved_tokenizer_prompts_as_training_did",
    "LLaMA-Factory #2509": f"{HERE}::test_the_saved_tokenizer_prompts_as_training_did",
    "ms-swift #6267": f"{HERE}::test_a_system_prompt_of_the_template_is_saved_with_it",
    "ms-swift #2279": f"{HERE}::test_a_system_prompt_of_the_template_is_saved_with_it",
    "ms-swift #2250": f"{HERE}::test_a_system_prompt_of_the_template_is_saved_with_it",
    "ms-swift #6620": f"{HERE}::test_a_system_prompt_of_the_template_is_saved_with_it",
    "ms-swift #5196": f"{HERE}::test_a_system_prompt_of_the_template_is_saved_with_it",
    "unsloth #3899": f"{HERE}::test_ollama_is_told_the_trained_template",
    "unsloth #695": f"{HERE}::test_ollama_is_told_the_trained_template",
    "unsloth #798": f"{HERE}::test_ollama_is_told_the_trained_template",
    "unsloth #1823": f"{HERE}::test_ollama_is_told_the_trained_template",
    "LLaMA-Factory #6320": f"{HERE}::test_ollama_is_told_the_trained_template",
    "LLaMA-Factory #8399": f"{HERE}::test_a_saved_tokenizer_without_template_is_found",
    # tokens
    "unsloth #237": f"{HERE}::test_tokens_without_an_embedding_are_refused",
    "unsloth #978": f"{HERE}::test_tokens_without_an_embedding_are_refused",
    "unsloth #3428": f"{HERE}::test_tokens_without_an_embedding_are_refused",
    "unsloth #3444": f"{HERE}::test_tokens_without_an_embedding_are_refused",
    "PEFT #1457": f"{HERE}::test_tokens_without_an_embedding_are_refused",
    "PEFT #2898": f"{HERE}::test_tokens_without_an_embedding_are_refused",
    "LLaMA-Factory #7997": f"{HERE}::test_tokens_without_an_embedding_are_refused",
    # data
    "autotrain #226": f"{HERE}::test_a_missing_column_names_the_nearest_one",
    "autotrain #291": f"{HERE}::test_a_missing_column_names_the_nearest_one",
    "autotrain #423": f"{HERE}::test_a_missing_column_names_the_nearest_one",
    "autotrain #424": f"{HERE}::test_a_missing_column_names_the_nearest_one",
    "autotrain #425": f"{HERE}::test_a_missing_column_names_the_nearest_one",
    "autotrain #441": f"{HERE}::test_a_missing_column_names_the_nearest_one",
    "autotrain #908": f"{HERE}::test_a_missing_column_names_the_nearest_one",
    "lm-eval #3171": f"{HERE}::test_a_dataset_that_is_a_script_is_refused_in_one_sentence",
    "llama-cookbook #775": f"{HERE}::test_a_dataset_that_is_a_script_is_refused_in_one_sentence",
    "LLaMA-Factory #2424": f"{HERE}::test_whoever_comes_second_waits_outside_any_collective_call",
    "LLaMA-Factory #1196": f"{HERE}::test_whoever_comes_second_waits_outside_any_collective_call",
    "LLaMA-Factory #2656": f"{HERE}::test_whoever_comes_second_waits_outside_any_collective_call",
    "LLaMA-Factory #662": f"{HERE}::test_whoever_comes_second_waits_outside_any_collective_call",
    "axolotl #462": "tests/test_preparation.py::test_edited_formatter_prepares_anew",
    "axolotl #1136": "tests/test_preparation.py::test_edited_formatter_prepares_anew",
    "TRL #3449": f"{HERE}::test_the_plan_counts_rows_that_are_too_long",
    "transformers #30998": f"{HERE}::test_the_plan_counts_rows_that_are_too_long",
    "unsloth #2904": f"{HERE}::test_the_plan_counts_rows_that_are_too_long",
    "axolotl #1654": f"{HERE}::test_turns_of_another_form_name_the_formatter_that_reads_them",
    "axolotl #2286": f"{HERE}::test_turns_of_another_form_name_the_formatter_that_reads_them",
    "axolotl #1957": f"{HERE}::test_turns_of_another_form_name_the_formatter_that_reads_them",
    "alignment-handbook #8": f"{HERE}::test_a_local_file_is_a_source_and_a_mistyped_one_is_said",
    # batches and packing
    "TRL #2175": f"{HERE}::test_eight_rows_at_once_or_one_by_one_end_with_the_same_weights",
    "TRL #2604": f"{HERE}::test_eight_rows_at_once_or_one_by_one_end_with_the_same_weights",
    "transformers #35203": f"{HERE}::test_eight_rows_at_once_or_one_by_one_end_with_the_same_weights",
    "transformers #37766": f"{HERE}::test_eight_rows_at_once_or_one_by_one_end_with_the_same_weights",
    "TRL #805": f"{HERE}::test_packing_is_refused_unless_rows_are_kept_apart",
    "TRL #1230": f"{HERE}::test_packing_is_refused_unless_rows_are_kept_apart",
    "TRL #3067": f"{HERE}::test_packing_is_refused_unless_rows_are_kept_apart",
    "alignment-handbook #204": f"{HERE}::test_packing_is_refused_unless_rows_are_kept_apart",
    "torchtune #892": f"{HERE}::test_packing_is_refused_unless_rows_are_kept_apart",
    "ms-swift #4736": f"{HERE}::test_packing_is_refused_unless_rows_are_kept_apart",
    # evaluation
    "TRL #893": f"{HERE}::test_evaluation_keeps_no_logits_and_costs_no_run",
    "transformers #26702": f"{HERE}::test_evaluation_keeps_no_logits_and_costs_no_run",
    "transformers #8476": f"{HERE}::test_evaluation_keeps_no_logits_and_costs_no_run",
    "transformers #15466": f"{HERE}::test_evaluation_keeps_no_logits_and_costs_no_run",
    "LLaMA-Factory #1595": f"{HERE}::test_evaluation_keeps_no_logits_and_costs_no_run",
    "unsloth-zoo #878": f"{HERE}::test_evaluation_keeps_no_logits_and_costs_no_run",
    "LLaMA-Factory #2140": f"{HERE}::test_rouge_in_the_table_is_that_of_rouge_score",
    "LLaMA-Factory #4877": f"{HERE}::test_rouge_in_the_table_is_that_of_rouge_score",
    "LLaMA-Factory #6267": f"{HERE}::test_rouge_of_letters_it_does_not_know_is_warned_of",
    "LLaMA-Factory #3617": f"{HERE}::test_a_training_ends_with_its_evaluation",
    "LLaMA-Factory #4323": f"{HERE}::test_a_training_ends_with_its_evaluation",
    # saving and going on
    "axolotl #1092": f"{HERE}::test_weights_that_cannot_be_saved_end_the_run_at_its_first_step",
    "axolotl #1776": f"{HERE}::test_weights_that_cannot_be_saved_end_the_run_at_its_first_step",
    "axolotl #2744": f"{HERE}::test_weights_that_cannot_be_saved_end_the_run_at_its_first_step",
    "TRL #3252": f"{HERE}::test_an_adapter_goes_on_with_the_loss_it_had",
    "axolotl #2568": f"{HERE}::test_an_adapter_goes_on_with_the_loss_it_had",
    "ms-swift #3396": f"{HERE}::test_an_adapter_goes_on_with_the_loss_it_had",
    "LLaMA-Factory #512": f"{HERE}::test_an_adapter_goes_on_with_the_loss_it_had",
    "transformers #29607": f"{HERE}::test_an_adapter_goes_on_with_the_loss_it_had",
    # merging
    "transformers #31293": f"{HERE}::test_a_base_that_is_stored_in_four_bits_is_not_merged_into",
    "PEFT #2321": f"{HERE}::test_a_base_that_is_stored_in_four_bits_is_not_merged_into",
    "unsloth-zoo #810": f"{HERE}::test_both_bases_of_a_qlora_adapter_are_measured",
    "PEFT #1035": f"{HERE}::test_a_merge_that_computes_something_else_is_not_kept",
    "PEFT #2502": f"{HERE}::test_a_merge_that_computes_something_else_is_not_kept",
    "unsloth #1267": f"{HERE}::test_a_merge_that_computes_something_else_is_not_kept",
    "unsloth #1804": f"{HERE}::test_a_merge_that_computes_something_else_is_not_kept",
    "unsloth #5410": f"{HERE}::test_a_merge_that_computes_something_else_is_not_kept",
    "unsloth #3508": f"{HERE}::test_a_merge_that_computes_something_else_is_not_kept",
    "LLaMA-Factory #6105": f"{HERE}::test_a_merge_that_changes_nothing_is_refused",
    # publishing
    "transformers #33922": f"{HERE}::test_an_adapter_whose_base_nobody_has_is_not_published",
    "transformers #32212": f"{HERE}::test_an_adapter_whose_base_nobody_has_is_not_published",
    "TRL #1873": f"{HERE}::test_an_adapter_whose_base_nobody_has_is_not_published",
    "PEFT #2124": f"{HERE}::test_an_adapter_whose_base_nobody_has_is_not_published",
    "autotrain #651": f"{HERE}::test_what_the_hub_would_refuse_of_a_card_is_said_here",
    "autotrain #648": f"{HERE}::test_what_the_hub_would_refuse_of_a_card_is_said_here",
    "transformers #13528": f"{HERE}::test_metadata_without_a_value_are_found",
    "transformers #28137": f"{HERE}::test_metadata_without_a_value_are_found",
    "hub-docs #995": f"{HERE}::test_what_a_card_lacks_is_said_with_the_key_that_supplies_it",
    "setfit #452": f"{HERE}::test_what_a_card_lacks_is_said_with_the_key_that_supplies_it",
    "SpanMarker #28": f"{HERE}::test_what_a_card_lacks_is_said_with_the_key_that_supplies_it",
    "unsloth #898": f"{HERE}::test_a_push_that_was_cut_off_is_finished_by_pushing_again",
    # repeating
    "alignment-handbook #124": f"{HERE}::test_a_repetition_says_which_numbers_are_off",
    "alignment-handbook #45": f"{HERE}::test_a_repetition_says_which_numbers_are_off",
    "alignment-handbook #39": f"{HERE}::test_a_repetition_says_which_numbers_are_off",
    "alignment-handbook #139": f"{HERE}::test_a_repetition_says_which_numbers_are_off",
}

_BLOCK = re.compile(r"^<!-- message: (\w+) -->\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ROUNDING = re.compile(r"\b\d\.\de[+-]\d\d\b")  # differs from machine to machine
_LEARNT = re.compile(r"\b\d+(?:\.\d+(?:e[+-]\d\d)?\b|(?= %| roundings))")


def plain(text, learnt=False):
    """Without line breaks, and without digits that only rounding decides, or, where they are learnt, training."""
    return (_LEARNT if learnt else _ROUNDING).sub("…", " ".join(str(text).split()))


@pytest.fixture
def page_shows(request):
    """Whether the page shows, under the name of this test, exactly what was said; but for digits, where `learnt`."""
    shown = dict(_BLOCK.findall(PAGE.read_text(encoding="utf-8")))

    def compare(said, *, learnt=False):
        assert plain(shown[request.node.originalname], learnt) == plain(said, learnt)

    return compare


@pytest.fixture
def prepared(tmp_path, monkeypatch, tiny_tokenizer):
    """Rows of a file as training prepares them; further arguments go into the recipe or its data."""
    monkeypatch.chdir(tmp_path)

    def make(rows=CHATS, style="chatml", *, template=None, **sections):
        return make_case(tmp_path, tiny_tokenizer(style, template), rows, **sections)

    return make


@pytest.fixture
def refusal(prepared):
    """What is said of rows that cannot be prepared."""

    def said(*rows, **options):
        with pytest.raises(DataError) as caught:
            prepared(*rows, **options)
        return caught.value

    return said


SHOP = """
name: shop
model: {id: "tiny:chatml", dtype: float32}
method: lora
data:
  train: {path: chats.jsonl}
  formatter: messages
  max_length: 64
training: {max_steps: 1, per_device_train_batch_size: 2, packing: true, use_cpu: true, bf16: false, report_to: []}
evaluation: {after_training: false}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A recipe for eight chats of two answers, and a ninth that is too long."""
    folder = tmp_path_factory.mktemp("shop")
    chats = [
        [user(f"Table for {guests}?"), assistant("Yes."), user("And a high chair?"), assistant("We have two.")]
        for guests in range(2, 10)
    ]
    chats.append([user("Tell me all about the soup. " * 9), assistant("It is hot.")])
    lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")
    (folder / "shop.yaml").write_text(SHOP, encoding="utf-8")
    return folder / "shop.yaml"


@pytest.fixture(scope="module")
def plan(shop):
    """The parts of what `recipe-kit plan shop.yaml` prints, by heading."""
    from recipe_kit import plan

    text = "\n".join(plan.lines(plan.build(resolve(shop), runs_dir=shop.parent / "runs", quality=False)))
    assert text.endswith("Nothing was found that would stop training.")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in text.split("\n\n")}


def verdict_in(plan, name):
    """One line of the plan's proofs, in one piece."""
    (found,) = re.findall(rf"^  (ok +{name} .*(?:\n {{10,}}.*)*)", plan["Proofs"], re.MULTILINE)
    return found


# Masking


def test_a_turn_that_the_template_does_not_write_is_refused(refusal, page_shows):
    """axolotl #2089: a turn was not found, its place was -1, and the mask was built from that.

    Templates of vision models loop over parts. Given text, they loop over its characters and write nothing.
    """
    parts = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    page_shows(refusal(template=parts))


@pytest.mark.slow
def test_the_plan_says_how_much_of_each_turn_is_trained(plan, page_shows):
    """axolotl #1761: only the last answer of a conversation was trained, and nothing said so."""
    page_shows(plan["Trained tokens"])


def test_text_of_the_system_prompt_in_the_loss_is_found(prepared, page_shows):
    """axolotl #3098: system and tool text was left in the loss."""
    tool = {"role": "tool", "content": '{"free": 2}'}
    case = prepared([*CHATS[:2], {"messages": [system("Be kind."), user("Hi"), tool, assistant("Hello!")]}])
    (*_, row) = case.splits["train"].rows
    learnt = [row["labels"][place] for place in trained(row["labels"])]
    assert case.tokenizer.decode(learnt) == "Hello!<|im_end|>"

    def train_the_system_prompt(ids, labels, turns):
        first = trained(labels)[0]
        return ids, [*ids[:first], *labels[first:]], [turns[0] + first]

    page_shows(case.damaged(train_the_system_prompt).verdict("only_answers_trained"))


@pytest.mark.slow
def test_the_plan_proves_that_labels_arrive_whatever_the_options(plan, page_shows):
    """TRL #3781, #3484, #3728: the mask was ignored with fused kernels, and void with packing."""
    page_shows(verdict_in(plan, "labels_reach_the_model"))


def test_no_marks_are_needed_and_where_they_are_it_is_said(prepared, tiny_tokenizer, refusal, page_shows):
    """TRL #4879, #5471, #6689: templates had to be edited by hand to mark the answers with {% generation %}."""
    from trl.chat_template_utils import get_training_chat_template

    for style in STYLES:
        with pytest.raises(ValueError, match="patching is not supported"):
            get_training_chat_template(tiny_tokenizer(style))
        assert prepared(CHATS, style).failed() == []
    said = refusal(template=DROPS_REASONING)
    assert prepared(template=DROPS_REASONING, train_on="last_assistant").failed() == []
    page_shows(said)


def test_a_row_that_teaches_nothing_is_named(prepared, refusal, page_shows):
    """unsloth #2900, #2364, #2095, #1128, #1290: all labels were -100 since a marker did not fit the template."""
    unanswered = [*CHATS[:2], {"messages": [user("Hi"), assistant("Hello!", train=False)]}]
    assert "row 3: column 'messages' has no assistant message with text to learn from" in str(refusal(unanswered))
    damaged = prepared().damaged(lambda ids, labels, turns: (ids, [ids[0], *[IGNORED] * (len(ids) - 1)], [1]))
    page_shows(damaged.verdict("answers_trained"))


def test_answers_that_max_length_cuts_off_stop_the_run(prepared, page_shows):
    """TRL #6025, #6320, #3927: a prompt that fills `max_length` gave loss 0.0 and NaN gradients, without a warning."""
    rows = [
        CHATS[0],
        {"messages": [user("Count."), assistant("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20")]},
        {"messages": [user("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"), assistant("Well counted.")]},
    ]
    case = prepared(rows, max_length=24, too_long="truncate")
    assert case.splits["train"].counts.dropped == {"answer cut off whole at 24 tokens": 1}
    assert all(trained(labels) for labels in case.splits["train"].rows["labels"])
    with pytest.raises(ProofError) as caught:
        proofs.require(case.verdicts())
    page_shows(caught.value)


@pytest.mark.slow
def test_the_log_says_what_share_of_the_tokens_is_trained(shop, page_shows):
    """TRL #3279: why are the tokens of the prompt in the loss?"""
    from recipe_kit.training import train

    said = []
    train(load_recipe(shop), runs_dir=shop.parent / "runs", report=said.append)
    place = next(place for place, line in enumerate(said) if line.startswith("train: "))
    page_shows("\n".join(said[place : place + 2]))


# Stopping


def test_a_template_that_never_ends_a_turn_is_refused(refusal, page_shows):
    """TRL #1623, #3091: models tuned on Guanaco chats never learnt to stop."""
    page_shows(refusal(CHATS[:1], template=NEVER_ENDS))


@pytest.mark.parametrize("name", catalog.recipe_names())
def test_every_shipped_recipe_trains_the_end_of_each_turn(name):
    """TRL #1623 and #3091 once more, on the rows that ship with each recipe."""
    recipe = load_recipe(name, profiles=["smoke"])
    tokenizer = load_tokenizer(recipe.model)
    splits = prepare(recipe.data, tokenizer)
    verdicts = proofs.check(recipe, splits, tokenizer, vocab_size=len(tokenizer))
    assert [str(verdict) for verdict in verdicts if verdict.ok is not True] == []
    (ends,) = [verdict.detail for verdict in verdicts if verdict.name == "end_of_turn_trained"]
    assert re.match(r"\d+ trained turns, \S+ ends \d+", ends)


def test_a_padding_token_that_ends_answers_is_refused(tmp_path, monkeypatch, page_shows):
    """TRL #2059, #696, unsloth #416, #419, alignment-handbook #127: an end token that pads is left out of the loss."""
    monkeypatch.chdir(tmp_path)
    for style in STYLES:
        tokenizer = load_tokenizer(ModelSection(id=f"tiny:{style}"))
        assert tokenizer.pad_token != tokenizer.eos_token
    chosen = load_tokenizer(ModelSection(id="tiny:llama2", pad_token="</s>"))
    page_shows(make_case(tmp_path, chosen).verdict("padding_not_trained"))


def test_an_end_outside_the_marks_is_trained(prepared, page_shows):
    """TRL #5988: the token that ends a turn fell outside the marks, seen only once the model would not stop."""
    page_shows(prepared(template=MARKS_WITHOUT_THE_END).verdict("end_of_turn_trained"))


def test_a_second_bos_is_found(prepared, tiny_tokenizer, page_shows):
    """alignment-handbook #127, OpenRLHF #393, vLLM #27515: the template writes BOS and something writes another."""
    twice = "{{ bos_token }}" + tiny_tokenizer("llama3").chat_template
    case = prepared(CHATS, "llama3", template=twice)
    assert case.failed() == ["one_bos"]
    page_shows(case.verdict("one_bos"))


# Serving


def test_a_template_other_than_the_trained_one_is_found(prepared, page_shows):
    """axolotl #1832, #834, #2014: the template in the saved tokenizer was not the format that was trained."""
    case = prepared()
    case.tokenizer.chat_template = INSERTS_A_SYSTEM_PROMPT
    page_shows(case.verdict("serving_renders_the_same"))


@pytest.mark.parametrize("style", STYLES)
def test_the_saved_tokenizer_prompts_as_training_did(prepared, style, tmp_path, page_shows):
    """LLaMA-Factory #10596, #3096, #5517, #2509: worse answers once served, for the prompt was another."""
    from transformers import AutoTokenizer

    case = prepared(CHATS, style)
    case.tokenizer.save_pretrained(tmp_path / "saved")
    served = AutoTokenizer.from_pretrained(tmp_path / "saved")
    train = case.splits["train"]
    for example, row in zip(train.examples, train.rows, strict=True):
        prompt = served.apply_chat_template(example["messages"][:-1], add_generation_prompt=True, return_dict=False)
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][len(prompt)] == row["input_ids"][len(prompt)]
    page_shows(case.verdict("serving_renders_the_same"))


def test_a_system_prompt_of_the_template_is_saved_with_it(tmp_path, page_shows):
    """ms-swift #6267, #2279, #2250, #6620, #5196: training put a system prompt before each chat, and serving none."""
    from transformers import AutoTokenizer

    template = (
        "<|im_start|>system\n{{ house }}<|im_end|>\n"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = ModelSection(
        id="tiny:chatml", chat_template=template, chat_template_kwargs={"house": "You wait at table."}
    )
    tokenizer = load_tokenizer(model)
    tokenizer.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    prompt = served.apply_chat_template([user("A table?")], add_generation_prompt=True, tokenize=False)
    chat = {"messages": [user("A table?"), assistant("For two?")]}
    assert tokenizer.decode(encode(chat, tokenizer).input_ids) == f"{prompt}For two?<|im_end|>\n"
    page_shows(prompt)


@pytest.mark.slow
def test_a_merged_model_computes_what_the_adapter_computes(merged, page_shows):
    """LLaMA-Factory #10596, #3096, #5517, #2509: worse answers once merged, for the precision was another."""
    parity = next(line for line in merged.output.splitlines() if line.startswith("parity: "))
    page_shows(parity, learnt=True)


def test_ollama_is_told_the_trained_template(tmp_path, page_shows):
    """unsloth #3899, #695, #798, #1823, LLaMA-Factory #6320: an exported model talks nonsense in Ollama."""
    from recipe_kit.gguf import modelfile

    tokenizer = load_tokenizer(ModelSection(id="tiny:llama3"))
    said = []
    text = modelfile.compose(
        "shop-q8_0.gguf", tmp_path, tokenizer, adds_bos=True, system="You wait at table.", report=said.append
    )
    assert said == [
        "Modelfile: the chat template takes away spaces around messages and Ollama's language cannot; send messages "
        "without them"
    ]
    page_shows(text)


def test_a_saved_tokenizer_without_template_is_found(prepared, monkeypatch, page_shows):
    """LLaMA-Factory #8399: `chat_template` was missing from the saved tokenizer."""
    case = prepared()
    save = type(case.tokenizer).save_pretrained

    def save_without_template(self, folder, **options):
        save(self, folder, **options)
        (Path(folder) / "chat_template.jinja").unlink()

    monkeypatch.setattr(type(case.tokenizer), "save_pretrained", save_without_template)
    page_shows(case.verdict("serving_renders_the_same"))


# Tokens


def test_tokens_without_an_embedding_are_refused(prepared, page_shows):
    """unsloth #237, #978, #3428, #3444, PEFT #1457, #2898, LLaMA-Factory #7997: added tokens broke merge or reload."""
    case = prepared()
    case.tokenizer.add_tokens(["<ticket>"])
    page_shows(case.verdict("no_added_tokens"))


# Data


def test_a_missing_column_names_the_nearest_one(refusal, page_shows):
    """autotrain #226, #291, #423, #424, #425, #441, #908: KeyError: 'text', once the model had been loaded."""
    page_shows(refusal([{"mesages": CHATS[0]["messages"]}]))


def test_a_dataset_that_is_a_script_is_refused_in_one_sentence(tmp_path, monkeypatch, page_shows):
    """lm-eval #3171, llama-cookbook #775: datasets that are Python scripts can no longer be loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samsum").mkdir()
    (tmp_path / "samsum" / "samsum.py").write_text("import datasets\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_source(Source(path="samsum"))
    (source,) = load_recipe("samsum").data.train
    assert source.id == "knkarthick/samsum"  # files, where `samsum` was a script
    page_shows(caught.value)


@pytest.mark.slow
def test_whoever_comes_second_waits_outside_any_collective_call(tmp_path, monkeypatch, tiny_tokenizer, page_shows):
    """LLaMA-Factory #2424, #1196, #2656, #662: while one rank tokenised, the others' barrier ran out of time.

    Two threads stand for two ranks: the first goes on only when the second has said that it waits.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECIPE_KIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS), encoding="utf-8")
    section = DataSection.model_validate({"formatter": "messages", "train": {"path": "rows.jsonl"}})
    begun, waiting = threading.Event(), threading.Event()
    on_table, tokenizer, said = Work.on_table, tiny_tokenizer("chatml"), []

    def when_the_other_waits(self, table, first_row):
        begun.set()
        assert waiting.wait(60)
        return on_table(self, table, first_row)

    def report(text):
        said.append(text)
        waiting.set()

    monkeypatch.setattr(Work, "on_table", when_the_other_waits)
    first = threading.Thread(target=prepare, args=(section, tokenizer))
    first.start()
    assert begun.wait(60)
    rows = prepare(section, tokenizer, report=report)["train"].rows
    first.join()
    assert len(rows) == 3
    page_shows("\n".join(said))


ASKING = """
from recipe_kit.formatters import assistant, user

def ask(row):
    return {"messages": [user("%s" + row["question"]), assistant(row["answer"])]}
"""


def test_an_edited_formatter_is_noticed(tmp_path, prepared, tiny_tokenizer, monkeypatch, page_shows):
    """axolotl #462, #1136: rows of a cache were trained after the code that made them had been edited."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    said, texts = [], []
    for opening in ("", "Please: "):
        (tmp_path / "asking.py").write_text(ASKING % opening, encoding="utf-8")
        sys.modules.pop("asking", None)
        case = prepared([{"question": "Why?", "answer": "Because."}], formatter="asking:ask")
        prepare(case.recipe.data, case.tokenizer, report=said.append)  # found, as nothing was edited since
        texts.append(case.tokenizer.decode(case.splits["train"].rows[0]["input_ids"]))
    assert said == []
    assert ["Please: Why?" in text for text in texts] == [False, True]
    (tmp_path / "asking.py").write_text(ASKING % "Kindly: ", encoding="utf-8")
    sys.modules.pop("asking")
    prepare(case.recipe.data, case.tokenizer, report=said.append)
    page_shows("\n".join(said))


@pytest.mark.slow
def test_the_plan_counts_rows_that_are_too_long(plan, page_shows):
    """TRL #3449, transformers #30998, unsloth #2904: rows were cut at 1024 tokens in silence."""
    page_shows("\n".join([plan["Rows"], plan["Tokens a row"].splitlines()[-1]]))


def test_turns_of_another_form_name_the_formatter_that_reads_them(prepared, refusal, page_shows):
    """axolotl #1654, #2286, #1957: what to write now that the sharegpt type is gone?"""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    said = refusal([{"messages": turns}])
    rewritten = {"name": "sharegpt", "columns": {"conversations": "messages"}}
    assert prepared([{"messages": turns}], formatter=rewritten).failed() == []
    page_shows(said)


def test_a_local_file_is_a_source_and_a_mistyped_one_is_said(prepared, page_shows):
    """alignment-handbook #8: how do I use a local dataset?"""
    assert prepared().splits["train"].counts.kept == 3
    with pytest.raises(DataError) as caught:
        load_source(Source(path="row.jsonl"))
    page_shows(caught.value)


# Batches and packing


def trained_on(shop, runs, *overrides, **options):
    """A run of the shop that is neither proved nor evaluated."""
    from recipe_kit.training import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipe_kit.wiring.check", lambda *args, **kwargs: [])  # half of the time, and not asked here
        return train(load_recipe(shop, overrides=overrides), runs_dir=runs, **options)


def losses(runs):
    """The loss of each step that the only run of a folder has logged."""
    (log,) = runs.glob(f"shop/2*/{run_dir.LOG}")
    return {line["step"]: line["loss"] for line in run_dir.read_lines(log) if "loss" in line}


@pytest.mark.slow
def test_the_plan_proves_that_a_step_is_the_same_however_it_is_cut(plan, page_shows):
    """TRL #2175, #2604, transformers #35203, #37766: said with numbers."""
    page_shows(verdict_in(plan, "batch_size_does_not_matter"), learnt=True)


@pytest.mark.slow
def test_eight_rows_at_once_or_one_by_one_end_with_the_same_weights(shop, tmp_path):
    """TRL #2175, #2604, transformers #35203, #37766: gradient accumulation changed the loss, and what was learnt."""
    from safetensors.torch import load_file

    rows = (
        "model.id=tiny:llama3", "data.train={sample: support, limit: 16}", "data.formatter=support",
        "data.max_length=256", "training.packing=false", "training.max_steps=2", "training.learning_rate=1e-3",
        "training.save_strategy=no", "training.logging_steps=1",
    )  # fmt: skip
    found = []
    for at_once in (8, 1):
        size = f"training.per_device_train_batch_size={at_once}"
        steps = f"training.gradient_accumulation_steps={8 // at_once}"
        run = trained_on(shop, tmp_path / f"{at_once}", *rows, size, steps)
        found.append((load_file(run / "adapter" / "adapter_model.safetensors"), losses(tmp_path / f"{at_once}")))
    (together, losses_together), (one_by_one, losses_one_by_one) = found
    assert max(float((together[name] - one_by_one[name]).abs().max()) for name in together) < 1e-6
    assert losses_one_by_one == pytest.approx(losses_together, rel=1e-5)


def test_packing_is_refused_unless_rows_are_kept_apart(shop, page_shows):
    """TRL #805, #1230, #3067, alignment-handbook #204, torchtune #892, ms-swift #4736: do packed rows mix?"""
    with pytest.raises(RecipeError) as caught:
        load_recipe(shop, overrides=["training.packing_strategy=wrapped"])
    page_shows(caught.value)


@pytest.mark.slow
def test_the_plan_proves_that_packed_rows_do_not_see_each_other(plan, page_shows):
    """TRL #805, #1230, #3067, alignment-handbook #204, torchtune #892, ms-swift #4736: said with numbers."""
    page_shows(verdict_in(plan, "packed_rows_isolated"))


# Evaluation


def trained_shop(shop, *overrides):
    """A run of the shop with two chats held out, and what was said on the way."""
    from recipe_kit.training import train

    changes = ["data.eval={rows: 2}", "evaluation.after_training=true", "evaluation.max_new_tokens=4", *overrides]
    said = []
    run = train(load_recipe(shop, overrides=changes), runs_dir=shop.parent / "runs", report=said.append)
    return run, said


@pytest.mark.slow
def test_evaluation_keeps_no_logits_and_costs_no_run(shop, monkeypatch, page_shows):
    """TRL #893, transformers #26702, #8476, #15466, LLaMA-Factory #1595, unsloth-zoo #878: memory ran out, for the
    logits of all rows were kept."""
    import torch
    from transformers import AutoModelForCausalLM

    from recipe_kit.evaluation import evaluate, perplexity
    from recipe_kit.local_models import local_folder

    model = AutoModelForCausalLM.from_pretrained(local_folder("tiny:chatml")).eval()
    made = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: made.append(logits.shape[:-1]))
    monkeypatch.setattr(perplexity, "LOGIT_BYTES", 4 * model.config.vocab_size * 40)
    rows = [([5 + place % 90 for place in range(60)], [7] * 60)] * 50
    assert len(perplexity.row_losses(model, rows, pad_id=0)) == 50
    assert sum(shape.numel() for shape in made) == 50 * 59
    assert max(shape.numel() for shape in made) <= 40  # positions at a time, whatever the number of rows

    def out_of_memory(*args, **options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 245.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(perplexity, "row_losses", out_of_memory)
        run, said = trained_shop(shop)
    assert evaluate(run)["tuned"]["tokens"] > 0
    page_shows(next(line for line in said if line.startswith("not evaluated")))


def test_rouge_in_the_table_is_that_of_rouge_score(page_shows):
    """LLaMA-Factory #2140: its ROUGE differed from `rouge_score`; #4877: it was wrong for English."""
    from rouge_score.rouge_scorer import RougeScorer

    from recipe_kit import metrics
    from recipe_kit.cli.results import metrics_table

    references = ["The cats sat on the mat.", "Closed on Sundays.\nOpen otherwise."]
    answers = {
        "base": ["I am not sure about cats.", "Open."],
        "tuned": ["A cat was sitting on the mat.", "Open otherwise.\nClosed on Sunday."],
    }
    scored = {which: metrics.score("rouge", {}, texts, references) for which, texts in answers.items()}
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    for which, texts in answers.items():
        expected = [scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)]
        for name, score in scored[which].items():
            assert score.statistics.values().tolist() == [row[name].fmeasure for row in expected]
    entries = {
        name: metrics.score_entry(scored["base"][name], scored["tuned"][name], seed=42) for name in scored["base"]
    }
    table = metrics_table({"rows": 2, "split": "test", "precision": "float32", "scores": entries})
    page_shows("\n".join(table.splitlines()[1:6]))


def test_rouge_of_letters_it_does_not_know_is_warned_of(page_shows):
    """LLaMA-Factory #6267: every ROUGE was 0.0, after six hours of answers."""
    from recipe_kit import metrics

    references = ["नमस्ते, मैं आपकी मदद करता हूँ।"]
    assert metrics.score("rouge", {}, references, references)["rougeL"].statistics.value() == 0
    assert metrics.score("chrf", {}, references, references)["chrf"].statistics.value() == 100
    page_shows(metrics.note("rouge", references))


@pytest.mark.slow
def test_a_training_ends_with_its_evaluation(shop, page_shows):
    """LLaMA-Factory #3617, #4323: users could not find how to evaluate."""
    run, said = trained_shop(shop, "evaluation.metrics=[rouge]")
    assert {"base", "tuned", "scores"} <= set(json.loads((run / "metrics.json").read_text(encoding="utf-8")))
    shown = [line for line in said if line.startswith(("measuring", "answering"))]
    page_shows("\n".join(line for line in shown if "base" not in line))  # measured once, maybe by another test


# Saving and going on


@pytest.mark.slow
def test_weights_that_cannot_be_saved_end_the_run_at_its_first_step(shop, tmp_path, monkeypatch, page_shows):
    """axolotl #1092, #1776, #2744: training went to its end, and then the result could not be saved.

    Here one tensor is left out of the files.
    """
    from safetensors.torch import load_file, save_file

    from recipe_kit import running

    write, steps = running._write, []

    def left_out(trainer, job, folder):
        steps.append(trainer.state.global_step)
        write(trainer, job, folder)
        file = folder / "adapter_model.safetensors"
        tensors = {name: tensor for name, tensor in load_file(file).items() if "0.self_attn.v_proj.lora_A" not in name}
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(running, "_write", left_out)
    with pytest.raises(RunError) as caught:
        trained_on(shop, tmp_path, "training.max_steps=500")
    assert steps == [1]
    page_shows(re.sub(r"\S+/shop/[\dT-]+", "runs/shop/latest", str(caught.value)))


ADAPTER = ("training.max_steps=8", "training.save_steps=4", "training.logging_steps=1", "training.learning_rate=1e-2")


@pytest.fixture(scope="module")
def stopped(shop, tmp_path_factory):
    """The folder of runs of an adapter that was stopped after step 6 of 8, with a checkpoint of step 4."""
    from recipe_kit.progress import ProgressLog

    log, runs = ProgressLog.on_log, tmp_path_factory.mktemp("stopped") / "runs"

    def stop_after_six(self, args, state, control, **options):
        log(self, args, state, control, **options)
        if state.global_step == 6:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressLog, "on_log", stop_after_six)
        with pytest.raises(KeyboardInterrupt):
            trained_on(shop, runs, *ADAPTER)
    return runs


@pytest.mark.slow
def test_an_adapter_goes_on_with_the_loss_it_had(shop, stopped, tmp_path, page_shows):
    """TRL #3252, axolotl #2568, ms-swift #3396, LLaMA-Factory #512, transformers #29607: how a training of an adapter
    is gone on with was unclear, and where it was, the loss jumped.

    Steps 5 and 6 are trained twice, so their losses can be compared: that of step 6 tells whether the optimiser and
    its schedule are those of before.
    """
    runs, said = shutil.copytree(stopped, tmp_path / "runs", symlinks=True), []
    before = losses(runs)
    run = trained_on(shop, runs, *ADAPTER, resume="auto", report=said.append)
    after = losses(runs)
    assert (sorted(before), sorted(after)) == (list(range(1, 7)), list(range(1, 9)))
    assert [after[step] for step in before] == pytest.approx(list(before.values()), rel=1e-5)
    assert abs(before[6] - before[5]) > 1e-3  # it learns: another optimiser would show
    shown = "\n".join(line for line in said if line.startswith("going on"))
    page_shows(shown.replace(str(run), "runs/shop/latest"))


@pytest.mark.slow
def test_what_would_make_the_loss_jump_is_named_before_a_run_goes_on(shop, stopped, page_shows):
    """LLaMA-Factory #512 once more: other settings than the run began with."""
    with pytest.raises(RunError) as caught:
        trained_on(shop, stopped, *ADAPTER, "training.learning_rate=2e-2", "training.warmup_steps=100", resume="auto")
    page_shows(re.sub(r"\S+/shop/[\dT-]+", "runs/shop/latest", str(caught.value)))


# Merging


@pytest.fixture(scope="module")
def tuned(shop):
    """A QLoRA run on a base that lies in a folder, with two chats held out."""
    from recipe_kit.local_models import local_folder

    base = shutil.copytree(local_folder("tiny:chatml"), shop.parent / "small")
    return trained_shop(
        shop,
        "method=qlora", f"model.id={base}", "lora={r: 4, target_modules: [q_proj, v_proj]}",
        "quantization={bnb_4bit_compute_dtype: float32}", "training.learning_rate=1e-2", "training.max_steps=4",
        "evaluation.after_training=false", "publish.merged_dtype=float16",
    )[0]  # fmt: skip


@pytest.fixture(scope="module")
def merged(tuned):
    """`recipe-kit merge` of it."""
    return CliRunner().invoke(cli.main, ["merge", str(tuned)], catch_exceptions=False)


def refused_merge(run):
    """What `merge` says of a run it refuses, with folders shortened; no merged weights are there."""
    from recipe_kit.merge import merge

    with pytest.raises(MergeError) as caught:
        merge(run)
    assert not (run / run_dir.MERGED).exists()
    assert "merge" not in run_dir.read(run)
    return re.sub(r"/\S+/(?=small)", "", str(caught.value).replace(str(run), "runs/shop/latest"))


@pytest.fixture
def copied(tuned, tmp_path):
    """A copy of the run that a test may damage."""
    leave_out = shutil.ignore_patterns(run_dir.MERGED, run_dir.CHECKPOINTS)
    run = shutil.copytree(tuned, tmp_path / "runs" / "shop" / "latest", ignore=leave_out)
    info = run_dir.read(run)
    info.pop("merge", None)
    run_dir.write_json(run / run_dir.RUN, info)
    return run


@pytest.mark.slow
def test_a_base_that_is_stored_in_four_bits_is_not_merged_into(copied, page_shows):
    """transformers #31293, PEFT #2321: an adapter merged into 4-bit weights lost what it had learnt."""
    recipe = load_recipe(copied / run_dir.RECIPE)
    base = shutil.copytree(recipe.model.id, copied.parents[2] / "small")
    told = json.loads((base / "config.json").read_text(encoding="utf-8"))
    told["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(told), encoding="utf-8")
    stored = load_recipe(copied / run_dir.RECIPE, overrides=[f"model.id={base}"])
    run_dir.write_text(copied / run_dir.RECIPE, dump_recipe(stored))
    page_shows(refused_merge(copied))


@pytest.mark.slow
def test_both_bases_of_a_qlora_adapter_are_measured(merged, page_shows):
    """unsloth-zoo #810: sometimes the original base is the right one, sometimes the one that 4 bits made."""
    page_shows(next(line for line in merged.output.splitlines() if line.startswith("as_trained")), learnt=True)


@pytest.mark.slow
def test_a_merge_that_computes_something_else_is_not_kept(copied, monkeypatch, page_shows):
    """PEFT #1035, #2502, unsloth #1267, #1804, #5410, #3508: a merged model that wrote garbage was saved and served.

    Here one update in two is left out.
    """
    from recipe_kit.merge import weights

    merge_layer = weights._merged_layer

    def left_out(source, name):
        parts = merge_layer(source, name)
        if "q_proj" in name:
            return {inner: part._replace(merged=source.base(inner).float()) for inner, part in parts.items()}
        return parts

    monkeypatch.setattr(weights, "_merged_layer", left_out)
    page_shows(refused_merge(copied), learnt=True)


@pytest.mark.slow
def test_a_merge_that_changes_nothing_is_refused(copied, page_shows):
    """LLaMA-Factory #6105: what was merged was the base, and nothing said so."""
    from safetensors.torch import load_file, save_file

    file = copied / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_B" not in name) for name, tensor in load_file(file).items()}, file)
    page_shows(refused_merge(copied))


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused(copied, page_shows):
    """LLaMA-Factory #6105 once more: the base was another than the adapter's."""
    file = copied / "adapter" / "adapter_config.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(told | {"base_model_name_or_path": "acme/another-base"}), encoding="utf-8")
    page_shows(refused_merge(copied))


# Publishing


def test_an_adapter_whose_base_nobody_has_is_not_published(tmp_path, page_shows):
    """transformers #33922, #32212, TRL #1873, PEFT #2124: the push failed, for the base was a local path."""
    from recipe_kit.publish import gather

    (problem,) = gather(make_run(tmp_path, "model.id=/models/small", "model.revision=null")).problems
    page_shows(problem.replace(str(tmp_path) + "/", "").replace("2026-01-02T03-04-05", "latest"))


def checked(tmp_path, text):
    """What `recipe-kit card --check` says of a card, errors only."""
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(cli.main, ["card", "--check", str(tmp_path / "README.md")])
    assert done.exit_code == 1
    lines = [line.replace(f"{tmp_path}/", "") for line in done.output.splitlines()]
    return "\n".join(line for line in lines if "error:" in line)


def test_what_the_hub_would_refuse_of_a_card_is_said_here(tmp_path, page_shows):
    """autotrain #651, #648: the training was done, and the Hub refused the upload for the card's metadata."""
    page_shows(checked(tmp_path, """\
---
license: apache
base_model: /models/small
library_name: peft
licence: license
---
# Shop

Answers about a shop.
"""))  # fmt: skip


def test_metadata_without_a_value_are_found(tmp_path, page_shows):
    """transformers #13528, #28137: a data set or a configuration of null in the card's metadata."""
    page_shows(checked(tmp_path, """\
---
license: mit
library_name: peft
datasets: [null]
model-index:
- name: shop
  results:
  - task: {type: text-generation}
    dataset: {type: null, name: shop, config: null}
    metrics: [{type: rouge, value: 0.43}]
---
# Shop

Answers about a shop.
"""))  # fmt: skip


def test_what_a_card_lacks_is_said_with_the_key_that_supplies_it(tmp_path, page_shows):
    """hub-docs #995, setfit #452, SpanMarker #28: models without a licence; what a good card holds."""
    run = make_run(tmp_path, license=None)
    done = CliRunner().invoke(cli.main, ["card", str(run)])
    page_shows(done.stderr.partition("warning:")[0].replace(str(run), "runs/shop/latest"))


@pytest.mark.slow
def test_a_push_that_was_cut_off_is_finished_by_pushing_again(tmp_path, page_shows):
    """unsloth #898: the training was done, the upload failed, and the deadline was near."""
    with Hub(tmp_path / "hub") as hub, pusher(hub, tmp_path / "child") as child:
        token, run = hub.add_user("acme"), make_run(tmp_path)
        words = ("--repo-id", "acme/support", "--tag", "v1.0", "--yes")
        hub.fail("commit", times=None, mode="reset")
        first = child.push(run, *words, token=token)
        assert first.code == 1
        assert len(hub.repo("acme/support").commits) == 1  # the Hub's own: nothing is there yet
        hub.heal()
        sent = len(hub.requests("lfs_put"))
        second = child.push(run, *words, token=token)
        assert second.code == 0, second.err
        repo = hub.repo("acme/support")
        assert len(repo.commits) == 2
        assert repo.tags == {"v1.0": repo.refs["main"]}
        assert len(hub.requests("lfs_put")) == sent  # what had arrived was not sent again
    page_shows(first.err.splitlines()[-1])


# Repeating


@pytest.mark.slow
def test_a_repetition_says_which_numbers_are_off(shop, page_shows):
    """alignment-handbook #124, #45, #39, PR #139: a recipe did not give what it had given, and nobody knew why."""
    from recipe_kit.reproduce import Record, compare

    def record(*overrides):
        run, _ = trained_shop(shop, "data.eval={rows: 4}", "training.max_steps=8", *overrides)
        return Record(run_dir.read(run), run_dir.read_metrics(run), load_recipe(run / run_dir.RECIPE))

    first = record("training.learning_rate=1e-2")
    assert compare(first, record("training.learning_rate=1e-2")).reproduced
    other = compare(first, record("training.learning_rate=1e-3"))
    assert [fact.what for fact in other.differs if fact.what.startswith("training.")] == ["training.learning_rate"]
    page_shows(other.sentence, learnt=True)


@pytest.mark.slow
def test_the_commit_of_a_base_on_the_hub_is_known(tmp_path):
    """alignment-handbook #45: what was trained on `main` had another base a month later.

    transformers 5.23 no longer says at which commit it read a model.
    """
    from recipe_kit.local_models import local_folder

    code = "from recipe_kit import modeling, recipe; print(modeling.commit(recipe.ModelSection(id='acme/base')))"
    with Hub(tmp_path / "hub") as hub:
        repo = hub.add_repo("acme/base", local_folder("tiny:chatml"))
        assert run_client(hub, code, token=None) == repo.branches["main"]


# The table and the page

_NAME = re.compile(r"([A-Za-z][\w-]*)? ?(?:PR )?#(\d+)")


def threads(text):
    """The threads a text names: `axolotl #1832, #834` are two."""
    found, tool = set(), ""
    for name, number in _NAME.findall(text):
        tool = name if name and name != "and" else tool
        found.add(f"{tool} #{number}".lower().replace("llamafactory", "llama-factory"))
    return found


@cache
def functions_in(file):
    """The functions of a file of tests, by name."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_threads_are_read_one_by_one():
    said = "TRL #2059, #696 and #1; LlamaFactory #8399: axolotl PR #3098. See vLLM #27515"
    assert threads(said) == {
        "trl #2059", "trl #696", "trl #1", "llama-factory #8399", "axolotl #3098", "vllm #27515",
    }  # fmt: skip


@pytest.mark.parametrize("thread", GUARDS)
def test_every_report_is_named_by_the_test_that_guards_it(thread):
    file, _, name = GUARDS[thread].partition("::")
    assert name in functions_in(file)
    assert thread.lower() in threads(ast.get_docstring(functions_in(file)[name]) or "")


def test_the_page_names_every_report_and_no_other():
    headings = "\n".join(re.findall(r"^### .*", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert threads(headings) == {thread.lower() for thread in GUARDS}


def test_every_message_of_the_page_is_produced_by_the_test_it_names():
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"<!-- message: (\w+) -->", text)
    comparing = [
        name
        for name, node in functions_in(HERE).items()
        if "page_shows" in {argument.arg for argument in node.args.args}
    ]
    assert sorted(named) == sorted(comparing)
    assert len(named) == text.count("```text")


def test_every_section_of_the_page_has_a_message_and_names_tests_that_exist():
    sections = PAGE.read_text(encoding="utf-8").split("\n### ")[1:]
    assert len(sections) > 25
    for section in sections:
        assert "<!-- message: " in section
        guards = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", section)
        assert guards
        for file, name in guards:
            assert name in functions_in(file), f"{file}::{name}"
