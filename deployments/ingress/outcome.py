"""Outcome of a request, from the error or status that ended it. Pure.

The exchange itself adds two that no error names: a client that disconnected, and an app that
failed.
"""

from __future__ import annotations

from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.labels import Outcome
from qwenfleet.deployments.ingress.errors import (
    BodyTimeout,
    DeadlineExceeded,
    GatewayDraining,
    MissingKey,
    ModelBroken,
    ModelLoading,
    NoEngine,
    RequestKillsEngines,
    WrongKey,
)


def outcome_of(
    error: FleetError, *, has_output: bool = False, is_clients_deadline: bool = False
) -> Outcome:
    """Return the outcome of a request that this error ended. `has_output`: it had tokens;
    `is_clients_deadline`: the client chose its deadline."""
    match error:
        case MissingKey():
            return Outcome.NO_KEY
        case WrongKey():
            return Outcome.WRONG_KEY
        case ModelLoading() | ModelBroken():
            return Outcome.UNAVAILABLE
        case GatewayDraining():
            return Outcome.FAILED if has_output else Outcome.UNAVAILABLE
        case NoEngine():
            return Outcome.ENGINE_LOST if has_output else Outcome.UNAVAILABLE
        case RequestKillsEngines():
            return Outcome.ENGINE_LOST
        case BodyTimeout():
            return Outcome.REFUSED
        case DeadlineExceeded():
            return Outcome.CLIENT_DEADLINE if is_clients_deadline else Outcome.TIMED_OUT
    return outcome_of_status(error.status)


def outcome_of_status(status: int | None) -> Outcome:
    """Return the outcome of a request answered with this HTTP status; None: not answered."""
    if status is None or status >= 500:
        return Outcome.FAILED
    return Outcome.REFUSED if status >= 400 else Outcome.COMPLETED
