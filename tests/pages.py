"""The project's pages, and the code blocks in them, for the tests that read, parse, run or render
them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WITH_BLOCKS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "helm").rglob("README.md")),
)
PAGES = (*WITH_BLOCKS, ROOT / "CHANGELOG.md", *sorted((ROOT / "helm" / "runbooks").glob("Q*.md")))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"# ([\w-]+\.yaml)\n")
SEPARATORS = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Block:
    """One fenced block: `sh`, `python`, `yaml`, `console` (run and compared) or `text` (output)."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str:
        """What a YAML block calls itself in its first line; empty for one that does not."""
        found = NAME.match(self.text)
        return found[1] if found else ""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(*kinds: str) -> list[Block]:
    """Return the blocks of all pages, of the given kinds or of every kind."""
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for page in WITH_BLOCKS
        for text in [page.read_text(encoding="utf-8")]
        for found in FENCE.finditer(text)
        if not kinds or found[1] in kinds
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, without comments, prompts of other lines, and
    what `&&`, `|` and `;` separate. Raises ValueError for a quote that is not closed."""
    pending = ""
    for line in text.splitlines():
        pending += line + "\n"
        if line.endswith("\\"):
            pending = pending.removesuffix("\\\n") + " "
            continue
        try:
            words = _words(pending)
        except ValueError:  # a quote goes on in the next line
            continue
        pending = ""
        yield from _split(words)
    if pending.strip():
        raise ValueError(f"this never ends: {pending!r}")


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    return list(lexer)


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in SEPARATORS:
            command.append(word)
        elif command:
            yield command
            command = []
