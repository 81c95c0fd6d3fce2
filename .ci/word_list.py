"""Finds words that make a reader stop, in code, tests, pages and the chart.

Each entry is a pattern, what to write instead, and which uses are fine. Runs with the standard
library only: `python .ci/word_list.py [PATH...]`; without a path, over every tracked file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
WORDS: Final = {
    r"ways? out|way_out": "say what to do: 'fix', 'remedy', 'next step'",
    r"\bgone\b|_gone|gone_": "'removed', 'dead', 'missing', 'disconnected'",
    r"\btold\b|_told|told_": "'reported', 'printed', 'notified'",
    r"\b(?:is|are) no\b(?! (?:longer|more|less|fewer|later|earlier)\b)": "'is not a', 'has no'",
    r"\bbeside\b": "'with', 'next to', 'besides'",
    r"\bbehind\b(?! (?:an? |the |one )?(?:proxy|load balancer|HAProxy|router|URL))": "'after'",
    r"said": "'printed', 'reported', or the thing itself",
    r'"""Of\b': "begin with a noun or a verb",
}
"""Words as they stand in text, in lower case: 410 Gone is HTTP's."""
SUFFIXES: Final = (".py", ".md", ".yaml", ".tpl", ".txt", ".html", ".toml", ".mjs", ".json", "")
SKIPPED: Final = re.compile(
    r"LICENSE|requirements/|\.ci/word_list\.py|tests/unit/test_word_list\.py|package(-lock)?\.json"
)
"""The list itself, and text that others wrote."""


def findings(name: str, text: str) -> Iterator[str]:
    """One line for each word that is on the list."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in WORDS.items():
            for match in re.finditer(pattern, line):
                yield f"{name}:{number}: '{match[0]}': {instead}"


def tracked(paths: Iterable[str]) -> Iterator[Path]:
    """Text files that git knows, below `paths`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        path = ROOT / name
        is_text = path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
        if is_text and not SKIPPED.search(name):
            yield path


def main(arguments: list[str]) -> int:
    """The exit status is 1 when a word is found."""
    found = [
        finding
        for path in tracked(arguments)
        for finding in findings(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]
    if found:
        print("\n".join(found[:200]))
        print(f"{len(found)} words to rewrite; the list is WORDS in .ci/word_list.py")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
