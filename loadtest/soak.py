"""Soak: streams at a steady rate for minutes or hours, while a random part of the fleet is killed
each minute, once the part before it is back. Shows what was lost, and whether memory grows."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qwenfleet.cluster.errors import BenchmarkError
from qwenfleet.cluster.local import fleets
from qwenfleet.loadtest import open_loop, parts, process_tree, servers
from qwenfleet.loadtest.open_loop import Ask, Stream
from qwenfleet.loadtest.overhead import SEED, Say, workspace
from qwenfleet.loadtest.parts import Part
from qwenfleet.loadtest.servers import Server

SCRIPTED_TOKENS: Final = 20
SCRIPTED_STEP_S: Final = 0.1
"""A stream lasts for 2 s, so that 100 run at any time, at a load that leaves two cores room to
start a vLLM process meanwhile."""
TINY_TOKENS: Final = 24
TINY_SHARE: Final = 0.01
"""Share of requests that a real engine answers: it makes 40 to 80 tokens/s on two cores."""
GATEWAYS: Final = 2
ENGINES: Final = 2
"""Engines of each model."""
CUT_S: Final = 2.0
"""Time after a kill in which a new stream may still go into the killed gateway or HAProxy."""
STATUS_TIMEOUT_S: Final = 60.0
STATUS_S: Final = 15.0
"""Time that asking for the status takes on busy cores."""
TINY_PROMPTS: Final = ("def reverse(text):", "class Stack:", "import os", "for i in range(")
PROBE_S: Final = 0.2
ASKS: Final = (
    Ask("scripted", "x" * 40, SCRIPTED_TOKENS, 1 - TINY_SHARE),
    *(Ask("tiny", prompt, TINY_TOKENS, TINY_SHARE / len(TINY_PROMPTS)) for prompt in TINY_PROMPTS),
)


@dataclass(frozen=True)
class Kill:
    """One way to end a part."""

    name: str
    part: Part
    number: signal.Signals = signal.SIGKILL
    may_lose: bool = False
    """Whether the part holds its clients' connections, so that their streams end with it."""


KILLS: Final = (
    Kill("engine host, SIGKILL", Part.ENGINE),
    Kill("engine core, SIGKILL", Part.CORE),
    Kill("Serve controller, SIGKILL", Part.CONTROLLER),
    Kill("registry, SIGKILL", Part.REGISTRY),
    Kill("gateway, SIGTERM", Part.GATEWAY, signal.SIGTERM),
    Kill("gateway, SIGKILL", Part.GATEWAY, may_lose=True),
    Kill("HAProxy, SIGKILL", Part.HAPROXY, may_lose=True),
)


@dataclass
class Struck:
    """A kill that was carried out, and what it did."""

    kill: Kill
    at: float
    unready_s: float = 0.0
    """Seconds in which `/health/ready` did not answer 200, until the next kill."""
    streams: list[Stream] = field(default_factory=list)
    """Those that ran at that moment or began until the next kill."""


@dataclass
class Soak:
    """The results of one run."""

    references: dict[Ask, str]
    struck: list[Struck]
    memory: list[tuple[float, dict[Part, int]]] = field(default_factory=list)
    """Seconds since the start, and resident bytes of each part."""

    def note(self, stream: Stream) -> None:
        """Count a stream to the last kill before its end."""
        before = [one for one in self.struck if one.at <= stream.ended_at]
        before[-1].streams.append(stream)

    def is_changed(self, stream: Stream) -> bool:
        return not stream.fault and stream.text != self.references[stream.ask]


def measure(*, seconds: float, per_s: float, kill_every_s: float, say: Say) -> Soak:
    """Run the load and the kills. Raises BenchmarkError if the fleet does not start."""
    process_tree.adopt_orphans()
    rng = random.Random(SEED)
    with (
        workspace() as directory,
        servers.configured_fleet("soak", directory, _config()) as server,
    ):
        return asyncio.run(_soak(server, directory, seconds, per_s, kill_every_s, rng, say))


