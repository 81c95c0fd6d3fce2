import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwenfleet.cluster.errors import ModelSourceError
from qwenfleet.cluster.models import cache

BUILDER = """
import sys, time
from pathlib import Path
from qwenfleet.cluster.models import cache

root, log, hang = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "hang"

def build(directory):
    with log.open("a") as file:
        file.write("built\\n")
    (directory / "weights").write_bytes(b"half")
    print("half-way", flush=True)
    time.sleep(600 if hang else 0.3)
    (directory / "weights").write_bytes(b"whole")

print(cache.materialize("model", build, "1", root))
"""


class Builder:
    """Builds a small model and counts how often it was asked to."""

    def __init__(self) -> None:
        self.num_builds = 0

    def __call__(self, directory: Path) -> None:
        self.num_builds += 1
        (directory / "config.json").write_text("{}")
        (directory / "weights").write_bytes(b"whole")


def start(root: Path, log: Path, mode: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILDER, str(root), str(log), mode]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_model_is_built_once_and_then_found(tmp_path: Path) -> None:
    build, printed = Builder(), list[str]()
    first = cache.materialize("model", build, "1", tmp_path, printed.append)
    second = cache.materialize("model", build, "1", tmp_path, printed.append)
    assert first == second == tmp_path / "model-1"
    assert (first / "weights").read_bytes() == b"whole"
    assert build.num_builds == 1
    assert printed == [f"building model-1 once, into {tmp_path}/model-1."]


def test_a_new_revision_is_built_next_to_the_old_one(tmp_path: Path) -> None:
    build = Builder()
    old = cache.materialize("model", build, "1", tmp_path)
    new = cache.materialize("model", build, "2", tmp_path)
    assert old != new
    assert old.is_dir()
    assert build.num_builds == 2


def test_two_processes_at_once_build_exactly_once(tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    processes = [start(root, log, "finish") for _ in range(2)]
    answers = [process.communicate(timeout=30)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [answer[-1] for answer in answers] == [f"{root}/model-1"] * 2
    assert log.read_text() == "built\n"


def test_a_killed_build_is_discarded(tmp_path: Path) -> None:
    with start(tmp_path, tmp_path / "log", "hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half-way\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".model-1.partial" / "weights").exists()
    directory = cache.materialize("model", Builder(), "1", tmp_path)
    assert (directory / "weights").read_bytes() == b"whole"
    assert not (tmp_path / ".model-1.partial").exists()


def test_a_flipped_byte_is_reported_and_the_model_rebuilt(tmp_path: Path) -> None:
    build, printed = Builder(), list[str]()
    directory = cache.materialize("model", build, "1", tmp_path)
    (directory / "weights").write_bytes(b"whale")
    assert cache.materialize("model", build, "1", tmp_path, printed.append) == directory
    assert printed == [
        f"{directory}/weights is damaged: expected sha256 5d5766cf2d78 (5 bytes), "
        "found sha256 a5d2ae286d0d (5 bytes); rebuilding the model."
    ]
    assert build.num_builds == 2
    assert (directory / "weights").read_bytes() == b"whole"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["model-1"]


def test_a_missing_file_is_reported_and_the_model_rebuilt(tmp_path: Path) -> None:
    printed: list[str] = []
    directory = cache.materialize("model", Builder(), "1", tmp_path)
    (directory / "weights").unlink()
    cache.materialize("model", Builder(), "1", tmp_path, printed.append)
    assert (
        "weights is damaged: expected sha256 5d5766cf2d78 (5 bytes), found no file;" in printed[0]
    )
    assert (directory / "weights").exists()


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"files": 1}', '{"files": {"weights": {}}}'])
def test_a_directory_without_a_readable_manifest_is_rebuilt(
    tmp_path: Path, manifest: str | None
) -> None:
    build, printed = Builder(), list[str]()
    directory = cache.materialize("model", build, "1", tmp_path)
    (directory / cache.MANIFEST).unlink()
    if manifest is not None:
        (directory / cache.MANIFEST).write_text(manifest)
    cache.materialize("model", build, "1", tmp_path, printed.append)
    assert "manifest.json is damaged: expected a manifest, found" in printed[0]
    assert build.num_builds == 2


def test_an_intact_directory_is_used_without_the_lock(tmp_path: Path) -> None:
    directory = cache.materialize("model", Builder(), "1", tmp_path)
    for path in tmp_path.glob("*.lock"):
        path.unlink()
    assert cache.materialize("model", Builder(), "1", tmp_path) == directory
    assert list(tmp_path.glob("*.lock")) == []


def test_a_full_disk_is_reported_and_its_space_freed(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").write_bytes(b"half")
        with Path("/dev/full").open("w") as file:
            file.write("no room")

    with pytest.raises(ModelSourceError) as caught:
        cache.materialize("model", build, "1", tmp_path)
    assert str(caught.value) == (
        f"model source 'model': the disk of {tmp_path} is full. "
        "Free some space, or set XDG_CACHE_HOME to a directory on another disk."
    )
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_read_only_cache_is_reported(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(directory))

    with pytest.raises(ModelSourceError) as caught:
        cache.materialize("model", build, "1", tmp_path)
    assert str(caught.value) == (
        f"model source 'model': {tmp_path}/.model-1.partial cannot be used (permission denied). "
        "Set XDG_CACHE_HOME to a directory that you can read and write."
    )


def test_a_cache_below_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelSourceError, match=r"file.* cannot be used \(not a directory\)"):
        cache.materialize("model", Builder(), "1", tmp_path / "file" / "models")


def test_a_lock_that_is_never_released_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LOCK_TIMEOUT_S", 0.1)
    with start(tmp_path, tmp_path / "log", "hang") as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ModelSourceError) as caught:
            cache.materialize("model", Builder(), "1", tmp_path)
        process.kill()
    assert str(caught.value) == (
        f"model source 'model': another process has held {tmp_path}/model-1.lock for 0.1 s. "
        "Stop the process that builds this model, then try again."
    )


def test_an_error_of_the_build_is_raised_and_leaves_no_files(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        raise ModelSourceError("model", "it is absent", "Install it.")

    with pytest.raises(ModelSourceError, match="it is absent"):
        cache.materialize("model", build, "1", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_cache_follows_the_xdg_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert cache.cache_root() == Path("/some/where/qwenfleet/models")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_root() == Path("/home/someone/.cache/qwenfleet/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path("/home/someone/.cache/qwenfleet/models")


def test_the_error_without_a_home_names_the_variable_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ModelSourceError) as caught:
        cache.cache_root()
    assert str(caught.value) == (
        "model source 'embedded models': this user has no home directory for built models. "
        "Set XDG_CACHE_HOME to a writable directory."
    )
