"""A completions server without a model, and Python of its own for tests that change what a process
is: the parent of orphans, or the receiver of a signal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cluster.local.ports import free_ports

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("completions_server.py")
START_S = 20.0
"""A busy machine may take so long to start a Python."""


class RunningServer:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def seen(self) -> dict[str, Any]:
        """What clients did; this question's connection included."""
        with urllib.request.urlopen(f"{self.url}/seen", timeout=START_S) as response:
            seen: dict[str, Any] = json.load(response)
        return seen


@contextmanager
def running_server(*options: str) -> Iterator[RunningServer]:
    (port,) = free_ports(1, "127.0.0.1")
    command = [sys.executable, str(PROGRAM), str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("up")
            yield RunningServer(port)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """For tests that do not look at what it has seen."""
    with running_server() as server:
        yield server


@pytest.fixture
def slow_server() -> Iterator[RunningServer]:
    """Run a server for one test; a token takes 5 ms."""
    with running_server("--step-ms", "5") as server:
        yield server


@pytest.fixture(scope="session")
def program() -> Path:
    """completions_server.py, for tests that start it themselves."""
    return PROGRAM


Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def start_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Start code in an interpreter of its own, in an empty directory that is its TMPDIR too."""
    started = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        directory = tmp_path_factory.mktemp("python")
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(directory)},
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def python_says(start_python: Run) -> Callable[..., Any]:
    """Run code to its end; what it prints is JSON."""

    def run(code: str, *arguments: object) -> Any:
        process = start_python(code, *arguments)
        out, err = process.communicate(timeout=50)
        assert process.returncode == 0, err
        return json.loads(out)

    return run


def soon(claim: Callable[[], object]) -> None:
    """Wait for a state of another process."""
    give_up_at = time.monotonic() + START_S
    while not claim():
        assert time.monotonic() < give_up_at, "not in time"
        time.sleep(0.02)


@pytest.fixture(scope="session", name="soon")
def _soon() -> Callable[[Callable[[], object]], None]:
    return soon
