"""Which tokens are trained, shown piece by piece: nothing lost, nothing made up, nothing acted on."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from html.parser import HTMLParser

import datasets
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from recipe_kit import cli
from recipe_kit.formatters import format_row, get_formatter
from recipe_kit.labels import IGNORED, encode
from recipe_kit.preview import Piece, html, legend, pieces, preview_row, terminal, visible, worst_rows

CHAT = {"messages": [{"role": "user", "content": "Hi 😀"}, {"role": "assistant", "content": "Bye\n\n🎉"}]}


@pytest.fixture(scope="module")
def sentencepiece():
    """A tokenizer of the Llama-2 kind: `▁` is a space, the first one is dropped, unknown characters become bytes."""
    characters = ["<unk>", "<s>", "</s>", "▁", "▁a", "▁H", "H", "a", "b", "i", "न", "म", "े"]
    vocabulary = {token: index for index, token in enumerate([*characters, *(f"<0x{n:02X}>" for n in range(256))])}
    merges = [("▁", "a"), ("▁", "H")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def decoded(ids, tokenizer):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def texts(ids, tokenizer):
    return [piece.text for piece in pieces(ids, [IGNORED] * len(ids), tokenizer)]


def row(*parts, **facts):
    """A row of (text, trained) or (text, trained, control), one token each, with ids 0, 1, 2 and so on."""
    from recipe_kit.preview import Row

    shown = [Piece(text, (index,), *marks) for index, (text, *marks) in enumerate(parts)]
    trained = sum(piece.trained for piece in shown)
    values = {"number": 1, "of": 1, "place": "rows.jsonl (train) row 1", "turn_lengths": [trained], "truncated": False}
    return Row(pieces=shown, tokens=len(shown), trained_tokens=trained, **{**values, **facts})


# Pieces


def test_each_token_of_a_chat_is_a_piece_that_says_whether_it_is_trained(tiny_tokenizer):
    tokenizer = tiny_tokenizer("chatml")
    encoded = encode(CHAT, tokenizer)
    shown = pieces(encoded.input_ids, encoded.labels, tokenizer)
    assert "".join(piece.text for piece in shown) == (
        "<|im_start|>user\nHi 😀<|im_end|>\n<|im_start|>assistant\nBye\n\n🎉<|im_end|>\n"
    )
    assert "".join(piece.text for piece in shown if piece.trained) == "Bye\n\n🎉<|im_end|>"
    assert [piece.text for piece in shown if piece.control] == ["<|im_start|>", "<|im_end|>"] * 2
    assert [index for piece in shown for index in piece.ids] == encoded.input_ids


def test_tokens_that_share_a_character_are_one_piece(tiny_tokenizer):
    tokenizer = tiny_tokenizer("chatml")
    for text in ("😀🎉", "नमस्ते", "日本語", "שלום"):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) > len(text)
        assert texts(ids, tokenizer) == list(text)


def test_row_cut_off_inside_a_character_ends_as_the_tokenizer_decodes_it(tiny_tokenizer):
    tokenizer = tiny_tokenizer("chatml")
    ids = tokenizer("Hi😀")["input_ids"]
    assert texts(ids[:-1], tokenizer)[-1] == "�"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert texts([*ids[:-1], end], tokenizer)[-2:] == ["�", "<|im_end|>"]


def test_spaces_of_sentencepiece_stand_where_the_row_has_them(sentencepiece):
    ids = sentencepiece("Hi  a b")["input_ids"]
    assert sentencepiece.convert_ids_to_tokens(ids) == ["▁H", "i", "▁", "▁a", "▁", "b"]
    assert texts(ids, sentencepiece) == ["H", "i", " ", " a", " ", "b"]  # decoding drops the very first space
    assert texts([1, *ids], sentencepiece) == ["<s>", " H", "i", " ", " a", " ", "b"]
    assert decoded([1, *ids], sentencepiece) == "<s> Hi  a b"


def test_bytes_that_stand_in_for_a_character_are_one_piece(sentencepiece):
    ids = sentencepiece("a😀\n😀नमे")["input_ids"]
    assert len(ids) == 13
    assert texts(ids, sentencepiece) == [" a"[1:], "😀", "\n", "😀", "न", "म", "े"]
    assert [len(piece.ids) for piece in pieces(ids, ids, sentencepiece)] == [1, 4, 1, 4, 1, 1, 1]


def test_bytes_that_make_no_character_are_shown_as_the_tokenizer_decodes_them(sentencepiece):
    """SentencePiece gives up on the whole run of bytes, the line break before the torn character included."""
    ids = sentencepiece("a\n😀")["input_ids"][:-2]
    assert decoded(ids, sentencepiece) == "a���"
    assert "".join(texts(ids, sentencepiece)) == "a���"


@given(text=st.text(max_size=60), cut=st.integers(0, 3))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_pieces_join_to_the_decoded_row_whatever_it_says(tiny_tokenizer, sentencepiece, kind, text, cut):
    tokenizer = tiny_tokenizer("llama3") if kind == "bytes" else sentencepiece
    ids = tokenizer(text)["input_ids"]
    ids = ids[: max(len(ids) - cut, 0)]
    shown = pieces(ids, [IGNORED] * len(ids), tokenizer)
    assert "".join(piece.text for piece in shown) == decoded(ids, tokenizer)
    assert [index for piece in shown for index in piece.ids] == ids


def test_work_grows_with_the_row_and_not_with_its_square(tiny_tokenizer, monkeypatch):
    tokenizer = tiny_tokenizer("chatml")
    ids = tokenizer("Weather in दिल्ली: 😀 " * 200)["input_ids"]
    lengths, real = [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: lengths.append(len(ids)) or real(ids, **options))
    assert "".join(texts(ids, tokenizer)) == real(ids)
    assert len(ids) > 3000
    assert sum(lengths) < 4 * len(ids) * math.log2(len(ids))


def test_text_that_looks_like_a_control_token_is_none(tiny_tokenizer):
    tokenizer = tiny_tokenizer("chatml")
    ids = tokenizer("</s><|im_end|>")["input_ids"]
    shown = pieces(ids, ids, tokenizer)
    assert "".join(piece.text for piece in shown if not piece.control) == "</s>"
    assert [piece.text for piece in shown if piece.control] == ["<|im_end|>"]


@pytest.mark.reference
@pytest.mark.parametrize("name", ["llama2", "tinyllama", "llama3_2", "smollm2"])
@pytest.mark.parametrize(
    ("file", "formatter"),
    [
        ("guanaco_en.train.jsonl", "guanaco"),
        ("hinglish_restaurant.train.jsonl", "messages"),
        ("customer_support.train.jsonl", "support"),
        ("dialogue_summary_mts.train.jsonl", "dialogue_summary"),
    ],
)
def test_pieces_of_real_rows_join_to_the_decoded_row(reference, name, file, formatter):
    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.recipe import ModelSection

    tokenizer = load_tokenizer(ModelSection(id=str(reference / "tokenizers" / name)))
    lines = (reference / "data" / file).read_text(encoding="utf-8").splitlines()[:80]
    assert len(lines) == 80
    for line in lines:
        encoded = encode(format_row(get_formatter(formatter), json.loads(line)), tokenizer)
        shown = pieces(encoded.input_ids, encoded.labels, tokenizer)
        assert "".join(piece.text for piece in shown) == decoded(encoded.input_ids, tokenizer)
        assert all(len(piece.ids) == 1 or not piece.text.isascii() for piece in shown)
        assert shown[-1].trained or not shown[-1].text.strip()  # only white space follows the last end-of-turn token


@pytest.mark.reference
@pytest.mark.parametrize("name", ["llama2", "tinyllama", "llama3_2", "smollm2"])
def test_scripts_of_the_world_join_under_real_tokenizers(reference, name):
    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.recipe import ModelSection

    tokenizer = load_tokenizer(ModelSection(id=str(reference / "tokenizers" / name)))
    text = " नमस्ते  दुनिया 😀👩‍👩‍👧 日本語の文 مرحبا שלום \n\n\tclick\u0301 \x1b\ufffd 🇮🇳"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for length in range(len(ids) + 1):
        assert "".join(texts(ids[:length], tokenizer)) == decoded(ids[:length], tokenizer)


# Worst rows


@pytest.fixture(scope="module")
def prepared():
    """2,500 rows, of which these are bad: 2000 is long, 1200 and 7 learn little, 1200 and 2100 are cut off."""
    lengths, trained, truncated = [5] * 2500, [3] * 2500, [False] * 2500
    lengths[2000], lengths[2100] = 9, 8
    trained[1200], trained[7] = 1, 2
    truncated[1200] = truncated[2100] = True
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * n for n in lengths], "labels": [[1] * n for n in lengths]})
    return rows, datasets.Dataset.from_dict({"trained": trained, "truncated": truncated})


@pytest.mark.parametrize(
    ("worst", "indices"),
    [("longest", [2000, 2100, 0]), ("least-trained", [1200, 7, 0]), ("truncated", [1200, 2100])],
)
def test_worst_rows_come_first_and_equal_ones_in_order(prepared, worst, indices):
    assert worst_rows(*prepared, worst, 3) == indices


def test_worst_rows_are_counted_among_the_rows_that_are_used(prepared):
    rows, details = (part.select([2100, 7, 2000]) for part in prepared)
    assert worst_rows(rows, details, "longest", 2) == [2, 0]
    assert worst_rows(rows, details, "truncated", 2) == [0]


# The terminal

TURN = row(
    ("<s>", False, True), ("Hi", False), ("\n", False), ("Bye", True), (".\n", True), ("Now", True),
    ("</s>", True, True),
)  # fmt: skip
HEADING = "row 1 of 1 · rows.jsonl (train) row 1 · 7 tokens · 4 trained (57.1 %) · 1 trained turn"


def test_without_colour_trained_stretches_and_control_tokens_stand_in_brackets():
    assert terminal(TURN, colour=False) == f"{HEADING}\n⟪<s>⟫Hi↵\n⟦Bye.↵\nNow⟪</s>⟫⟧"


def test_in_colour_each_line_has_its_own_styles():
    assert terminal(TURN, colour=True) == (
        f"\x1b[1m{HEADING}\x1b[0m\n"
        "\x1b[36m<s>\x1b[0m\x1b[2mHi\x1b[0m\x1b[2m↵\x1b[0m\n"
        "\x1b[1;32mBye.\x1b[0m\x1b[2m↵\x1b[0m\n"
        "\x1b[1;32mNow\x1b[0m\x1b[1;7;32m</s>\x1b[0m"
    )


def test_heading_counts_the_tokens_of_each_turn():
    facts = {"number": 1200, "of": 9000, "turn_lengths": [3, 1], "truncated": True}
    assert terminal(row(("a", True), **facts), colour=False).splitlines()[0] == (
        "row 1,200 of 9,000 · rows.jsonl (train) row 1 · 1 token · 1 trained (100.0 %) · 2 trained turns (3 + 1)"
        " · cut off at the end"
    )
    assert "8 trained turns (2 to 9 tokens each)" in terminal(row(turn_lengths=[5, 2, 9, *[4] * 5]), colour=False)
    assert "0 tokens · 0 trained (0.0 %) · no trained turn" in terminal(row(turn_lengths=[]), colour=False)


@pytest.mark.parametrize("colour", [True, False])
def test_nothing_in_the_data_is_a_command_to_the_terminal(colour):
    hostile = row(
        ("\x1b]0;owned\x07\x9b31m\r\x00\x7f\u202e\u2028\ufeff", True),
        ("\x1b[2J", True, True),
        place="\x1b[2J.jsonl row 1",
    )
    harmless = row(("a", True), ("b", True, True))
    shown = terminal(hostile, colour=colour)
    assert shown.count("\x1b") == terminal(harmless, colour=colour).count("\x1b") == (6 if colour else 0)
    assert "<U+001B>]0;owned<U+0007><U+009B>31m<U+000D><U+0000><U+007F><U+202E><U+2028><U+FEFF>" in shown
    assert "<U+001B>[2J.jsonl row 1" in shown
    assert not {"\x07", "\x9b", "\r", "\x00", "\x7f", "\u202e", "\u2028", "\ufeff"} & set(shown)


def test_brackets_in_the_data_are_not_taken_for_ours():
    assert terminal(row(("⟦a⟧⟪", False), ("b", True)), colour=False).endswith("\n<U+27E6>a<U+27E7><U+27EA>⟦b⟧")


@pytest.mark.parametrize("text", ["नमस्ते", "क्‍ष", "👩‍👩‍👧", "مرحبا", "é", "a\tb\n", "\u06dd", "\xa0"])
def test_text_is_left_as_it_is(text):
    assert visible(text) == text


def test_tab_is_marked_and_kept():
    assert terminal(row(("a\tb", False)), colour=False).endswith("\na→\tb")


def test_legend_shows_each_style_once():
    assert legend(colour=False) == "⟦trained⟧ context ⟪control token⟫ ↵ line break"
    for style in ("\x1b[1;32m", "\x1b[1;7;32m", "\x1b[2m", "\x1b[36m"):
        assert f"{style}" in legend(colour=True) and style in terminal(row(*[
            ("x", trained, control) for trained in (True, False) for control in (True, False)
        ]), colour=True)  # fmt: skip


# The page


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and the text and titles inside of rows and of their marks."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.titles, self.open = [], [], []
        self.text, self.marked, self.content = "", "", {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)
        if self.in_row() and tag == "span":
            self.titles.append(dict(attributes)["title"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def in_row(self):
        return "div" in self.open

    def handle_data(self, data):
        self.content[self.open[-1] if self.open else ""] = data
        if self.in_row():
            self.text += data
            self.marked += data if "mark" in self.open else ""

    def tags(self):
        return [tag for tag, _ in self.elements]

    def attributes(self, wanted):
        return [attributes for tag, attributes in self.elements if tag == wanted]


HOSTILE = row(
    ("<script>alert(1)</script>", False), ("</div></details><img src=x onerror=alert(2)>", True),
    ('" onmouseover="alert(3)', True), ("&lt;b&gt;\r\n\x00", False), ("مرحبا", True),
    place='<b>"rows"</b>.jsonl row 1',
)  # fmt: skip


def test_page_holds_the_row_and_marks_what_is_trained():
    page = Page(html([TURN], title="mine"))
    assert page.text == "<s>Hi\nBye.\nNow</s>" and page.marked == "Bye.\nNow</s>"
    assert page.titles == [
        "id 0, context, control token", "id 1, context", "id 2, context", "id 3, trained", "id 4, trained",
        "id 5, trained", "id 6, trained, control token",
    ]  # fmt: skip


def test_text_of_a_row_is_never_an_element():
    page = Page(html([HOSTILE], title="<script>alert(0)</script>"))
    plain = Page(html([TURN], title="mine"))
    assert page.tags().count("script") == 1 and set(page.tags()) == set(plain.tags())
    assert page.content["title"] == "<script>alert(0)</script>"
    assert page.text == (
        "<script>alert(1)</script></div></details><img src=x onerror=alert(2)>"
        '" onmouseover="alert(3)&lt;b&gt;<U+000D>\n<U+0000>مرحبا'
    )
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_page_allows_itself_its_own_style_and_script_and_no_network():
    page = Page(html([TURN], title="mine"))
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    own = {
        f"{kind}-src": base64.b64encode(hashlib.sha256(page.content[kind].encode()).digest()).decode()
        for kind in ("style", "script")
    }
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{own['style-src']}'; script-src 'sha256-{own['script-src']}'"
    )
    assert not [a for _, attributes in page.elements for a in attributes if a in ("src", "href", "style")]
    assert "url(" not in page.content["style"] and "@import" not in page.content["style"]


def test_page_says_its_language_and_lets_each_row_have_its_direction():
    page = Page(html([TURN, HOSTILE], title="mine"))
    assert page.attributes("html") == [{"lang": "en"}]
    assert [(a["dir"], a["lang"], a["tabindex"]) for a in page.attributes("div")] == [("auto", "", "0")] * 2
    assert page.tags().count("h1") == 1 and page.tags().count("h2") == page.tags().count("summary") == 2
    assert page.attributes("details") == [{"open": None}] * 2


def test_line_break_and_tab_are_marked_by_style_so_that_copied_text_is_the_rows():
    page = html([row(("a\n", False), ("\tb", False))], title="mine")
    assert '<span title="id 0, context">a<i></i>\n</span>' in page
    assert '<span title="id 1, context"><i class="tab"></i>\tb</span>' in page


def test_vowel_signs_and_joined_emoji_are_pointed_at_with_what_carries_them():
    """A span that holds a vowel sign alone has no width."""
    shown = row(("द", True), ("ि", True), ("ल", True), ("👩", True), ("\u200d", True), ("👧", True), ("\u0301", False))
    assert Page(html([shown], title="mine")).titles == [
        "2 tokens: ids 0 1, trained", "id 2, trained", "3 tokens: ids 3 4 5, trained", "id 6, context",
    ]  # fmt: skip


def test_page_names_every_id_of_a_real_row_once(tiny_tokenizer):
    tokenizer = tiny_tokenizer("llama3")
    encoded = encode(CHAT, tokenizer)
    shown = preview_row(encoded.input_ids, encoded.labels, tokenizer, number=1, of=1, place="here",
                        turn_lengths=encoded.turn_lengths, truncated=False)  # fmt: skip
    page = Page(html([shown], title="mine"))
    named = [int(word) for title in page.titles for word in title.replace(",", "").split() if word.isdigit()]
    counts = [int(title.split(" tokens:")[0]) for title in page.titles if " tokens:" in title]
    assert counts and len(named) - len(counts) == len(encoded.input_ids)
    assert page.text == decoded(encoded.input_ids, tokenizer)
    assert page.marked == "Bye\n\n🎉<|eot_id|>"


# The command

RECIPE = """
name: mine
model: {id: "tiny:chatml"}
method: lora
data: {train: {sample: support}, eval: {fraction: 0.2}, formatter: support}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return str(path)


