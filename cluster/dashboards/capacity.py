"""The capacity page: what was asked for, what is there, and how used it is, down to the GPUs."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.dashboards.panels import (
    BYTES,
    CELSIUS,
    COUNT,
    RATIO,
    WATT,
    Dashboard,
    Need,
    Panel,
    Query,
    Row,
)
from qwenfleet.cluster.dashboards.queries import FLEET, cluster

GPU: Final = "{{ip}} {{GpuIndex}} {{GpuDeviceName}}"


def _group(expr: str) -> str:
    """With the begin of a node's group: a node of no group has its long id there."""
    return f'label_replace({expr}, "group", "$1", "node_type", "(.{{0,16}}).*")'


def _nodes(
    title: str, unit: str, queries: dict[str, str], description: str, width: int = 8
) -> Panel:
    asked = tuple(
        Query(f"sum by (ip) ({cluster(expr)})", f"{legend} {{{{ip}}}}".strip())
        for legend, expr in queries.items()
    )
    return Panel(title, description, unit, asked, width=width, max=1.0 if unit == RATIO else None)


def _gpus(title: str, unit: str, expr: str, description: str, width: int = 8) -> Panel:
    queries = (Query(f"max by (ip, GpuIndex, GpuDeviceName) ({expr})", GPU),)
    top = 1.0 if unit == RATIO else None
    return Panel(title, description, unit, queries, width=width, max=top, needs="a GPU")


def _resource(title: str, name: str, description: str, needs: Need = "") -> Panel:
    series = "ray_resources" + f'{{Name="{name}"}}'
    query = Query(f"sum by (State) ({cluster(series)})", "{{State}}")
    return Panel(title, description, COUNT, (query,), is_stacked=True, needs=needs)


REPLICAS: Final = Row(
    "Replicas and nodes",
    (
        Panel(
            "Replicas wanted",
            "What Serve's controller wants of each deployment, now.",
            COUNT,
            (Query(f"qwenfleet:replicas_wanted{{{FLEET}}}", "{{deployment}}"),),
            width=6,
        ),
        Panel(
            "Replicas ready",
            "Healthy replicas. Below what is wanted for longer than a start takes: look at nodes "
            "and GPUs below, and at Pending pods.",
            COUNT,
            (Query(f"qwenfleet:replicas_ready{{{FLEET}}}", "{{deployment}}"),),
            width=6,
        ),
        Panel(
            "Nodes",
            "Nodes of the Ray cluster by their group, as Ray's head counts them.",
            COUNT,
            (
                Query(
                    f"sum by (group) ({_group(cluster('ray_cluster_active_nodes'))})",
                    "{{group}}",
                ),
            ),
            width=6,
            is_stacked=True,
        ),
        Panel(
            "Nodes that come or failed",
            "Nodes that the autoscaler has asked for, and those that it lost or never got.",
            COUNT,
            (
                Query(
                    "sum by (node_type) (" + cluster("ray_cluster_pending_nodes") + ")",
                    "pending {{node_type}}",
                ),
                Query(
                    "sum by (node_type) (" + cluster("ray_cluster_failed_nodes") + ")",
                    "failed {{node_type}}",
                ),
            ),
            width=6,
            needs="Ray's autoscaler",
        ),
    ),
)
MACHINES: Final = Row(
    "Machines",
    (
        _nodes(
            "CPU in use",
            RATIO,
            {"": "ray_node_cpu_utilization / 100"},
            "All cores of a node. At 100 % gateways and engines' own threads fall behind.",
        ),
        _resource(
            "CPUs booked",
            "CPU",
            "What Ray has promised to actors, and has left; it says nothing of real use.",
        ),
        _nodes(
            "Memory in use",
            BYTES,
            {"used": "ray_node_mem_used", "of": "ray_node_mem_total"},
            "Of the node, or of its pod. Ray kills workers shortly before it is full.",
        ),
        _nodes(
            "Disk free",
            BYTES,
            {"": "ray_node_disk_free"},
            "Where Ray keeps its files. Weights, caches and logs fill it.",
            width=12,
        ),
        _nodes(
            "Network",
            "binBps",
            {"in": "ray_node_network_receive_speed", "out": "ray_node_network_send_speed"},
            "Weights that are fetched show as the node's full speed.",
            width=12,
        ),
    ),
)
GPUS: Final = Row(
    "GPUs, NVIDIA and AMD",
    (
        _resource(
            "GPUs booked",
            "GPU",
            "GPUs that engines hold, and those left for more.",
            needs="a GPU",
        ),
        _gpus(
            "GPU in use",
            RATIO,
            cluster("ray_node_gpus_utilization") + " / 100",
            "Share of the time in which a kernel ran; 100 % is busy, not necessarily full.",
        ),
        _gpus(
            "GPU memory in use",
            RATIO,
            cluster("ray_node_gram_used")
            + " / ("
            + cluster("ray_node_gram_used")
            + " + "
            + cluster("ray_node_gram_available")
            + ")",
            "Engines take their share at the start and keep it: a change is an engine that came, "
            "went, or died and left memory behind.",
        ),
        _gpus(
            "GPU power",
            WATT,
            cluster("ray_node_gpu_power_milliwatts") + " / 1000",
            "Near its limit a GPU slows its clock. Idle power under load means that it waits.",
            width=12,
        ),
        _gpus(
            "GPU temperature",
            CELSIUS,
            cluster("ray_node_gpu_temperature_celsius"),
            "Ray reads it of NVIDIA's GPUs only. A GPU far above its neighbours slows all ranks.",
            width=12,
        ),
    ),
)
CAPACITY: Final = Dashboard(
    "qwenfleet-capacity",
    "qwenfleet / Capacity",
    "Replicas, nodes, CPU, memory and GPUs.",
    (REPLICAS, MACHINES, GPUS),
)
