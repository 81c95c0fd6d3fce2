"""Deployment: one change of a fleet on a Ray cluster, watched until all of it is ready."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import ray
from msgspec import structs
from ray import serve as ray_serve

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import DeployFailed, StartTimeout
from qwenfleet.deployments.operations import entrance
from qwenfleet.deployments.operations.failures import Deployed, Failures, deployed, reason_of
from qwenfleet.deployments.operations.progress import Progress, Stages
from qwenfleet.deployments.operations.reach import Reach
from qwenfleet.deployments.registry import client
from qwenfleet.deployments.registry.records import Snapshot

POLL_S: Final = 1.0
_WAITS: Final = re.compile(
    r"has (\d+) replicas that have taken more than \d+s to be scheduled.*"
    r"required for each replica: (.+?), total resources available: ",
    re.DOTALL,
)
"""A message of ray 2.60 `serve/_private/deployment_state.py`."""


class Deployment:
    """Reports what a deployment does until the fleet is ready or cannot become so. Make it before
    Serve gets the new application."""

    def __init__(self, config: FleetConfig, stages: Stages) -> None:
        self._config = config
        self._stages = stages
        self._failures = Failures(config)
        self._reach = Reach()
        earlier = _snapshot(config.name)
        self._earlier = {failure.engine for failure in earlier.failures} if earlier else set()
        """Replicas that failed before this deployment."""
        self._waits: dict[str, str] = {}
        """By deployment: what it was last reported to wait for."""
        self._progress: Progress | None = None

    def wait(self, timeout_s: float) -> None:
        """Return when the fleet is ready. Raises FleetError."""
        give_up_at = time.monotonic() + timeout_s
        while not self._is_complete():
            if time.monotonic() > give_up_at:
                raise StartTimeout(
                    f"fleet '{self._config.name}' is not ready after {timeout_s:.0f} s",
                    "It is still starting; to keep waiting, run this again with a longer "
                    "--timeout.",
                )
            time.sleep(POLL_S)

    def _is_complete(self) -> bool:
        try:
            application = ray_serve.status().applications.get(self._config.name)
        except ray.exceptions.RayError:  # the controller restarts, or is busy
            return False
        if application is None:
            raise DeployFailed(
                f"fleet '{self._config.name}' was removed while it started",
                "Run this again to start it.",
            )
        is_settled = application.status == "RUNNING"
        snapshot = self._current(_snapshot(self._config.name), is_settled)
        parts = deployed(application)
        self._report_problems(snapshot, parts)
        if application.status == "DEPLOY_FAILED":
            raise _update_failed(self._config.name, parts)
        if not is_settled or snapshot is None or not snapshot.gateways:
            return False  # before Serve has settled, the old fleet may be the complete one
        if self._progress is None:
            self._progress = self._new_progress(snapshot)
        self._progress.report(structs.replace(snapshot, failures=()))  # judged above
        return self._progress.is_complete

    def _report_problems(self, snapshot: Snapshot | None, parts: Sequence[Deployed]) -> None:
        """Print what is new. Raises EngineStartError or GatewayStartError for a start that cannot
        succeed."""
        for sentence in self._failures.judge(snapshot, parts):
            self._stages.say(sentence)
        if snapshot is not None:
            for sentence in self._reach.judge(snapshot):
                self._stages.say(sentence)
        for part in parts:
            wait = waits_for(part.message)
            if wait and self._waits.get(part.name) != wait:
                self._stages.say(f"{part.name} {wait}")
            self._waits[part.name] = wait

    def _current(self, snapshot: Snapshot | None, is_settled: bool) -> Snapshot | None:
        """Leave out failures from before this deployment, except those of gateways that it has
        kept."""
        if snapshot is None:
            return None
        kept = {gateway.id for gateway in snapshot.gateways} if is_settled else set()
        old = self._earlier - kept
        failures = tuple(failure for failure in snapshot.failures if failure.engine not in old)
        return structs.replace(snapshot, failures=failures)

    def _new_progress(self, snapshot: Snapshot) -> Progress:
        """Find the fleet's URL and check that it answers."""
        listening = entrance.read()
        own = ray.get_runtime_context().get_node_id()
        node = listening.node((gateway.node for gateway in snapshot.gateways), own)
        url = listening.url(node)
        if listening.can_ask(node, own):
            entrance.await_answer(url)
        if sentence := listening.differences(self._config.gateway):
            self._stages.say(f"note: {sentence}")
        if listening.is_local:
            self._stages.say(
                f"note: only programs on node {listening.proxies[node]} reach {url}; to let others "
                "in, run `serve shutdown` on the cluster, then this again with gateway.host 0.0.0.0"
            )
        return Progress(
            self._config, url, self._stages, hint="the fleet keeps running when this job ends"
        )


def waits_for(message: str) -> str:
    """Return which resources a deployment waits for by its message in Serve; empty if none."""
    match = _WAITS.search(message)
    if match is None:
        return ""
    return f"waits for nodes: {match[1]} more, each with {match[2]} free (`ray status` has more)"


def _snapshot(fleet: str) -> Snapshot | None:
    """Return what the fleet's registry lists; None if it has none yet, or it is busy."""
    with suppress(*client.AWAY):
        return client.read(fleet)
    return None


def _update_failed(fleet: str, parts: Sequence[Deployed]) -> DeployFailed:
    failed = [part for part in parts if part.status == "DEPLOY_FAILED"]
    reasons = "; ".join(f"{part.name}: {reason_of(part.message)}" for part in failed)
    running = ", ".join(f"{part.running} of {part.name}" for part in parts if part.running)
    return DeployFailed(
        f"new replicas of fleet '{fleet}' do not start: {reasons}",
        "Correct the cause and run this again. Until then these replicas go on: "
        f"{running or 'none'}.",
    )
