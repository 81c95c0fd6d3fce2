"""Routing takes the least predicted seconds in any fleet."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.dispatch.routing import (
    KV_EASE,
    KV_WAIT_STEPS,
    STREAM_STEPS,
    STREAM_WORK_TOKENS,
    Speed,
    Target,
    choose,
    middle_speed,
    predicted_s,
)

SPEEDS = {
    "prefill_tokens_per_s": st.just(0.0) | st.floats(1, 1e6),
    "decode_step_s": st.just(0.0) | st.floats(1e-4, 10),
}

UNKNOWN = dict.fromkeys(SPEEDS, st.just(0.0))


def fleets(**speeds: Any) -> st.SearchStrategy[list[Target]]:
    target = st.builds(
        Target,
        engine=st.sampled_from(["engine-1", "engine-2", "engine-3"]),
        dp_rank=st.integers(0, 7),
        streams=st.integers(0, 300),
        queued_prefill_tokens=st.integers(0, 1_000_000),
        kv_usage=st.floats(0, 1),
        **speeds,
    )
    return st.lists(target, min_size=1, max_size=12)


lengths = st.integers(0, 1_000_000)
randoms = st.randoms(use_true_random=False)


def only(target: Target | None) -> Target:
    assert target is not None
    return target


@given(fleets(**SPEEDS), lengths, randoms)
def test_the_choice_has_the_least_predicted_seconds(
    fleet: list[Target], length: int, rng: random.Random
) -> None:
    chosen, middle = only(choose(fleet, length, rng)), middle_speed(fleet)
    assert chosen in fleet
    least = predicted_s(chosen, length, middle)
    assert all(least <= predicted_s(other, length, middle) for other in fleet)


@given(fleets(**SPEEDS), lengths, randoms)
def test_a_target_that_is_worse_in_every_respect_is_never_chosen(
    fleet: list[Target], length: int, rng: random.Random
) -> None:
    middle = middle_speed(fleet)
    known = [
        target._replace(
            prefill_tokens_per_s=target.prefill_tokens_per_s or middle.prefill_tokens_per_s,
            decode_step_s=target.decode_step_s or middle.decode_step_s,
        )
        for target in fleet
    ]
    worst = Target(
        "worst",
        0,
        streams=max(t.streams for t in known) + 1,
        queued_prefill_tokens=max(t.queued_prefill_tokens for t in known) + 1,
        prefill_tokens_per_s=min(t.prefill_tokens_per_s for t in known) * 0.9,
        decode_step_s=max(t.decode_step_s for t in known) * 1.1,
        kv_usage=1.0,
    )
    assert only(choose([worst, *known], length, rng)).engine != "worst"


@given(
    fleets(**UNKNOWN) | fleets(**UNKNOWN | {"prefill_tokens_per_s": st.just(16_384.0)}),
    lengths,
    randoms,
)
def test_engines_of_equal_speed_are_compared_by_tokens(
    fleet: list[Target], length: int, rng: random.Random
) -> None:
    def tokens(target: Target) -> int:
        return target.queued_prefill_tokens + STREAM_WORK_TOKENS * target.streams

    fleet = [target._replace(kv_usage=KV_EASE) for target in fleet]
    assert tokens(only(choose(fleet, length, rng))) == min(map(tokens, fleet))


@given(fleets(**SPEEDS), lengths, st.integers(1, 1000))
def test_more_of_anything_takes_longer(fleet: list[Target], length: int, more: int) -> None:
    target, middle = fleet[0], middle_speed(fleet)
    before = predicted_s(target, length, middle)
    queued = target._replace(queued_prefill_tokens=target.queued_prefill_tokens + more)
    streams = target._replace(streams=target.streams + more)
    rate = target.prefill_tokens_per_s or middle.prefill_tokens_per_s
    step_s = target.decode_step_s or middle.decode_step_s
    assert predicted_s(queued, length, middle) - before == pytest.approx(more / rate, abs=1e-6)
    assert predicted_s(target, length + more, middle) == predicted_s(queued, length, middle)
    assert predicted_s(streams, length, middle) - before == pytest.approx(
        more * step_s * STREAM_STEPS, abs=1e-6
    )


def test_without_a_target_there_is_no_choice() -> None:
    assert choose([], 10, random.Random(0)) is None


@given(st.integers(2, 6), st.integers(0, 100), st.sampled_from([0.0, 16384.0]))
def test_ties_spread_over_all_of_the_least_loaded(count: int, seed: int, rate: float) -> None:
    idle = [Target(f"engine-{i}", 0, 1, 50, prefill_tokens_per_s=rate) for i in range(count)]
    busy = Target("busy", 0, 2, 50, prefill_tokens_per_s=rate)
    rng = random.Random(seed)
    chosen = Counter(choose([busy, *idle], 7, rng) for _ in range(60 * count))
    assert set(chosen) == set(idle)
    assert min(chosen.values()) > 15  # 60 expected of each


def test_a_long_prompt_ahead_outweighs_a_few_streams() -> None:
    prefilling = Target("prefilling", 0, streams=1, queued_prefill_tokens=100_000)
    decoding = Target("decoding", 0, streams=20, queued_prefill_tokens=0)
    assert choose([prefilling, decoding], 1000, random.Random(0)) is decoding


def test_the_longer_queue_of_a_faster_engine_wins_if_its_wait_is_shorter() -> None:
    fast = Target("fast", 0, 1, queued_prefill_tokens=30_000, prefill_tokens_per_s=30_000)
    slow = Target("slow", 0, 1, queued_prefill_tokens=12_000, prefill_tokens_per_s=10_000)
    assert choose([fast, slow], 0, random.Random(0)) is fast
    # The prompt's own length counts too: an idle engine needs that long.
    idle = slow._replace(queued_prefill_tokens=0)
    assert choose([fast, idle], 10_000, random.Random(0)) is idle
    assert choose([fast, idle], 20_000, random.Random(0)) is fast


def test_among_decoding_engines_the_faster_step_takes_more_streams() -> None:
    fast = Target("fast", 0, streams=5, queued_prefill_tokens=0, decode_step_s=0.01)
    slow = Target("slow", 0, streams=2, queued_prefill_tokens=0, decode_step_s=0.03)
    assert choose([fast, slow], 0, random.Random(0)) is fast
    assert choose([fast._replace(streams=7), slow], 0, random.Random(0)) is slow


def test_an_engine_of_unknown_speed_counts_as_having_the_median() -> None:
    known = [Target(f"e{rate}", 0, 0, 0, 0, 0, rate, 1 / rate) for rate in (100.0, 200.0, 900.0)]
    assert middle_speed(known) == Speed(200.0, 1 / 200)
    unknown = Target("unknown", 0, 0, 0)
    assert predicted_s(unknown, 1000, middle_speed([*known, unknown])) == 5.0
    assert choose([known[0], unknown], 1000, random.Random(0)) in (known[0], unknown)
    assert choose([*known[:2], unknown], 1000, random.Random(0)) is known[1]


@pytest.mark.parametrize(
    ("target", "stream_tokens"),
    [
        (Target("e", 0, 0, 0), STREAM_WORK_TOKENS),
        (Target("e", 0, 0, 0, prefill_tokens_per_s=300), STREAM_WORK_TOKENS),
        (Target("e", 0, 0, 0, decode_step_s=0.05), STREAM_WORK_TOKENS),
        (Target("e", 0, 0, 0, prefill_tokens_per_s=300, decode_step_s=0.05), 15),
    ],
)
def test_the_weight_of_a_stream_is_assumed_until_both_speeds_are_known(
    target: Target, stream_tokens: float
) -> None:
    middle = middle_speed([target])
    one_stream_s = predicted_s(target._replace(streams=1), 0, middle)
    assert one_stream_s * middle.prefill_tokens_per_s == pytest.approx(stream_tokens)


def test_invalid_speeds_count_as_unknown() -> None:
    for wrong in (-5.0, float("nan")):
        target = Target("e", 0, 3, 100, prefill_tokens_per_s=wrong, decode_step_s=wrong)
        plain = Target("e", 0, 3, 100)
        assert predicted_s(target, 10, middle_speed([target])) == predicted_s(
            plain, 10, middle_speed([plain])
        )


def test_a_full_kv_cache_costs_a_wait_and_one_with_room_costs_nothing() -> None:
    middle = Speed(1000.0, 0.02)

    def penalty_s(kv_usage: float) -> float:
        return predicted_s(Target("e", 0, 0, 0, kv_usage=kv_usage), 0, middle)

    assert [penalty_s(usage) for usage in (0.0, 0.5, KV_EASE)] == [0, 0, 0]
    assert 0 < penalty_s(0.95) < penalty_s(0.97) < penalty_s(1.0)
    assert penalty_s(1.0) == pytest.approx(KV_WAIT_STEPS * 0.02)


def test_a_full_engine_is_preferred_only_to_a_longer_wait() -> None:
    full = Target("full", 0, 0, 0, 0, 0, 1000.0, 0.02, kv_usage=1.0)
    queued = Target("queued", 0, 0, 2000, 0, 0, 1000.0, 0.02)
    assert choose([full, queued], 10, random.Random(0)) is queued
    longer = queued._replace(queued_prefill_tokens=3000)
    assert choose([full, longer], 10, random.Random(0)) is full


def simulate(rates: list[float], prompt: int, arrivals: int, every_s: float) -> Counter[str]:
    """Send prompts at a fixed pace to engines of different prefill rates; returns the tokens that
    each engine got."""
    fleet = [Target(f"e{i}", 0, 0, 0, prefill_tokens_per_s=rate) for i, rate in enumerate(rates)]
    rng, got = random.Random(1), Counter[str]()
    for _ in range(arrivals):
        chosen = only(choose(fleet, prompt, rng))
        got[chosen.engine] += prompt
        for index, (target, rate) in enumerate(zip(fleet, rates, strict=True)):
            queued = target.queued_prefill_tokens + (prompt if target is chosen else 0)
            left = max(0, queued - round(rate * every_s))
            fleet[index] = target._replace(queued_prefill_tokens=left)
    return got


@pytest.mark.parametrize("load", [1.0, 1.2])
def test_a_rank_three_times_as_fast_gets_three_times_the_work(load: float) -> None:
    got = simulate([9000.0, 3000.0], 1000, 2000, every_s=1000 / 12_000 / load)
    assert got["e0"] / got["e1"] == pytest.approx(3, rel=0.05)


def test_with_little_to_do_the_fast_rank_does_it_alone() -> None:
    got = simulate([9000.0, 3000.0], 1000, 100, every_s=1.0)
    assert got == {"e0": 100_000}


def test_ranks_of_equal_speed_share_equally() -> None:
    got = simulate([4000.0] * 3, 1000, 3000, every_s=1000 / 12_000)
    assert all(tokens == pytest.approx(1_000_000, rel=0.05) for tokens in got.values())


def test_ranks_of_one_engine_are_targets_of_their_own() -> None:
    ranks = [Target("e", rank, 0, 0, prefill_tokens_per_s=1000.0 * (rank + 1)) for rank in range(3)]
    assert choose(ranks, 1000, random.Random(0)) is ranks[2]
