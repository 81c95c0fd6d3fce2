"""Alerts on monitoring: missing metrics, failed scrapes, clocks, and an unprotected head."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.alerts.rule import Alert

SKEW_S: Final = 60
"""A clock gauge is up to 10 s old when Ray's agent receives it, and the agent exports it for up to
20 s more; the rest covers the scrape."""

WATCHING: Final = (
    Alert(
        "QwenfleetMetricsAbsent",
        "page",
        'max by (fleet) (max_over_time(ray_qwenfleet_clock_seconds{role="gateway"}[1d]))\n'
        '  unless max by (fleet) (ray_qwenfleet_clock_seconds{role="gateway"})',
        "No gateway of fleet {{ $labels.fleet }} reports metrics",
        "Fleet {{ $labels.fleet }} has had no metrics from any gateway since "
        "{{ $value | humanizeTimestamp }}: it is down, or its metrics do not reach Prometheus.",
        "5m",
    ),
    Alert(
        "QwenfleetMetricsAbsent",
        "ticket",
        'absent(ray_qwenfleet_clock_seconds{role="gateway"})',
        "No gateway of any fleet reports metrics",
        "This Prometheus has had no metrics from any gateway for 30 minutes.",
        "30m",
    ),
    # The chart's PodMonitor names its job `qwenfleet/<full name of the release>`.
    Alert(
        "QwenfleetScrapeFailing",
        "ticket",
        'up{job=~".*qwenfleet.*"} == 0',
        "Prometheus cannot scrape {{ $labels.instance }}",
        "Target {{ $labels.instance }} of {{ $labels.job }}{{ with $labels.pod }} (pod "
        "{{ $labels.namespace }}/{{ . }}){{ end }} has not answered for 10 minutes: its metrics "
        "are missing from dashboards and alerts.",
        "10m",
    ),
    Alert(
        "QwenfleetClockSkew",
        "ticket",
        "max by (fleet, role, NodeAddress) "
        "(abs(ray_qwenfleet_clock_seconds - timestamp(ray_qwenfleet_clock_seconds)))"
        f" > {SKEW_S}",
        "The clock of {{ $labels.NodeAddress }} is wrong, or a process there hangs",
        "Fleet {{ $labels.fleet }}, role {{ $labels.role }}: the clock of a process on "
        "{{ $labels.NodeAddress }} differs from Prometheus's by {{ $value | humanizeDuration }}.",
        "5m",
    ),
    Alert(
        "QwenfleetHeadUnprotected",
        "ticket",
        "min by (fleet) (ray_qwenfleet_head_fault_tolerance) == 0",
        "The Ray head of fleet {{ $labels.fleet }} has no Redis",
        "Fleet {{ $labels.fleet }} keeps Ray's state only in its head: if that pod is lost, every "
        "engine restarts.",
        "15m",
    ),
)
