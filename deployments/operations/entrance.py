"""Entrance: the URL at which Serve answers. On a cluster whose Serve already runs, Serve's own
options decide it, not the fleet's file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

import ray
from ray import serve as ray_serve

from qwenfleet.cluster.config.fleet import GatewayConfig, is_loopback
from qwenfleet.cluster.errors import DeployFailed
from qwenfleet.deployments.operations.readiness import Readiness, probe

CALL_TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 60.0
"""A proxy follows a change of gateways within seconds."""
POLL_S: Final = 0.5


@dataclass(frozen=True)
class Listening:
    """Serve's HTTP options, and the nodes with a proxy: addresses by node id."""

    host: str
    port: int
    has_tls: bool
    proxies: Mapping[str, str]

    @property
    def is_local(self) -> bool:
        """True if only programs on a proxy's own node reach it."""
        return is_loopback(self.host)

    def node(self, gateway_nodes: Iterable[str], own_node: str) -> str:
        """Return the node whose proxy to use: this one if possible. A proxy on loopback passes
        requests only to gateways of its own node."""
        nodes = sorted(self.proxies.keys() & set(gateway_nodes)) or sorted(self.proxies)
        return own_node if own_node in nodes else nodes[0]

    def can_ask(self, node: str, own_node: str) -> bool:
        """Return whether this process can check the URL of that node's proxy."""
        return not self.has_tls and (not self.is_local or node == own_node)

    def url(self, node: str) -> str:
        host = self.proxies[node] if _is_wildcard(self.host) else self.host
        scheme = "https" if self.has_tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def differences(self, gateway: GatewayConfig) -> str:
        """Return a sentence about settings of the file that have no effect; empty if all have."""
        if (self.host, self.port) == (gateway.host, gateway.port):
            return ""
        return (
            f"Serve already listens on {self.host} port {self.port}, so gateway.host "
            f"{gateway.host} and gateway.port {gateway.port} have no effect; to change that, run "
            "`serve shutdown` on the cluster, then this again"
        )


def read() -> Listening:
    """Ask Serve where it listens. Raises DeployFailed if it starts no HTTP proxies."""
    # Names from ray 2.60 `serve/_private/constants.py`.
    controller: Any = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    options: Any = ray.get(controller.get_http_config.remote(), timeout=CALL_TIMEOUT_S)
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    proxies = {node: addresses[node] for node in ray_serve.status().proxies if node in addresses}
    if options.host is None or not proxies:
        raise DeployFailed(
            "Serve on this cluster has no HTTP proxy",
            "Run `serve shutdown` on the cluster, then this again, or start Serve with "
            "`proxy_location: EveryNode`.",
        )
    return Listening(options.host, options.port, bool(options.ssl_certfile), proxies)


def await_answer(
    url: str,
    *,
    ask: Callable[[str], Readiness] = probe,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Return when the fleet at this URL is ready. Raises DeployFailed if it does not become so."""
    give_up_at = clock() + PATIENCE_S
    while not (readiness := ask(url)).is_ready:
        if clock() > give_up_at:
            answer = f"answers {readiness}" if readiness.status else str(readiness)
            raise DeployFailed(
                f"all replicas are ready, but {url}/health/ready {answer}",
                "Check that no other program uses this port, and read the log of Serve's proxy on "
                "that node.",
            )
        sleep(POLL_S)


def _is_wildcard(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
