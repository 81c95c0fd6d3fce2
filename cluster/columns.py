"""Rows of text as aligned columns, for terminal output.

This is not `rich.Table` because a row must stay on one line in a pipe, as with kubectl; rich wraps
rows at the width that it assumes for a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row. The first row is the heading and sets the number of columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
