"""Tests that vLLM does not log a client's error as an ERROR."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMValidationError

from qwenfleet.deployments.vllm_adapter import client_faults

SERVING = "vllm.entrypoints.openai.chat_completion.serving"


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        has_stack = record.exc_info is not None
        self.lines.append((record.levelname, record.getMessage(), has_stack))


@pytest.fixture
def kept() -> Iterator[Kept]:
    vllm = logging.getLogger("vllm")
    before = vllm.handlers
    kept = Kept()
    vllm.handlers = [kept]
    client_faults.install()
    client_faults.install()
    yield kept
    vllm.handlers = before


def log_exception(error: Exception) -> None:
    try:
        raise error
    except Exception:
        logging.getLogger(SERVING).exception("Error in chat completion stream generator.")


@pytest.mark.parametrize(
    ("error", "level"),
    [(VLLMValidationError("a secret prompt"), "INFO"), (ValueError("a secret"), "WARNING")],
)
def test_bad_request_is_one_line_without_its_text(kept: Kept, error: Exception, level: str) -> None:
    log_exception(error)
    assert kept.lines == [(level, f"request refused: {type(error).__name__}", False)]


def test_refusal_that_vllm_logs_without_an_exception_is_an_info_line(kept: Kept) -> None:
    refusal = create_error_response("a secret", "NotFoundError")
    logging.getLogger(SERVING).error("Error with model %s", refusal)
    assert kept.lines == [("INFO", "request refused: NotFoundError", False)]


def test_failure_of_vllm_stays_an_error_with_its_stack(kept: Kept) -> None:
    log_exception(RuntimeError("broken"))
    assert kept.lines == [("ERROR", "Error in chat completion stream generator.", True)]


def test_line_of_another_part_of_vllm_is_left_alone(kept: Kept) -> None:
    logging.getLogger("vllm.v1.engine").error("broken", exc_info=ValueError("x"))
    assert kept.lines[0][0] == "ERROR"
