"""Tensor parallel 2 over two Ray nodes: it says what one process says, and falls as one."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def spread(run_program, tmp_path_factory):
    return run_program("tests.sharded.spread", tmp_path_factory.mktemp("spread"))


def test_its_bundles_are_on_two_nodes(spread):
    assert spread["placement"] == [{"state": "CREATED", "nodes": 2}]


def test_both_pools_say_the_same(spread):
    assert spread["ran on"] == ["one-node", "two-nodes"]
    assert len(set(spread["nothing"]["texts"])) == 1
    assert set(spread["nothing"]["ends"]) == {"data: [DONE]"}


def test_streams_outlive_the_loss_of_the_remote_rank(spread, gaps):
    result = spread["remote rank killed"]
    assert result["gone"] == 1
    gaps.setdefault("SIGKILL of the rank on the second node", []).append(result["gap_s"])
    assert set(result["texts"]) == set(spread["nothing"]["texts"])
    assert set(result["ends"]) == {"data: [DONE]"}


def test_the_lost_engine_leaves_no_process_and_no_placement(spread):
    assert spread["left over"] == []
    states = [group["state"] for group in spread["placement after"]]
    assert sorted(states) == ["CREATED", "REMOVED"]