def render(soak: Soak) -> str:
    """Render what the kills did and what memory did, as Markdown tables."""
    rows = [
        "| killed | times | streams | lost | changed | longest gap, s | not ready, s |",
        "|---|---|---|---|---|---|---|",
    ]
    names = dict.fromkeys(one.kill.name for one in soak.struck)
    for name in names:
        alike = [one for one in soak.struck if one.kill.name == name]
        streams = [stream for one in alike for stream in one.streams]
        whole = [stream for stream in streams if not stream.fault]
        cells = (
            str(len(alike)),
            str(len(streams)),
            str(len(streams) - len(whole)),
            str(sum(map(soak.is_changed, streams))),
            f"{max((stream.gap_s for stream in whole), default=0.0):.1f}",
            f"{max(one.unready_s for one in alike):.1f}",
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *_memory_rows(soak)])


def unexpected(soak: Soak) -> list[str]:
    """Return a sentence for each stream that was changed, or lost to a part that must not lose
    any."""
    found = []
    for one in soak.struck:
        for stream in one.streams:
            was_held = one.kill.may_lose and stream.began_at < one.at + CUT_S
            if soak.is_changed(stream) or (stream.fault and not was_held):
                how = stream.fault or "another text than without a kill"
                found.append(f"after '{one.kill.name}', a stream of {stream.ask.model}: {how}")
    return found


