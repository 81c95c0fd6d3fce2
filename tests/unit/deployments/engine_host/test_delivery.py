"""A gateway that does not read is sent tokens, and nothing of any size."""

from __future__ import annotations

from typing import Any, cast

import pytest

from qwenfleet.deployments.engine_host import delivery
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import Output, Outputs

PLAIN = Output(wire_id=1, token_ids=[7])
LARGE = Output(wire_id=2, token_ids=[7], extra=b"log probabilities")


class Unread:
    """A connection whose peer has left this much."""

    is_holding = True

    def __init__(self, backlog_bytes: int) -> None:
        self.backlog_bytes = backlog_bytes
        self.sent: list[int] = []

    def holds(self, wire_id: int) -> bool:
        return False

    def send(self, frame: Outputs) -> None:
        self.sent += [output.wire_id for output in frame.outputs]


@pytest.mark.parametrize(
    ("over", "sent", "rejected"),
    [(0, [1, 2], []), (1, [1], [2])],
    ids=["at the limit", "above it"],
)
def test_outputs_with_log_probabilities_are_rejected_above_the_limit_and_tokens_never(
    over: int, sent: list[int], rejected: list[int]
) -> None:
    connection = Unread(delivery.MAX_UNREAD_BYTES + over)
    frame = Outputs([PLAIN, LARGE], clock_s=1.0)
    refusals = delivery.send(cast(Connection, cast(Any, connection)), frame)
    assert connection.sent == sent
    assert [refusal.wire_id for refusal in refusals] == rejected
    assert all(str(delivery.MAX_UNREAD_BYTES + over) in r.reason for r in refusals)
