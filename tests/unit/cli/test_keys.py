"""`qwenfleet keys`: what is printed goes into a keys file, and no key into a message."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cli import __main__ as cli
from qwenfleet.cluster.config.auth import Keyring, hash_of, read_keys


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.mark.parametrize("name", ["", "ann", "build #7, Jürgen"])
def test_a_new_key_is_printed_once_with_the_line_of_the_keys_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.main(["keys", "new", *(["--name", name] if name else [])]) == 0
    key, line = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"qf-[A-Za-z0-9_-]{43}", key)
    assert line.partition(" # ")[2] == name
    file = tmp_path / "keys"
    file.write_text(line, encoding="utf-8")
    assert Keyring(read_keys(str(file))).holds(key.encode())


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_hash_of_a_key_of_ones_own_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    key = "sk-proj_0123456789/abcdef+=="
    typed(monkeypatch, key + end)
    assert cli.main(["keys", "hash"]) == 0
    assert capsys.readouterr().out == f"{hash_of(key)}\n"


def test_a_key_that_is_typed_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def getpass(prompt: str) -> str:
        asked.append(prompt)
        return "a-key-of-twenty-two-ch"

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", getpass)
    assert cli.main(["keys", "hash"]) == 0
    assert asked == ["key: "]
    assert capsys.readouterr().out == f"{hash_of('a-key-of-twenty-two-ch')}\n"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("", "standard input is empty"),
        ("\n", "standard input is empty"),
        ("correcthorse", "the key has 12 characters"),
        ("x" * 513, "the key has 513 characters"),
        ("correct horse battery staple", "other than visible ASCII"),
        ("0123456789-0123456789\n0123456789-0123456789", "in one line"),
        ("schlüssel-0123456789-0123", "other than visible ASCII"),
        (hash_of("x"), "the input is already a hash"),
    ],
)
def test_what_cannot_be_a_good_key_is_refused_in_a_sentence_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, printed: str
) -> None:
    typed(monkeypatch, text)
    assert cli.main(["keys", "hash"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert printed in err
    assert not text.strip() or text.strip() not in err


@pytest.mark.parametrize(
    "arguments", [["keys"], ["keys", "old"], ["keys", "new", "--name", "a\nb"]]
)
def test_a_wrong_command_line_shows_the_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: qwenfleet keys" in capsys.readouterr().err
