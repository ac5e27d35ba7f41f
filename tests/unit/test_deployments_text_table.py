"""Tables in the terminal line up."""

from deployments.text_table import text_table


def test_columns_are_as_wide_as_their_widest_cell():
    table = text_table(["image", "host"], [["ragflow:v0.27.0", "gpu1"], ["redis", "g2"]])
    assert table.splitlines() == [
        "image            host",
        "---------------  ----",
        "ragflow:v0.27.0  gpu1",
        "redis            g2",
    ]


def test_a_table_without_rows_is_its_head():
    assert text_table(["image"], []) == "image\n-----"
