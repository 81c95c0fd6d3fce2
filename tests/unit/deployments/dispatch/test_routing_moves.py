"""Room for moving streams: no engine's queue grows longer than another's, in seconds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.dispatch.routing import MOVING_STEPS, Speed, Target, has_room, with_room

MIDDLE = Speed(1000.0, 0.02)


def test_a_full_engine_has_no_room() -> None:
    target = Target("e", 0, streams=7, queued_prefill_tokens=0, max_streams=8)
    assert has_room(target, 10, MIDDLE)
    assert not has_room(target._replace(streams=8), 10, MIDDLE)


def test_an_engine_without_limits_has_room() -> None:
    assert has_room(Target("e", 0, streams=10_000, queued_prefill_tokens=10**9), 10**6, MIDDLE)


def test_prefill_for_two_steps_may_queue_and_no_more() -> None:
    target = Target("e", 0, streams=1, queued_prefill_tokens=1000, max_streams=8, step_tokens=1000)
    for known in (target, target._replace(prefill_tokens_per_s=1000.0)):
        assert has_room(known, 1000, MIDDLE)
        assert not has_room(known, 1001, MIDDLE)


def test_a_faster_engine_takes_more_and_a_slower_one_less_in_the_same_seconds() -> None:
    target = Target("e", 0, streams=1, queued_prefill_tokens=500, max_streams=8, step_tokens=1000)
    for rate, room in ((2000.0, 3500), (500.0, 500)):
        known = target._replace(prefill_tokens_per_s=rate)
        assert has_room(known, room, MIDDLE)
        assert not has_room(known, room + 1, MIDDLE)


def test_a_stream_longer_than_that_moves_alone() -> None:
    idle = Target("e", 0, streams=3, queued_prefill_tokens=0, max_streams=8, step_tokens=1000)
    for rate in (0.0, 10.0, 10_000.0):
        known = idle._replace(prefill_tokens_per_s=rate)
        assert has_room(known, 1_000_000, MIDDLE)
        assert not has_room(known._replace(queued_prefill_tokens=1), 1_000_000, MIDDLE)


@given(
    st.lists(st.integers(1, 5000), max_size=40),
    st.integers(1, 4000),
    st.integers(1, 20),
    st.lists(st.floats(10, 1e5) | st.just(0.0), min_size=1, max_size=4),
)
def test_streams_that_move_in_turn_never_overfill_an_engine(
    lengths: list[int], step_tokens: int, max_streams: int, rates: list[float]
) -> None:
    fleet = [Target(f"e{i}", 0, 0, 0, max_streams, step_tokens, r) for i, r in enumerate(rates)]
    middle = sorted(rate for rate in rates if rate > 0)
    fastest = middle[-1] / middle[0] if middle else 1.0
    moved: dict[str, list[int]] = {target.engine: [] for target in fleet}
    for length in lengths:
        for target in with_room(fleet, length)[:1]:
            moved[target.engine].append(length)
            fleet[fleet.index(target)] = target._replace(
                streams=target.streams + 1,
                queued_prefill_tokens=target.queued_prefill_tokens + length,
            )
    for taken in moved.values():
        assert len(taken) <= max_streams
        assert len(taken) <= 1 or sum(taken) <= MOVING_STEPS * step_tokens * fastest * 1.001
    assert any(moved.values()) == bool(lengths)
