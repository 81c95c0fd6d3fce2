"""A gateway connects again while its engine still holds the earlier connection."""

from __future__ import annotations

from typing import Any

from qwenfleet.cluster.config.fleet import WireConfig

COUNT = 100_000
BRISK = WireConfig(lease_s=0.3, heartbeat_s=0.02, connect_timeout_s=10)


async def test_a_stream_returns_to_its_only_engine_after_a_black_hole(
    new_desk: Any, serve_engine: Any, relay: Any, eventually: Any
) -> None:
    engine = await serve_engine(tokens=tuple(range(COUNT)), num_tokens=COUNT)
    network = await relay(engine.record)
    desk = new_desk(wire=BRISK)
    desk.dispatcher.update([network.record])
    await eventually(lambda: desk.dispatcher.num_engines)
    stream = desk.ask("cmpl-1")
    await eventually(lambda: stream.tokens)
    network.swallow()
    await eventually(lambda: stream.flight.link is None)
    before = len(stream.tokens)

    def is_back() -> bool:
        desk.dispatcher.update([engine.record])
        return len(stream.tokens) > before + 5

    await eventually(is_back)
    assert stream.tokens == list(range(len(stream.tokens)))
    assert len(engine.host._sessions) == 2, "the first one's lease has not expired"
    assert engine.host.orphans == 0
