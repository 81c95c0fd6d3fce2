"""The engines' page: which are in which state, how full they are, what they have learned."""

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
    Query,
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
    return Panel(title, description, unit, (Query(expr, NAME),), max=more.get("max"))


def _rate(name: str) -> str:
    return f"sum by (ReplicaId) ({here(f'rate({of_vllm(name)}{WINDOW})', DEPLOYMENT)})"


def _gauge(name: str) -> str:
    return f"sum by (ReplicaId) ({here(of_vllm(name), DEPLOYMENT)})"


def _none_yet(expr: str, otherwise: str) -> str:
    """vLLM's counters have no series before their first event: 0 where `otherwise` has one."""
    return f"({expr} or {otherwise} * 0)"


STATES: Final = Row(
    "State",
    (
        Panel(
            "State of each engine",
            "Blue starts, green is ready, red is quarantined after a failure and takes nothing "
            "new, orange drains. A lane that ends is an engine that is gone.",
            "none",
            (Query(f"max by ({BY_ENGINE}) ({_STATE})", NAME),),
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
            "The running batch. Engines of one deployment that differ for long point at routing.",
        ),
        _level(
            "Waiting requests",
            metrics.ENGINE_WAITING,
            COUNT,
            "Queued within an engine. More than a few for minutes: too few engines, or a full KV "
            "cache.",
        ),
        _level(
            "KV cache in use",
            metrics.ENGINE_KV_USAGE,
            RATIO,
            "Near 100 % the engine preempts requests and does their work twice.",
            max=1.0,
        ),
        _level(
            "Prefill rate, learned",
            metrics.ENGINE_PREFILL_RATE,
            TOKENS_PER_S,
            "Prompt tokens per second, as routing believes; 0 while unknown. One engine below its "
            "like has a slow machine.",
        ),
        _level(
            "Decode step, learned",
            metrics.ENGINE_DECODE_STEP,
            SECONDS,
            "Time of a step that only decodes, as routing believes; 0 while unknown.",
        ),
        Panel(
            "Drains",
            "How long a draining engine has been at it, and how long it may take; then what still "
            "runs there is cut.",
            SECONDS,
            (
                Query(
                    f"max by ({BY_ENGINE}) ({of_engines(metrics.ENGINE_DRAIN_SECONDS)})",
                    f"{NAME} at it",
                ),
                Query(
                    f"max by ({BY_ENGINE}) ({of_engines(metrics.ENGINE_DRAIN_GRACE)})",
                    f"{NAME} may take",
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
            "What the start took, phase by phase. Loading is the disk or the network, warming up "
            "is compilation; cache_dir keeps what was compiled.",
            SECONDS,
            (
                Query(
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
    "As vLLM sees it",
    (
        Panel(
            "Requests in vLLM",
            "What vLLM's scheduler runs and keeps waiting; it differs from the load above by one "
            "report at most.",
            COUNT,
            (
                Query(_gauge("num_requests_running"), "{{ReplicaId}} running"),
                Query(_gauge("num_requests_waiting"), "{{ReplicaId}} waiting"),
            ),
        ),
        Panel(
            "Preemptions",
            "Requests thrown out of a full KV cache, to be computed again. Any steady rate: fewer "
            "sequences at a time (max_num_seqs), or more engines.",
            "suffix: /s",
            (
                Query(
                    _none_yet(_rate("num_preemptions_total"), _gauge("num_requests_running")),
                    "{{ReplicaId}}",
                ),
            ),
        ),
        Panel(
            "Prefix cache hits",
            "Share of looked-up prompt tokens that the engine's prefix cache held.",
            RATIO,
            (
                Query(
                    _none_yet(_rate("prefix_cache_hits_total"), _rate("prefix_cache_queries_total"))
                    + f" / ({_rate('prefix_cache_queries_total')} > 0)",
                    "{{ReplicaId}}",
                ),
            ),
            max=1.0,
        ),
        Panel(
            "Waiting by reason",
            "capacity waits for room in the batch or the KV cache; deferred waits for something "
            "that is fetched first.",
            COUNT,
            (
                Query(
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
            "Prompt tokens that each engine was asked for, cached or not. Engines of one "
            "deployment should be alike.",
            TOKENS_PER_S,
            (Query(_rate("prefix_cache_queries_total"), "{{ReplicaId}}"),),
            width=12,
        ),
    ),
)
ENGINES_PAGE: Final = Dashboard(
    "qwenfleet-engines",
    "qwenfleet / Engines",
    "Engine by engine: state, load, start, and vLLM's own series.",
    (STATES, LOAD, START, VLLM),
    has_deployments=True,
)
