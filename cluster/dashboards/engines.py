"""The engines dashboard: state, load, start times and vLLM's own metrics of each engine."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster import metrics
from qwenfleet.cluster.dashboards.panels import (
    COUNT,
    RATIO,
    SECONDS,
    TOKENS_PER_S,
    Dashboard,
    Panel,
    PanelQuery,
    Row,
)
from qwenfleet.cluster.dashboards.queries import DEPLOYMENT, WINDOW, here, of_engines, of_vllm
from qwenfleet.cluster.metrics import CLOSED, Metric

NAME: Final = "{{deployment}} {{engine}}"
BY_ENGINE: Final = "deployment, engine"
_STATE: Final = " or ".join(
    of_engines(metrics.ENGINE_STATE, f'state="{state}"') + f" * {number}"
    for number, state in enumerate(CLOSED["state"], start=1)
)


def _level(title: str, metric: Metric, unit: str, description: str, **more: float) -> Panel:
    expr = f"max by ({BY_ENGINE}) ({of_engines(metric)})"
    return Panel(title, description, unit, (PanelQuery(expr, NAME),), max=more.get("max"))


def _rate(name: str) -> str:
    return f"sum by (ReplicaId) ({here(f'rate({of_vllm(name)}{WINDOW})', DEPLOYMENT)})"


def _gauge(name: str) -> str:
    return f"sum by (ReplicaId) ({here(of_vllm(name), DEPLOYMENT)})"


def _none_yet(expr: str, otherwise: str) -> str:
    """Return 0 where `otherwise` has a series: vLLM's counters have none before their first
    event."""
    return f"({expr} or {otherwise} * 0)"


STATES: Final = Row(
    "State",
    (
        Panel(
            "State of each engine",
            "Blue: starting. Green: ready. Red: quarantined after a failure, takes no new "
            "requests. Orange: draining. A lane ends when its engine has stopped.",
            "none",
            (PanelQuery(f"max by ({BY_ENGINE}) ({_STATE})", NAME),),
            kind="states",
            width=24,
            height=7,
        ),
    ),
)
LOAD: Final = Row(
    "Load",
    (
        _level(
            "Running requests",
            metrics.ENGINE_RUNNING,
            COUNT,
            "Size of the running batch. A lasting difference within a deployment suggests a "
            "routing problem.",
        ),
        _level(
            "Waiting requests",
            metrics.ENGINE_WAITING,
            COUNT,
            "Requests queued in an engine. More than a few for minutes mean too few engines or a "
            "full KV cache.",
        ),
        _level(
            "KV cache in use",
            metrics.ENGINE_KV_USAGE,
            RATIO,
            "Near 100 %, the engine preempts requests and computes them again.",
            max=1.0,
        ),
        _level(
            "Prefill rate, learned",
            metrics.ENGINE_PREFILL_RATE,
            TOKENS_PER_S,
            "Prompt tokens per second, as estimated for routing; 0 while unknown. An engine below "
            "its peers runs on a slow machine.",
        ),
        _level(
            "Decode step, learned",
            metrics.ENGINE_DECODE_STEP,
            SECONDS,
            "Time of a decode-only step, as estimated for routing; 0 while unknown.",
        ),
        Panel(
            "Drains",
            "How long an engine has been draining, and its limit. At the limit, requests that "
            "still run there are interrupted.",
            SECONDS,
            (
                PanelQuery(
                    f"max by ({BY_ENGINE}) ({of_engines(metrics.ENGINE_DRAIN_SECONDS)})",
                    f"{NAME} draining",
                ),
                PanelQuery(
                    f"max by ({BY_ENGINE}) ({of_engines(metrics.ENGINE_DRAIN_GRACE)})",
                    f"{NAME} limit",
                ),
            ),
            needs="a drain",
        ),
    ),
)
START: Final = Row(
    "Start",
    (
        Panel(
            "Phases of each engine's start",
            "Duration of each phase. Loading depends on disk or network, warming up on "
            "compilation; cache_dir keeps compiled code.",
            SECONDS,
            (
                PanelQuery(
                    f"max by (engine, phase) ({of_engines(metrics.ENGINE_START_SECONDS)})",
                    "{{engine}} {{phase}}",
                ),
            ),
            kind="table",
            width=24,
            height=6,
            row="engine",
            column="phase",
        ),
    ),
)
VLLM: Final = Row(
    "vLLM's own metrics",
    (
        Panel(
            "Requests in vLLM",
            "Running and waiting requests in vLLM's scheduler; at most one report apart from the "
            "load above.",
            COUNT,
            (
                PanelQuery(_gauge("num_requests_running"), "{{ReplicaId}} running"),
                PanelQuery(_gauge("num_requests_waiting"), "{{ReplicaId}} waiting"),
            ),
        ),
        Panel(
            "Preemptions",
            "Requests evicted from a full KV cache, to be computed again. At a steady rate, lower "
            "max_num_seqs or add engines.",
            "suffix: /s",
            (
                PanelQuery(
                    _none_yet(_rate("num_preemptions_total"), _gauge("num_requests_running")),
                    "{{ReplicaId}}",
                ),
            ),
        ),
        Panel(
            "Prefix cache hits",
            "Share of prompt tokens found in the engine's prefix cache.",
            RATIO,
            (
                PanelQuery(
                    _none_yet(_rate("prefix_cache_hits_total"), _rate("prefix_cache_queries_total"))
                    + f" / ({_rate('prefix_cache_queries_total')} > 0)",
                    "{{ReplicaId}}",
                ),
            ),
            max=1.0,
        ),
        Panel(
            "Waiting by reason",
            "capacity: waiting for room in the batch or the KV cache. deferred: waiting for "
            "data to be fetched first.",
            COUNT,
            (
                PanelQuery(
                    "sum by (ReplicaId, reason) ("
                    + here(of_vllm("num_requests_waiting_by_reason"), DEPLOYMENT)
                    + ")",
                    "{{ReplicaId}} {{reason}}",
                ),
            ),
            width=12,
        ),
        Panel(
            "Prompt tokens looked up",
            "Prompt tokens sent to each engine, cached or not. Engines of one deployment should "
            "have similar rates.",
            TOKENS_PER_S,
            (PanelQuery(_rate("prefix_cache_queries_total"), "{{ReplicaId}}"),),
            width=12,
        ),
    ),
)
ENGINES_PAGE: Final = Dashboard(
    "qwenfleet-engines",
    "qwenfleet / Engines",
    "Each engine: state, load, start, and vLLM's own metrics.",
    (STATES, LOAD, START, VLLM),
    has_deployments=True,
)
