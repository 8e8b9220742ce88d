"""The shell of our pages: nothing of a file acts, and everyone can read it."""

from __future__ import annotations

import re
import subprocess
import sys

from pages import Document
from recipe_kit.page import escape, page, table

TWO = [("Results", "<p>None yet.</p>"), ("Results", table(["Name", "Loss"], [["base", "4.01"]], caption="Loss"))]


def test_a_page_is_well_formed_and_equal_headings_get_their_own_ids() -> None:
    assert Document(page("Two runs", TWO, kind="compare", lead="<p>So far.</p>")).ids == [
        "content",
        "at-results",
        "at-results-2",
    ]


def test_navigation_leads_to_every_section() -> None:
    text = page("Two runs", TWO, kind="compare")
    assert Document(text).references == ["#content", "#at-results", "#at-results-2"]
    assert '<a class="skip" href="#content">' in text


def test_titles_headings_and_cells_are_escaped() -> None:
    text = page("<b>", [("<i>", table(["<u>"], [["<script>alert(1)</script>"]], caption='"<s>'))], kind="compare")
    assert not re.search(r"<(b|i|u|s|script)>", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert 'aria-label="&quot;&lt;s&gt;"' in text


def test_characters_without_ink_are_written_out() -> None:
    assert escape("a\x1b[2J\u202eb\n\tहिं\u200dदी") == "a&lt;U+001B&gt;[2J&lt;U+202E&gt;b\n\tहिं\u200dदी"


def test_half_of_a_surrogate_pair_can_be_written_to_a_file() -> None:
    assert escape("\ud800").encode() == b"&lt;U+D800&gt;"


def test_first_cell_of_a_row_is_its_header_and_columns_of_numbers_align() -> None:
    rows = [["loss", "4.0", "3 rows are empty"], ["speed", "—", "no GPU"]]
    text = table(["", "base", "why"], rows, caption="Scores")
    assert "<tr><th scope=row>loss</th><td class=number>4.0</td><td>3 rows are empty</td></tr>" in text
    assert "<th scope=col class=number>base</th>" in text


def test_an_interval_stays_whole_where_a_cell_is_broken_into_lines() -> None:
    text = table(["", "base", "why"], [["loss", "4.0 (3.9 to 4.1)", "(as it is)"]], caption="Scores")
    assert "<td class=number>4.0 <span class=whole>(3.9 to 4.1)</span></td><td>(as it is)</td>" in text


def test_a_column_without_any_value_aligns_like_the_numbers_beside_it() -> None:
    text = table(["", "base", "tuned"], [["loss", "4.0", "–"], ["speed", "3.0", "—"]], caption="Scores")
    assert "<td class=number>4.0</td><td class=number>–</td>" in text
    assert "class=number" not in table(["", "why"], [["loss", "–"]], caption="Words")


def test_table_without_rows_keeps_its_header() -> None:
    assert "<th scope=col>base</th>" in table(["", "base"], [], caption="Scores")


def test_page_needs_no_network_and_no_script() -> None:
    text = page("Two runs", TWO, kind="compare")
    assert not re.search(r"<script|https?://|url\(", text)
    assert "default-src 'none'" in text


def test_the_shell_needs_the_standard_library_only() -> None:
    code = (
        "import sys; before = {n.split('.')[0] for n in sys.modules}; import recipe_kit.page; "
        "print(*sorted({n.split('.')[0] for n in sys.modules} - before - sys.stdlib_module_names))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["recipe_kit"]
