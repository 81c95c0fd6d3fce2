"""Lists that the garbage collector passes over live and end like others."""

from __future__ import annotations

import gc
import sys

from qwenfleet.deployments.vllm_adapter.untracked import untrack


def test_collections_do_not_see_the_list_and_it_works_as_before() -> None:
    tokens = list(range(1000, 3000))
    untrack(tokens)
    assert not gc.is_tracked(tokens)
    gc.collect()
    tokens.append(7)
    tokens.extend(range(5000, 9000))
    assert (len(tokens), tokens[2000], tokens[-1]) == (6001, 7, 8999)
    assert tokens.copy() == tokens


def test_untracking_twice_or_an_empty_list_does_nothing() -> None:
    tokens: list[int] = []
    untrack(tokens)
    untrack(tokens)
    assert tokens == []


def test_the_list_and_its_integers_are_freed_with_their_last_user() -> None:
    before = sys.getallocatedblocks()
    tokens = list(range(10_000, 60_000))
    untrack(tokens)
    assert sys.getallocatedblocks() > before + 40_000
    del tokens
    assert sys.getallocatedblocks() < before + 5_000
