"""Every metric of the fleet: name, unit, labels and meaning, in one place.

Ray's metrics agent exports them with the prefix `ray_` beside vLLM's own series (`ray_vllm_…`).
Label values come from closed sets: model ids of the configuration, outcomes and states of the code,
live engine ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

LATENCY_BUCKETS_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
)  # fmt: skip
"""From a cached prompt on a GPU to a 1M-token prefill."""
TOKEN_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Around the 17 to 50 ms per token that Qwen3-Coder-480B makes on eight MI300X."""


@dataclass(frozen=True)
class Metric:
    """One metric. Counters end in `_total`; durations and ratios carry their unit."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


def _index(*metrics: Metric) -> Mapping[str, Metric]:
    return MappingProxyType({metric.name: metric for metric in metrics})


REQUESTS = Metric(
    "qwenfleet_requests_total",
    "counter",
    "HTTP requests that ended, by how they ended.",
    ("model", "outcome"),
)
REQUEST_SECONDS = Metric(
    "qwenfleet_request_seconds",
    "histogram",
    "Time from a request's body to the end of its answer, for completed requests.",
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
ENGINE_LOSSES = Metric(
    "qwenfleet_engine_losses_total",
    "counter",
    "Engines lost: core_died, reset, silent, frozen or drained. Each gateway counts its own.",
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
ORPHANS = Metric(
    "qwenfleet_orphaned_requests_total",
    "counter",
    "Requests that an engine stopped because their gateway's connection had gone.",
    ("model",),
)
ENGINE_STATE = Metric(
    "qwenfleet_engine_state",
    "gauge",
    "1 for the state that an engine is in, 0 for the others.",
    ("model", "engine", "state"),
)
ENGINE_RUNNING = Metric(
    "qwenfleet_engine_running_requests",
    "gauge",
    "Requests in an engine's running batch.",
    ("model", "engine"),
)
ENGINE_WAITING = Metric(
    "qwenfleet_engine_waiting_requests",
    "gauge",
    "Requests that an engine has queued.",
    ("model", "engine"),
)
ENGINE_KV_USAGE = Metric(
    "qwenfleet_engine_kv_cache_usage_ratio",
    "gauge",
    "Share of an engine's KV cache in use, 0 to 1.",
    ("model", "engine"),
)

METRICS: Final = _index(
    REQUESTS,
    REQUEST_SECONDS,
    TTFT_SECONDS,
    ITL_SECONDS,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    OUTPUT_TOKENS,
    ENGINE_LOSSES,
    RESUMES,
    RESUME_GAP_SECONDS,
    MOVING_REQUESTS,
    ORPHANS,
    ENGINE_STATE,
    ENGINE_RUNNING,
    ENGINE_WAITING,
    ENGINE_KV_USAGE,
)
