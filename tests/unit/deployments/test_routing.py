"""Routing takes the least predicted work, whatever the fleet looks like."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.routing import (
    MOVING_STEPS,
    STREAM_WORK_TOKENS,
    Target,
    choose,
    has_room,
    predicted_work_tokens,
)

targets = st.builds(
    Target,
    engine=st.sampled_from(["engine-1", "engine-2", "engine-3"]),
    dp_rank=st.integers(0, 7),
    streams=st.integers(0, 300),
    queued_prefill_tokens=st.integers(0, 1_000_000),
)


@given(st.lists(targets, min_size=1), st.randoms(use_true_random=False))
def test_the_choice_has_the_least_predicted_work(fleet: list[Target], rng: random.Random) -> None:
    chosen = choose(fleet, rng)
    assert chosen in fleet
    assert all(predicted_work_tokens(chosen) <= predicted_work_tokens(other) for other in fleet)


@given(targets, st.integers(1, 1000))
def test_more_of_anything_is_more_work(target: Target, more: int) -> None:
    tokens = Target(
        target.engine, target.dp_rank, target.streams, target.queued_prefill_tokens + more
    )
    streams = Target(
        target.engine, target.dp_rank, target.streams + more, target.queued_prefill_tokens
    )
    assert predicted_work_tokens(tokens) - predicted_work_tokens(target) == more
    assert (
        predicted_work_tokens(streams) - predicted_work_tokens(target) == more * STREAM_WORK_TOKENS
    )


def test_without_a_target_there_is_no_choice() -> None:
    assert choose([], random.Random(0)) is None


@given(st.integers(2, 6), st.integers(0, 100))
def test_ties_spread_over_all_of_the_least_loaded(count: int, seed: int) -> None:
    idle = [Target(f"engine-{index}", 0, 1, 50) for index in range(count)]
    busy = Target("busy", 0, 2, 50)
    rng = random.Random(seed)
    chosen = Counter(choose([busy, *idle], rng) for _ in range(60 * count))
    assert set(chosen) == set(idle)
    assert min(chosen.values()) > 15  # 60 expected of each


def test_a_long_prompt_ahead_outweighs_a_few_streams() -> None:
    prefilling = Target("prefilling", 0, streams=1, queued_prefill_tokens=100_000)
    decoding = Target("decoding", 0, streams=20, queued_prefill_tokens=0)
    assert choose([prefilling, decoding], random.Random(0)) is decoding


def test_a_full_engine_has_no_room() -> None:
    assert has_room(Target("e", 0, streams=7, queued_prefill_tokens=0, max_streams=8), 10)
    assert not has_room(Target("e", 0, streams=8, queued_prefill_tokens=0, max_streams=8), 10)


def test_an_engine_that_names_no_limits_has_room() -> None:
    assert has_room(Target("e", 0, streams=10_000, queued_prefill_tokens=10**9), 10**6)


def test_prefill_for_two_steps_may_queue_and_no_more() -> None:
    target = Target("e", 0, streams=1, queued_prefill_tokens=1000, max_streams=8, step_tokens=1000)
    assert has_room(target, 1000)
    assert not has_room(target, 1001)


def test_a_stream_longer_than_that_moves_alone() -> None:
    idle = Target("e", 0, streams=3, queued_prefill_tokens=0, max_streams=8, step_tokens=1000)
    assert has_room(idle, 1_000_000)
    assert not has_room(replace(idle, queued_prefill_tokens=1), 1_000_000)


@given(st.lists(st.integers(1, 5000), max_size=40), st.integers(1, 4000), st.integers(1, 20))
def test_streams_that_move_in_turn_never_overfill_an_engine(
    lengths: list[int], step_tokens: int, max_streams: int
) -> None:
    target = Target("e", 0, 0, 0, max_streams, step_tokens)
    moved: list[int] = []
    for length in lengths:
        if has_room(target, length):
            moved.append(length)
            target = replace(
                target,
                streams=target.streams + 1,
                queued_prefill_tokens=target.queued_prefill_tokens + length,
            )
    assert len(moved) <= max_streams
    assert len(moved) <= 1 or sum(moved) <= MOVING_STEPS * step_tokens
    assert bool(moved) == bool(lengths)
