"""One model's page: what its users ask for, what they wait for, what they are refused."""

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
    Query,
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
        "What vLLM was asked to read, of completed requests. Long prompts cost prefill and make "
        "others wait for tokens.",
    ),
    "Answer length": (
        "request_generation_tokens",
        "What vLLM generated per completed request. Many at the limit are cut answers.",
    ),
}


def _percentiles(title: str, metric: Metric, description: str) -> Panel:
    queries = tuple(Query(quantile(q, metric), f"p{q * 100:g} {{{{model}}}}") for q in QUANTILES)
    return Panel(title, description, SECONDS, queries, width=6)


def _lengths(title: str) -> Panel:
    name, description = LENGTHS[title]
    buckets = cluster(f"rate({of_vllm(name + '_bucket')}{WINDOW})")
    queries = tuple(
        Query(
            f"histogram_quantile({q}, sum by (model_name, le) ({buckets}))",
            f"p{q * 100:g} {{{{model_name}}}}",
        )
        for q in QUANTILES
    )
    return Panel(title, description, "suffix: tok", queries)


def _of_vllm_time(title: str, name: str, description: str) -> Panel:
    buckets = cluster(f"rate({of_vllm(name + '_bucket')}{WINDOW})")
    expr = f"histogram_quantile(0.99, sum by (model_name, le) ({buckets}))"
    return Panel(title, description, SECONDS, (Query(expr, "p99 {{model_name}}"),), width=12)


_TOKENS: Final = (
    Query(rate(metrics.PROMPT_TOKENS, "model"), "in {{model}}"),
    Query(rate(metrics.OUTPUT_TOKENS, "model"), "out {{model}}"),
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
                    "How requests ended. unavailable means no engine in time, engine_lost that "
                    "none could go on; refused ones are explained beside.",
                    REQUESTS_PER_S,
                    (Query(f"{rate(metrics.REQUESTS, 'outcome')} > 0", "{{outcome}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Rejections by reason",
                    "Requests answered with an error, by its code: what clients do wrong, or what "
                    "the fleet lacks.",
                    REQUESTS_PER_S,
                    (Query(rate(metrics.REJECTIONS, "reason"), "{{reason}}"),),
                    is_stacked=True,
                    needs="a refused request",
                ),
                Panel(
                    "Requests in progress",
                    "In progress at gateways, and those of them that wait for an engine.",
                    COUNT,
                    (
                        Query(f"sum by (model) ({of_fleet(metrics.IN_PROGRESS)})", "{{model}}"),
                        Query(
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
                    "Between two token events of one request, gaps of resumes among them.",
                ),
                _percentiles(
                    "Time in queue",
                    metrics.QUEUE_SECONDS,
                    "Until an engine began with the request. When it grows, add engines.",
                ),
                _percentiles(
                    "Whole requests",
                    metrics.REQUEST_SECONDS,
                    "Completed requests, from body to end: they follow the length of answers.",
                ),
            ),
        ),
        Row(
            "Tokens",
            (
                Panel(
                    "Tokens in and out",
                    "Prompt tokens sent to engines and tokens generated: the model's real load.",
                    TOKENS_PER_S,
                    _TOKENS,
                ),
                Panel(
                    "Prompt tokens from cache",
                    "Share of prompt tokens that an engine's prefix cache held. A fall means "
                    "longer waits at the same traffic.",
                    RATIO,
                    (Query(_CACHED, "{{model}}"),),
                    max=1.0,
                ),
                Panel(
                    "Routing decisions",
                    "What became of requests: sent at once, made to wait, moved to another engine, "
                    "or put on trial because engines died under them.",
                    REQUESTS_PER_S,
                    (Query(rate(metrics.ROUTING, "decision"), "{{decision}}"),),
                ),
            ),
        ),
        Row(
            "Resumes",
            (
                Panel(
                    "Requests resumed",
                    "Requests that went on at another engine, by why they left theirs.",
                    REQUESTS_PER_S,
                    (Query(rate(metrics.RESUMES, "model, loss"), "{{loss}} {{model}}"),),
                    width=12,
                ),
                Panel(
                    "Gap of a resume",
                    "What a user of a resumed stream saw: the time between two tokens around it.",
                    SECONDS,
                    (
                        Query(
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
            "As vLLM sees it",
            (
                _lengths("Prompt length"),
                _lengths("Answer length"),
                Panel(
                    "Requests by how they finished",
                    "vLLM's own word: stop, length (cut at the limit), abort (the client left, or "
                    "the request moved).",
                    REQUESTS_PER_S,
                    (
                        Query(
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
                    "From the first step that worked on a request to its first token.",
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
