"""Figures as text: a number, lines that are aligned, a table of Markdown."""

from collections.abc import Iterable, Iterator, Sequence


def short_number(value: float | int | str | None) -> str:
    """A figure as lists show it: four digits of what is no whole number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Sequence]) -> list[str]:
    """Aligned lines: the first column to the left, numbers and words to the right."""
    cells = [
        ["-" if cell is None else f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table of Markdown: its head, the rule below it, and a line for each row."""
    yield _markdown_row(head)
    yield "|" + "---|" * len(head)
    for row in rows:
        assert len(row) == len(head), f"{len(row)} cells under {len(head)} heads"
        yield _markdown_row(row)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
