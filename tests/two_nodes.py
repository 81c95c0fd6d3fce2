"""A fleet on a Ray cluster of several nodes on one machine, for programs that tests run.

They are separate programs, such as `python -m tests.loss.moves DIRECTORY`, because Ray reads its
environment when it is imported.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig, Replicas, ScriptConfig
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.deployments.environment import ray_environment
from qwenfleet.deployments.haproxy import write_launcher
from qwenfleet.deployments.operations.processes import of_fleet

STREAMS = 6
PATIENCE_S = 400


def scripted(num_tokens: int, step_s: float, engines: int = 1, start_s: float = 0) -> ModelConfig:
    """A model whose engines count through some letters."""
    script = ScriptConfig(
        num_tokens=num_tokens, step_s=step_s, start_s=start_s, tokens=tuple(range(97, 120))
    )
    return ModelConfig(
        id="scripted",
        source="tiny-qwen3-moe",
        engine="scripted",
        script=script,
        replicas=Replicas(min=engines),
    )


class Stream(threading.Thread):
    """One completion, from request to end."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__()
        self.url = url
        self.body = body
        self.text = ""
        self.end = ""
        self.times: list[float] = []
        self.start()

    def run(self) -> None:
        with (
            httpx.Client(timeout=PATIENCE_S) as client,
            client.stream(
                "POST", f"{self.url}/v1/completions", json=self.body | {"stream": True}
            ) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    self.text += "".join(c["text"] for c in event.get("choices", ()))
                    self.times.append(time.monotonic())
                self.end = line or self.end

    def gap_after(self, moment: float) -> float:
        """The longest pause between two token events since a moment."""
        times = [time for time in self.times if time > moment - 0.5]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


class Session:
    """A Ray cluster of one CPU node, to which tests add others, and the fleet on it."""

    def __init__(
        self,
        directory: Path,
        fleet: Callable[[int], FleetConfig],
        body: Any,
        num_cpus: int = 3,
        patience_s: float = PATIENCE_S,
        host: str = "127.0.0.1",
    ) -> None:
        """Serve listens on `host`: with 0.0.0.0 on every node that has a replica, else on the
        head."""
        self._patience_s = patience_s
        (self.port,) = free_ports(1, "127.0.0.1")
        self.name = fleet(self.port).name
        self.body = body
        self.url = f"http://127.0.0.1:{self.port}"
        token = directory / "ray.token"
        launcher = directory / "haproxy"
        write_launcher(launcher)
        os.environ.update(ray_environment(fleet(self.port), token, launcher))
        token.write_text(secrets.token_hex(32))
        self.token = token
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster
        from ray.serve.config import HTTPOptions, ProxyLocation

        self.serve = serve
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus})
        ray.init(address=self.cluster.address, log_to_driver=False)
        location = ProxyLocation.EveryNode if host == "0.0.0.0" else ProxyLocation.HeadOnly
        serve.start(http_options=HTTPOptions(host=host, port=self.port, location=location))

    def deploy(self, config: FleetConfig) -> None:
        from qwenfleet.deployments.app import application

        target = self.serve.RunTarget(
            target=application(config), name=config.name, route_prefix="/"
        )
        self.serve.run_many([target], wait_for_applications_running=False)

    @contextmanager
    def left(self) -> Iterator[None]:
        """Leave the cluster without a driver for the length of the block."""
        import ray

        ray.shutdown()
        yield
        ray.init(address=self.cluster.address, log_to_driver=False)

    def snapshot(self) -> Any:
        """What the registry lists; None while it starts or is busy."""
        from qwenfleet.deployments.registry import client as registry

        try:
            return registry.read(self.name)
        except registry.AWAY:
            return None

    def engines(self) -> list[Any]:
        snapshot = self.snapshot()
        return [] if snapshot is None else [e for e in snapshot.engines if e.state == "ready"]

    def gateways(self) -> list[Any]:
        """Gateways that serve a model."""
        snapshot = self.snapshot()
        return [] if snapshot is None else [one for one in snapshot.gateways if one.models]

    def until(self, claim: Any, what: str) -> None:
        give_up_at = time.monotonic() + self._patience_s
        while not claim():
            if time.monotonic() > give_up_at:
                raise SystemExit(f"not within {self._patience_s:g} s: {what}; {self.engines()}")
            time.sleep(0.2)

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def disturb(self, move: Any) -> dict[str, Any]:
        """Run six streams and make a move in the middle."""
        streams = [Stream(self.url, self.body) for _ in range(STREAMS)]
        self.until(lambda: all(len(s.times) > 20 for s in streams), "streams start")
        before = {engine.id for engine in self.engines()}
        moment = time.monotonic()
        move()
        for stream in streams:
            stream.join()
        return {
            "texts": [stream.text for stream in streams],
            "ends": [stream.end for stream in streams],
            "gap_s": max(stream.gap_after(moment) for stream in streams),
            "ended engines": len(before - {engine.id for engine in self.engines()}),
        }

    def end(self) -> None:
        for process in of_fleet(self.token):
            process.kill()


def run_program(
    run: Callable[[Session], dict[str, Any]],
    fleet: Callable[[int], FleetConfig],
    body: Any,
    **settings: Any,
) -> None:
    """Run with a session, and write what it returns to `results.json` in the directory that the
    command line names. `settings` are those of the session."""
    directory = Path(sys.argv[1])
    session = Session(directory, fleet, body, **settings)
    try:
        results = run(session)
    finally:
        session.end()
    (directory / "results.json").write_text(json.dumps(results))
