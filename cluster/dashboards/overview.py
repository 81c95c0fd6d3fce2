"""The overview dashboard: whether the fleet meets its objectives, and if not, since when."""

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
from qwenfleet.cluster.dashboards.queries import FLEET, of_fleet, rate, rule

BUDGET: Final = ((None, "red"), (0.0, "orange"), (0.25, "green"))


def _burn(window: str) -> str:
    allowed = f"1 - max by (fleet, model, slo) ({of_fleet(metrics.SLO_OBJECTIVE)})"
    bad = rule(f"qwenfleet:slo_bad:ratio_rate{window}")
    return f"{bad} / on (fleet, model, slo) ({allowed})"


def _latency(title: str, name: str, description: str) -> Panel:
    series = f"qwenfleet:{name}:quantile5m"
    queries = (
        PanelQuery(rule(series, 'quantile="0.99"'), "p99 {{model}}"),
        PanelQuery(rule(series, 'quantile="0.5"'), "p50 {{model}}"),
    )
    return Panel(title, description, SECONDS, queries, width=6)


OBJECTIVES: Final = Row(
    "Objectives",
    (
        Panel(
            "Error budget left, 30 days",
            "Share of the 30-day error budget that is left. Below 0, the objective is missed: stop "
            "risky changes. If Prometheus keeps fewer days (15 by default), it covers only those.",
            RATIO,
            (PanelQuery(rule("qwenfleet:slo_budget_left:ratio30d"), "{{model}} {{slo}}"),),
            kind="stat",
            width=24,
            height=5,
            steps=BUDGET,
        ),
        Panel(
            "Burn rate, 1 hour",
            "How many times faster than allowed the budget is spent: at 1 it lasts exactly 30 "
            "days, at 14.4 two days. Fast burns page.",
            "suffix: x",
            (PanelQuery(_burn("1h"), "{{model}} {{slo}}"),),
        ),
        Panel(
            "Burn rate, 6 hours",
            "The same over 6 hours. A spike that shows only in the 1-hour panel was short.",
            "suffix: x",
            (PanelQuery(_burn("6h"), "{{model}} {{slo}}"),),
        ),
        Panel(
            "Bad events, 5 minutes",
            "Share of requests that failed, and of first and later tokens that were late.",
            RATIO,
            (PanelQuery(rule("qwenfleet:slo_bad:ratio_rate5m"), "{{model}} {{slo}}"),),
        ),
        Panel(
            "Objectives: share of good events",
            "The objectives in effect, from the fleet's configuration.",
            RATIO,
            (PanelQuery(f"max by (model, slo) ({of_fleet(metrics.SLO_OBJECTIVE)})", "{{slo}}"),),
            kind="table",
            width=12,
            height=5,
            row="model",
            column="slo",
        ),
        Panel(
            "Objectives: longest good time",
            "A first token, a later token or an engine start that takes longer is a bad event.",
            SECONDS,
            (PanelQuery(f"max by (model, slo) ({of_fleet(metrics.SLO_THRESHOLD)})", "{{slo}}"),),
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
            "Requests by how they ended. All but completed, refused and disconnected are failures "
            "of the fleet.",
            REQUESTS_PER_S,
            (
                PanelQuery(
                    f"sum by (outcome) ({rule('qwenfleet:requests:rate5m')}) > 0",
                    "{{outcome}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            "Requests in progress",
            "Requests in progress at gateways, by model. A rise at steady traffic is a queue.",
            COUNT,
            (PanelQuery(f"sum by (model) ({of_fleet(metrics.IN_PROGRESS)})", "{{model}}"),),
            is_stacked=True,
        ),
        Panel(
            "Tokens",
            "Prompt tokens sent, prompt tokens found in a prefix cache, and generated tokens.",
            TOKENS_PER_S,
            (PanelQuery(f"sum by (kind) ({rule('qwenfleet:tokens:rate2m')})", "{{kind}}"),),
        ),
    ),
)
LATENCY: Final = Row(
    "Latency",
    (
        _latency(
            "Time to first token",
            "time_to_first_token_seconds",
            "How long a user waits for the first token. The time beyond the queue is prefill.",
        ),
        _latency(
            "Time between tokens",
            "inter_token_seconds",
            "How smoothly text streams. Grows with the running batch and with long prefills.",
        ),
        _latency(
            "Time in queue",
            "queue_seconds",
            "From a request's body to the first step of an engine on it. Growth means too few "
            "engines.",
        ),
        _latency(
            "Whole requests",
            "request_seconds",
            "Completed requests, from body to end; depends on how many tokens users ask for.",
        ),
    ),
)
ENGINES: Final = Row(
    "Engines",
    (
        Panel(
            "Engines by state",
            "Only ready engines take new requests. For engines stuck in another state, see the "
            "Engines dashboard.",
            COUNT,
            (
                PanelQuery(
                    f"sum by (state) ({rule('qwenfleet:engines')})",
                    "{{state}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            "Replicas wanted and ready",
            "Replicas that Serve wants for each deployment, and healthy ones. A lasting gap means "
            "missing nodes or GPUs.",
            COUNT,
            (
                PanelQuery(f"qwenfleet:replicas_wanted{{{FLEET}}}", "{{deployment}} wanted"),
                PanelQuery(f"qwenfleet:replicas_ready{{{FLEET}}}", "{{deployment}} ready"),
            ),
        ),
        Panel(
            "KV cache in use",
            "The fullest engine of each model. Near 100 %, engines preempt: requests wait or start "
            "over.",
            RATIO,
            (PanelQuery(f"max by (model) ({of_fleet(metrics.ENGINE_KV_USAGE)})", "{{model}}"),),
            max=1.0,
        ),
    ),
)
LOSSES: Final = Row(
    "Losses and resumes",
    (
        Panel(
            "Engines lost",
            "Lost engines by reason. Each gateway counts its own losses, so the rate grows with "
            "the number of gateways; drained engines stopped on request.",
            "suffix: /s",
            (PanelQuery(rate(metrics.ENGINE_LOSSES, "loss"), "{{loss}}"),),
            width=6,
        ),
        Panel(
            "Requests resumed",
            "Requests that continued on another engine after their last token; users saw a gap.",
            REQUESTS_PER_S,
            (PanelQuery(rate(metrics.RESUMES, "loss"), "{{loss}}"),),
            width=6,
        ),
        Panel(
            "Requests interrupted or aborted",
            "Interrupted at a drain deadline, or aborted because their gateway disconnected.",
            REQUESTS_PER_S,
            (
                PanelQuery(rate(metrics.DRAIN_CUTS, "model"), "interrupted {{model}}"),
                PanelQuery(rate(metrics.ORPHANS, "model"), "aborted {{model}}"),
            ),
            width=6,
        ),
        Panel(
            "Processes by version",
            "More than one version at a time means an upgrade in progress, or a stuck one.",
            COUNT,
            (
                PanelQuery(
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
