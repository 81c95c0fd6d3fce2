"""Load balancers find the nodes with a gateway by their health, on nodes with own addresses."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def entrances(run_program, tmp_path_factory):
    return run_program("tests.sharded.entrances", tmp_path_factory.mktemp("entrances"))


def test_only_the_node_with_a_gateway_is_healthy(entrances):
    assert entrances["gateway"]["probes"] == [200, 200]
    assert entrances["engine"]["probes"] == [503, 503]
    assert entrances["head"]["probes"] == [503, 503]


def test_every_node_passes_requests_on(entrances):
    assert {entrances[node]["request"] for node in ("gateway", "engine", "head")} == {200}


def test_a_new_gateways_node_is_healthy_once_its_own_gateway_serves(entrances):
    new = entrances["new gateway"]
    assert new["looks before"] > 10, "its proxy was there before its gateway"
    assert new["gateways then"] == 2
    assert set(new["statuses"]) == {200}
