"""What nobody foresaw costs one request and few attempts; the other streams go on."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.deployments.dispatch.dispatcher import MAX_FAULTS
from qwenfleet.deployments.ingress.errors import (
    EngineRefused,
    GatewayFailed,
    RequestTooLarge,
)
from qwenfleet.deployments.wire.frames import Submit
from qwenfleet.deployments.wire.tokens import TokenIds

FOREVER = 1_000_000


@pytest.fixture
def faulty(observed_core: Any) -> type[Any]:
    class Faulty(observed_core.Core):  # type: ignore[misc]
        """Fails to take requests called "odd"."""

        tries = 0

        async def add(self, wire_id: str, submit: Submit) -> None:
            if submit.request_id.startswith("odd"):
                self.tries += 1
                raise TypeError("a bug")
            await super().add(wire_id, submit)

    return Faulty


@pytest.mark.parametrize("engines", [1, 2, 5])
async def test_a_request_that_no_engine_can_take_ends_after_two_of_them(
    desk: Any, serve_engine: Any, eventually: Any, observed_core: Any, faulty: Any, engines: int
) -> None:
    served = [
        await serve_engine(engine=f"e{i}", core=faulty(observed_core.model(num_tokens=FOREVER)))
        for i in range(engines)
    ]
    await desk.meet(*served)
    others = [desk.ask(f"sound-{i}") for i in range(2 * engines)]
    await eventually(lambda: all(stream.tokens for stream in others))
    odd = desk.ask("odd")
    await eventually(lambda: odd.is_over)
    assert isinstance(odd.error, EngineRefused)
    assert "TypeError" in str(odd.error)
    assert "a bug" not in str(odd.error)
    assert sum(engine.core.tries for engine in served) == MAX_FAULTS == 2
    assert max(engine.core.tries for engine in served) <= max(1, 2 // engines)
    seen = [len(stream.tokens) for stream in others]
    await eventually(lambda: all(len(s.tokens) > n for s, n in zip(others, seen, strict=True)))
    assert all(stream.flight.attempt == 0 for stream in others), "none of them moved"


async def test_a_request_that_one_engine_fails_to_take_runs_on_another(
    desk: Any, serve_engine: Any, eventually: Any, observed_core: Any, faulty: Any
) -> None:
    await desk.meet(await serve_engine(core=faulty(observed_core.model())))
    await desk.meet(await serve_engine(engine="sound"))
    streams = [desk.ask(f"odd-{i}") for i in range(4)]
    await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [[10, 11, 12, 13, 14]] * 4


async def test_a_failure_while_taking_an_output_ends_that_request_only(
    desk: Any, serve_engine: Any, eventually: Any
) -> None:
    await desk.meet(await serve_engine(num_tokens=FOREVER))
    odd, kept = desk.ask("odd"), desk.ask("kept")
    await eventually(lambda: odd.tokens and kept.tokens)
    odd.flight.token_ids = None
    await eventually(lambda: odd.is_over)
    assert isinstance(odd.error, GatewayFailed)
    count = len(kept.tokens)
    await eventually(lambda: len(kept.tokens) > count + 3)
    assert kept.flight.attempt == 0


async def test_a_request_that_cannot_be_sent_ends_and_leaves_nothing(
    desk: Any, serve_engine: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.meet(await serve_engine(num_tokens=FOREVER))
    kept = desk.ask("kept")
    await eventually(lambda: kept.tokens)
    monkeypatch.setattr(Submit, "limit_bytes", 1000)
    large = desk.ask("large", range(2000))
    assert isinstance(large.error, RequestTooLarge)
    assert large.error.status == 413
    assert set(desk.dispatcher._flights) == {"kept"}
    count = len(kept.tokens)
    await eventually(lambda: len(kept.tokens) > count + 3)


async def test_a_failure_while_moving_a_request_ends_that_request_only(
    desk: Any, serve_engine: Any, eventually: Any
) -> None:
    doomed = await serve_engine(num_tokens=FOREVER)
    await desk.meet(doomed)
    odd, kept = desk.ask("odd"), desk.ask("kept")
    await eventually(lambda: odd.tokens and kept.tokens)
    await desk.meet(await serve_engine(engine="engine-2", num_tokens=FOREVER))
    odd.flight.payload = object()  # cannot be encoded
    await doomed.kill()
    await eventually(lambda: odd.is_over)
    assert isinstance(odd.error, GatewayFailed)
    count = len(kept.tokens)
    await eventually(lambda: len(kept.tokens) > count)
    assert kept.flight.attempt == 1
    assert not desk.dispatcher._waiting


async def test_streams_move_even_if_their_loss_cannot_be_counted(
    desk: Any, serve_engine: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    doomed = await serve_engine(num_tokens=FOREVER)
    await desk.meet(doomed)
    streams = [desk.ask(f"cmpl-{i}") for i in range(3)]
    await eventually(lambda: all(stream.tokens for stream in streams))
    await desk.meet(await serve_engine(engine="engine-2", num_tokens=FOREVER))
    monkeypatch.setattr(desk.dispatcher._metrics, "engine_lost", fail)
    await doomed.kill()
    await eventually(lambda: all(s.flight.link and s.flight.attempt == 1 for s in streams))
    counts = [len(stream.tokens) for stream in streams]
    await eventually(lambda: all(len(s.tokens) > n for s, n in zip(streams, counts, strict=True)))


async def test_a_broken_owner_of_a_link_ends_no_stream(
    serve_engine: Any, connect: Any, events: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a dispatcher raises, the link goes on, and is lost once."""

    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    engine = await serve_engine(num_tokens=FOREVER)
    monkeypatch.setattr(events, "on_news", fail)
    link, task = connect(engine.record)
    await eventually(lambda: link.is_open)
    link.submit(Submit("x", 0, TokenIds([1]), b""))
    await eventually(lambda: len(events.outputs) > 3)
    monkeypatch.setattr(events, "on_outputs", fail)
    await eventually(lambda: engine.host._step > 10)
    assert link.is_open
    assert not task.done()
    await engine.kill()
    await eventually(lambda: events.losses)
    assert len(events.losses) == 1
