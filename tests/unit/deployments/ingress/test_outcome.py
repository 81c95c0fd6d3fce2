"""Tests that each error and status has one outcome."""

from __future__ import annotations

import pytest

from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.labels import Outcome
from qwenfleet.deployments.ingress.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    EngineRefused,
    GatewayFailed,
    LongerThanContext,
    MalformedBody,
    MissingKey,
    ModelLoading,
    ModelRequired,
    NoEngine,
    RequestKillsEngines,
    UnknownModel,
    UnknownRoute,
    WrongKey,
)
from qwenfleet.deployments.ingress.outcome import outcome_of, outcome_of_status


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MissingKey(), Outcome.NO_KEY),
        (WrongKey(), Outcome.WRONG_KEY),
        (MalformedBody("x"), Outcome.REFUSED),
        (ModelRequired(("a",)), Outcome.REFUSED),
        (UnknownModel("b", ("a",)), Outcome.REFUSED),
        (LongerThanContext("a", 300, 256), Outcome.REFUSED),
        (UnknownRoute("GET", "/"), Outcome.REFUSED),
        (BodyTooLarge(1, 2), Outcome.REFUSED),
        (BodyTimeout(1.0), Outcome.REFUSED),
        (ModelLoading("a", 5), Outcome.UNAVAILABLE),
        (NoEngine("a", 5), Outcome.UNAVAILABLE),
        (RequestKillsEngines("a"), Outcome.ENGINE_LOST),
        (DeadlineExceeded(1.0), Outcome.TIMED_OUT),
        (EngineRefused("a", "e1", "x"), Outcome.FAILED),
        (GatewayFailed(), Outcome.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FleetError) else value,
)
def test_each_error_has_its_outcome(error: FleetError, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def test_stream_that_finds_no_other_engine_is_lost() -> None:
    assert outcome_of(NoEngine("a", 5), has_output=True) is Outcome.ENGINE_LOST
    assert outcome_of(LongerThanContext("a", 3, 2), has_output=True) is Outcome.ENGINE_LOST


def test_deadline_chosen_by_the_client_has_its_own_outcome() -> None:
    late = outcome_of(DeadlineExceeded(1.0), is_clients_deadline=True)
    assert late is Outcome.CLIENT_DEADLINE
    assert outcome_of(BodyTimeout(1.0), is_clients_deadline=True) is Outcome.REFUSED


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (None, Outcome.FAILED),
        (200, Outcome.COMPLETED),
        (302, Outcome.COMPLETED),
        (400, Outcome.REFUSED),
        (499, Outcome.REFUSED),
        (500, Outcome.FAILED),
    ],
)
def test_each_status_of_the_app_has_its_outcome(status: int | None, outcome: Outcome) -> None:
    assert outcome_of_status(status) is outcome
