"""CoreLog: where the processes of one engine's core log to, and why one of them failed.

They log to their own standard error as vLLM does, to the output of the pod, and their exceptions to
a file of ours. vLLM internals used here (0.32): LoggingConfig, and the `dictConfig` that logger.py
makes of it.
"""

from __future__ import annotations

import json
import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from vllm.config.logging import LoggingConfig
from vllm.logger import DEFAULT_LOGGING_CONFIG
from vllm.logging_utils.formatter import JSON_FORMAT

from qwenfleet.deployments.telemetry.pod_log import PodLog
from qwenfleet.deployments.vllm_adapter import failure_log

OOM_KILLS: Final = "oom_kill "
"""Entry of a cgroup's memory.events: its processes that the kernel killed for lack of memory."""


class CoreLog:
    """The log of vLLM's processes below this one. `close` removes its files."""

    def __init__(self, pod_log: PodLog) -> None:
        self._pod_log = pod_log
        self._directory = tempfile.TemporaryDirectory(
            prefix="qwenfleet-core-", ignore_cleanup_errors=True
        )
        self._failures = Path(self._directory.name) / "failures.jsonl"
        self._oom_kills = _oom_kills()

    def join(self, config: LoggingConfig) -> LoggingConfig:
        """Return the configuration with our handlers. One that asks for no logging, or whose file
        vLLM will refuse, stays as it is."""
        tree = _tree(config) if config.configure_logging else None
        if tree is None:
            return config
        failures = f"{failure_log.__name__}.{failure_log.FailureHandler.__name__}"
        ours = {
            "qwenfleet_pod": self._pod_log.settings(),
            "qwenfleet_failures": {"()": failures, "path": str(self._failures)},
        }
        tree["handlers"] = {**tree.get("handlers", {}), **ours}
        vllm = tree.setdefault("loggers", {}).setdefault("vllm", {})
        vllm["handlers"] = [*vllm.get("handlers", ()), *ours]
        path = Path(self._directory.name) / "logging.json"
        path.write_text(json.dumps(tree), encoding="utf-8")
        return replace(config, pylogging_config_file=str(path))

    def reason(self) -> str:
        """Why a process failed; empty if none left a reason."""
        logged = failure_log.reason(self._failures)
        killed = _oom_kills() - self._oom_kills
        if not logged and killed > 0:
            return (
                f"the kernel killed {killed} of its processes, because the container's memory "
                "limit was reached: raise the limit or lower the KV cache"
            )
        return logged

    def close(self) -> None:
        self._directory.cleanup()


def _tree(config: LoggingConfig) -> dict[str, Any] | None:
    """The `dictConfig` that vLLM would apply; None for a file that it refuses."""
    if config.pylogging_config_file:
        try:
            tree = json.loads(Path(config.pylogging_config_file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return tree if isinstance(tree, dict) else None
    tree = deepcopy(DEFAULT_LOGGING_CONFIG)
    if config.formatter == "json":
        kind = "pythonjsonlogger.jsonlogger.JsonFormatter"
        tree["formatters"] = {"vllm_json": {"class": kind, "format": JSON_FORMAT}}
        tree["handlers"]["vllm"]["formatter"] = "vllm_json"
    else:
        for formatter in tree["formatters"].values():
            formatter["log_level"] = config.log_level
    for part in (tree["handlers"]["vllm"], tree["loggers"]["vllm"]):
        part["level"] = config.log_level
    return tree


def _oom_kills() -> int:
    """Processes of this one's cgroup that the kernel killed for lack of memory; 0 without cgroup
    v2."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        group = own.split("0::/", 1)[1].splitlines()[0]
        events = Path("/sys/fs/cgroup", group, "memory.events").read_text(encoding="utf-8")
    except (OSError, IndexError):
        return 0
    counts = [line.split()[1] for line in events.splitlines() if line.startswith(OOM_KILLS)]
    return int(counts[0]) if counts else 0
