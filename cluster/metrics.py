"""Every metric of the fleet: name, unit, labels and meaning, in one place.

Ray's metrics agent exports them with the prefix `ray_` beside vLLM's own series (`ray_vllm_…`), and
adds where a process runs. Label values come from closed sets: model ids of the configuration,
outcomes and states of the code, live engine ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from qwenfleet.cluster.labels import Decision, EngineState, Loss, Outcome, StartPhase

LATENCY_BUCKETS_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
)  # fmt: skip
"""From a cached prompt on a GPU to a 1M-token prefill."""
TOKEN_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Around the 17 to 50 ms per token that Qwen3-Coder-480B makes on eight MI300X."""


def _values(labels: type[StrEnum]) -> tuple[str, ...]:
    """Plain strings: Ray's metrics take nothing else."""
    return tuple(label.value for label in labels)


CLOSED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "outcome": _values(Outcome),
        "reason": (
            "app_failed", "body_too_large", "engine_refused", "internal_error", "invalid_api_key",
            "invalid_request", "malformed_body", "model_loading", "model_not_found",
            "model_required", "no_engine", "request_kills_engines", "route_not_found", "timeout",
        ),
        "loss": _values(Loss),
        "slo": ("availability", "ttft", "inter_token"),
        "verdict": ("good", "bad"),
        "decision": _values(Decision),
        "state": _values(EngineState),
        "phase": _values(StartPhase),
        "role": ("gateway", "engine"),
    }
)  # fmt: skip
"""All values of these labels; `model`, `deployment` and `engine` are the fleet's own."""
FLEET: Final = "fleet"
"""A label of every metric: the name of its fleet, since one Prometheus may watch many."""
EXPORTED_PREFIX: Final = "ray_"
"""What Ray's agent puts before every name."""


@dataclass(frozen=True)
class Metric:
    """One metric. Counters end in `_total`; durations and ratios carry their unit."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    """Beside FLEET."""
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus; a histogram's has `_bucket`, `_sum` or `_count` behind it."""
        return EXPORTED_PREFIX + self.name


def _index(*metrics: Metric) -> Mapping[str, Metric]:
    return MappingProxyType({metric.name: metric for metric in metrics})