def run(*words, **options):
    return CliRunner(**options).invoke(cli.main, ["preview", *words], prog_name="recipe-kit")


def shown_by(*words):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_preview_prints_the_first_rows_in_brackets_where_there_is_no_terminal(recipe):
    result = run(recipe, "--rows", "2")
    assert result.exit_code == 0
    headings = [line for line in result.stdout.splitlines() if line.startswith("row ")]
    assert [line.split(" of ")[0] for line in headings] == ["row 1", "row 2"] and "sample:support" in headings[0]
    assert result.stdout.count("⟪<|im_end|>⟫⟧") == 2 and "\x1b" not in result.output
    assert "⟦trained⟧" in result.stderr and "⟦trained⟧" not in result.stdout


def test_colour_can_be_asked_for(recipe):
    result = run(recipe, "--rows", "1", "--colour")
    assert "\x1b[1;32m" in result.stdout and "⟦" not in result.stdout


def test_json_holds_the_pieces_and_the_formatted_row(recipe):
    (shown,) = shown_by(recipe, "--row", "2")
    assert shown["row"] == 2 and shown["place"].startswith("sample:support (train) row ")
    assert sum(len(piece["ids"]) for piece in shown["pieces"]) == shown["tokens"]
    trained = "".join(piece["text"] for piece in shown["pieces"] if piece["trained"])
    assert trained == shown["example"]["completion"][0]["content"] + "<|im_end|>"
    assert shown["turn_lengths"] == [shown["trained_tokens"]] and shown["truncated"] is False


