"""Token files and their permissions."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenfleet.cluster.doctor import ray_auth
from qwenfleet.cluster.doctor.finding import Level
from qwenfleet.cluster.doctor.ray_auth import TokenFile, Tokens


@pytest.fixture(autouse=True)
def no_fleet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_default_token_and_the_named_one_are_read_with_their_modes(tmp_path: Path) -> None:
    default = tmp_path / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text("x")
    default.chmod(0o644)
    named = tmp_path / "token"
    named.write_text("x")
    named.chmod(0o600)
    tokens = ray_auth.read({"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(named)})
    assert tokens == Tokens((TokenFile(str(default), 0o644), TokenFile(str(named), 0o600)))


def test_a_token_that_other_users_can_read_is_a_note_with_chmod() -> None:
    (finding,) = ray_auth.judge(Tokens((TokenFile("/home/ann/.ray/auth_token", 0o644),)))
    assert finding.level is Level.NOTE
    assert "mode 0644" in finding.sentence
    assert "chmod 600 /home/ann/.ray/auth_token" in finding.remedy


def test_private_tokens_are_ok_and_without_tokens_there_is_no_finding() -> None:
    (finding,) = ray_auth.judge(Tokens((TokenFile("/t", 0o600),)))
    assert finding.level is Level.OK
    assert ray_auth.judge(Tokens(())) == []


def test_a_named_token_file_that_does_not_exist_is_a_note(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    tokens = ray_auth.read({"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": missing})
    (finding,) = ray_auth.judge(tokens)
    assert finding.level is Level.NOTE
    assert missing in finding.sentence
