"""What the quality report says about rows, and what it leaves out: every row here was written for these tests."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_kit.formatters import assistant, system, user
from recipe_kit.quality import examine, find_personal, lines, merge_roles, redact, warnings
from recipe_kit.quality.text import ROMANISED_HINDI, romanised_words, script_counts, tokens, word_count

GARDEN = (
    "Tomatoes want a sunny bed and water every evening, but never on the leaves; feed them once a week and pinch out "
    "the side shoots as soon as they are as long as a finger"
)


def chat(*contents):
    """A conversation that begins with a question."""
    return {"messages": [(user, assistant)[place % 2](content) for place, content in enumerate(contents)]}


def exchange(question, answer):
    return {"prompt": [user(question)], "completion": [assistant(answer)]}


def of_train(*rows, **options):
    return examine({"train": rows}, **options)["splits"]["train"]


def found_in(text):
    return [(text[start:end], kind) for start, end, kind in find_personal(text)]


# personal data


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("Write to ann.lee+shop@example.co.uk.", "ann.lee+shop@example.co.uk"),
        ("mailto:ann@example.com", "ann@example.com"),
        ("<9876543210@example.org>, or post", "9876543210@example.org"),
        ("https://example.com\nann@example.com", "ann@example.com"),
        ("https://example.com/?to=ann@example.com", "ann@example.com"),
        ("Mera email ann@example.com hai", "ann@example.com"),
        ("ईमेलann@example.comहै", "ann@example.com"),
        ("邮箱是ann@example.com。", "ann@example.com"),
    ],
)
def test_email_address_is_found_whole(text, address):
    assert found_in(text) == [(address, "email")]


@pytest.mark.parametrize(
    "text",
    [
        "{{Customer Support Email}}",
        "@ann, see @app.route and @user@social.example",
        "git clone git@github.com:ann/shop.git",
        "curl https://ann:secret@example.com/rows",
        "icon@2x.png and pip install shop@1.2.3",
        "ann@localhost",
        "at 5 pm @ the office. com",
    ],
)
def test_what_only_looks_like_an_email_address_is_not_found(text):
    assert found_in(text) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+91 98765 43210 par call karein", "+91 98765 43210"),
        ("+919876543210", "+919876543210"),
        ("(+91) 98765-43210", "(+91) 98765-43210"),
        ("mera number 9876543210 hai", "9876543210"),
        ("98765 43210", "98765 43210"),
        ("Phone: 09876543210.", "09876543210"),
        ("मेरा मोबाइल ९८७६५४३२१० है", "९८७६५४३२१०"),
        ("Delhi office, tel. 011-23456789", "011-23456789"),
        ("Toll-free: 1800-123-4567", "1800-123-4567"),
        ("+49 (0)30 1234567", "+49 (0)30 1234567"),
        ("(+49 30 1234567)", "+49 30 1234567"),
        ("+49 151 23456789, werktags", "+49 151 23456789"),
        ("Meine Nummer ist 0151/23456789.", "0151/23456789"),
        ("0151 23456789", "0151 23456789"),
        ("Rufen Sie 030 1234567 an", "030 1234567"),
        ("+1 (415) 555-0132", "+1 (415) 555-0132"),
        ("Dial 1-800-555-0132 now", "1-800-555-0132"),
        ("(415) 555-0132 ext. 7", "(415) 555-0132"),
        ("415-555-0132", "415-555-0132"),
        ("415.555.0132", "415.555.0132"),
        ("415‑555‑0132", "415‑555‑0132"),
        ("Call 4155550132", "4155550132"),
        ("https://example.com\n415-555-0132", "415-555-0132"),
        ("call 555-0132 after six", "555-0132"),
        ("+44 20 7946 0958", "+44 20 7946 0958"),
        ("+33 6 12 34 56 78", "+33 6 12 34 56 78"),
        ("Tel 06 12 34 56 78", "06 12 34 56 78"),
        ("电话+8613812345678请", "+8613812345678"),
    ],
)
def test_phone_number_is_found_whole(text, number):
    assert found_in(text) == [(number, "phone")]


@pytest.mark.parametrize(
    "text",
    [
        "{{Order Number}}, {{Customer Support Phone Number}}, XXX-XXX-XXXX",
        "order 9876543210",
        "Your order number is 9876543210.",
        "order no. 415-555-0132",
        "Order #98765-43210, please call us about it",
        "Bestellnummer 0151-23456789",
        "Call about invoice 415-555-0132",
        "ref: 9876543210",
        "UPI id 9876543210",
        "Rs. 9876543210 or ₹9876543210 or $4155550132",
        "It costs 1,250,000.00 and grew by +12.3456789",
        "+5 000 000 000 people",
        "on 2024-01-15, 15.01.2024, 01/15/2024 or 2024-01-15 10:30:00",
        "from 1999-2004 and 2005-2009",
        "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, ISBN 9876543210",
        "version 10.0.19041.1234, v415.555.0132, 192.168.100.200",
        "1234567890123456789012345",
        "of 6442450944 bytes in all, which is much more than this machine holds",
        "https://shop.example/orders/415-555-0132?id=+919876543210",
        "ABC-415-555-0132 and 415-555-0132-7",
        "call me at 90210-1234 or in Boston, 02110-1301 or 01760-2098",
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "2001 2002 2003 2004",
        "Monthly 77, 259-264 1970",
    ],
)
def test_number_that_is_no_phone_number_is_not_found(text):
    assert found_in(text) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4111 1111 1111 1111 12/29", "4111 1111 1111 1111"),
        ("card:4111111111111111.", "4111111111111111"),
        ("5555-5555-5555-4444", "5555-5555-5555-4444"),
        ("Amex 3782 822463 10005", "3782 822463 10005"),
        ("RuPay 6521 5251 1646 2105", "6521 5251 1646 2105"),
    ],
)
def test_card_number_is_found_whole(text, number):
    assert found_in(text) == [(number, "card")]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # fails the Luhn check
        "1111 1111 1111 1117",  # passes it, but no network begins with 1
        "order number 4111111111111111",
        "3.4111111111111111",
        "a4111111111111111f",
        "https://shop.example/4111111111111111",
        "4111-1111 1111 1111",
    ],
)
def test_number_that_is_no_card_number_is_not_found(text):
    assert found_in(text) == []


def test_what_is_inside_another_finding_is_not_counted_twice():
    assert found_in("call 9876543210@example.org or 4111 1111 1111 1111") == [
        ("9876543210@example.org", "email"),
        ("4111 1111 1111 1111", "card"),
    ]


def test_report_counts_personal_data_by_row_and_place_and_never_shows_it():
    rows = [
        exchange("Who?", "Ann, ann@example.com, or Bo, bo@example.com."),
        exchange("And {{Name}}?", "Nobody else works here."),
        {"messages": [system("Give out 415-555-0132."), user("Where?"), assistant("On the second floor, left.")]},
        {"text": "Pay with 4111 1111 1111 1111 and read on for a while."},
    ]
    report = examine({"train": rows}, near=False)
    assert report["splits"]["train"]["personal"] == {
        "email": {"rows": 1, "first": [1], "findings": 2},
        "phone": {"rows": 1, "first": [3], "findings": 1},
        "card": {"rows": 1, "first": [4], "findings": 1},
    }
    shown = json.dumps(report) + "".join(lines(report))
    assert not any(secret in shown for secret in ("ann", "bo@", "0132", "1111"))
    assert warnings(report) == [
        "train: e-mail addresses: 2 in 1 of 4 rows (row 1)",
        "train: phone numbers: 1 in 1 of 4 rows (row 3)",
        "train: payment card numbers: 1 in 1 of 4 rows (row 4)",
    ]


# repairs


def test_redaction_replaces_each_finding_and_nothing_else():
    example = {
        "prompt": [system("Hilfe: +49 30 1234567"), user("नमस्ते 👩‍👩‍👧‍👦 e\u0301\r\n\tann@example.com\u200b")],
        "completion": [{"role": "assistant", "content": "Card 4111 1111 1111 1111, {{Order Number}}", "train": True}],
    }
    before = copy.deepcopy(example)
    redacted, counts = redact(example)
    assert redacted == {
        "prompt": [system("Hilfe: [phone]"), user("नमस्ते 👩‍👩‍👧‍👦 e\u0301\r\n\t[email]\u200b")],
        "completion": [{"role": "assistant", "content": "Card [card], {{Order Number}}", "train": True}],
    }
    assert counts == {"phone": 1, "email": 1, "card": 1}
    assert example == before


def test_only_the_chosen_kinds_are_redacted():
    text = {"text": "ann@example.com, +49 30 1234567, 9876543210@example.com"}
    assert redact(text, {"phone"}) == ({"text": "ann@example.com, [phone], 9876543210@example.com"}, {"phone": 1})
    assert redact(text, ()) == (text, {})


personal = st.sampled_from(
    ["a@b.io", "+49 30 1234567", "4111 1111 1111 1111", "415-555-0132", "@", "12", " ", "नं", "\r\n"]
)


@given(st.lists(personal | st.text(max_size=5), max_size=8).map("".join))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_what_redaction_keeps_is_what_stood_between_the_findings(text):
    pieces, place = [], 0
    for start, end, kind in find_personal(text):
        assert place <= start < end <= len(text)
        pieces += [text[place:start], f"[{kind}]"]
        place = end
    assert redact({"text": text})[0] == {"text": "".join([*pieces, text[place:]])}


def test_neighbouring_turns_of_one_role_become_one():
    example = {"messages": [user("Hi."), user("Are you open?"), assistant("Yes."), assistant("Till six."), user("?")]}
    before = copy.deepcopy(example)
    merged, merges = merge_roles(example)
    assert merged == chat("Hi.\n\nAre you open?", "Yes.\n\nTill six.", "?")
    assert merges == 2
    assert example == before


def test_prompt_and_completion_are_merged_each_alone():
    example = {"prompt": [user("A"), user("B"), assistant("C")], "completion": [assistant("D"), assistant("E")]}
    merged = {"prompt": [user("A\n\nB"), assistant("C")], "completion": [assistant("D\n\nE")]}
    assert merge_roles(example) == (merged, 2)


def test_system_turns_are_merged_with_system_turns_only():
    example = {"messages": [system("Be kind."), system("Be brief."), user("Hi"), assistant("Hello.")]}
    merged = {"messages": [system("Be kind.\n\nBe brief."), user("Hi"), assistant("Hello.")]}
    assert merge_roles(example) == (merged, 1)


def test_answers_of_which_only_some_are_trained_are_not_merged():
    left_out = {"role": "assistant", "content": "Hm.", "train": False}
    mixed = {"messages": [user("Hi"), left_out, assistant("Hello.")]}
    assert merge_roles(mixed) == (mixed, 0)
    both = {"messages": [user("Hi"), left_out, left_out, user("?"), assistant("Hello.")]}
    one = {"role": "assistant", "content": "Hm.\n\nHm.", "train": False}
    assert merge_roles(both) == ({"messages": [user("Hi"), one, user("?"), assistant("Hello.")]}, 1)


def test_train_false_of_a_question_stays_when_all_its_turns_have_it():
    quiet = {"role": "user", "content": "Hi", "train": False}
    assert merge_roles({"messages": [quiet, user("Open?"), assistant("Yes.")]})[0] == chat("Hi\n\nOpen?", "Yes.")
    merged = merge_roles({"messages": [quiet, quiet, assistant("Yes.")]})[0]
    assert merged["messages"][0] == {"role": "user", "content": "Hi\n\nHi", "train": False}


def test_blank_turns_add_no_blank_lines_and_tool_turns_and_texts_stay():
    assert merge_roles({"messages": [user(" "), user("Hi"), assistant("Yes."), assistant("")]})[0] == chat(
        "Hi", "Yes."
    )
    tools = {"messages": [user("2+2?"), {"role": "tool", "content": "4"}, {"role": "tool", "content": "4.0"}]}
    assert merge_roles(tools) == (tools, 0)
    assert merge_roles({"text": "a"}) == ({"text": "a"}, 0)


# repeated rows and overlap


def test_row_that_repeats_an_earlier_one_is_counted_with_the_first_of_them():
    row = exchange("Open?", "From nine to five.")
    split = of_train(row, exchange("Open?", "Only on Monday."), row, chat("Open?", "From nine to five."))
    assert split["exact_duplicates"] == {"rows": 2, "pairs": [{"row": 3, "other": 1}, {"row": 4, "other": 1}]}


def test_rows_with_other_roles_are_not_the_same():
    assert of_train({"text": "abc def ghi"}, exchange("abc", "def ghi jkl"))["exact_duplicates"]["rows"] == 0
    roles = {"messages": [assistant("Open?"), user("From nine to five.")]}
    assert of_train(chat("Open?", "From nine to five."), roles)["exact_duplicates"]["rows"] == 0


def test_evaluation_rows_in_train_are_found_whole_by_prompt_and_nearly():
    train = [
        exchange("Where is my parcel?", "It left our house this morning."),
        exchange("Is it paid?", "Yes, since the first of May."),
        exchange("How do I grow tomatoes?", GARDEN + "."),
    ]
    evaluation = [
        exchange("Do you ship to Malta?", "Yes, twice a week by boat."),
        exchange("Where is my parcel?", "It left our house this morning."),
        exchange("is it  PAID?", "No, the bank sent it back."),
        exchange("How do I grow tomatoes?", GARDEN + " is."),
    ]
    report = examine({"eval": evaluation, "train": iter(train)})
    assert list(report["splits"]) == ["eval", "train"]
    assert report["overlap"] == {
        "eval": {
            "exact": {"rows": 1, "pairs": [{"row": 2, "other": 1}]},
            "prompt": {"rows": 2, "pairs": [{"row": 3, "other": 2}, {"row": 4, "other": 3}]},
            "near": {
                "examined": 3,
                "train_examined": 3,
                "rows": 1,
                "pairs": [{"row": 4, "other": 3, "jaccard": pytest.approx(36 / 37, abs=0.06)}],
            },
        }
    }
    near = report["overlap"]["eval"]["near"]["pairs"][0]["jaccard"]
    assert warnings(report) == [
        "eval: in train, word for word: 1 of 4 rows (row 2 like train row 1)",
        "eval: prompt in train, with another answer: 2 of 4 rows (row 3 like train row 2, row 4 like train row 3)",
        f"eval: nearly the same in train: 1 of 3 rows compared with 3 (row 4 like train row 3: {near:.2f})",
    ]


def test_prompt_of_a_conversation_is_all_that_stands_before_its_last_answer():
    train = [{"messages": [system("Be kind."), *chat("Hi", "Hello!", "Thanks", "You are welcome.")["messages"]]}]
    evaluation = [
        chat("Is it open?", "Till six today.", "Thanks", "Gladly, see you soon."),
        chat("hi", "Hello!", "Thanks", "Gladly, see you soon."),
    ]
    overlap = examine({"train": train, "test": evaluation}, near=False)["overlap"]["test"]
    assert overlap["prompt"] == {"rows": 1, "pairs": [{"row": 2, "other": 1}]}


def test_without_a_train_split_there_is_nothing_to_overlap_with():
    assert examine({"eval": [chat("Hi", "Hello there, friend.")]})["overlap"] == {}


def test_near_duplicates_are_grouped_under_the_first_of_them():
    rows = [{"text": f"{name}. {GARDEN}."} for name in ("Ann", "Bo", "Cy")]
    other = {"text": "Nothing of all this is true of a fig tree, which bears best when it is left alone."}
    near = of_train(other, rows[0], rows[0], rows[1], {"text": rows[2]["text"].upper()})["near_duplicates"]
    assert (near["examined"], near["groups"], near["rows"]) == (4, 1, 2)
    assert [(pair["row"], pair["other"]) for pair in near["pairs"]] == [(4, 2), (5, 2)]
    assert all(pair["jaccard"] >= 0.8 for pair in near["pairs"])


def test_the_threshold_decides_what_is_near():
    rows = [{"text": GARDEN}, {"text": GARDEN.replace("evening", "morning")}]  # 3 of 33 shingles differ on each side
    assert of_train(*rows, near_threshold=0.7)["near_duplicates"]["rows"] == 1
    assert of_train(*rows, near_threshold=0.97)["near_duplicates"]["rows"] == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("我们每天早上九点开门，晚上六点关门。", "我们每天早上九点开门，晚上六点关门！"),
        ("मेरा नाम आशा है।", "मेरा  नाम आशा है"),
    ],
)
def test_near_duplicates_are_seen_in_scripts_other_than_latin(first, second):
    assert of_train({"text": first}, {"text": second})["near_duplicates"]["rows"] == 1


def test_rows_without_a_word_are_not_near_one_another():
    assert of_train({"text": "!?"}, {"text": "..."})["near_duplicates"]["rows"] == 0


def test_limit_chooses_the_same_rows_in_any_order_and_the_report_says_how_many():
    rows = [{"text": f"Row {number} speaks of {number} apples"} for number in range(300)]
    report = examine({"train": iter(rows)}, limit=40)
    assert report["splits"]["train"]["near_duplicates"]["examined"] == 40
    assert "near repeats (estimated Jaccard from 0.8, at most 40 rows a split)" in lines(report)[-1]
    twins = [*rows, *({"text": row["text"].upper()} for row in rows)]
    found = [of_train(*order, limit=300)["near_duplicates"]["rows"] for order in (twins, twins[::-1])]
    assert found[0] == found[1] > 0
    assert of_train(*rows, limit=0)["near_duplicates"]["examined"] == 0


def test_two_examinations_give_the_same_report():
    rows = [{"text": f"{GARDEN} {'and so on ' * (number % 7)}"} for number in range(30)]
    assert examine({"train": rows}) == examine({"train": rows})


def test_without_datasketch_the_report_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    report = examine({"train": [{"text": GARDEN}], "eval": [{"text": GARDEN}]})
    assert report["splits"]["train"]["near_duplicates"] is None
    assert report["overlap"]["eval"]["near"] is None
    assert report["overlap"]["eval"]["exact"]["rows"] == 1
    assert "near duplicates: not looked for; `pip install 'recipe-kit[quality]'`" in lines(report)
    assert "near repeats" not in lines(report)[-1]


def test_near_duplicates_can_be_switched_off():
    assert "near duplicates: not looked for; switched off" in lines(examine({"train": [{"text": GARDEN}]}, near=False))


def test_importing_the_report_imports_neither_datasketch_nor_numpy():
    code = "import sys, recipe_kit.quality; print({'datasketch', 'numpy', 'torch', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# answers and turns


@pytest.mark.parametrize("answer", ["Yes.", "Thank you!", "हाँ जी।", "haan ji", "👍", "42", "是。", "***"])
def test_answer_of_one_or_two_words_is_short(answer):
    split = of_train(exchange("Well?", answer), *[exchange("And?", GARDEN)] * 2)
    assert split["short_answers"] == {"rows": 1, "first": [1]}
    assert split["empty_answers"]["rows"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        "Haan, bilkul sahi.",
        "मुझे नहीं पता",
        "我不知道",
        "https://shop.example/returns",
        "Lebensversicherungsgesellschaft.",
        "open(file).read().split('\\n')",
    ],
)
def test_three_words_or_one_long_one_are_not_short(answer):
    assert of_train(exchange("Well?", answer), *[exchange("And?", GARDEN)] * 2)["short_answers"]["rows"] == 0


def test_conversation_is_short_only_when_all_its_answers_are():
    closing = chat("Is it open?", "Yes, till six today.", "Thanks", "Welcome!")
    assert of_train(closing, closing)["short_answers"]["rows"] == 0
    trained_on_little = chat("Is it open?", "Yes, till six today.", "Thanks", "Welcome!")
    trained_on_little["messages"][1]["train"] = False
    assert of_train(trained_on_little, closing, closing)["short_answers"] == {"rows": 1, "first": [1]}


def test_where_half_of_the_rows_have_short_answers_they_are_labels_and_no_warning():
    report = examine({"train": [exchange(f"Review {number}", "negative") for number in range(4)]}, near=False)
    assert report["splits"]["train"]["short_answers_are_labels"]
    assert warnings(report) == []
    assert "train: answers of one or two words, taken for labels: 4 of 4 rows" in lines(report)


def test_empty_answer_is_counted_wherever_it_stands():
    rows = [chat("Hi", " \n", "Still there?", "Yes, I am here."), chat("Hi", "Hello there, friend.")]
    report = examine({"train": rows}, near=False)
    assert report["splits"]["train"]["empty_answers"] == {"rows": 1, "first": [1]}
    assert warnings(report) == ["train: empty answers: 1 of 2 rows (row 1)"]


def test_order_of_the_roles_is_looked_at():
    twice = {"messages": [user("Hi"), user("Open?"), assistant("Yes, till six.")]}
    starts = {"messages": [system("Be kind."), assistant("Hello there, friend."), user("Hi"), assistant("Hello!")]}
    unanswered = chat("Hi", "Hello there, friend.", "Open?")
    tools = {"role": "tool", "content": "4"}
    called = {"messages": [user("2+2?"), tools, tools, assistant("It is four, I think.")]}
    good = chat("Hi", "Hello there, friend.")
    continued = {"prompt": [user("Hi"), assistant("Hello")], "completion": [assistant(" there, dear friend.")]}
    report = examine({"train": [good, twice, called, starts, unanswered, continued, {"text": GARDEN}]}, near=False)
    split = report["splits"]["train"]
    assert split["repeated_roles"] == {"rows": 2, "first": [2, 6]}
    assert split["starts_with_assistant"] == {"rows": 1, "first": [4]}
    assert split["ends_unanswered"] == {"rows": 1, "first": [5]}
    assert warnings(report) == [
        "train: two turns of one role one after another: 2 of 7 rows (rows 2, 6)",
        "train: an answer before any question: 1 of 7 rows (row 4)",
        "train: a last question without an answer: 1 of 7 rows (row 5)",
    ]


def test_lengths_of_answers_leave_out_context():
    rows = [
        exchange("one two three", "a bc"),
        {"messages": [user("?"), assistant("one two three four") | {"train": False}, user("?"), assistant("abc")]},
        {"text": "one two three"},
    ]
    split = of_train(*rows, near=False)
    assert split["words"] == 3 + 2 + 4 + 1 + 3
    assert split["answers"] == {
        "count": 3,
        "words": {"mean": 2.0, "median": 2, "p95": 3},
        "characters": {"mean": 6.7, "median": 4, "p95": 13},
    }


def test_split_without_rows_has_a_report_of_zeros():
    report = examine({"train": [], "eval": []})
    assert report["splits"]["train"]["answers"]["words"] == {"mean": 0.0, "median": 0, "p95": 0}
    assert warnings(report) == []
    assert len(lines(report)) == 3


# words and scripts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Write to me, e.g. at 5 o'clock - or 1,250.50!", 9),
        ("aap restaurant dhund rahe hai na ?", 6),
        ("नमस्ते दुनिया ।", 2),
        ("「今日は雨」 OK", 5),
        ("我有3个 apples", 5),
        ("___ ... 👍", 0),
        ("", 0),
    ],
)
def test_words_are_counted_in_every_script(text, words):
    assert word_count(text) == words


def test_words_to_compare_by_have_no_case_and_no_punctuation():
    assert tokens("Don't STOP, Straße! नमस्ते। 雨だ") == ["don", "t", "stop", "strasse", "नमस्ते", "雨", "だ"]


def test_scripts_are_counted_by_the_first_letter_of_each_word():
    assert script_counts("Order 42 का status क्या है? Äpfel №5 да 3rd") == {"devanagari": 3, "latin": 4, "other": 1}


def test_rows_are_counted_by_script_and_system_turns_are_left_out():
    rows = [
        {"messages": [system("Answer in Hindi."), *chat("मौसम कैसा है?", "आज बारिश होगी।")["messages"]]},
        chat("मौसम?", "Aaj halki baarish hogi."),
        chat("How is it?", "It will rain today."),
        chat("Как дела?", "Всё хорошо, спасибо."),
    ]
    report = examine({"train": rows}, near=False)
    assert report["splits"]["train"]["scripts"] == {
        "words": {"devanagari": 7, "latin": 11, "other": 5},
        "devanagari_rows": 1,
        "latin_rows": 1,
        "both_rows": 1,
        "other_rows": 1,
    }
    assert (
        "train: scripts: 30.4% of words Devanagari, 47.8% Latin, 21.7% other; "
        "rows: 1 Devanagari only, 1 Latin only, 1 both" in lines(report)
    )


def test_romanised_hindi_is_estimated_from_function_words():
    hindi = chat("Kal ka mausam kaisa hai?", "Kal baarish nahi hogi, aap bahar ja sakte hain.")
    report = examine({"train": [hindi, chat("Is it open?", "Yes, till six today.")]}, near=False)
    assert romanised_words(hindi["messages"][0]["content"]) == ["kaisa", "hai"]
    assert report["splits"]["train"]["romanised"] == {"rows": 1, "words": 7}
    shown = "train: romanised Hindi, estimated: 1 of 2 rows; 33.3% of Latin words are Hindi function words"
    assert shown in lines(report)


@pytest.mark.parametrize(
    "text",
    [
        "Is the main bar on par with us? To me, he is. Log the din, tab by tab, or jab at the ham.",
        "Mein Name ist Anna, und ich wohne in einem Haus am See.",
        "Hai visto il mio cane? No, non lo so, mi dispiace tanto.",
        "We had curry and koi fish, and tum tum went the drum.",
    ],
)
def test_other_languages_are_not_taken_for_romanised_hindi(text):
    split = of_train({"text": text}, near=False)
    assert split["romanised"] is None
    assert not any("Hindi" in line for line in lines(examine({"train": [{"text": text}]}, near=False))[:-1])


def test_the_list_of_romanised_hindi_holds_no_ambiguous_english_words():
    assert len(ROMANISED_HINDI) == 98
    english = "the to me main par is us hum ho jab tab se ye he hi are bar log din ham mere hue bad pal koi"
    assert not ROMANISED_HINDI & set(english.split())


# the report as a whole


def test_clean_rows_give_two_lines_the_last_of_which_says_what_was_looked_for():
    rows = [exchange("Open?", "From nine to five."), exchange("On Sunday?", "No, only on weekdays.")]
    assert lines(examine({"train": rows})) == [
        "train: 2 rows, 11 words; 2 answers of 4.0 words in the mean (median 4, 95 % up to 4) and 19.5 characters "
        "(median 18, 95 % up to 21)",
        "looked for: repeated rows; near repeats (estimated Jaccard from 0.8); empty and short answers; role order; "
        "e-mail addresses, phone and card numbers; scripts and romanised Hindi",
    ]


def test_long_findings_are_cut_and_numbers_have_separators():
    row = exchange("Open?", "From nine to five.")
    report = examine({"train": [row] * 1201}, near=False)
    assert warnings(report) == [
        "train: repeats of an earlier row, word for word: 1,200 of 1,201 rows "
        "(row 2 like row 1, row 3 like row 1, row 4 like row 1, …)"
    ]
    mails = [exchange(f"Question {number}?", "Write to ann@example.com.") for number in range(1200)]
    assert warnings(examine({"train": mails}, near=False)) == [
        "train: e-mail addresses: 1,200 in 1,200 of 1,200 rows (rows 1, 2, 3, 4, 5, …)"
    ]


def test_report_is_json():
    report = examine({"train": [{"text": GARDEN}, {"text": GARDEN + " too"}], "eval": [{"text": GARDEN + " is"}]})
    assert report["splits"]["train"]["near_duplicates"]["rows"] == 1
    assert json.loads(json.dumps(report)) == report


def test_progress_is_told_every_thousand_rows_and_at_the_end():
    told = []
    rows = [exchange(f"{number}?", "No idea about it.") for number in range(2001)]
    examine({"eval": rows[:1000], "train": rows}, near=False, progress=lambda *step: told.append(step))
    assert told == [("train", 1000), ("train", 2000), ("train", 2001), ("eval", 1000)]


turns = st.sampled_from([user, assistant, system]).flatmap(lambda role: st.text(max_size=12).map(role))
examples = st.lists(turns, min_size=1, max_size=5).map(lambda messages: {"messages": messages})
examples |= st.text(max_size=40).map(lambda text: {"text": text})


@pytest.mark.slow
@given(st.lists(examples, max_size=6))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_whatever_the_rows_hold_the_report_can_be_made_and_read(rows):
    before = copy.deepcopy(rows)
    report = examine({"train": rows, "eval": rows})
    assert report["overlap"]["eval"]["exact"]["rows"] == len(rows)
    assert json.loads(json.dumps(report)) == report
    assert lines(report)
    assert rows == before
    for row in rows:
        merged, merges = merge_roles(row)
        assert merge_roles(merged) == (merged, 0)
        if "messages" in row:
            assert len(row["messages"]) - len(merged["messages"]) == merges


@pytest.mark.reference
def test_real_rows_hold_nothing_that_is_mistaken_for_a_phone_or_card_number(reference):
    """Real support rows are full of order numbers, real notes full of dates and readings; all were looked at."""
    files = sorted((reference / "data").glob("*.jsonl"))
    assert len(files) == 11
    kinds = {
        kind
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        for value in json.loads(line).values()
        if isinstance(value, str)
        for _, _, kind in find_personal(value)
    }
    assert kinds == {"email"}