def test_rows_are_shown_in_the_order_they_were_asked_for(recipe):
    assert [shown["row"] for shown in shown_by(recipe, "--row", "5", "--row", "2")] == [5, 2]


def test_worst_rows_are_chosen_from_all(recipe):
    everything = shown_by(recipe, "--rows", "1000")
    assert len(everything) == everything[0]["of"] > 100
    longest = [shown["tokens"] for shown in shown_by(recipe, "--worst", "longest", "--rows", "4")]
    assert longest == sorted((shown["tokens"] for shown in everything), reverse=True)[:4]
    least = [shown["trained_tokens"] for shown in shown_by(recipe, "--worst", "least-trained")]
    assert least == sorted(shown["trained_tokens"] for shown in everything)[:3]


def test_truncated_rows_are_shown_when_there_are_some(recipe):
    cut = ["--set", "data.max_length=80", "--set", "data.too_long=truncate"]
    shown = shown_by(recipe, "--worst", "truncated", *cut)
    assert len(shown) == 3
    assert all(row["truncated"] and row["tokens"] == 80 and sum(row["turn_lengths"]) == row["trained_tokens"]
               for row in shown)  # fmt: skip
    none = run(recipe, "--worst", "truncated")
    assert (none.exit_code, none.stdout) == (0, "") and "no row of train is truncated" in none.stderr


