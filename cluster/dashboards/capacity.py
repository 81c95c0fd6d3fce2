"""The capacity dashboard: replicas wanted and ready, and use of nodes and GPUs."""

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
    PanelQuery,
    Row,
)
from qwenfleet.cluster.dashboards.queries import FLEET, cluster

GPU: Final = "{{ip}} {{GpuIndex}} {{GpuDeviceName}}"


def _group(expr: str) -> str:
    """Add a label `group`, cut to 16 characters: a node without a group has a long id there."""
    return f'label_replace({expr}, "group", "$1", "node_type", "(.{{0,16}}).*")'


def _nodes(
    title: str, unit: str, queries: dict[str, str], description: str, width: int = 8
) -> Panel:
    asked = tuple(
        PanelQuery(f"sum by (ip) ({cluster(expr)})", f"{legend} {{{{ip}}}}".strip())
        for legend, expr in queries.items()
    )
    return Panel(title, description, unit, asked, width=width, max=1.0 if unit == RATIO else None)


def _gpus(title: str, unit: str, expr: str, description: str, width: int = 8) -> Panel:
    queries = (PanelQuery(f"max by (ip, GpuIndex, GpuDeviceName) ({expr})", GPU),)
    top = 1.0 if unit == RATIO else None
    return Panel(title, description, unit, queries, width=width, max=top, needs="a GPU")


def _resource(title: str, name: str, description: str, needs: Need = "") -> Panel:
    series = "ray_resources" + f'{{Name="{name}"}}'
    query = PanelQuery(f"sum by (State) ({cluster(series)})", "{{State}}")
    return Panel(title, description, COUNT, (query,), is_stacked=True, needs=needs)


REPLICAS: Final = Row(
    "Replicas and nodes",
    (
        Panel(
            "Replicas wanted",
            "Replicas that Serve's controller wants for each deployment now.",
            COUNT,
            (PanelQuery(f"qwenfleet:replicas_wanted{{{FLEET}}}", "{{deployment}}"),),
            width=6,
        ),
        Panel(
            "Replicas ready",
            "Healthy replicas. If they stay below the wanted number for longer than a start takes, "
            "check the nodes and GPUs below and pending pods.",
            COUNT,
            (PanelQuery(f"qwenfleet:replicas_ready{{{FLEET}}}", "{{deployment}}"),),
            width=6,
        ),
        Panel(
            "Nodes",
            "Nodes of the Ray cluster by group, as counted by Ray's head.",
            COUNT,
            (
                PanelQuery(
                    f"sum by (group) ({_group(cluster('ray_cluster_active_nodes'))})",
                    "{{group}}",
                ),
            ),
            width=6,
            is_stacked=True,
        ),
        Panel(
            "Nodes pending and failed",
            "Nodes that the autoscaler has requested, and nodes that it lost or did not get.",
            COUNT,
            (
                PanelQuery(
                    "sum by (node_type) (" + cluster("ray_cluster_pending_nodes") + ")",
                    "pending {{node_type}}",
                ),
                PanelQuery(
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
            "All cores of a node. At 100 %, gateways and engine threads are delayed.",
        ),
        _resource(
            "CPUs reserved",
            "CPU",
            "CPUs that Ray has reserved for actors, and free ones. Independent of actual use.",
        ),
        _nodes(
            "Memory in use",
            BYTES,
            {"used": "ray_node_mem_used", "of": "ray_node_mem_total"},
            "Memory of the node or its pod. Ray kills workers shortly before it is full.",
        ),
        _nodes(
            "Disk free",
            BYTES,
            {"": "ray_node_disk_free"},
            "Free space on the disk of Ray's files. Weights, caches and logs fill it.",
            width=12,
        ),
        _nodes(
            "Network",
            "binBps",
            {"in": "ray_node_network_receive_speed", "out": "ray_node_network_send_speed"},
            "Traffic by node. Downloads of weights use the full bandwidth.",
            width=12,
        ),
    ),
)
GPUS: Final = Row(
    "GPUs, NVIDIA and AMD",
    (
        _resource(
            "GPUs reserved",
            "GPU",
            "GPUs that Ray has reserved for engines, and free ones.",
            needs="a GPU",
        ),
        _gpus(
            "GPU in use",
            RATIO,
            cluster("ray_node_gpus_utilization") + " / 100",
            "Share of time with a running kernel. At 100 %, the GPU is busy but not necessarily "
            "saturated.",
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
            "Engines reserve their share at start and keep it. A change means that an engine "
            "started, stopped, or died without freeing memory.",
        ),
        _gpus(
            "GPU power",
            WATT,
            cluster("ray_node_gpu_power_milliwatts") + " / 1000",
            "Near its limit, a GPU lowers its clock. Idle power under load means that it waits.",
            width=12,
        ),
        _gpus(
            "GPU temperature",
            CELSIUS,
            cluster("ray_node_gpu_temperature_celsius"),
            "Ray reports it for NVIDIA GPUs only. One hot GPU slows all ranks of its engine.",
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
