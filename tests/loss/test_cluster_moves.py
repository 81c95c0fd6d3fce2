"""Streams continue when Serve and Ray remove engines: scale-down, rolling update, lost node."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration

WHOLE = "".join(chr(97 + index % 23) for index in range(399))
"""The script's tokens except the last one, which vLLM treats as a stop token."""


@pytest.fixture(scope="module")
def moves(run_program, tmp_path_factory):
    return run_program("tests.loss.moves", tmp_path_factory.mktemp("two-nodes"))


def test_the_fleet_was_on_two_nodes(moves):
    assert moves["nodes"]["count"] == 2


@pytest.mark.parametrize("move", ["nothing", "scale-down", "rolling update", "node removed"])
def test_streams_outlive_removed_engines(moves, gaps, move):
    result = moves[move]

    assert set(result["texts"]) == {WHOLE}
    assert set(result["ends"]) == {"data: [DONE]"}
    if move != "nothing":
        assert result["ended engines"] >= 1, "no engine ended while they ran"
        gaps.setdefault(f"{move} (scripted engines)", []).append(result["gap_s"])
