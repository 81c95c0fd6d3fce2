"""Tests the last seconds of a fleet's requests, with a hand-written registry."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.deployments.operations import farewell
from qwenfleet.deployments.operations.farewell import FAREWELL_S, MARGIN_S, end_requests
from qwenfleet.deployments.registry.records import DrainOrder, GatewayRecord, Snapshot


class Registry:
    """A registry whose gateway has the given numbers of requests, one after the other."""

    AWAY = (ValueError,)

    def __init__(self, *requests: int) -> None:
        self.requests = list(requests)
        self.orders: list[tuple[str, DrainOrder]] = []

    def drain_gateways(self, fleet: str, order: DrainOrder) -> None:
        if not self.requests:
            raise ValueError("no such actor")
        self.orders.append((fleet, order))

    def read(self, fleet: str) -> Snapshot:
        requests = self.requests.pop(0) if len(self.requests) > 1 else self.requests[0]
        gateway = GatewayRecord("gw-1", "n1", 7, is_ready=True, requests=requests)
        return Snapshot((), (gateway,), ())


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch, clock: Any) -> Any:
    def end(registry: Registry) -> float:
        """End the requests; returns how long that took."""
        monkeypatch.setattr(farewell, "client", registry)
        monkeypatch.setattr("ray.is_initialized", lambda: True)
        began_at = clock()
        end_requests("demo", sleep=clock.advance, clock=clock)
        return float(clock() - began_at)

    return end


def test_gateways_are_ordered_to_drain_and_waited_for(end: Any) -> None:
    registry = Registry(3, 1, 0)
    assert 0 < end(registry) < FAREWELL_S
    assert registry.orders == [("demo", DrainOrder("the fleet stops", FAREWELL_S))]


def test_fleet_without_requests_ends_at_once(end: Any) -> None:
    assert end(Registry(0)) == 0


def test_requests_that_do_not_end_are_not_waited_for(end: Any) -> None:
    assert FAREWELL_S + MARGIN_S <= end(Registry(2)) < FAREWELL_S + MARGIN_S + 1


def test_fleet_without_a_registry_ends_at_once(end: Any) -> None:
    assert end(Registry()) == 0


def test_process_without_ray_has_nothing_to_end() -> None:
    slept: list[float] = []
    end_requests("demo", sleep=slept.append)
    assert slept == []
