"""A Ray cluster of two nodes loses its head while the other one serves six streams.

A separate program, because Ray reads its environment when it is imported. It writes `results.json`
to the given directory: the streams' texts and ends, their longest gap, and the number of threads of
the gateway and of each engine, once a second.
"""

from __future__ import annotations

import time
from typing import Any

import psutil

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig, WireConfig
from qwenfleet.loadtest import parts
from qwenfleet.loadtest.parts import Part
from tests.two_nodes import STREAMS, Session, Stream, run_program, scripted

TOKENS = 700
STEP_S = 0.05
"""35 s of tokens. Without its GCS the other node ends after 60 s
(RAY_gcs_rpc_server_reconnect_timeout_s), and everything on it."""
BODY = {"model": "scripted", "prompt": "x" * 40, "max_tokens": TOKENS}


def fleet(port: int) -> FleetConfig:
    return FleetConfig(
        name="headless",
        models=(scripted(TOKENS, STEP_S, engines=2),),
        gateway=GatewayConfig(port=port),
        wire=WireConfig(heartbeat_s=0.2),
    )


def run(session: Session) -> dict[str, Any]:
    session.cluster.add_node(num_cpus=5)
    session.deploy(fleet(session.port))
    session.until(lambda: len(session.engines()) == 2 and session.is_up(), "the engines")
    members = parts.of_fleet(session.token)
    (gateway,) = members[Part.GATEWAY]
    url = f"http://127.0.0.1:{listening_port(gateway)}"
    streams = [Stream(url, BODY) for _ in range(STREAMS)]
    session.until(lambda: all(len(s.times) > 20 for s in streams), "streams start")
    import ray

    ray.shutdown()  # this process is a driver on the head
    moment = time.monotonic()
    head: Any = session.cluster.head_node
    head.kill_all_processes(check_alive=False, allow_graceful=False)
    threads: dict[str, list[int]] = {}
    while any(stream.is_alive() for stream in streams):
        for process in [gateway, *members[Part.ENGINE]]:
            threads.setdefault(str(process.pid), []).append(process.num_threads())
        time.sleep(1)
    return {
        "texts": [stream.text for stream in streams],
        "ends": [stream.end for stream in streams],
        "gap_s": max(stream.gap_after(moment) for stream in streams),
        "threads": threads,
    }


def listening_port(gateway: psutil.Process) -> int:
    """The port on which a gateway answers HAProxy: the only one that answers HTTP."""
    import httpx

    for connection in gateway.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            port: int = connection.laddr.port
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=5).is_success:
                    return port
            except httpx.HTTPError:
                continue
    raise SystemExit("the gateway does not listen for HTTP")


if __name__ == "__main__":
    run_program(run, fleet, BODY, num_cpus=0)
