"""The recording rules that alerts, dashboards and `qwenfleet top` share.

Counters and histograms are summed over processes before quantiles are taken: a mean of quantiles
is not a quantile. A window without events has no value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qwenfleet.cluster.alerts.rule import Group, Recording

WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h")
"""Windows of the share of bad events, read from the counters."""
LONG_WINDOWS: Final = ("1d", "3d")
"""Windows read from recorded series: three days of every process's counters are millions of
samples."""
QUANTILES: Final = ("0.5", "0.9", "0.99")
HISTOGRAMS: Final = (
    "time_to_first_token_seconds",
    "inter_token_seconds",
    "queue_seconds",
    "request_seconds",
)
ENGINES_AND_GATEWAYS: Final = 'deployment=~"gateway|engine-.+"'
"""Deployments of a fleet; its application has the fleet's name (deployments/app.py)."""
FLEETS: Final = "and on (fleet) group by (fleet) (last_over_time(ray_qwenfleet_build_info[1h]))"
"""Leaves out other applications of a Ray cluster, which may have deployments of the same names."""


def groups() -> tuple[Group, ...]:
    """Return the recording rules."""
    return (
        Group("qwenfleet-slo", tuple(_objectives())),
        Group("qwenfleet-slo-long", tuple(_long_objectives()), interval="1m"),
        Group("qwenfleet-traffic", tuple(_traffic())),
        Group("qwenfleet-engines", tuple(_engines())),
    )


def _objectives() -> Iterator[Recording]:
    yield Recording(
        "qwenfleet:slo_events:rate5m",
        "sum by (fleet, model, slo, verdict) (rate(ray_qwenfleet_slo_events_total[5m]))",
    )
    # A gauge missing in one scrape must not end an alert.
    yield Recording(
        "qwenfleet:slo_budget:ratio",
        "1 - max by (fleet, model, slo) (last_over_time(ray_qwenfleet_slo_objective_ratio[5m]))",
    )
    for window in WINDOWS:
        yield Recording(
            f"qwenfleet:slo_bad:ratio_rate{window}",
            "sum by (fleet, model, slo) "
            f'(rate(ray_qwenfleet_slo_events_total{{verdict="bad"}}[{window}]))\n'
            f"/ (sum by (fleet, model, slo) (rate(ray_qwenfleet_slo_events_total[{window}])) > 0)",
        )


def _long_objectives() -> Iterator[Recording]:
    for window in LONG_WINDOWS:
        yield Recording(f"qwenfleet:slo_bad:ratio_rate{window}", _recorded_share(window))
    share = _recorded_share("30d")
    yield Recording(
        "qwenfleet:slo_budget_left:ratio30d", f"1 - (\n{share}\n) / qwenfleet:slo_budget:ratio"
    )


def _recorded_share(window: str) -> str:
    """Divide sums of rates instead of averaging shares: a quiet hour must weigh little."""
    return (
        "sum by (fleet, model, slo) "
        f'(sum_over_time(qwenfleet:slo_events:rate5m{{verdict="bad"}}[{window}]))\n'
        f"/ (sum by (fleet, model, slo) (sum_over_time(qwenfleet:slo_events:rate5m[{window}])) > 0)"
    )


def _traffic() -> Iterator[Recording]:
    yield Recording(
        "qwenfleet:requests:rate5m",
        "sum by (fleet, model, outcome) (rate(ray_qwenfleet_requests_total[5m]))",
    )
    for kind in ("prompt", "cached", "output"):
        yield Recording(
            "qwenfleet:tokens:rate2m",
            f"sum by (fleet, model) (rate(ray_qwenfleet_{kind}_tokens_total[2m]))",
            (("kind", kind),),
        )
    for histogram in HISTOGRAMS:
        for quantile in QUANTILES:
            # `>= 0` drops NaN, the quantile of no events.
            yield Recording(
                f"qwenfleet:{histogram}:quantile5m",
                f"histogram_quantile({quantile}, sum by (fleet, model, le) "
                f"(rate(ray_qwenfleet_{histogram}_bucket[5m]))) >= 0",
                (("quantile", quantile),),
            )


def _engines() -> Iterator[Recording]:
    yield Recording(
        "qwenfleet:engines",
        "sum by (fleet, model, deployment, state) (ray_qwenfleet_engine_state)",
    )
    yield Recording(
        "qwenfleet:queued_requests",
        "sum by (fleet, model) "
        "(ray_qwenfleet_engine_waiting_requests or ray_qwenfleet_moving_requests)",
    )
    # A new Ray cluster's controller reports long before a process of the fleet does.
    yield Recording(
        "qwenfleet:sessions",
        "count by (fleet) (group by (fleet, SessionName) (\n"
        "  ray_qwenfleet_build_info\n"
        '  or label_replace(ray_serve_autoscaling_target_replicas, "fleet", "$1", "application", '
        '"(.+)")\n'
        f")) {FLEETS}",
    )
    # During a RayService upgrade there are two Ray clusters, each a session with its own targets.
    # When a controller takes over, one session has two controllers for some seconds.
    yield Recording(
        "qwenfleet:replicas_wanted",
        "sum by (fleet, deployment) (max by (fleet, deployment, SessionName) (label_replace(\n"
        f"  ray_serve_autoscaling_target_replicas{{{ENGINES_AND_GATEWAYS}}},\n"
        '  "fleet", "$1", "application", "(.+)"\n'
        f"))) {FLEETS}",
    )
    yield Recording(
        "qwenfleet:replicas_ready",
        "sum by (fleet, deployment) "
        "(max by (fleet, deployment, replica, SessionName) (label_replace(\n"
        f"  ray_serve_deployment_replica_healthy{{{ENGINES_AND_GATEWAYS}}},\n"
        '  "fleet", "$1", "application", "(.+)"\n'
        f"))) {FLEETS}\n"
        "or 0 * qwenfleet:replicas_wanted",
    )
