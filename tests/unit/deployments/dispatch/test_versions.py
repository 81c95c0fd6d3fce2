"""Two versions of vLLM side by side, as during an upgrade: each gateway uses its own engines."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.deployments.dispatch.dispatcher import Dispatcher

OLD, NEW = "0.32.0", "0.33.0"
FOREVER = 1_000_000


@pytest.fixture
def desk_of(new_desk: Any, desk_class: Any, wire: Any, metrics: Any) -> Any:
    """Return a function that makes a gateway with a version of vLLM."""

    def make(name: str, version: str) -> Any:
        class Versioned(Dispatcher):
            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                super().__init__(*arguments, **keywords, vllm_version=version)

        return new_desk(name, kind=Versioned)

    return make


async def test_streams_of_each_version_stay_with_their_own_engines(
    desk_of: Any, serve_engine: Any, eventually: Any, metrics: Any, caplog: Any
) -> None:
    old = [await serve_engine(engine=f"old-{i}", **of(OLD)) for i in range(2)]
    new = [await serve_engine(engine=f"new-{i}", **of(NEW)) for i in range(2)]
    records = [engine.record for engine in (*old, *new)]
    gateways = {OLD: desk_of("gw-old", OLD), NEW: desk_of("gw-new", NEW)}
    for desk in gateways.values():
        desk.dispatcher.update(records)
    await eventually(lambda: all(d.dispatcher.num_engines == 2 for d in gateways.values()))
    streams = {v: [d.ask(f"{v}-{i}") for i in range(4)] for v, d in gateways.items()}
    await eventually(lambda: all(s.tokens for group in streams.values() for s in group))
    await old[0].kill()
    await eventually(lambda: all(s.flight.link.engine == "old-1" for s in streams[OLD]))
    for version, engines in ((OLD, old), (NEW, new)):
        asked = {s.request_id for engine in engines for s in engine.core.submits}
        assert asked == {f"{version}-{i}" for i in range(4)}
    counts = [len(s.tokens) for group in streams.values() for s in group]
    all_streams = [s for group in streams.values() for s in group]
    await eventually(
        lambda: all(len(s.tokens) > n for s, n in zip(all_streams, counts, strict=True))
    )
    assert not any(s.is_over for s in all_streams)
    lost = [r.engine for r in caplog.records if r.getMessage() == "engine lost"]
    assert lost == ["old-0"], "an engine of another version does not count as lost"


async def test_an_engine_of_another_version_is_named_once_with_both_versions(
    desk_of: Any, serve_engine: Any, eventually: Any, caplog: Any
) -> None:
    engine = await serve_engine(engine="new-0", **of(NEW))
    desk = desk_of("gw-old", OLD)
    for _ in range(3):
        desk.dispatcher.update([engine.record])
        await eventually(lambda: not desk.dispatcher._roster._links)
        desk.dispatcher._roster._retry_at.clear()
    (line,) = [r for r in caplog.records if "cannot work with this gateway" in r.getMessage()]
    assert (OLD in line.reason, NEW in line.reason) == (True, True)
    assert desk.dispatcher.description is None


async def test_a_gateway_refuses_an_engine_that_did_not_ask_for_its_version(
    desk_of: Any, impostor: Any, eventually: Any, caplog: Any
) -> None:
    """A host of an earlier release does not read the gateway's version."""
    from qwenfleet.deployments.wire.frames import EngineDescription, Welcome

    async def behave(connection: Any) -> None:
        description = EngineDescription(max_model_len=99, vllm_version=NEW)
        connection.send(Welcome("engine-1", "coder", description))
        await connection.receive()

    record = await impostor(behave)
    desk = desk_of("gw-old", OLD)
    desk.dispatcher.update([record])
    await eventually(lambda: "cannot work with this gateway" in caplog.text)
    assert desk.dispatcher.num_engines == 0


def of(version: str) -> dict[str, Any]:
    return {"limits": {"vllm_version": version}, "num_tokens": FOREVER}
