"""The log in the output of a pod: complete while somebody reads it, and never in the way."""

from __future__ import annotations

import logging
import logging.config
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenfleet.deployments.telemetry.pod_log import POD_LOG, PodLog

POD = PodLog("plain", {"fleet": "coder", "engine": "e1"})


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    made = logging.Logger("qwenfleet.test", logging.INFO)
    yield made
    made.handlers = []


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reader of a pipe that stands for a container's output, and is opened by its path."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    monkeypatch.setenv(POD_LOG, f"/proc/{os.getpid()}/fd/{writer}")
    yield reader
    os.close(reader)
    os.close(writer)


def attach(log: logging.Logger) -> logging.Handler:
    handler = POD.handler()
    assert handler is not None
    log.addHandler(handler)
    return handler


def test_lines_reach_the_pipe_of_the_main_process(output: int, log: logging.Logger) -> None:
    attach(log)
    log.info("engine ready", extra={"seconds": 3})
    line = os.read(output, 4096).decode()
    assert line.endswith(" INFO engine ready fleet=coder engine=e1 seconds=3\n")


@pytest.mark.timeout(20)
def test_a_reader_that_stops_costs_lines_and_no_time(output: int, log: logging.Logger) -> None:
    attach(log)
    for _ in range(2000):  # a pipe holds 64 KiB
        log.info("x" * 1000)
    seen = os.read(output, 1 << 20).decode().splitlines()
    assert seen
    assert all(line.endswith("engine=e1") for line in seen), "no line is cut"
    log.info("again")
    (again,) = os.read(output, 1 << 20).decode().splitlines()
    assert again.endswith(f" again fleet=coder engine=e1 dropped_lines={2000 - len(seen)}")
    log.info("and again")
    assert os.read(output, 1 << 20).endswith(b" and again fleet=coder engine=e1\n")


def test_the_pipe_of_the_main_process_stays_as_it_was(output: int) -> None:
    writer = int(os.environ[POD_LOG].rpartition("/")[2])
    assert POD.handler() is not None
    assert os.get_blocking(writer), "Ray writes there too, and would fail if it did not block"


def test_there_is_no_handler_outside_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POD_LOG, raising=False)
    assert POD.handler() is None


def test_an_output_that_cannot_be_opened_is_named_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(POD_LOG, str(tmp_path / "missing" / "fd"))
    assert POD.handler() is None
    (warning,) = caplog.records
    assert warning.getMessage() == "cannot log to the output of the pod"


def test_vllms_processes_get_the_handler_from_a_logging_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.touch()
    monkeypatch.setenv(POD_LOG, str(output))
    own = logging.getLogger("qwenfleet_test_core")
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"pod": POD.settings()},
            "loggers": {own.name: {"handlers": ["pod"], "level": "INFO"}},
        }
    )
    own.info("loading weights")
    own.handlers = []
    assert " INFO loading weights fleet=coder engine=e1 process=" in output.read_text()
