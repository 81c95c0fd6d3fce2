"""Tests that our log lines reach Serve's file, whatever other code does to logging."""

from __future__ import annotations

import logging
import logging.config
import stat
from collections.abc import Iterator
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest

from qwenfleet.deployments.telemetry.logs import join_serve_log
from qwenfleet.deployments.telemetry.pod_log import POD_LOG, PodLog

OURS = ("ray.serve", "qwenfleet", "vllm")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """The log of a replica, as Serve's `configure_component_logger` sets it up."""
    loggers = [logging.getLogger(name) for name in OURS]
    before = [(one, one.handlers, one.level, one.propagate) for one in loggers]
    target = RotatingFileHandler(tmp_path / "replica.log")
    handler = MemoryHandler(capacity=1, target=target)
    loggers[0].handlers = [handler]
    yield tmp_path / "replica.log"
    target.close()
    for one, handlers, level, propagate in before:
        one.handlers, one.level, one.propagate = handlers, level, propagate


def test_our_lines_and_those_of_vllm_go_to_the_file_of_the_replica(file: Path) -> None:
    assert join_serve_log(PodLog()) == str(file)
    logging.getLogger("qwenfleet.a").info("ours")
    logging.getLogger("vllm.b").info("vLLM's")
    assert file.read_text().split("\n") == ["ours", "vLLM's", ""]


def test_folder_of_the_ray_session_is_closed_to_other_users(file: Path, tmp_path: Path) -> None:
    session = tmp_path / "session_1"
    (session / "logs" / "serve").mkdir(parents=True)
    session.chmod(0o777)
    target = RotatingFileHandler(session / "logs" / "serve" / "replica.log")
    logging.getLogger("ray.serve").handlers = [target]
    join_serve_log(PodLog())
    RotatingFileHandler.close(target)  # the handler's own was taken away
    assert stat.S_IMODE(session.stat().st_mode) == 0o700


def test_logging_setup_of_other_code_does_not_end_the_log(
    file: Path,
) -> None:
    join_serve_log(PodLog())
    logging.getLogger("qwenfleet.a").info("before")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    logging.getLogger("qwenfleet.a").info("after")
    assert file.read_text().split() == ["before", "after"]

    handlers = logging.getLogger("ray.serve").handlers
    (kept,) = [handler for handler in handlers if isinstance(handler, MemoryHandler)]
    assert kept.target is not None, "Serve's controller asks for its file"


def test_our_lines_also_go_to_the_output_of_the_pod(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    output.touch()
    monkeypatch.setenv(POD_LOG, str(output))
    assert join_serve_log(PodLog("plain", {"engine": "e1"})) == str(file)
    logging.getLogger("qwenfleet.a").info("ours")
    assert file.read_text() == "ours\n"
    assert output.read_text().endswith(" INFO ours engine=e1\n")
