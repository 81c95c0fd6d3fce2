"""Rows of text as columns, for a person at a terminal.

Plain, and not `rich.Table`: a row stays one line in a pipe too, as kubectl's does, and rich would
fold it at the width that it guesses for a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line for each row; the first one is the heading, and says how many columns there are."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
