"""Tests how the access log writes its lines."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from qwenfleet.deployments.telemetry import access_log as module
from qwenfleet.deployments.telemetry.access_log import AccessEntry, AccessLog
from qwenfleet.deployments.telemetry.log_lines import LineFormatter

ENTRY = AccessEntry("POST", "/v1/completions", key="alice", model="coder", status=200, ttft_s=0.25)


class Slow(logging.Handler):
    """A handler that waits until the test lets it write."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = threading.Event()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.may_write.wait(10)
        self.records.append(record)


def test_each_request_is_one_line_of_json(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "log")
    handler.setFormatter(LineFormatter("json", {"gateway": "gw-1"}))
    log = AccessLog([handler])
    for _ in range(2):
        log.note(ENTRY)
    log.close()
    handler.close()
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first | {"time": ""} == second | {"time": ""}
    assert first["event"] == "request"
    assert (first["gateway"], first["key"], first["status"]) == ("gw-1", "alice", 200)
    assert "engine" not in first, "what is not known is left out"


def test_slow_writer_holds_nobody_up_and_loses_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_LINES", 3)
    handler = Slow()
    log = AccessLog([handler])
    for _ in range(20):
        log.note(ENTRY)
    handler.may_write.set()
    log.close()
    assert len(handler.records) < 6


def test_next_line_says_how_many_were_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Slow()
    log = AccessLog([handler])
    monkeypatch.setattr(module, "WAITING_LINES", 0)
    log.note(ENTRY)
    monkeypatch.setattr(module, "WAITING_LINES", 10)
    handler.may_write.set()
    log.note(ENTRY)
    log.close()
    (record,) = handler.records
    assert vars(record)["dropped_lines"] == 1


def test_log_without_handlers_keeps_nothing() -> None:
    log = AccessLog()
    log.note(ENTRY)
    assert log._waiting.empty()
    log.close()
