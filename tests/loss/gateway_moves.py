"""Serve replaces the gateways of a fleet with scripted engines, and its only engine freezes.

A separate program, because Ray reads its environment when it is imported. It writes `results.json`
to the given directory, also after each part of the run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig, WireConfig
from qwenfleet.cluster.config.model import ModelConfig, Replicas, SamplingDefaults, ScriptConfig
from tests.two_nodes import PATIENCE_S, Session, Stream

STREAM_S = float(os.environ.get("LOSS_STREAM_S", "20"))
"""Length of the streams that have to end whole; 600 is a long answer of a 480B model."""
DRAIN_S = 1.5 * STREAM_S
NO_ENGINE_S = 6.0
START_S = 5.0
BODY = {"model": "scripted", "prompt": "x" * 40}
LISTED_S = 1.0
"""Time until every gateway has the listing with a new engine."""
WHOLE = 1000
"""Tokens of a stream that ends within the drain."""
STEP_S = STREAM_S / WHOLE
ENDLESS = 6000


def fleet(port: int, engines: int = 2, temperature: float = 0.7) -> FleetConfig:
    model = ModelConfig(
        id="scripted",
        source="tiny-qwen3-moe",
        engine="scripted",
        max_model_len=8192,
        script=ScriptConfig(
            num_tokens=ENDLESS, step_s=STEP_S, start_s=START_S, tokens=tuple(range(97, 120))
        ),
        sampling=SamplingDefaults(temperature=temperature),
        replicas=Replicas(min=engines),
    )
    gateway = GatewayConfig(port=port, replicas=2, drain_s=DRAIN_S, no_engine_s=NO_ENGINE_S)
    return FleetConfig(
        name="gateways", models=(model,), gateway=gateway, wire=WireConfig(heartbeat_s=0.2)
    )


class Load(threading.Thread):
    """A probe each 0.2 s, and streams one after another, until `end`."""

    def __init__(self, url: str, streams: int) -> None:
        super().__init__()
        self.url = url
        self.is_over = threading.Event()
        self.answers: Counter[str] = Counter()
        self.refusals: list[float] = []
        """When requests were sent that got `model_loading`."""
        self.ends: Counter[str] = Counter()
        self.readers = [threading.Thread(target=self.read) for _ in range(streams)]
        for thread in (self, *self.readers):
            thread.start()

    def run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.is_over.wait(0.2):
                sent_at = time.monotonic()
                try:
                    body = BODY | {"max_tokens": 1}
                    answer = client.post(f"{self.url}/v1/completions", json=body)
                    text = "" if answer.status_code == 200 else answer.text[:200]
                    self.answers[f"{answer.status_code} {text}".strip()] += 1
                    if "model_loading" in text:
                        self.refusals.append(sent_at)
                except httpx.HTTPError as error:
                    self.answers[type(error).__name__] += 1

    def read(self) -> None:
        while not self.is_over.is_set():
            stream = Stream(self.url, BODY | {"max_tokens": WHOLE})
            stream.join()
            self.ends[f"{len(stream.text)} {stream.end[:200]}"] += 1

    def end(self) -> dict[str, Any]:
        self.is_over.set()
        for thread in (self, *self.readers):
            thread.join()
        return {"answers": self.answers, "ends": self.ends}


def main(directory: Path) -> None:
    results: dict[str, Any] = {}
    patience_s = PATIENCE_S + 6 * STREAM_S
    session = Session(directory, fleet, BODY, num_cpus=6, patience_s=patience_s)
    try:
        for part in (start, update, terminate, freeze):
            results[part.__name__] = part(session)
            file = directory / "results.json"
            file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    finally:
        session.end()


def gateways(session: Session, state: str = "ready") -> dict[str, Any]:
    from qwenfleet.deployments.registry import client as registry

    try:
        return {g.id: g for g in registry.read(session.name).gateways if g.state == state}
    except ValueError:
        return {}


def start(session: Session) -> dict[str, Any]:
    """Probe a fleet from its deployment on."""
    load = Load(session.url, streams=0)
    session.deploy(fleet(session.port))
    session.until(session.engines, "a ready engine")
    ready_at = time.monotonic() + LISTED_S
    session.until(lambda: load.answers["200"], "the first answer")
    session.until(lambda: len(gateways(session)) == 2, "two gateways")
    result = load.end()
    return result | {"late refusals": sum(sent_at > ready_at for sent_at in load.refusals)}


def update(session: Session) -> dict[str, Any]:
    """Change a sampling default: every gateway is replaced, and no engine."""
    load = Load(session.url, streams=4)
    old, engines = set(gateways(session)), {engine.id for engine in session.engines()}
    seen: Counter[str] = Counter()

    def is_replaced() -> bool:
        seen["draining"] |= bool(gateways(session, "draining"))
        seen["fewest"] = min(seen["fewest"] or 9, len(gateways(session)))
        new = set(gateways(session))
        return len(new) == 2 and not new & old and not gateways(session, "draining")

    began_at = time.monotonic()
    session.deploy(fleet(session.port, temperature=0.5))
    session.until(is_replaced, "two new gateways")
    took_s = time.monotonic() - began_at
    kept = engines == {engine.id for engine in session.engines()}
    return load.end() | {"seen": seen, "kept engines": kept, "took_s": took_s}


def terminate(session: Session) -> dict[str, Any]:
    """SIGTERM to a gateway with two streams on it: one that ends in time and one that does not."""
    victim = None
    streams: list[tuple[Stream, Stream]] = []
    while victim is None:  # HAProxy chooses the gateway
        streams.append(
            (
                Stream(session.url, BODY | {"max_tokens": WHOLE}),
                Stream(session.url, BODY | {"max_tokens": ENDLESS}),
            )
        )
        time.sleep(2)
        victim = next((g for g in gateways(session).values() if g.requests >= 2), None)
    os.kill(victim.pid, signal.SIGTERM)
    session.until(lambda: victim.id in gateways(session, "draining"), "the victim drains")
    for pair in streams:
        pair[0].join()
    session.until(lambda: any("error" in long.end for _, long in streams), "an error event")
    session.until(lambda: len(set(gateways(session)) - {victim.id}) == 2, "another gateway")
    return {
        "whole": [f"{len(short.text)} {short.end}" for short, _ in streams],
        "cut": [long.end for _, long in streams if not long.is_alive()],
    }


def freeze(session: Session) -> dict[str, Any]:
    """SIGSTOP of the only engine's host, until it continues."""
    session.deploy(fleet(session.port, engines=1, temperature=0.5))
    session.until(lambda: len(session.engines()) == 1, "one engine")
    (engine,) = session.engines()
    url = f"{session.url}/v1/completions"
    body = BODY | {"max_tokens": 5}
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        began_at = time.monotonic()
        waiting = httpx.post(url, json=body, timeout=60)
        waited_s = time.monotonic() - began_at
        ready = httpx.get(f"{session.url}/health/ready", timeout=10)
        began_at = time.monotonic()
        refused = httpx.post(url, json=body, timeout=60)
        refused_s = time.monotonic() - began_at
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    session.until(
        lambda: all(httpx.post(url, json=body, timeout=60).status_code == 200 for _ in range(4)),
        "both gateways use it again",
    )
    return {
        "waiting": [waiting.status_code, waiting.json(), dict(waiting.headers)],
        "waited_s": waited_s,
        "ready": ready.status_code,
        "refused": refused.status_code,
        "refused_s": refused_s,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
