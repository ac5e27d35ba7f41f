"""Text from anywhere cannot break the Markdown around it."""

from tasks.common import markdown

NASTY = "a|b\n```\n| x |\r\n<script>`rm`[l](u)\x1b[31m\\|*b* ~~s~~\u2028end"


def test_a_cell_stays_in_its_row_whatever_is_in_it() -> None:
    text = markdown.table(["host", "error"], [["gpu1", NASTY], ["gpu2", "ok"]])
    lines = text.splitlines()
    assert len(lines) == 4
    bare = [line.replace("\\\\", "").replace("\\|", "") for line in lines]
    assert [line.count("|") for line in bare] == [3, 3, 3, 3]


def test_no_code_link_or_html_survives() -> None:
    text = markdown.inline(NASTY)
    for mark in ("`", "[", "<", "*"):
        assert text.count(mark) == text.count("\\" + mark)
    assert "\x1b" not in text


def test_a_list_item_is_one_line() -> None:
    assert markdown.items([NASTY, "b"]).count("\n") == 2


def test_a_long_error_output_keeps_its_beginning_and_its_end() -> None:
    text = markdown.inline("begin " + "x" * 100_000 + " end")
    assert text.startswith("begin")
    assert text.endswith("end")
    assert len(text) < 700


def test_chinese_stays_as_it_is() -> None:
    assert markdown.inline("磁盘已满") == "磁盘已满"