def _memory_rows(soak: Soak) -> list[str]:
    """Return a table of the first, middle and last sample of each part."""
    if not soak.memory:
        return []
    samples = [soak.memory[0], soak.memory[len(soak.memory) // 2], soak.memory[-1]]
    minutes = " | ".join(f"{at_s / 60:.0f} min" for at_s, _ in samples)
    rows = [f"| resident memory, MiB | {minutes} |", "|---|---|---|---|"]
    for part in Part:
        figures = " | ".join(f"{sizes.get(part, 0) / 2**20:.0f}" for _, sizes in samples)
        rows.append(f"| {part.name.lower()} | {figures} |")
    return rows


def _config() -> dict[str, Any]:
    tokens = list(range(97, 120))
    script = {"num_tokens": SCRIPTED_TOKENS, "step_s": SCRIPTED_STEP_S, "tokens": tokens}
    return {
        "models": [
            {
                "id": "scripted",
                "source": servers.MODEL,
                "engine": "scripted",
                "max_model_len": servers.MAX_MODEL_LEN,
                "replicas": {"min": ENGINES},
                "script": script,
            },
            {
                "id": "tiny",
                "source": servers.MODEL,
                "max_model_len": servers.MAX_MODEL_LEN,
                "replicas": {"min": ENGINES},
                "kv_cache_gib": 0.25,
                "engine_args": {"dtype": "float32"},
            },
        ],
        "gateway": {"replicas": GATEWAYS},
    }


def _token_path(directory: Path) -> Path:
    (token,) = (directory / "state" / fleets.state_directory().name).glob("*.token")
    return token


async def _soak(
    server: Server,
    directory: Path,
    seconds: float,
    per_s: float,
    kill_every_s: float,
    rng: random.Random,
    say: Say,
) -> Soak:
    if not await _full_service(directory):
        raise BenchmarkError("soak: not every engine became ready", f"See {directory}/soak.log.")
    token_path = _token_path(directory)
    soak = Soak(await _references(server), [Struck(Kill("nothing", Part.GCS), time.monotonic())])
    say(f"soak: {per_s:g} streams/s for {seconds:.0f} s, a kill every {kill_every_s:.0f} s")
    others = [
        asyncio.create_task(_kill(soak, directory, kill_every_s, rng, say)),
        asyncio.create_task(_probe(soak, server)),
        asyncio.create_task(_weigh(soak, token_path)),
    ]
    try:
        await open_loop.run(
            ASKS,
            url=server.url,
            per_s=per_s,
            until=time.monotonic() + seconds,
            rng=rng,
            ended=soak.note,
        )
    finally:
        for task in others:
            task.cancel()
        for task in others:
            with suppress(asyncio.CancelledError):
                await task
    return soak


async def _full_service(directory: Path) -> bool:
    """Wait until all gateways and engines are ready. Returns False if some are not for too long."""
    give_up_at = time.monotonic() + servers.START_TIMEOUT_S
    while not is_full(await asyncio.to_thread(_status, directory)):
        if time.monotonic() > give_up_at:
            return False
        await asyncio.sleep(1.0)
    return True


def is_full(status: Mapping[str, Any]) -> bool:
    """Whether this answer of `qwenfleet status --json` shows every gateway and engine ready."""
    ready = sum(engine["state"] == "ready" for engine in status["engines"])
    serving = sum(bool(gateway["ready"]) for gateway in status["gateways"])
    return ready == ENGINES * len(_config()["models"]) and serving == GATEWAYS


def _status(directory: Path) -> dict[str, Any]:
    """Return what `qwenfleet status` knows; nothing if it did not answer."""
    command = [sys.executable, "-m", "qwenfleet.cli", "status", "--json"]
    environment = os.environ | {"XDG_STATE_HOME": str(directory / "state")}
    with suppress(subprocess.TimeoutExpired):
        answer = subprocess.run(
            command, env=environment, capture_output=True, timeout=STATUS_TIMEOUT_S, check=False
        )
        if answer.stdout:
            return dict(json.loads(answer.stdout))
    return {"engines": [], "gateways": []}


async def _references(server: Server) -> dict[Ask, str]:
    return {stream.ask: stream.text for stream in await _each(server)}


async def _each(server: Server) -> list[Stream]:
    async with open_loop.session() as http:
        return [await open_loop.listen(http, server.url, ask) for ask in ASKS]


async def _kill(soak: Soak, directory: Path, every_s: float, rng: random.Random, say: Say) -> None:
    """Kill a random part, `every_s` seconds after the last one or when the fleet is whole again,
    whichever is later."""
    token_path = _token_path(directory)
    while True:
        struck_at = time.monotonic()
        await asyncio.sleep(every_s)
        is_whole = await _full_service(directory)
        waited_s = time.monotonic() - struck_at
        if not is_whole:
            say(f"the fleet is not whole {waited_s:.0f} s after '{soak.struck[-1].kill.name}'")
            continue
        if waited_s > every_s + STATUS_S:
            say(f"the fleet was whole again only after {waited_s:.0f} s")
        kill = rng.choice(KILLS)
        members = (await asyncio.to_thread(parts.of_fleet, token_path))[kill.part]
        if not members:
            say(f"no process of '{kill.name}' to kill")
            continue
        process = rng.choice(members)
        soak.struck.append(Struck(kill, time.monotonic()))
        parts.strike(process, kill.number)
        say(f"{_account(soak.struck[-2])}; now '{kill.name}'")


def _account(last: Struck) -> str:
    """Return a sentence about the streams since a kill, with their most common faults."""
    faults = Counter(stream.fault for stream in last.streams if stream.fault)
    named = "".join(f", {times} x {fault}" for fault, times in faults.most_common(3))
    lost = faults.total()
    return f"since '{last.kill.name}': {len(last.streams)} streams, {lost} lost{named}"


async def _probe(soak: Soak, server: Server) -> None:
    """Add up the time without readiness since each kill."""
    while True:
        await asyncio.sleep(PROBE_S)
        began_at, current = time.monotonic(), soak.struck[-1]
        if not await asyncio.to_thread(servers.answers, f"{server.url}/health/ready"):
            current.unready_s += time.monotonic() - began_at + PROBE_S


async def _weigh(soak: Soak, token_path: Path, every_s: float = 60.0) -> None:
    started_at = time.monotonic()
    while True:
        sizes = await asyncio.to_thread(parts.resident_bytes, token_path)
        soak.memory.append((time.monotonic() - started_at, sizes))
        await asyncio.sleep(every_s)
