"""A stream outlives its engine after any loss: each token once, in order, and an audit line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.engine_host.core import CoreDead, CoreStep
from qwenfleet.deployments.ingress.errors import NoEngine
from qwenfleet.deployments.wire.frames import Output
from qwenfleet.deployments.wire.liveness import Condition

SCRIPT = {"tokens": tuple(range(60)), "num_tokens": 60}
PLAYED = list(range(60))
BRISK = WireConfig(lease_s=0.5, heartbeat_s=0.02, connect_timeout_s=5)
PATIENT = WireConfig(lease_s=3600, heartbeat_s=0.02, connect_timeout_s=5)
FROZEN_S = 31.0
"""Longer than a core may take for a step before its bound is learned."""


class Scene:
    """A gateway, a doomed engine that runs one step at a time, and a safe one."""

    def __init__(self, desk: Any, doomed: Any, gate: Any, network: Any, safe: Any) -> None:
        self.desk = desk
        self.doomed = doomed
        self.gate = gate
        self.network = network
        self.safe = safe
        self.safe_gate: Any = None
        self.background: list[asyncio.Task[None]] = []

    async def streams(self, count: int, tokens: int, eventually: Any) -> list[Any]:
        """Start `count` streams on the doomed engine and run each to `tokens` tokens; then close
        its gate and connect the safe engine."""
        await self.desk.meet(self.network)
        streams = [self.desk.ask(f"cmpl-{index}") for index in range(count)]
        await eventually(lambda: len(self.doomed.core.active) == count)
        while min(len(stream.tokens) for stream in streams) < tokens:
            self.gate.step()
            await asyncio.sleep(0.001)
        await self.desk.meet(self.network, self.safe)
        return streams


@pytest.fixture
async def scene(
    new_desk: Any, serve_engine: Any, observed_core: Any, gate: Any, relay: Any, request: Any,
    clock: Any, new_gate: Any,
) -> Scene:  # fmt: skip
    """A scene; `request.param` may set the wire, and whether the doomed engine has the test's
    clock."""
    wire, clocks = getattr(request, "param", None) or (PATIENT, {"clock": clock})
    core = observed_core(sleep=gate, **SCRIPT)
    doomed = await serve_engine(engine="doomed", core=core, wire=wire, **clocks)
    safe_gate = new_gate()
    safe_gate.open()
    safe = await serve_engine(
        engine="safe", core=observed_core(sleep=safe_gate, **SCRIPT), wire=wire
    )
    network = await relay(doomed.record)
    made = Scene(new_desk(wire=wire), doomed, gate, network, safe)
    made.safe_gate = safe_gate
    return made


async def kill(scene: Scene, clock: Any) -> None:
    await scene.doomed.kill()


async def end_core(scene: Scene, clock: Any) -> None:
    scene.gate.blow()


async def drain(scene: Scene, clock: Any) -> None:
    scene.background.append(asyncio.create_task(scene.doomed.host.drain("scaled down", 20)))


async def cut(scene: Scene, clock: Any) -> None:
    """Drain without time to move a stream."""
    await scene.doomed.host.drain("spot notice", 0)


async def freeze(scene: Scene, clock: Any) -> None:
    clock.advance(FROZEN_S)


async def silence_host(scene: Scene, clock: Any) -> None:
    scene.doomed.running.cancel()


async def swallow(scene: Scene, clock: Any) -> None:
    scene.network.swallow()


async def abort_in_the_engine(scene: Scene, clock: Any) -> None:
    """Let the core abort its requests, as it does during a shutdown."""
    host, core = scene.doomed.host, scene.doomed.core
    keys = sorted(core.running)
    await core.abort(keys)
    await host._deliver(CoreStep([Output(key, [], finish_reason=2) for key in keys], []))
    scene.gate.blow()


Ruin = Callable[[Scene, Any], Awaitable[None]]
LOSSES = [
    pytest.param(kill, Loss.RESET, id="killed engine"),
    pytest.param(end_core, Loss.CORE_DIED, id="dead core"),
    pytest.param(drain, Loss.DRAINED, id="drain"),
    pytest.param(cut, Loss.DRAINED, id="drain without time"),
    pytest.param(freeze, Loss.FROZEN, id="frozen core"),
    pytest.param(abort_in_the_engine, Loss.REFUSED, id="aborted by the engine"),
]
SILENCES = [
    pytest.param(silence_host, Loss.SILENT, (BRISK, {}), id="silent host"),
    pytest.param(swallow, Loss.SILENT, (BRISK, {}), id="black hole"),
]


@pytest.mark.parametrize(
    ("ruin", "loss", "scene"),
    [pytest.param(*p.values, None, id=p.id) for p in LOSSES] + SILENCES,
    indirect=["scene"],
)
@pytest.mark.parametrize("tokens", [0, 7])
async def test_every_stream_resumes_on_another_engine_with_each_token_once_and_in_order(
    scene: Scene, ruin: Ruin, loss: Loss, tokens: int, clock: Any, metrics: Any, eventually: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    streams = await scene.streams(5, tokens, eventually)
    with caplog.at_level(logging.INFO, "qwenfleet.deployments.dispatch.audit"):
        await ruin(scene, clock)
        await eventually(lambda: all(stream.is_over for stream in streams))
    assert [stream.tokens for stream in streams] == [PLAYED] * 5
    assert [stream.finish_reason for stream in streams] == [0] * 5
    lines: list[Any] = [r for r in caplog.records if r.getMessage() == "request resumed"]
    assert sorted(line.request for line in lines) == [f"cmpl-{index}" for index in range(5)]
    for line in lines:
        assert (line.why, line.from_engine, line.to_engine) == (loss.value, "doomed", "safe")
        assert line.levelno == logging.INFO
        assert line.tokens >= tokens
        assert line.attempt >= 1
        assert line.gap_s >= 0
        assert line.reason
    assert [why for why, _ in metrics.resumes] == [loss.value] * 5
    assert all(gap_s >= 0 for _, gap_s in metrics.resumes)
    assert scene.desk.dispatcher.num_moving == 0
    assert {s.request_id for s in scene.safe.core.submits} == {s.flight.request_id for s in streams}
    await eventually(lambda: not scene.safe.core.active)
    await asyncio.gather(*scene.background)


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[Any]]:
    caplog.set_level(logging.INFO, "qwenfleet.deployments.dispatch.audit")
    return lambda text: [record for record in caplog.records if record.getMessage() == text]


async def test_a_lost_engine_is_logged_and_counted_once_with_its_requests(
    scene: Scene, eventually: Any, metrics: Any, clock: Any, messages: Any
) -> None:
    streams = await scene.streams(3, 1, eventually)
    await end_core(scene, clock)
    await eventually(lambda: all(stream.is_over for stream in streams))
    (line,) = messages("engine lost")
    assert line.levelno == logging.WARNING
    assert (line.engine, line.loss, line.requests) == ("doomed", "core_died", 3)
    assert line.reason == "the fuse blew"
    assert metrics.losses == [("coder", "core_died")]


async def test_an_engine_that_ends_after_its_drain_is_not_counted_as_lost(
    scene: Scene, eventually: Any, metrics: Any, clock: Any, messages: Any
) -> None:
    streams = await scene.streams(2, 1, eventually)
    await drain(scene, clock)
    await eventually(lambda: all(stream.is_over for stream in streams))
    await asyncio.gather(*scene.background)
    await eventually(lambda: scene.desk.link(scene.doomed) is None)
    assert messages("engine lost") == []
    assert metrics.losses == []


async def test_a_gap_is_measured_from_token_to_token_over_all_engines_in_between(
    scene: Scene, new_desk: Any, clock: Any, eventually: Any, metrics: Any, messages: Any,
    serve_engine: Any, observed_core: Any, new_gate: Any,
) -> None:  # fmt: skip
    scene.desk = new_desk("gw-timed", wire=PATIENT, clock=clock)
    (stream,) = await scene.streams(1, 3, eventually)
    scene.safe_gate.close()
    clock.advance(2)
    await kill(scene, clock)
    await eventually(lambda: scene.safe.core.active)
    third = await serve_engine(engine="third", core=observed_core(sleep=new_gate(), **SCRIPT))
    await scene.desk.meet(third)
    clock.advance(1)
    await scene.safe.kill()
    await eventually(lambda: third.core.active)
    clock.advance(0.5)
    third.core._sleep.open()
    await eventually(lambda: stream.is_over)
    assert stream.tokens == PLAYED
    assert metrics.resumes == [("reset", 3.5)]
    (line,) = messages("request resumed")
    assert (line.from_engine, line.to_engine, line.attempt) == ("doomed", "third", 2)
    assert (line.tokens, line.gap_s) == (3, 3.5)


async def test_a_resumed_request_is_its_original_plus_its_tokens(
    scene: Scene, clock: Any, eventually: Any
) -> None:
    (stream,) = await scene.streams(1, 4, eventually)
    await kill(scene, clock)
    await eventually(lambda: stream.is_over)
    (first,), (later,) = scene.doomed.core.submits, scene.safe.core.submits
    assert later.output_token_ids == PLAYED[: len(later.output_token_ids)]
    assert len(later.output_token_ids) >= 4
    assert (later.request_id, later.attempt) == (first.request_id, 1)
    for name in ("prompt_token_ids", "request", "max_tokens", "priority", "cache_salt"):
        assert getattr(later, name) == getattr(first, name)


async def test_a_frozen_engine_that_recovers_is_used_again(
    scene: Scene, clock: Any, eventually: Any
) -> None:
    (stream,) = await scene.streams(1, 2, eventually)
    await freeze(scene, clock)
    await eventually(lambda: stream.is_over)
    link: Any = scene.desk.link(scene.doomed)
    assert link.condition.value == "frozen"
    assert link.reason.startswith("no step for 31")
    scene.gate.open()
    await eventually(lambda: link.condition is Condition.STEADY)
    assert link.reason == ""
    scene.safe_gate.close()
    await scene.safe.kill()
    after = scene.desk.ask("after")
    await eventually(lambda: after.is_over)
    assert after.tokens == PLAYED


async def test_the_last_engine_keeps_its_streams_while_it_is_frozen(
    scene: Scene, clock: Any, eventually: Any, metrics: Any
) -> None:
    await scene.safe.kill()
    scene.desk.meet = only(scene.desk.meet, scene.network)
    (stream,) = await scene.streams(1, 2, eventually)
    await freeze(scene, clock)
    link = scene.desk.link(scene.doomed)
    await eventually(lambda: link.condition is Condition.FROZEN)
    assert not scene.desk.dispatcher.num_engines, "it makes no progress"
    late = scene.desk.ask("late")
    await eventually(lambda: scene.desk.dispatcher.num_moving == 2)
    assert stream.flight.link is late.flight.link is link
    scene.gate.open()
    await eventually(lambda: stream.is_over and late.is_over)
    assert stream.tokens == late.tokens == PLAYED
    assert stream.flight.attempt == late.flight.attempt == 0
    assert scene.desk.dispatcher.num_moving == 0
    assert metrics.resumes == []


def only(meet: Any, *engines: Any) -> Any:
    async def meet_those(*_: Any) -> None:
        await meet(*engines)

    return meet_those


async def test_streams_of_a_frozen_last_engine_move_when_another_one_connects(
    scene: Scene, clock: Any, eventually: Any
) -> None:
    meet, scene.desk.meet = scene.desk.meet, only(scene.desk.meet, scene.network)
    (stream,) = await scene.streams(1, 2, eventually)
    await freeze(scene, clock)
    link = scene.desk.link(scene.doomed)
    await eventually(lambda: link.condition is Condition.FROZEN)
    await meet(scene.safe)
    await eventually(lambda: stream.is_over)
    assert stream.tokens == PLAYED
    await eventually(lambda: not scene.doomed.core.active)


async def test_a_slow_engine_keeps_its_streams_and_gets_no_new_work(
    scene: Scene, clock: Any, eventually: Any
) -> None:
    (stream,) = await scene.streams(1, 2, eventually)
    clock.advance(16)
    link = scene.desk.link(scene.doomed)
    await eventually(lambda: link.condition is Condition.SLOW)
    others = [scene.desk.ask(f"other-{index}") for index in range(6)]
    await eventually(lambda: all(other.is_over for other in others))
    assert {submit.request_id for submit in scene.doomed.core.submits} == {"cmpl-0"}
    scene.gate.open()
    await eventually(lambda: stream.is_over)
    assert (stream.tokens, stream.flight.attempt) == (PLAYED, 0)


@pytest.fixture
def serve_refusing(serve_engine: Any, observed_core: Any) -> Any:
    """Start engines whose core refuses `times` attempts while their host lives."""

    async def serve(times: int) -> Any:
        class Refusing(observed_core.Core):  # type: ignore[misc]
            refusals = 0

            async def add(self, wire_id: str, submit: Any) -> None:
                if self.refusals < times:
                    self.refusals += 1
                    raise CoreDead("the core's process has died")
                await super().add(wire_id, submit)

        return await serve_engine(engine="bad", core=Refusing(observed_core.model(**SCRIPT)))

    return serve


async def test_a_refused_request_goes_to_another_engine_even_if_that_is_busier(
    serve_engine: Any, serve_refusing: Any, new_desk: Any, eventually: Any
) -> None:
    bad, good = await serve_refusing(1000), await serve_engine(engine="good", num_tokens=10**6)
    desk = new_desk()
    await desk.meet(good)
    for index in range(5):
        desk.ask(f"before-{index}")
    await desk.meet(bad, good)
    streams = [desk.ask(f"cmpl-{index}") for index in range(4)]
    await eventually(lambda: all(stream.tokens for stream in streams))
    assert max(stream.flight.attempt for stream in streams) == 1
    assert bad.core.refusals <= 4
    assert not any(stream.flight.suspicion.core_deaths for stream in streams)


async def test_a_refused_request_is_retried_on_the_only_engine(
    serve_refusing: Any, new_desk: Any, eventually: Any
) -> None:
    desk = new_desk()
    await desk.meet(await serve_refusing(3))
    stream = desk.ask("cmpl-1")
    await eventually(lambda: stream.is_over)
    assert (stream.tokens, stream.flight.attempt) == (PLAYED, 3)


async def test_requests_that_wait_in_vain_end_and_those_of_a_draining_engine_do_not(
    scene: Scene, clock: Any, eventually: Any
) -> None:
    await scene.safe.kill()
    scene.desk.meet = only(scene.desk.meet, scene.network)
    (stream,) = await scene.streams(1, 2, eventually)
    await drain(scene, clock)
    link = scene.desk.link(scene.doomed)
    await eventually(lambda: link.is_draining)
    late = scene.desk.ask("late")
    scene.desk.dispatcher.end_waiting()
    assert isinstance(late.error, NoEngine)
    assert not stream.is_over, "its engine still works on it"
    await freeze(scene, clock)
    await eventually(lambda: link.condition is Condition.FROZEN)
    scene.desk.dispatcher.end_waiting()
    assert isinstance(stream.error, NoEngine)
    assert scene.desk.dispatcher.num_moving == 0
