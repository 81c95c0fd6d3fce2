"""The logging configuration that the processes of a core get."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging

from qwenfleet.deployments.telemetry.pod_log import POD_LOG, PodLog
from qwenfleet.deployments.vllm_adapter.core_log import CoreLog


@pytest.fixture
def core_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CoreLog]:
    (tmp_path / "output").touch()
    monkeypatch.setenv(POD_LOG, str(tmp_path / "output"))
    made = CoreLog(PodLog("plain", {"engine": "e1"}))
    yield made
    made.close()


@pytest.fixture
def in_the_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """vLLM's logger, put back afterwards."""
    vllm = logging.getLogger("vllm")
    before = vllm.handlers, vllm.level, vllm.propagate
    factory = logging.getLogRecordFactory()
    yield vllm
    vllm.handlers, vllm.level, vllm.propagate = before
    logging.setLogRecordFactory(factory)


def test_a_core_logs_as_vllm_does_and_to_the_pod(
    core_log: CoreLog, in_the_core: logging.Logger, tmp_path: Path
) -> None:
    configure_logging(core_log.join(LoggingConfig()))
    in_the_core.info("Available KV cache memory: 1.0 GiB")
    assert "INFO Available KV cache memory: 1.0 GiB engine=e1" in (tmp_path / "output").read_text()
    assert [type(handler).__name__ for handler in in_the_core.handlers] == [
        "StreamHandler",
        "PodLogHandler",
        "FailureHandler",
    ]


def test_the_exception_with_which_a_core_ends_is_its_reason(
    core_log: CoreLog, in_the_core: logging.Logger
) -> None:
    configure_logging(core_log.join(LoggingConfig()))
    assert core_log.reason() == ""
    try:
        raise ValueError("Available memory on node 0 (0.16/4.0 GiB)")
    except ValueError:
        in_the_core.exception("EngineCore failed to start.")
    assert core_log.reason() == "Available memory on node 0 (0.16/4.0 GiB)"


def test_the_form_that_an_operator_asked_vllm_for_is_kept(core_log: CoreLog) -> None:
    joined = core_log.join(replace(LoggingConfig(), formatter="json", log_level="DEBUG"))
    assert joined.pylogging_config_file is not None
    made = json.loads(Path(joined.pylogging_config_file).read_text())
    assert made["handlers"]["vllm"]["formatter"] in made["formatters"]
    assert made["handlers"]["vllm"]["level"] == made["loggers"]["vllm"]["level"] == "DEBUG"


def test_a_configuration_of_the_operator_is_kept(core_log: CoreLog, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.json"
    tree = {
        "version": 1,
        "handlers": {"own": {"class": "logging.NullHandler"}},
        "loggers": {"vllm": {"handlers": ["own"], "level": "DEBUG"}, "other": {"level": "INFO"}},
    }
    theirs.write_text(json.dumps(tree))
    joined = core_log.join(replace(LoggingConfig(), pylogging_config_file=str(theirs)))
    assert joined.pylogging_config_file is not None
    made = json.loads(Path(joined.pylogging_config_file).read_text())
    assert made["loggers"]["vllm"]["handlers"] == ["own", "qwenfleet_pod", "qwenfleet_failures"]
    assert made["loggers"]["vllm"]["level"] == "DEBUG"
    assert made["loggers"]["other"] == {"level": "INFO"}


def test_a_core_without_logging_stays_without(core_log: CoreLog) -> None:
    silent = LoggingConfig(configure_logging=False, pylogging_config_file=None)
    assert core_log.join(silent) is silent
    missing = LoggingConfig(pylogging_config_file="/missing.json")
    assert core_log.join(missing) is missing, "vLLM names the file that it misses"


def test_its_files_are_removed(core_log: CoreLog) -> None:
    joined = core_log.join(LoggingConfig())
    assert joined.pylogging_config_file is not None
    core_log.close()
    assert not Path(joined.pylogging_config_file).exists()
    assert core_log.reason() == ""
