"""Tests which folders are closed to other users."""

from __future__ import annotations

import stat
from pathlib import Path

from qwenfleet.cluster.local.private import close_to_others, session_of


def test_folder_of_this_user_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    close_to_others(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_folder_of_all_users_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    close_to_others(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


def test_file_belongs_to_the_ray_session_above_it() -> None:
    session = Path("/tmp/ray/session_2026-11-30_10-16-14_288881_25411")
    assert session_of(session / "logs" / "serve" / "replica.log") == session
    assert session_of(Path("/tmp/pytest/replica.log")) is None
