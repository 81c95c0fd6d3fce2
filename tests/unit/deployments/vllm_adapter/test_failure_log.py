"""Why a process of vLLM failed: found in what it logged, and put into one sentence."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import pytest

from qwenfleet.deployments.vllm_adapter.failure_log import FailureHandler, reason, sentence

TOO_SMALL = (
    "Available memory on node 0 (0.16/4.0 GiB) on startup is less than requested memory for kv "
    "(1.0 GiB)."
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "failures.jsonl"


def fail(path: Path, event: str, error: Exception) -> None:
    """Log as a process of vLLM does."""
    log = logging.Logger("vllm")
    log.addHandler(FailureHandler(str(path)))
    try:
        raise error
    except Exception:
        log.exception(event)


def test_what_a_core_logs_before_it_ends_is_the_reason(path: Path) -> None:
    fail(path, "EngineCore failed to start.", ValueError(TOO_SMALL))
    assert reason(path) == TOO_SMALL.rstrip(".")


def test_a_message_that_points_to_another_process_is_passed_over(path: Path) -> None:
    fail(path, "WorkerProc failed to start.", ValueError(TOO_SMALL))
    pointer = "WorkerProc initialization failed due to an exception in a background process. See "
    fail(path, "EngineCore failed to start.", Exception(f"{pointer}stack trace for root cause."))
    assert reason(path) == TOO_SMALL.rstrip(".")


def test_the_first_process_to_fail_counts_and_not_those_that_lost_it(path: Path) -> None:
    fail(path, "WorkerProc failed to start.", RuntimeError("CUDA error: out of memory"))
    fail(path, "WorkerProc failed to start.", ConnectionResetError("Connection reset by peer"))
    assert reason(path) == "CUDA error: out of memory"


def test_an_end_counts_before_an_exception_that_the_process_survived(path: Path) -> None:
    fail(path, "cannot read the tuned kernels", KeyError("H100"))
    assert reason(path) == "'H100'"
    fail(path, "EngineCore failed to start.", ValueError(TOO_SMALL))
    assert reason(path) == TOO_SMALL.rstrip(".")


def test_no_file_is_no_reason(path: Path) -> None:
    assert reason(path) == ""


def test_a_stack_trace_in_a_message_is_left_out() -> None:
    error = RuntimeError("the worker\nfailed\nTraceback (most recent call last):\n  File ...")
    assert sentence(error) == "the worker failed"
    assert sentence(KeyError()) == "KeyError"
    assert len(sentence(RuntimeError("x" * 9000))) == 600


def hub_is_unreachable() -> OSError:
    """The errors that transformers and huggingface_hub raise without name resolution."""
    text = "[Errno -3] Temporary failure in name resolution"
    try:
        try:
            try:
                raise socket.gaierror(-3, "Temporary failure in name resolution")
            except OSError as error:
                raise RuntimeError(text) from error  # httpx.ConnectError
        except RuntimeError as error:
            raise ValueError("An error happened while trying to locate the file") from error
    except ValueError as error:
        problem = OSError(
            "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find "
            "them in the cached files."
        )
        problem.__cause__ = error
        return problem


def test_a_hub_that_cannot_be_reached_is_named_with_the_network_s_problem() -> None:
    assert sentence(hub_is_unreachable()).startswith(
        "cannot reach huggingface.co: Temporary failure in name resolution. We couldn't connect to"
    )


def test_each_failure_is_one_line_of_the_file(path: Path) -> None:
    fail(path, "EngineCore failed to start.", ValueError("two\nlines"))
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == ["EngineCore failed to start.", "two lines"]