def test_html_is_written_once_and_overwritten_only_on_request(recipe, tmp_path):
    page = tmp_path / "pages" / "mine.html"
    first = run(recipe, "--split", "eval", "--html", str(page))
    assert (first.exit_code, first.stdout) == (0, "") and f"wrote {page}: 3 rows" in first.stderr
    assert Page(page.read_text(encoding="utf-8")).content["title"] == "mine, eval: which tokens are trained"
    page.write_text("precious")
    again = run(recipe, "--html", str(page))
    assert again.exit_code == 1 and "exists already; choose another name, or add --force" in again.stderr
    assert page.read_text() == "precious"
    assert run(recipe, "--html", str(page), "--force").exit_code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_html_in_a_place_that_cannot_be_written_is_a_sentence(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(recipe, "--html", str(tmp_path / "file" / "page.html"))
    assert result.exit_code == 1 and "cannot write" in result.stderr and "Traceback" not in result.output


def test_row_past_the_end_names_the_last_one(recipe):
    result = run(recipe, "--row", "9999")
    total = shown_by(recipe, "--row", "1")[0]["of"]
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"recipe-kit: --row 9999: train has {total} prepared rows; choose a number from 1 to {total}"
    )


def test_split_that_the_recipe_does_not_name_is_a_sentence(recipe):
    result = run(recipe, "--split", "test")
    assert result.exit_code == 1 and "data.test: mine names no test rows" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "0"], "0 is not in the range x>=1"),
        (["--row", "0"], "0 is not in the range x>=1"),
        (["--worst", "shortest"], "'shortest' is not one of"),
        (["--worst", "longest", "--row", "1"], "leave out --row, or --worst"),
        (["--html", "page.html", "--json"], "leave out one"),
    ],
)
def test_wrong_usage_is_one_sentence(recipe, words, message):
    result = run(recipe, *words)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
