"""Recipient: what a dispatcher expects of the owner of its requests."""

from __future__ import annotations

from typing import Protocol

from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.dispatch.flight import Flight
from qwenfleet.deployments.wire.frames import Output


class Recipient(Protocol):
    """The owner of a dispatcher's requests. No method may raise."""

    def deliver(
        self, outputs: list[tuple[Flight, Output, bool]], shift_s: float, now: float
    ) -> None:
        """Take outputs, each with its flight and whether it is the request's first. Adding
        `shift_s` to a time of the engine's clock gives the gateway's; `now` is the gateway's."""
        ...

    def fail(self, flight: Flight, error: FleetError) -> None:
        """End the request with this error."""
        ...

    def limit(self, max_model_len: int) -> None:
        """Take no longer requests than every connected engine can run."""
        ...
