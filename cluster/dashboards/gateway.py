"""The gateways' page: what they carry, what they see of the engines, what they cost."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster import metrics
from qwenfleet.cluster.dashboards.panels import (
    BYTES,
    CORES,
    COUNT,
    REQUESTS_PER_S,
    SECONDS,
    Dashboard,
    Panel,
    Query,
    Row,
)
from qwenfleet.cluster.dashboards.queries import WINDOW, by_gateway, cluster, of_fleet
from qwenfleet.cluster.metrics import Metric

REPLICA: Final = 'Component=~"ray::ServeReplica:$fleet:gateway.*"'
SERVE: Final = 'application="$fleet"'
_CLOCK: Final = of_fleet(metrics.CLOCK)
_LOOP: Final = f'{SERVE},deployment="gateway",loop_type="main"'


def _level(title: str, metric: Metric, description: str) -> Panel:
    expr = f"sum by (gateway, model) ({by_gateway(of_fleet(metric))})"
    return Panel(title, description, COUNT, (Query(expr, "{{gateway}} {{model}}"),))


WORK: Final = Row(
    "Work",
    (
        _level(
            "Requests in progress",
            metrics.IN_PROGRESS,
            "Per gateway process. Very unequal ones point at HAProxy or at long-lived connections.",
        ),
        _level(
            "Requests that wait for an engine",
            metrics.MOVING_REQUESTS,
            "Wait for an engine, or for their turn to leave one. Should go back to 0 in seconds.",
        ),
        _level(
            "Usable engines",
            metrics.USABLE_ENGINES,
            "Engines that this gateway can send new requests to. Gateways that disagree do not "
            "all reach every engine.",
        ),
    ),
)
PROCESS: Final = Row(
    "Processes",
    (
        Panel(
            "CPU of gateways",
            "A gateway is one Python process: at 1 core it is full, and tokens come late. Sums all "
            "gateways of a node.",
            CORES,
            (
                Query(
                    "sum by (ip) ("
                    + cluster(f"ray_component_cpu_percentage{{{REPLICA}}}")
                    + ") / 100",
                    "{{ip}}",
                ),
            ),
        ),
        Panel(
            "Memory of gateways",
            "Resident memory of all gateways of a node. Steady growth without growing traffic is a "
            "leak.",
            BYTES,
            (
                Query(
                    "sum by (ip) (" + cluster(f"ray_component_rss_bytes{{{REPLICA}}}") + ")",
                    "{{ip}}",
                ),
            ),
        ),
        Panel(
            "Lag of the event loop",
            "How late a gateway's event loop is, as Serve measures it. Tokens are late by as much.",
            SECONDS,
            (
                Query(
                    "histogram_quantile(0.99, sum by (gateway, le) ("
                    + by_gateway(
                        "rate(ray_serve_event_loop_scheduling_latency_ms_bucket"
                        f"{{{_LOOP}}}{WINDOW})"
                    )
                    + ")) / 1000",
                    "p99 {{gateway}}",
                ),
            ),
        ),
        Panel(
            "Clock against Prometheus",
            "Age of the time that each process last reported. Up to 20 s is the way of a report; "
            "below 0 the node's clock is ahead, far above it is behind, or the process hangs.",
            SECONDS,
            (
                Query(
                    f"max by (role, NodeAddress) (timestamp({_CLOCK}) - {_CLOCK})",
                    "oldest {{role}} {{NodeAddress}}",
                ),
                Query(
                    f"min by (role, NodeAddress) (timestamp({_CLOCK}) - {_CLOCK})",
                    "newest {{role}} {{NodeAddress}}",
                ),
            ),
            width=12,
        ),
        Panel(
            "Tasks of the event loop",
            "Open tasks of each gateway: they follow requests in progress. A rise without that is "
            "work that never ends.",
            COUNT,
            (
                Query(
                    "sum by (gateway) ("
                    + by_gateway(f"ray_serve_event_loop_tasks{{{_LOOP}}}")
                    + ")",
                    "{{gateway}}",
                ),
            ),
            width=12,
        ),
    ),
)
HTTP: Final = Row(
    "HAProxy and Serve",
    (
        Panel(
            "HTTP answers by status",
            "As HAProxy counts them, so that requests which reached no gateway are there too.",
            REQUESTS_PER_S,
            (
                Query(
                    "sum by (status_code) "
                    f"(rate(ray_serve_num_http_requests_total{{{SERVE}}}{WINDOW}))",
                    "{{status_code}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            "HTTP requests open",
            "At HAProxy, by node. More than gateways have in progress: they are kept waiting.",
            COUNT,
            (
                Query(
                    "sum by (node_ip_address) ("
                    + cluster("ray_serve_num_ongoing_http_requests")
                    + ")",
                    "{{node_ip_address}}",
                ),
            ),
        ),
        Panel(
            "HAProxy processes and targets it lacks",
            "One process per node; two for long are an old one that still has streams. Lacking "
            "targets are gateways that Serve knows and HAProxy does not.",
            COUNT,
            (
                Query(
                    "sum by (NodeAddress) (" + cluster("ray_serve_haproxy_process_count") + ")",
                    "processes {{NodeAddress}}",
                ),
                Query(
                    "sum by (NodeAddress) (" + cluster("ray_serve_haproxy_target_mismatch") + ")",
                    "lacking {{NodeAddress}}",
                ),
            ),
        ),
    ),
)
GATEWAY_PAGE: Final = Dashboard(
    "qwenfleet-gateway",
    "qwenfleet / Gateways",
    "Gateways and what is before them: load, clocks, CPU, memory, HAProxy.",
    (WORK, PROCESS, HTTP),
)
