"""The tracing of a process, if it is to have any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenfleet.cluster.config.fleet import FleetConfig

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.tracing import Tracing


def tracing_of(fleet: FleetConfig, *, service: str, instance: str) -> Tracing | None:
    """This process's tracing. OpenTelemetry is imported only when it is configured."""
    if fleet.tracing is None:
        return None
    from qwenfleet.deployments.telemetry.tracing import Tracing

    return Tracing(fleet.tracing, fleet=fleet.name, service=service, instance=instance)
