"""Log lines of a pod: one line an event, whatever a record holds."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from qwenfleet.cluster.config.logs import LogFormat
from qwenfleet.deployments.telemetry.log_lines import MAX_BYTES, LineFormatter

FIELDS = {"fleet": "coder", "model": "qwen", "engine": "e1"}


def record(
    text: str = "request lost", name: str = "qwenfleet.a", **extra: Any
) -> logging.LogRecord:
    """A record without the fields that vLLM adds to all once its logging is set up."""
    made = logging.LogRecord(name, logging.INFO, "", 0, text, None, None)
    made.__dict__.update({"created": 0.25, "msecs": 250.0, **extra})
    return made


def test_a_plain_line_has_time_level_event_and_fields() -> None:
    line = LineFormatter("plain", FIELDS).format(record(request="r1", reason="no room left"))
    assert line == (
        "1970-01-01T00:00:00.250Z INFO request lost fleet=coder model=qwen engine=e1 request=r1 "
        'reason="no room left"'
    )


def test_a_json_line_has_the_same_with_numbers_as_numbers() -> None:
    line = LineFormatter("json", FIELDS).format(record(request="r1", tokens=3, _ray_timestamp_ns=1))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "INFO",
        "event": "request lost",
        **FIELDS,
        "request": "r1",
        "tokens": 3,
    }


def test_the_request_of_an_attempt_is_named() -> None:
    line = LineFormatter("json", FIELDS).format(record(attempt="chatcmpl-1.2@gw-a"))
    assert json.loads(line)["request"] == "chatcmpl-1"


@pytest.mark.parametrize("form", ["plain", "json"])
def test_an_exception_is_one_line_with_its_type_and_message(form: LogFormat) -> None:
    error = ValueError("0.16 of\n4.0 GiB")
    line = LineFormatter(form, FIELDS).format(record(exc_info=(ValueError, error, None)))
    assert "ValueError: 0.16 of 4.0 GiB" in line
    assert "\n" not in line


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_line_of_any_length_fits_into_one_write_to_a_pipe(form: LogFormat) -> None:
    formatter = LineFormatter(form, FIELDS)
    for long in (record("é" * 9000), record(**{f"v{i}": "é" * 900 for i in range(60)})):
        line = formatter.format(long)
        assert len(line.encode()) < MAX_BYTES
        assert form == "plain" or json.loads(line)["level"] == "INFO"


def test_lines_of_other_libraries_name_their_process_or_logger() -> None:
    of_vllm = record(name="vllm.v1.core", vllm_process_name="EngineCore_DP0")
    assert "process=EngineCore_DP0" in LineFormatter("plain", {}).format(of_vllm)
    assert "process=vllm.v1" in LineFormatter("plain", {}).format(record(name="vllm.v1"))
