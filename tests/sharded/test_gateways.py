"""A fleet on two nodes serves although its file does not say where gateways listen, and tells a
planned drain from a failure."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def spread(run_program, tmp_path_factory):
    return run_program("tests.sharded.gateways", tmp_path_factory.mktemp("spread"))


def test_gateways_on_both_nodes_serve_from_the_engine_of_one(spread):
    assert len(set(spread["gateways"])) == 2
    assert spread["engine"]["node"] in spread["gateways"]
    assert set(spread["statuses"]) == {200}


def test_an_engine_listens_where_other_nodes_reach_it(spread):
    assert not spread["engine"]["host"].startswith("127.")


def test_the_engine_that_starts_after_a_drain_is_known_to_replace_the_drained_one(spread):
    assert spread["replaced"] == [spread["drained"]]
