"""Start failures of engines and gateways: which are reported, and which end the start.

Those that our code raises are in the registry's snapshot. Those from before it runs, such as a
runtime environment that cannot be made, are in Serve's own status only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import EngineStartError, FleetError, GatewayStartError, one_line
from qwenfleet.cluster.labels import EngineState
from qwenfleet.deployments.app import START_ATTEMPTS
from qwenfleet.deployments.registry.records import Snapshot, StartFailure

REPORTED_AT: Final = 2
"""One failure may be chance; the second of the same kind is not."""
GATEWAY: Final = "gateway"
ENGINE: Final = "engine"

_VARYING: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+")
"""Addresses, ids and pids, in which two identical failures differ."""
_ATTEMPTS: Final = re.compile(r"failed to start (\d+) times")
_RETRIES_LEFT: Final = re.compile(r"Retrying (\d+) more time")
_ENGINES: Final = re.compile(r"engine-(\d+)")
_COLOR: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Deployed:
    """What Serve reports about one deployment."""

    name: str
    status: str
    message: str = ""
    running: int = 0
    """Its replicas that run."""
    replicas: int = 0
    """Its replicas in any state."""


@dataclass(frozen=True)
class Failure:
    """Identical failures of a model's engines, or of gateways."""

    part: str
    model: str
    """For a gateway: the model that it cannot serve; empty if it serves none."""
    reason: str
    log_file: str | None = None
    times: int = 1
    is_final: bool = False
    ids: frozenset[str] = frozenset()
    """The engines or gateways that failed."""

    @property
    def subject(self) -> tuple[str, str]:
        return self.part, self.model

    def __str__(self) -> str:
        who = f"an engine of {self.model}" if self.part == ENGINE else "a gateway"
        times = "" if self.times == 1 else f" {self.times} times"
        log = f" (see {self.log_file})" if self.log_file else ""
        return f"{who} failed to start{times}: {self.reason}{log}"

    @property
    def error(self) -> FleetError:
        if self.part == ENGINE:
            return EngineStartError(self.model, self.reason, self.log_file)
        log = "the gateway's log" if self.log_file is None else self.log_file
        return GatewayStartError(self.reason, f"See {log}.")


class Failures:
    """Judges each reading: the second identical failure is reported, the third ends the start."""

    def __init__(self, config: FleetConfig) -> None:
        self._models = [model.id for model in config.models]
        self._reported: dict[tuple[str, str, str], int] = {}
        self._seen: dict[tuple[str, str, str], set[str]] = {}
        self._most_left: dict[str, int] = {}
        """By deployment: the most retries that Serve had left."""

    def judge(
        self,
        snapshot: Snapshot | None,
        deployments: Sequence[Deployed] = (),
        *,
        has_served: bool = False,
    ) -> list[str]:
        """Return a sentence for each failure that repeats.

        Raises EngineStartError or GatewayStartError for a start that cannot succeed. What serves
        already goes on: then a failure is only reported, as it is in a fleet that `has_served`.
        """
        failures = _registered(() if snapshot is None else snapshot.failures)
        known = {_deployment(failure) for failure in failures}
        for failure in filter(None, map(self._of_serve, deployments)):
            if _deployment(failure) not in known:
                failures.append(failure)
        totals = Counter[tuple[str, str]]()
        for failure in failures:
            totals[failure.subject] += failure.times
        served = self._served(snapshot, deployments)
        for failure in failures:
            is_hopeless = failure.is_final or totals[failure.subject] >= START_ATTEMPTS
            if is_hopeless and not has_served and failure.subject not in served:
                raise failure.error
        return [str(news) for news in map(self._news, failures) if news]

    def _news(self, failure: Failure) -> Failure | None:
        """Return a failure, with all that were like it before, if it is worth a sentence: it is
        final, has repeated, or has doubled since the last one. The registry forgets the failures
        of a model whose other engines are ready."""
        key = *failure.subject, _kind(failure.reason)
        seen = self._seen.setdefault(key, set())
        seen |= failure.ids
        times = max(failure.times, len(seen))
        if times < max(1 if failure.is_final else REPORTED_AT, 2 * self._reported.get(key, 0)):
            return None
        self._reported[key] = times
        return replace(failure, times=times)

    def _of_serve(self, one: Deployed) -> Failure | None:
        """Return the failure that a deployment's message tells of, if any."""
        left, total = _RETRIES_LEFT.search(one.message), _ATTEMPTS.search(one.message)
        is_final = one.status == "DEPLOY_FAILED"
        if not (left or total or is_final):
            return None
        times = int(total[1]) if total else 1
        if left:
            most = max(self._most_left.get(one.name, 0), int(left[1]))
            self._most_left[one.name] = most
            times = most - int(left[1]) + 1
        return Failure(*self._subject(one), reason_of(one.message), None, times, is_final)

    def _subject(self, one: Deployed) -> tuple[str, str]:
        match = _ENGINES.match(one.name)
        return (ENGINE, self._models[int(match[1])]) if match else (GATEWAY, "")

    def _served(
        self, snapshot: Snapshot | None, deployments: Iterable[Deployed]
    ) -> set[tuple[str, str]]:
        """Return the models that have an engine, and those that a gateway serves."""
        if snapshot is None:
            return {self._subject(one) for one in deployments if one.running}
        ready = [gateway for gateway in snapshot.gateways if gateway.is_ready]
        served = {(GATEWAY, model) for gateway in ready for model in (*gateway.models, "")}
        return served | {
            (ENGINE, one.model) for one in snapshot.engines if one.state == EngineState.READY
        }


def deployed(application: Any) -> tuple[Deployed, ...]:
    """Convert one application of `serve.status()`."""
    return tuple(
        Deployed(
            name,
            one.status.value,
            one.message,
            sum(count for state, count in one.replica_states.items() if state == "RUNNING"),
            sum(one.replica_states.values()),
        )
        for name, one in application.deployments.items()
    )


def reason_of(message: str) -> str:
    """Return the cause in a message of Serve's: the last line of its traceback."""
    text = _COLOR.sub("", message)
    _, found, error = text.partition("Error:\n")
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return one_line(lines[-1] if found and lines else text)


def _registered(failures: Iterable[StartFailure]) -> list[Failure]:
    """Group identical failures of the registry, in the order of the first of each."""
    groups: dict[tuple[str, str, str], list[Failure]] = {}
    for failure in map(_failure, failures):
        groups.setdefault((*failure.subject, _kind(failure.reason)), []).append(failure)
    return [
        replace(
            group[-1],
            times=len(group),
            is_final=any(one.is_final for one in group),
            ids=frozenset[str]().union(*(one.ids for one in group)),
        )
        for group in groups.values()
    ]


def _failure(one: StartFailure) -> Failure:
    reason = one_line(one.reason)
    part = GATEWAY if one.engine.startswith("gw-") else ENGINE
    if part == GATEWAY and one.model:
        reason = f"model '{one.model}': {reason}"
    return Failure(part, one.model, reason, one.log_file, 1, one.is_final, frozenset({one.engine}))


def _deployment(failure: Failure) -> tuple[str, str]:
    """Return what Serve counts failures of: one model's engines, or all gateways."""
    return failure.part, failure.model if failure.part == ENGINE else ""


def _kind(reason: str) -> str:
    return _VARYING.sub("#", reason)
