"""Layout of rows in a terminal: numbers are never cut, and hidden lines are counted.

Every row of the screen is one plain `rich.text.Text`, so that rows can be counted. `rich.Table`
would fold or cut a number inside its column if the terminal is narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from rich.console import Console
from rich.text import Text

GAP: Final = "  "
LEFT: Final = frozenset({"MODEL", "ENGINE", "STATE"})
"""Columns of words, aligned left; numbers are aligned right."""
OWN_LINE: Final = "MODEL"
"""The column that moves to its own line first, because a name may have any length."""


@dataclass(frozen=True)
class Block:
    """Lines that belong together."""

    lines: Sequence[Text]
    is_optional: bool = False
    """True if it is the first to be dropped in a small terminal."""


def grid(heads: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> list[Text]:
    """A table; if it is too wide, the models' names move to lines of their own."""
    lines = _table(heads, rows)
    return lines if _width(lines) <= width else _grouped(heads, rows)


def rows_of(lines: Iterable[Text], console: Console, width: int) -> list[Text]:
    """Rows of a terminal that `lines` fold to."""
    return [row for line in lines for row in line.wrap(console, width, overflow="fold")]


def fit(blocks: Sequence[Block], height: int | None) -> list[Text]:
    """Rows that fit; the last one counts those that are missing. All rows if `height` is
    None. The lines of `blocks` are already folded to rows."""
    every = [row for block in blocks for row in block.lines]
    if height is None or len(every) <= height:
        return every
    kept = [row for block in blocks if not block.is_optional for row in block.lines]
    shown = kept[: max(height - 1, 0)]
    number = _filled(every) - _filled(shown)
    hint = f"… {number} more line{'s' * (number != 1)}; make the window taller"
    return [*shown, Text(hint, style="yellow", no_wrap=True, overflow="ellipsis")]


def _filled(rows: Iterable[Text]) -> int:
    return sum(bool(row.plain.strip()) for row in rows)


def _width(lines: Iterable[Text]) -> int:
    return max((line.cell_len for line in lines), default=0)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Text]]) -> list[Text]:
    every = [[Text(head, style="bold") for head in heads], *rows]
    widths = [max(row[column].cell_len for row in every) for column in range(len(heads))]
    lines = []
    for row in every:
        line = Text(overflow="fold")
        for number, (head, cell, width) in enumerate(zip(heads, row, widths, strict=True)):
            line.append(GAP if number else "")
            space = " " * (width - cell.cell_len)
            if head in LEFT:
                line.append_text(cell).append(space)
            else:
                line.append(space).append_text(cell)
        line.rstrip()
        lines.append(line)
    return lines


def _numbers(heads: Sequence[str], rows: Iterable[Sequence[Text]]) -> list[Text]:
    """The table without the models' names, indented."""
    kept = [number for number, head in enumerate(heads) if head != OWN_LINE]
    lines = _table([heads[n] for n in kept], [[row[n] for n in kept] for row in rows])
    return [Text(GAP, overflow="fold").append_text(line) for line in lines]


def _grouped(heads: Sequence[str], rows: Sequence[Sequence[Text]]) -> list[Text]:
    head, *numbers = _numbers(heads, rows)
    lines, place = [head], heads.index(OWN_LINE)
    pairs = zip((row[place] for row in rows), numbers, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].plain):
        grouped = list(group)
        lines += [grouped[0][0], *(line for _, line in grouped)]
    return lines
