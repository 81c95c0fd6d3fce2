"""The registry outlives the engine that started it, and knows why the last one did not start."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def heads(run_program, tmp_path_factory):
    return run_program("tests.sharded.heads", tmp_path_factory.mktemp("heads"))


def test_the_registry_that_an_engine_starts_runs_on_the_head(heads):
    assert heads["at first"]["is on the head"]
    assert heads["at first"]["state"] == "ALIVE"


def test_another_engine_of_two_nodes_joins_after_the_first_is_lost(heads):
    assert heads["nodes"] == 2


def test_the_same_registry_saw_both_engines(heads):
    assert heads["at last"] == heads["at first"]


def test_an_engine_of_two_nodes_that_does_not_start_says_what_vllm_found(heads):
    assert "less than requested memory for kv (100000.0 GiB)" in heads["failure"]
