"""Lookahead: reads tags in text that may go on, and says when it cannot decide yet.

What it finds depends on the text alone, and not on how it was cut into chunks. Every read is
bounded, so that a character is looked at a bounded number of times.
"""

from __future__ import annotations

import re
from typing import Final

MOST_BLANKS: Final = 64
"""Whitespace between two tags of a call; the chat template writes one newline."""
MOST_NAME: Final = 256
"""Characters of a name inside a tag. OpenAI's names of functions have 64 at most."""

_BLANKS: Final = re.compile(rf"[ \t\r\n]{{0,{MOST_BLANKS}}}")


class NeedsMore(Exception):
    """The text ends before it can be decided."""


class Lookahead:
    """A position in a text; `is_whole` once no more will follow."""

    __slots__ = ("_is_whole", "_text", "at", "is_cut")

    def __init__(self, text: str, at: int, is_whole: bool) -> None:
        self._text = text
        self._is_whole = is_whole
        self.at = at
        self.is_cut = False
        """Whether the end of the whole text decided, where more could have been a tag."""

    @property
    def is_at_end(self) -> bool:
        """Whether the whole text ends here. Raises NeedsMore."""
        if self.at < len(self._text):
            return False
        self._want_more()
        return True

    def take(self, literal: str) -> bool:
        """Pass this literal if it comes next. Raises NeedsMore."""
        if self._text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        left = len(self._text) - self.at
        if left < len(literal) and literal.startswith(self._text[self.at :]):
            self._want_more()
        return False

    def blanks(self) -> None:
        """Pass whitespace."""
        found = _BLANKS.match(self._text, self.at)
        if found is not None:
            self.at = found.end()

    def name(self, end_mark: str = ">") -> str | None:
        """Pass a name and the mark after it; None if none ends on this line, before another tag.
        Raises NeedsMore."""
        limit = self.at + MOST_NAME + 1
        end = self._text.find(end_mark, self.at, limit)
        name = self._text[self.at : limit if end < 0 else end]
        if "\n" in name or "<" in name:
            return None
        if end < 0:
            if len(name) <= MOST_NAME:
                self._want_more()
            return None
        self.at = end + 1
        return name.strip() or None

    def _want_more(self) -> None:
        if not self._is_whole:
            raise NeedsMore
        self.is_cut = True
