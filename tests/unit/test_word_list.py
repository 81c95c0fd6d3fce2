"""The word list of `make check`: what it finds, and what it lets pass."""

from __future__ import annotations

import pytest

from tests.ci_scripts import word_list


@pytest.mark.parametrize(
    "line",
    [
        "raise Error('the file is no YAML', 'The way out: write one')",
        "def test_a_gone_engine(): ...",
        "if is_gone: pass",
        "the operator is told",
        "tokens behind the prompt",
        "beside the fleet",
        "said = capsys.readouterr().out",
        '    """Of each model, the factor."""',
    ],
)
def test_a_word_on_the_list_is_found_with_its_line(line: str) -> None:
    found = list(word_list.findings("a.py", f"ok\n{line}\n"))

    assert found
    assert all(finding.startswith("a.py:2: ") for finding in found)


@pytest.mark.parametrize(
    "line",
    ["410 Gone", "it is no longer there", "engines behind a load balancer", "besides, untold"],
)
def test_other_words_are_accepted(line: str) -> None:
    assert not list(word_list.findings("a.py", line))
