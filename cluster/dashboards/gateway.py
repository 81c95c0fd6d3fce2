"""The gateways dashboard: load, usable engines, stalls and queues, CPU and memory, and HAProxy."""

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
    PanelQuery,
    Row,
)
from qwenfleet.cluster.dashboards.queries import FLEET, WINDOW, by_gateway, cluster, of_fleet
from qwenfleet.cluster.metrics import Metric

REPLICA: Final = 'Component=~"ray::ServeReplica:$fleet:gateway.*"'
SERVE: Final = 'application="$fleet"'
_CLOCK: Final = of_fleet(metrics.CLOCK)
_LAG: Final = metrics.LOOP_LAG.exported
_LOOP: Final = f'{SERVE},deployment="gateway",loop_type="main"'


def _level(title: str, metric: Metric, description: str) -> Panel:
    expr = f"sum by (gateway, model) ({by_gateway(of_fleet(metric))})"
    return Panel(title, description, COUNT, (PanelQuery(expr, "{{gateway}} {{model}}"),))


WORK: Final = Row(
    "Work",
    (
        _level(
            "Requests in progress",
            metrics.IN_PROGRESS,
            "By gateway process. Large differences suggest a problem with HAProxy or long-lived "
            "connections.",
        ),
        _level(
            "Requests waiting for an engine",
            metrics.MOVING_REQUESTS,
            "Waiting for an engine, or to move to another one. Should return to 0 in seconds.",
        ),
        _level(
            "Usable engines",
            metrics.USABLE_ENGINES,
            "Engines that accept new requests from this gateway. If gateways differ, some cannot "
            "reach every engine.",
        ),
    ),
)
PROCESS: Final = Row(
    "Processes",
    (
        Panel(
            "CPU of gateways",
            "A gateway is one Python process: at 1 core it is saturated and tokens are late. Sum "
            "of all gateways of a node.",
            CORES,
            (
                PanelQuery(
                    "sum by (ip) ("
                    + cluster(f"ray_component_cpu_percentage{{{REPLICA}}}")
                    + ") / 100",
                    "{{ip}}",
                ),
            ),
        ),
        Panel(
            "Memory of gateways",
            "Resident memory of all gateways of a node. Steady growth at steady traffic is a leak.",
            BYTES,
            (
                PanelQuery(
                    "sum by (ip) (" + cluster(f"ray_component_rss_bytes{{{REPLICA}}}") + ")",
                    "{{ip}}",
                ),
            ),
        ),
        Panel(
            "Event loop lag",
            "Delay of a gateway's event loop, as measured by Serve. Tokens are delayed as much.",
            SECONDS,
            (
                PanelQuery(
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
            "Age of the clock that each process last reported. Reports take up to 20 s. Below 0: "
            "the node's clock is ahead. Far above: it is late, or the process hangs.",
            SECONDS,
            (
                PanelQuery(
                    f"max by (role, NodeAddress) (timestamp({_CLOCK}) - {_CLOCK})",
                    "oldest {{role}} {{NodeAddress}}",
                ),
                PanelQuery(
                    f"min by (role, NodeAddress) (timestamp({_CLOCK}) - {_CLOCK})",
                    "newest {{role}} {{NodeAddress}}",
                ),
            ),
            width=12,
        ),
        Panel(
            "Event loop tasks",
            "Open tasks of each gateway; they follow requests in progress. A rise at steady "
            "traffic means tasks that never end.",
            COUNT,
            (
                PanelQuery(
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
PRESSURE: Final = Row(
    "Pressure",
    (
        Panel(
            "Stalls of event loops",
            "How long a gateway's event loop stands, in one of a thousand samples of 0.1 s. All of "
            "its streams wait as long; a large request or a busy node is the usual cause.",
            SECONDS,
            (
                PanelQuery(
                    "histogram_quantile(0.999, sum by (gateway, le) ("
                    + by_gateway(f"rate({_LAG}_bucket{{{FLEET}}}{WINDOW})")
                    + "))",
                    "p99.9 {{gateway}}",
                ),
            ),
        ),
        Panel(
            "Work waiting for threads",
            "Prompts that wait to be rendered and tokenized, by pool. Short prompts do not wait "
            "for long ones, and no prompt waits for /tokenize.",
            COUNT,
            (
                PanelQuery(
                    f"sum by (model, pool) ({of_fleet(metrics.RENDERING_REQUESTS)})",
                    "{{pool}} {{model}}",
                ),
            ),
        ),
        Panel(
            "Bytes waiting for engines",
            "By gateway. A steady backlog means that an engine or the network to it does not keep "
            "up.",
            BYTES,
            (
                PanelQuery(
                    "sum by (gateway, model) (" + by_gateway(of_fleet(metrics.LINK_BACKLOG)) + ")",
                    "{{gateway}} {{model}}",
                ),
            ),
        ),
    ),
)
HTTP: Final = Row(
    "HAProxy and Serve",
    (
        Panel(
            "HTTP answers by status",
            "As counted by HAProxy, including requests that did not reach a gateway.",
            REQUESTS_PER_S,
            (
                PanelQuery(
                    "sum by (status_code) "
                    f"(rate(ray_serve_num_http_requests_total{{{SERVE}}}{WINDOW}))",
                    "{{status_code}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            "HTTP requests open",
            "Open requests at HAProxy, by node. If gateways have fewer in progress, HAProxy queues "
            "requests.",
            COUNT,
            (
                PanelQuery(
                    "sum by (node_ip_address) ("
                    + cluster("ray_serve_num_ongoing_http_requests")
                    + ")",
                    "{{node_ip_address}}",
                ),
            ),
        ),
        Panel(
            "HAProxy processes and missing targets",
            "One process per node; a second one still serves old streams. Missing targets are "
            "gateways that Serve lists and HAProxy does not.",
            COUNT,
            (
                PanelQuery(
                    "sum by (NodeAddress) (" + cluster("ray_serve_haproxy_process_count") + ")",
                    "processes {{NodeAddress}}",
                ),
                PanelQuery(
                    "sum by (NodeAddress) (" + cluster("ray_serve_haproxy_target_mismatch") + ")",
                    "missing {{NodeAddress}}",
                ),
            ),
        ),
    ),
)
GATEWAY_PAGE: Final = Dashboard(
    "qwenfleet-gateway",
    "qwenfleet / Gateways",
    "Gateways and HAProxy: load, stalls, clocks, CPU and memory.",
    (WORK, PRESSURE, PROCESS, HTTP),
)
