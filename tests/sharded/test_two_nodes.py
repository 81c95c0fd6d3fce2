"""Tensor and data parallel ranks on two nodes generate what one process does, and end together."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def spread(run_program, tmp_path_factory):
    return run_program("tests.sharded.spread", tmp_path_factory.mktemp("spread"))


def test_bundles_of_an_engine_are_on_two_nodes(spread):
    assert spread["placement"] == [{"state": "CREATED", "nodes": 2}] * 2


def test_all_pools_generate_the_same(spread):
    assert spread["ran on"] == ["dp-two-nodes", "one-node", "two-nodes"]
    assert len(set(spread["nothing"]["texts"])) == 1
    assert set(spread["nothing"]["ends"]) == {"data: [DONE]"}


@pytest.mark.parametrize("title", ["Worker_TP1", "EngineCore_DP1"])
def test_streams_outlive_the_loss_of_a_rank_on_the_second_node(spread, gaps, title):
    result = spread[title]
    assert result["ended engines"] == 1
    gaps.setdefault(f"SIGKILL of {title} on the second node", []).append(result["gap_s"])
    assert set(result["texts"]) == set(spread["nothing"]["texts"])
    assert set(result["ends"]) == {"data: [DONE]"}
    assert result["left over"] == []


def test_lost_engines_leave_no_placement_group(spread):
    states = [group["state"] for group in spread["placement after"]]
    assert states.count("CREATED") == 2  # the running engines
    assert states.count("REMOVED") >= 2  # the lost engines, and retried starts
    assert set(states) == {"CREATED", "REMOVED"}
