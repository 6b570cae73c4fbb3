"""Figures as text."""

import pytest

from rlhf.tables import markdown_table, short_number, table


def test_a_figure_has_four_digits_and_a_count_all_of_its_own():
    assert [short_number(value) for value in (1 / 3, 123456, None)] == ["0.3333", "123456", "None"]


def test_a_table_is_aligned_with_its_numbers_to_the_right():
    assert table([("split", "train"), ("a", 10), ("b", 0.5), ("c", None)]) == [
        "split  train",
        "a         10",
        "b        0.5",
        "c          -",
    ]


def test_a_markdown_table_has_a_rule_below_its_head():
    assert list(markdown_table(("a", "b"), [("1", "2")])) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


def test_a_row_with_too_few_cells_is_no_row_of_the_table():
    with pytest.raises(AssertionError, match="1 cells under 2 heads"):
        list(markdown_table(("a", "b"), [("1",)]))
