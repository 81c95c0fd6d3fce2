"""The fleet's first page: do its users get what they were promised, and if not, since when."""

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
from qwenfleet.cluster.dashboards.queries import FLEET, of_fleet, rate, rule

BUDGET: Final = ((None, "red"), (0.0, "orange"), (0.25, "green"))


def _burn(window: str) -> str:
    allowed = f"1 - max by (fleet, model, slo) ({of_fleet(metrics.SLO_OBJECTIVE)})"
    bad = rule(f"qwenfleet:slo_bad:ratio_rate{window}")
    return f"{bad} / on (fleet, model, slo) ({allowed})"


def _latency(title: str, name: str, description: str) -> Panel:
    series = f"qwenfleet:{name}:quantile5m"
    queries = (
        Query(rule(series, 'quantile="0.99"'), "p99 {{model}}"),
        Query(rule(series, 'quantile="0.5"'), "p50 {{model}}"),
    )
    return Panel(title, description, SECONDS, queries, width=6)


OBJECTIVES: Final = Row(
    "Objectives",
    (
        Panel(
            "Error budget left, 30 days",
            "Share of the bad events that the objective allows in 30 days and that are still to be "
            "had. Below 0 the promise is broken: stop risky changes. Of as many days as Prometheus "
            "keeps, when it keeps fewer; its own default is 15.",
            RATIO,
            (Query(rule("qwenfleet:slo_budget_left:ratio30d"), "{{model}} {{slo}}"),),
            kind="stat",
            width=24,
            height=5,
            steps=BUDGET,
        ),
        Panel(
            "Burn rate, 1 hour",
            "How many times faster than allowed the budget is being spent: at 1 it lasts exactly "
            "30 days, at 14.4 two. Fast burns page.",
            "suffix: x",
            (Query(_burn("1h"), "{{model}} {{slo}}"),),
        ),
        Panel(
            "Burn rate, 6 hours",
            "The same over 6 hours: what the hour shows as a spike and this does not is over.",
            "suffix: x",
            (Query(_burn("6h"), "{{model}} {{slo}}"),),
        ),
        Panel(
            "Bad events, 5 minutes",
            "Share of requests that failed, and of first and later tokens that came too late.",
            RATIO,
            (Query(rule("qwenfleet:slo_bad:ratio_rate5m"), "{{model}} {{slo}}"),),
        ),
        Panel(
            "Promised share of good events",
            "The objectives in force, from the fleet's configuration.",
            RATIO,
            (Query(f"max by (model, slo) ({of_fleet(metrics.SLO_OBJECTIVE)})", "{{slo}}"),),
            kind="table",
            width=12,
            height=5,
            row="model",
            column="slo",
        ),
        Panel(
            "Longest good time",
            "A first token, a later token or an engine's start that takes longer is a bad event.",
            SECONDS,
            (Query(f"max by (model, slo) ({of_fleet(metrics.SLO_THRESHOLD)})", "{{slo}}"),),
            kind="table",
            width=12,
            height=5,
            row="model",
            column="slo",
        ),
    ),
)
TRAFFIC: Final = Row(
    "Traffic",
    (
        Panel(
            "Requests by outcome",
            "Requests that ended. All but completed, refused and disconnected is ours to mend.",
            REQUESTS_PER_S,
            (
                Query(
                    f"sum by (outcome) ({rule('qwenfleet:requests:rate5m')}) > 0",
                    "{{outcome}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            "Requests in progress",
            "Requests that gateways work on, by model. A rise at steady traffic is a queue.",
            COUNT,
            (Query(f"sum by (model) ({of_fleet(metrics.IN_PROGRESS)})", "{{model}}"),),
            is_stacked=True,
        ),
        Panel(
            "Tokens",
            "Prompt tokens sent, those of them that a prefix cache held, and tokens generated.",
            TOKENS_PER_S,
            (Query(f"sum by (kind) ({rule('qwenfleet:tokens:rate2m')})", "{{kind}}"),),
        ),
    ),
)
LATENCY: Final = Row(
    "Latency",
    (
        _latency(
            "Time to first token",
            "time_to_first_token_seconds",
            "What a user waits before anything moves. Compare with the queue: the rest is prefill.",
        ),
        _latency(
            "Time between tokens",
            "inter_token_seconds",
            "How smoothly text flows. It grows with the running batch and with long prefills.",
        ),
        _latency(
            "Time in queue",
            "queue_seconds",
            "From a request's body to the step in which an engine began with it. Growth means that "
            "engines are too few.",
        ),
        _latency(
            "Whole requests",
            "request_seconds",
            "Completed requests from body to end; it follows how much users ask for.",
        ),
    ),
)
ENGINES: Final = Row(
    "Engines",
    (
        Panel(
            "Engines by state",
            "Only ready engines take new requests. Starting ones that never get ready, or "
            "quarantined ones, are on the engines' page.",
            COUNT,
            (
                Query(
                    f"sum by (state) ({rule('qwenfleet:engines')})",
                    "{{state}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            "Replicas wanted and ready",
            "What Serve wants of each deployment, and what is healthy. A gap that stays means that "
            "nodes or GPUs are missing.",
            COUNT,
            (
                Query(f"qwenfleet:replicas_wanted{{{FLEET}}}", "{{deployment}} wanted"),
                Query(f"qwenfleet:replicas_ready{{{FLEET}}}", "{{deployment}} ready"),
            ),
        ),
        Panel(
            "KV cache in use",
            "The fullest engine of each model. Near 100 % engines preempt: requests wait or start "
            "over.",
            RATIO,
            (Query(f"max by (model) ({of_fleet(metrics.ENGINE_KV_USAGE)})", "{{model}}"),),
            max=1.0,
        ),
    ),
)
LOSSES: Final = Row(
    "Losses and resumes",
    (
        Panel(
            "Engines lost",
            "By how. Each gateway counts what it sees, so that the rate grows with gateways; "
            "drained ones left as asked.",
            "suffix: /s",
            (Query(rate(metrics.ENGINE_LOSSES, "loss"), "{{loss}}"),),
            width=6,
        ),
        Panel(
            "Requests resumed",
            "Requests that went on at another engine behind their tokens so far; users saw a gap.",
            REQUESTS_PER_S,
            (Query(rate(metrics.RESUMES, "loss"), "{{loss}}"),),
            width=6,
        ),
        Panel(
            "Requests stopped by us",
            "Cut at the end of a drain's time, or stopped because their gateway had gone.",
            REQUESTS_PER_S,
            (
                Query(rate(metrics.DRAIN_CUTS, "model"), "cut {{model}}"),
                Query(rate(metrics.ORPHANS, "model"), "orphaned {{model}}"),
            ),
            width=6,
        ),
        Panel(
            "Processes by version",
            "More than one version at a time is an upgrade under way, or one that got stuck.",
            COUNT,
            (
                Query(
                    f"count by (role, version, ray, vllm) ({of_fleet(metrics.BUILD_INFO)})",
                    "{{role}} {{version}}, ray {{ray}}, vllm {{vllm}}",
                ),
            ),
            width=6,
        ),
    ),
)
OVERVIEW: Final = Dashboard(
    "qwenfleet-overview",
    "qwenfleet / Overview",
    "Objectives first; then traffic, latency and engines.",
    (OBJECTIVES, TRAFFIC, LATENCY, ENGINES, LOSSES),
)
