"""Links leave their leases with a keeper, which renews them while the gateway is busy."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.wire.encoding import decode
from qwenfleet.deployments.wire.frames import Renew
from qwenfleet.deployments.wire.lease_keeper import Renewal
from qwenfleet.deployments.wire.segments import Assembler

FOREVER = 1_000_000


class Recorder:
    """Stands in for a LeaseKeeper."""

    def __init__(self) -> None:
        self.kept: list[Renewal] = []
        self.dropped: list[str] = []

    def keep(self, renewal: Renewal) -> None:
        self.kept.append(renewal)

    def drop(self, session: str) -> None:
        self.dropped.append(session)


async def test_a_link_leaves_its_lease_until_it_ends(
    serve_engine: Any, metrics: Any, wire: WireConfig, eventually: Any
) -> None:
    engine = await serve_engine()
    leases = Recorder()
    dispatcher = Dispatcher(
        "coder", gateway="gw-a", wire=wire, retry_after_s=5, metrics=metrics, leases=leases
    )
    dispatcher.update([engine.record])
    await eventually(lambda: dispatcher.num_engines == 1)
    (kept,) = leases.kept
    session = engine.host._sessions[kept.session]
    (body,) = Assembler().feed(kept.frame)
    assert decode(body) == Renew(kept.session, session.lease_key)
    assert (kept.host, kept.port) == (engine.record.host, engine.record.port)
    assert (kept.lease_s, kept.tls) == (wire.lease_s, None)
    assert leases.dropped == []
    await engine.kill()
    await eventually(lambda: leases.dropped == [kept.session])
    dispatcher.close()


GATEWAY = """
import asyncio, re, sys, time
from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.wire.frames import Submit
from qwenfleet.deployments.wire.lease_keeper import LeaseKeeper

class Events:
    def __getattr__(self, name):
        return lambda *arguments: None

async def main(port, secret):
    record = EngineRecord(
        "engine-1", "coder", "node-1", 1, "ready", host="127.0.0.1", port=port, secret=secret
    )
    keeper = LeaseKeeper()
    running = [asyncio.create_task(keeper.run())]
    while keeper.pid is None:
        await asyncio.sleep(0.01)
    wire = WireConfig(lease_s=2, heartbeat_s=0.2)
    link = EngineLink(
        record, gateway="gw-a", wire=wire, events=Events(), clock=time.monotonic, leases=keeper
    )
    running.append(asyncio.create_task(link.run()))
    while not link.is_open:
        await asyncio.sleep(0.01)
    link.submit(Submit("x", 0, [1], b"", number=1))
    await asyncio.sleep(2)  # the pump has connected
    print("stalls", flush=True)
    until = time.monotonic() + 7
    while time.monotonic() < until:
        re.match("(a+)+b", "a" * 22)
    print("goes on", flush=True)
    await asyncio.sleep(0.3)
    print("open" if link.is_open else "lost", flush=True)

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


async def test_a_gateway_that_stands_still_for_three_leases_loses_nothing(
    serve_engine: Any, eventually: Any, monkeypatch: Any
) -> None:
    """Its machine acknowledges no more: it keeps its streams by its pump alone."""
    wire = WireConfig(lease_s=2, heartbeat_s=0.2)
    engine = await serve_engine(wire=wire, num_tokens=FOREVER)
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GATEWAY, str(engine.record.port), engine.record.secret),
        stdout=subprocess.PIPE,
    )
    try:
        await outlive(gateway, engine, eventually, monkeypatch)
    finally:
        gateway.kill()
        await gateway.wait()


async def outlive(gateway: Any, engine: Any, eventually: Any, monkeypatch: Any) -> None:
    assert (await gateway.stdout.readline()).strip() == b"stalls"
    (session,) = engine.host._sessions.values()
    monkeypatch.setattr(type(session.connection), "acknowledged_bytes", 0)
    assert (await gateway.stdout.readline()).strip() == b"goes on"
    assert engine.core.active == {1}
    assert engine.host.orphans == 0
    assert (await gateway.stdout.readline()).strip() == b"open"
    os.kill(gateway.pid, signal.SIGSTOP)  # a stopped gateway keeps no lease
    await eventually(lambda: not engine.core.active)
