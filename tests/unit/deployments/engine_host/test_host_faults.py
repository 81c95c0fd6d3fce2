"""What nobody foresaw costs one request: the host, its core and the other streams go on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from qwenfleet.deployments.engine_host import delivery
from qwenfleet.deployments.engine_host.core import CoreStep
from qwenfleet.deployments.wire import segments
from qwenfleet.deployments.wire.frames import (
    Abort,
    Output,
    Outputs,
    Refused,
    Rejected,
    Submit,
)

FOREVER = 1_000_000
TOKENS = [10, 11, 12, 13, 14]


@pytest.mark.parametrize("problem", [TypeError("a bug"), KeyError("rank"), RuntimeError("zmq")])
async def test_an_attempt_that_the_core_fails_to_take_ends_alone(
    serve_engine: Any, dial: Any, observed_core: Any, problem: Exception, caplog: Any
) -> None:
    class Faulty(observed_core.Core):  # type: ignore[misc]
        async def add(self, wire_id: str, submit: Submit) -> None:
            if submit.request_id == "odd":
                raise problem
            await super().add(wire_id, submit)

    core = Faulty(observed_core.model(tokens=tuple(range(200)), num_tokens=200))
    engine = await serve_engine(core=core)
    peer = await dial(engine.record)
    running = peer.submit("running")
    tokens = await peer.tokens(running, 3)
    odd = peer.submit("odd")
    rejected = await peer.receive(Rejected)
    assert (rejected.wire_id, rejected.is_final, rejected.is_fault) == (odd, False, True)
    assert type(problem).__name__ in rejected.reason
    assert "a bug" not in rejected.reason, "the text of a fault is for the log only"
    tokens = [t for f in peer.seen if isinstance(f, Outputs) for t in f.outputs[0].token_ids]
    assert tokens + await peer.tokens(running) == list(range(200))
    assert len(engine.host._attempts) == 0
    assert "failed to take an attempt" in caplog.text


async def test_a_suspect_that_the_core_fails_to_take_lets_the_next_one_be_tried(
    serve_engine: Any, dial: Any, observed_core: Any
) -> None:
    class Faulty(observed_core.Core):  # type: ignore[misc]
        async def add(self, wire_id: str, submit: Submit) -> None:
            if submit.request_id == "odd":
                raise AttributeError("a bug")
            await super().add(wire_id, submit)

    engine = await serve_engine(core=Faulty(observed_core.model()))
    peer = await dial(engine.record)
    peer.submit("odd", is_trial=True)
    assert await peer.tokens(peer.submit("next", is_trial=True)) == TOKENS
    assert any(isinstance(frame, Rejected) and frame.is_fault for frame in peer.seen)


async def test_a_frame_that_cannot_be_handled_ends_no_stream(
    serve_engine: Any, dial: Any, observed_core: Any, eventually: Any
) -> None:
    class CannotAbort(observed_core.Core):  # type: ignore[misc]
        async def abort(self, wire_ids: list[str]) -> None:
            raise RuntimeError("the socket is closed")

    engine = await serve_engine(core=CannotAbort(observed_core.model(num_tokens=FOREVER)))
    peer, other = await dial(engine.record, "gw-a"), await dial(engine.record, "gw-b")
    kept, dropped, foreign = peer.submit("kept"), peer.submit("dropped"), other.submit("x")
    await peer.tokens(dropped, 1)
    peer.connection.send(Abort([dropped]))
    assert await peer.tokens(kept, 3)
    other.connection.close()
    await eventually(lambda: len(engine.host._sessions) == 1)
    assert foreign not in engine.host._attempts
    assert await peer.tokens(kept, 3)


async def test_a_submit_that_cannot_be_decoded_is_rejected_alone(
    serve_engine: Any, dial: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    peer = await dial(engine.record)
    kept = peer.submit("kept")
    await peer.tokens(kept, 1)
    body = msgspec.msgpack.encode(
        {"kind": "submit", "request_id": "odd", "number": 77, "prompt_token_ids": ["one"]}
    )
    peer.connection._writer.write(segments.whole(body))
    rejected = await peer.receive(Rejected)
    assert (rejected.wire_id, rejected.is_final) == (77, True)
    assert "prompt_token_ids" in rejected.reason
    assert await peer.tokens(kept, 3)


@pytest.mark.parametrize(
    ("fields", "reason", "is_final"),
    [
        ({"prompt": range(4096)}, "4096 tokens leave no room", False),
        ({"prompt": range(4000), "output_token_ids": [1] * 96}, "limit of 4096", False),
        ({"prompt": ()}, "the prompt is empty", True),
        ({"dp_rank": 1}, "rank 1 is not one of the engine's 1", True),
        ({"dp_rank": -1}, "rank -1 is not one", True),
    ],
)
async def test_what_would_kill_a_core_does_not_reach_it(
    serve_engine: Any, dial: Any, fields: dict[str, Any], reason: str, is_final: bool
) -> None:
    engine = await serve_engine()
    peer = await dial(engine.record)
    for trial in ({}, {"is_trial": True}):
        key = peer.submit("x", **fields, **trial)
        rejected = await peer.receive(Rejected)
        assert (rejected.wire_id, rejected.is_final, rejected.is_fault) == (key, is_final, False)
        assert reason in rejected.reason
    assert await peer.tokens(peer.submit("fits", range(4000), output_token_ids=[1] * 95))
    assert [submit.request_id for submit in engine.core.submits] == ["fits"]


async def test_an_output_too_large_for_a_frame_ends_its_own_request(
    serve_engine: Any, dial: Any, observed_core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Verbose(observed_core.Core):  # type: ignore[misc]
        @property
        def large(self) -> set[str]:
            return {key for key, submit in self.running.items() if submit.request_id == "large"}

        async def next_step(self) -> CoreStep:
            step = await super().next_step()
            outputs = [
                msgspec.structs.replace(o, extra=b"x" * 3000) if o.wire_id in self.large else o
                for o in step.outputs
            ]
            return step._replace(outputs=outputs)

    core = Verbose(observed_core.model(num_tokens=FOREVER))
    engine = await serve_engine(core=core)
    peer = await dial(engine.record)
    kept = peer.submit("kept")
    await peer.tokens(kept, 1)
    monkeypatch.setattr(Outputs, "limit_bytes", 2000)
    large = peer.submit("large")
    rejected = await peer.receive(Rejected)
    assert rejected.wire_id == large
    assert "limit of 2000" in rejected.reason
    assert await peer.tokens(kept, 3)
    assert engine.core.active == {kept}


def test_outputs_go_out_in_one_frame_if_it_can_carry_them() -> None:
    class Sink:
        is_holding = False

        def __init__(self) -> None:
            self.sent: list[Any] = []

        def send(self, frame: Any) -> None:
            self.sent.append(frame)

    sink: Any = Sink()
    frame = Outputs([Output(1, [1]), Output(2, [2])])
    assert delivery.send(sink, frame) == []
    assert sink.sent == [frame]


@pytest.mark.parametrize(
    ("own", "gateways", "is_welcome"),
    [("0.32.0", "0.33.0", False), ("0.32.0+cpu", "0.32.0", True), ("0.32.0", "", True)],
)
async def test_only_gateways_with_the_same_vllm_are_served(
    serve_engine: Any, dial: Any, own: str, gateways: str, is_welcome: bool
) -> None:
    engine = await serve_engine(limits={"vllm_version": own})
    if is_welcome:
        peer = await dial(engine.record, vllm_version=gateways)
        assert await peer.tokens(peer.submit("x")) == TOKENS
    else:
        peer = await dial(engine.record, greets=False)
        refused = await peer.greet(vllm_version=gateways)
        assert isinstance(refused, Refused)
        assert "vLLM 0.33.0, the engine 0.32.0" in refused.reason
        await peer.until_closed()
