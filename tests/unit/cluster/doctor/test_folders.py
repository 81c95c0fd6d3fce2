"""Tests what doctor says of sockets and logs that others can use."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from qwenfleet.cluster.doctor import folders
from qwenfleet.cluster.doctor.finding import Level
from qwenfleet.cluster.doctor.folders import Folder, Folders


def test_folders_are_found_by_the_sockets_in_them(tmp_path: Path) -> None:
    proxy, session = tmp_path / "haproxy", tmp_path / "session_1"
    (session / "sockets").mkdir(parents=True, mode=0o755)
    session.chmod(0o755)
    proxy.mkdir()
    proxy.chmod(0o700)
    names = (proxy / "admin.sock", session / "sockets" / "raylet.1", tmp_path / "other.sock")
    sockets = [socket.socket(socket.AF_UNIX) for _ in names]
    for one, path in zip(sockets, names, strict=True):
        one.bind(str(path))
    found = [folder for folder in folders.read().folders if str(tmp_path) in folder.path]
    for one in sockets:
        one.close()
    assert found == [
        Folder(str(proxy), 0o700, has_admin_socket=True),
        Folder(str(session), 0o755),
    ]


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        (Folder("/tmp/h", 0o755, has_admin_socket=True), "can control HAProxy"),
        (Folder("/tmp/s", 0o777), "can read the logs of its Ray session"),
    ],
)
def test_folder_that_others_may_enter_is_a_note(folder: Folder, sentence: str) -> None:
    (finding,) = folders.judge(Folders((folder,)))
    assert finding.level is Level.NOTE
    assert sentence in finding.sentence
    assert f"chmod 700 {folder.path}" in finding.remedy


@pytest.mark.parametrize("found", [(), (Folder("/tmp/s", 0o700),)])
def test_closed_folders_are_fine(found: tuple[Folder, ...]) -> None:
    (finding,) = folders.judge(Folders(found))
    assert finding.level is Level.OK
    assert finding.sentence.startswith(f"{len(found)} folder")
