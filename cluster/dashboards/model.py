"""The model dashboard: requests, latency, tokens, resumes and rejections of a model."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster import metrics
from qwenfleet.cluster.dashboards.panels import (
    COUNT,
    RATIO,
    REQUESTS_PER_S,
    SECONDS,
    TOKENS_PER_S,
    Dashboard,
    Panel,
    PanelQuery,
    Row,
)
from qwenfleet.cluster.dashboards.queries import (
    QUANTILES,
    WINDOW,
    cluster,
    of_fleet,
    of_vllm,
    quantile,
    rate,
)
from qwenfleet.cluster.metrics import Metric

LENGTHS: Final = {
    "Prompt length": (
        "request_prompt_tokens",
        "Prompt tokens of completed requests. Long prompts take prefill time and delay the tokens "
        "of others.",
    ),
    "Answer length": (
        "request_generation_tokens",
        "Tokens generated per completed request. Many at the limit are truncated answers.",
    ),
}


def _percentiles(title: str, metric: Metric, description: str) -> Panel:
    queries = tuple(
        PanelQuery(quantile(q, metric), f"p{q * 100:g} {{{{model}}}}") for q in QUANTILES
    )
    return Panel(title, description, SECONDS, queries, width=6)


def _lengths(title: str) -> Panel:
    name, description = LENGTHS[title]
    buckets = cluster(f"rate({of_vllm(name + '_bucket')}{WINDOW})")
    queries = tuple(
        PanelQuery(
            f"histogram_quantile({q}, sum by (model_name, le) ({buckets}))",
            f"p{q * 100:g} {{{{model_name}}}}",
        )
        for q in QUANTILES
    )
    return Panel(title, description, "suffix: tok", queries)


def _of_vllm_time(title: str, name: str, description: str) -> Panel:
    buckets = cluster(f"rate({of_vllm(name + '_bucket')}{WINDOW})")
    expr = f"histogram_quantile(0.99, sum by (model_name, le) ({buckets}))"
    return Panel(title, description, SECONDS, (PanelQuery(expr, "p99 {{model_name}}"),), width=12)


_TOKENS: Final = (
    PanelQuery(rate(metrics.PROMPT_TOKENS, "model"), "in {{model}}"),
    PanelQuery(rate(metrics.OUTPUT_TOKENS, "model"), "out {{model}}"),
)
_CACHED: Final = (
    f"{rate(metrics.CACHED_TOKENS, 'model')} / ({rate(metrics.PROMPT_TOKENS, 'model')} > 0)"
)

MODEL_PAGE: Final = Dashboard(
    "qwenfleet-model",
    "qwenfleet / Model",
    "One model: requests, latency, tokens, routing.",
    (
        Row(
            "Requests",
            (
                Panel(
                    "Requests by outcome",
                    "How requests ended. unavailable: no engine in time. engine_lost: no engine "
                    "could continue. The next panel shows why requests were refused.",
                    REQUESTS_PER_S,
                    (PanelQuery(f"{rate(metrics.REQUESTS, 'outcome')} > 0", "{{outcome}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Rejections by reason",
                    "Requests answered with an error, by error code: client errors or missing "
                    "capacity.",
                    REQUESTS_PER_S,
                    (PanelQuery(rate(metrics.REJECTIONS, "reason"), "{{reason}}"),),
                    is_stacked=True,
                    needs="a refused request",
                ),
                Panel(
                    "Requests in progress",
                    "Requests in progress at gateways, and those of them waiting for an engine.",
                    COUNT,
                    (
                        PanelQuery(
                            f"sum by (model) ({of_fleet(metrics.IN_PROGRESS)})", "{{model}}"
                        ),
                        PanelQuery(
                            f"sum by (model) ({of_fleet(metrics.MOVING_REQUESTS)})",
                            "waiting {{model}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Latency",
            (
                _percentiles(
                    "Time to first token",
                    metrics.TTFT_SECONDS,
                    "From a request's body to its first token: queue, prefill and one step.",
                ),
                _percentiles(
                    "Time between tokens",
                    metrics.ITL_SECONDS,
                    "Between two token events of one request, including gaps from resumes.",
                ),
                _percentiles(
                    "Time in queue",
                    metrics.QUEUE_SECONDS,
                    "Until an engine starts on the request. If it grows, add engines.",
                ),
                _percentiles(
                    "Whole requests",
                    metrics.REQUEST_SECONDS,
                    "Completed requests, from body to end; depends on the length of answers.",
                ),
            ),
        ),
        Row(
            "Tokens",
            (
                Panel(
                    "Tokens in and out",
                    "Prompt tokens sent to engines, and generated tokens: the model's load.",
                    TOKENS_PER_S,
                    _TOKENS,
                ),
                Panel(
                    "Prompt tokens from cache",
                    "Share of prompt tokens found in a prefix cache. If it falls, latency rises at "
                    "the same traffic.",
                    RATIO,
                    (PanelQuery(_CACHED, "{{model}}"),),
                    max=1.0,
                ),
                Panel(
                    "Routing decisions",
                    "Routing of requests: sent at once, queued, moved to another engine, or run in "
                    "isolation because engines crashed while running them.",
                    REQUESTS_PER_S,
                    (PanelQuery(rate(metrics.ROUTING, "decision"), "{{decision}}"),),
                ),
            ),
        ),
        Row(
            "Resumes",
            (
                Panel(
                    "Requests resumed",
                    "Requests that continued on another engine, by reason.",
                    REQUESTS_PER_S,
                    (PanelQuery(rate(metrics.RESUMES, "model, loss"), "{{loss}} {{model}}"),),
                    width=12,
                ),
                Panel(
                    "Resume gap",
                    "Time between the last token before a resume and the first token after it.",
                    SECONDS,
                    (
                        PanelQuery(
                            quantile(0.99, metrics.RESUME_GAP_SECONDS, "model, loss"),
                            "p99 {{loss}} {{model}}",
                        ),
                    ),
                    width=12,
                    needs="a lost engine",
                ),
            ),
        ),
        Row(
            "vLLM's own metrics",
            (
                _lengths("Prompt length"),
                _lengths("Answer length"),
                Panel(
                    "Requests by how they finished",
                    "vLLM's finish reason: stop, length (truncated at the limit), abort (the "
                    "client disconnected, or the request moved).",
                    REQUESTS_PER_S,
                    (
                        PanelQuery(
                            "sum by (finished_reason) ("
                            + cluster(f"rate({of_vllm('request_success_total')}{WINDOW})")
                            + ")",
                            "{{finished_reason}}",
                        ),
                    ),
                    is_stacked=True,
                ),
                _of_vllm_time(
                    "Prefill, by vLLM",
                    "request_prefill_time_seconds",
                    "From the first step of a request to its first token.",
                ),
                _of_vllm_time(
                    "Decode, by vLLM",
                    "request_decode_time_seconds",
                    "From a request's first token to its last, in the engine.",
                ),
            ),
        ),
    ),
)
