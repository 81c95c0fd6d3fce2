"""Small frames overtake large ones, and frames about one attempt keep their order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.deployments.wire.encoding import decode, encode
from qwenfleet.deployments.wire.frames import (
    Abort,
    AnyFrame,
    Frame,
    Lease,
    Output,
    Outputs,
    Submit,
    UnreadableSubmit,
)
from qwenfleet.deployments.wire.output_queue import OutputQueue
from qwenfleet.deployments.wire.segments import WHOLE_BYTES, Assembler
from qwenfleet.deployments.wire.tokens import TokenIds

LIMIT = 2**24


def put(queue: OutputQueue, *frames: Frame) -> None:
    for frame in frames:
        queue.put(frame, encode(frame))


def arrivals(queue: OutputQueue) -> list[AnyFrame | UnreadableSubmit | None]:
    assembler = Assembler(LIMIT)
    arrived = []
    while queue:
        arrived += [decode(body) for body in assembler.feed(queue.next())]
    return arrived


def submit(number: int, size: int) -> Submit:
    return Submit("x", 0, TokenIds(), b"x" * size, number=number)


LARGE = 3 * WHOLE_BYTES


def test_a_small_frame_overtakes_a_large_one_that_has_begun() -> None:
    queue = OutputQueue()
    put(queue, submit(1, LARGE))
    first = queue.next()
    put(queue, Lease(), submit(2, 5), Abort([3]))
    assembler = Assembler(LIMIT)
    assert assembler.feed(first) == []
    arrived = []
    while queue:
        arrived += [decode(body) for body in assembler.feed(queue.next())]
    assert arrived == [Lease(), submit(2, 5), Abort([3]), submit(1, LARGE)]


def test_an_abort_does_not_overtake_its_attempt() -> None:
    queue = OutputQueue()
    put(queue, submit(1, LARGE), Abort([1]), Abort([2]))
    assert queue.holds(1)
    assert arrivals(queue) == [Abort([2]), submit(1, LARGE), Abort([1])]
    assert not queue.holds(1)
    assert queue.bytes == 0


def test_what_waits_for_a_large_frame_makes_others_of_its_attempts_wait() -> None:
    queue = OutputQueue()
    both = Outputs([Output(1, [7]), Output(2, [8])])
    put(queue, submit(1, LARGE), both, Outputs([Output(2, [9])]), Outputs([Output(3, [1])]))
    assert arrivals(queue) == [
        Outputs([Output(3, [1])]),
        submit(1, LARGE),
        both,
        Outputs([Output(2, [9])]),
    ]


def test_a_large_frame_arrives_however_many_small_ones_follow() -> None:
    queue, assembler = OutputQueue(), Assembler(LIMIT)
    put(queue, submit(1, LARGE))
    arrived = []
    for _ in range(100):
        put(queue, Lease(), Lease())
        arrived += [decode(body) for body in assembler.feed(queue.next())]
    assert submit(1, LARGE) in arrived


def test_an_empty_queue_has_nothing_to_give() -> None:
    queue = OutputQueue()
    assert not queue
    with pytest.raises(IndexError):
        queue.next()


sends = st.lists(st.tuples(st.integers(1, 3), st.sampled_from([10, 100, LARGE])), max_size=12)


@given(sends, st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_every_frame_arrives_once_and_in_the_order_of_its_attempt(
    sent: list[tuple[int, int]], pulls: list[int]
) -> None:
    queue, assembler = OutputQueue(), Assembler(LIMIT)
    arrived: list[int] = []
    numbers = [number for number, _ in sent]

    def pull() -> None:
        for body in assembler.feed(queue.next()):
            frame = decode(body)
            assert isinstance(frame, Submit)
            arrived.append(frame.attempt)

    for index, (number, size) in enumerate(sent):
        put(queue, Submit("x", index, TokenIds(), b"x" * size, number=number))
        for _ in range(pulls[index % len(pulls)]):
            if queue:
                pull()
    while queue:
        pull()
    assert sorted(arrived) == list(range(len(sent)))
    for number in set(numbers):
        mine = [index for index in arrived if numbers[index] == number]
        assert mine == sorted(mine)
    assert queue.bytes == 0