REQUESTS = Metric(
    "qwenfleet_requests_total",
    "counter",
    "HTTP requests that ended, by how they ended; model is `none` when none was named.",
    ("model", "outcome"),
)
REJECTIONS = Metric(
    "qwenfleet_rejections_total",
    "counter",
    "Requests that were answered with an error, by its code; invalid_request is vLLM's own word.",
    ("model", "reason"),
)
IN_PROGRESS = Metric(
    "qwenfleet_running_requests", "gauge", "Requests that a gateway works on.", ("model",)
)
REQUEST_SECONDS = Metric(
    "qwenfleet_request_seconds",
    "histogram",
    "Time from a request's body to the end of its answer, for completed requests.",
    ("model",),
    LATENCY_BUCKETS_S,
)
QUEUE_SECONDS = Metric(
    "qwenfleet_queue_seconds",
    "histogram",
    "Time from a request's body to the step in which an engine began to work on it.",
    ("model",),
    LATENCY_BUCKETS_S,
)
TTFT_SECONDS = Metric(
    "qwenfleet_time_to_first_token_seconds",
    "histogram",
    "Time from a request's body to its first token at the gateway.",
    ("model",),
    LATENCY_BUCKETS_S,
)
ITL_SECONDS = Metric(
    "qwenfleet_inter_token_seconds",
    "histogram",
    "Time between two token events of one request at the gateway.",
    ("model",),
    TOKEN_BUCKETS_S,
)
PROMPT_TOKENS = Metric(
    "qwenfleet_prompt_tokens_total", "counter", "Prompt tokens sent to engines.", ("model",)
)
CACHED_TOKENS = Metric(
    "qwenfleet_cached_tokens_total",
    "counter",
    "Prompt tokens that an engine's prefix cache already held.",
    ("model",),
)
OUTPUT_TOKENS = Metric(
    "qwenfleet_output_tokens_total", "counter", "Tokens that engines generated.", ("model",)
)
SLO_EVENTS = Metric(
    "qwenfleet_slo_events_total",
    "counter",
    "Events that an objective judges, good or bad: a request (availability), its first token "
    "(ttft), a later token (inter_token).",
    ("model", "slo", "verdict"),
)
SLO_OBJECTIVE = Metric(
    "qwenfleet_slo_objective_ratio",
    "gauge",
    "Share of events that are to be good, from the configuration.",
    ("model", "slo"),
)
SLO_THRESHOLD = Metric(
    "qwenfleet_slo_threshold_seconds",
    "gauge",
    "Longest that a good event takes, from the configuration; of `start`, an engine's start.",
    ("model", "slo"),
)
ROUTING = Metric(
    "qwenfleet_routing_decisions_total",
    "counter",
    "What became of requests: sent to an engine at once, wait for one, moved to another, or put on "
    "trial because engines died under them.",
    ("model", "decision"),
)
USABLE_ENGINES = Metric(
    "qwenfleet_usable_engines",
    "gauge",
    "Engines that a gateway can send new requests to.",
    ("model",),
)
ENGINE_LOSSES = Metric(
    "qwenfleet_engine_losses_total",
    "counter",
    "Engines lost, by how. Each gateway counts its own.",
    ("model", "loss"),
)
RESUMES = Metric(
    "qwenfleet_resumes_total",
    "counter",
    "Requests that went on at another engine, by why they left theirs.",
    ("model", "loss"),
)
RESUME_GAP_SECONDS = Metric(
    "qwenfleet_resume_gap_seconds",
    "histogram",
    "Time between a request's last token at one engine and its first at the next.",
    ("model", "loss"),
    LATENCY_BUCKETS_S,
)
MOVING_REQUESTS = Metric(
    "qwenfleet_moving_requests",
    "gauge",
    "Requests at a gateway that wait for an engine, or for their turn to leave one.",
    ("model",),
)
DRAIN_CUTS = Metric(
    "qwenfleet_drain_cut_requests_total",
    "counter",
    "Requests that an engine still ran when the time of its drain was over.",
    ("model",),
)
START_FAILURES = Metric(
    "qwenfleet_engine_start_failures_total",
    "counter",
    "Engines that gave up their start.",
    ("model",),
)
ORPHANS = Metric(
    "qwenfleet_orphaned_requests_total",
    "counter",
    "Requests that an engine stopped because their gateway's connection had gone.",
    ("model",),
)
ENGINE_STATE = Metric(
    "qwenfleet_engine_state",
    "gauge",
    "1 for the state that an engine is in, 0 for the others; deployment is its name in Serve.",
    ("model", "deployment", "engine", "state"),
)
ENGINE_RUNNING = Metric(
    "qwenfleet_engine_running_requests",
    "gauge",
    "Requests in an engine's running batch.",
    ("model", "deployment", "engine"),
)
ENGINE_WAITING = Metric(
    "qwenfleet_engine_waiting_requests",
    "gauge",
    "Requests that an engine has queued.",
    ("model", "deployment", "engine"),
)
ENGINE_KV_USAGE = Metric(
    "qwenfleet_engine_kv_cache_usage_ratio",
    "gauge",
    "Share of an engine's KV cache in use, 0 to 1.",
    ("model", "deployment", "engine"),
)
ENGINE_PREFILL_RATE = Metric(
    "qwenfleet_engine_prefill_tokens_per_second",
    "gauge",
    "Prompt tokens that an engine prefills per second, as routing has learned; 0 while unknown.",
    ("model", "deployment", "engine"),
)
ENGINE_DECODE_STEP = Metric(
    "qwenfleet_engine_decode_step_seconds",
    "gauge",
    "Time of a step that only decodes, as routing has learned; 0 while unknown.",
    ("model", "deployment", "engine"),
)
ENGINE_START_SECONDS = Metric(
    "qwenfleet_engine_start_seconds",
    "gauge",
    "What an engine's start took, or has taken so far, phase by phase.",
    ("model", "deployment", "engine", "phase"),
)
ENGINE_DRAIN_SECONDS = Metric(
    "qwenfleet_engine_drain_seconds",
    "gauge",
    "How long a draining engine has been at it.",
    ("model", "deployment", "engine"),
)
ENGINE_DRAIN_GRACE = Metric(
    "qwenfleet_engine_drain_grace_seconds",
    "gauge",
    "How long a draining engine may take.",
    ("model", "deployment", "engine"),
)
HEAD_FAULT_TOLERANCE = Metric(
    "qwenfleet_head_fault_tolerance",
    "gauge",
    "1 when Ray's state outlives its head, 0 when a lost head restarts the fleet; of clusters that "
    "say so by QWENFLEET_HEAD_STORE, as the chart's do.",
    (),
)
CLOCK = Metric(
    "qwenfleet_clock_seconds",
    "gauge",
    "Seconds since the epoch by a process's own clock, when it last reported.",
    ("role",),
)
BUILD_INFO = Metric(
    "qwenfleet_build_info",
    "gauge",
    "1, for the versions that a process runs.",
    ("role", "version", "ray", "vllm"),
)

METRICS: Final = _index(
    REQUESTS,
    REJECTIONS,
    IN_PROGRESS,
    REQUEST_SECONDS,
    QUEUE_SECONDS,
    TTFT_SECONDS,
    ITL_SECONDS,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    OUTPUT_TOKENS,
    SLO_EVENTS,
    SLO_OBJECTIVE,
    SLO_THRESHOLD,
    ROUTING,
    USABLE_ENGINES,
    ENGINE_LOSSES,
    RESUMES,
    RESUME_GAP_SECONDS,
    MOVING_REQUESTS,
    DRAIN_CUTS,
    START_FAILURES,
    ORPHANS,
    ENGINE_STATE,
    ENGINE_RUNNING,
    ENGINE_WAITING,
    ENGINE_KV_USAGE,
    ENGINE_PREFILL_RATE,
    ENGINE_DECODE_STEP,
    ENGINE_START_SECONDS,
    ENGINE_DRAIN_SECONDS,
    ENGINE_DRAIN_GRACE,
    HEAD_FAULT_TOLERANCE,
    CLOCK,
    BUILD_INFO,
)
