"""Alerts on the monitoring itself: missing metrics, failed scrapes, clocks, an unprotected head."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.alerts.rule import Alert

SKEW_S: Final = 60
"""A clock gauge is up to 10 s old when Ray's agent has it, and up to 20 s more while that agent
shows it still; the rest is for the scrape."""

WATCHING: Final = (
    Alert(
        "QwenfleetMetricsAbsent",
        "page",
        'max by (fleet) (max_over_time(ray_qwenfleet_clock_seconds{role="gateway"}[1d]))\n'
        '  unless max by (fleet) (ray_qwenfleet_clock_seconds{role="gateway"})',
        "No gateway of fleet {{ $labels.fleet }} reports",
        "Fleet {{ $labels.fleet }} has had no metrics of any gateway since "
        "{{ $value | humanizeTimestamp }}: it is down, or nobody sees it.",
        "5m",
    ),
    Alert(
        "QwenfleetMetricsAbsent",
        "ticket",
        'absent(ray_qwenfleet_clock_seconds{role="gateway"})',
        "No gateway of any fleet reports",
        "This Prometheus has not had metrics of any gateway for half an hour.",
        "30m",
    ),
    # The chart's PodMonitor names its job `qwenfleet/<full name of the release>`.
    Alert(
        "QwenfleetScrapeFailing",
        "ticket",
        'up{job=~".*qwenfleet.*"} == 0',
        "Prometheus cannot scrape {{ $labels.instance }}",
        "Target {{ $labels.instance }} of {{ $labels.job }}{{ with $labels.pod }} (pod "
        "{{ $labels.namespace }}/{{ . }}){{ end }} has not answered for 10 minutes: what runs "
        "there is missing from all figures.",
        "10m",
    ),
    Alert(
        "QwenfleetClockSkew",
        "ticket",
        "max by (fleet, role, NodeAddress) "
        "(abs(ray_qwenfleet_clock_seconds - timestamp(ray_qwenfleet_clock_seconds)))"
        f" > {SKEW_S}",
        "The clock of {{ $labels.NodeAddress }} is off, or a process there hangs",
        "Fleet {{ $labels.fleet }}, role {{ $labels.role }}: the clock of a process on "
        "{{ $labels.NodeAddress }} and that of Prometheus are {{ $value | humanizeDuration }} "
        "apart.",
        "5m",
    ),
    Alert(
        "QwenfleetHeadUnprotected",
        "ticket",
        "min by (fleet) (ray_qwenfleet_head_fault_tolerance) == 0",
        "The Ray head of fleet {{ $labels.fleet }} has no Redis",
        "Fleet {{ $labels.fleet }} keeps Ray's state in its head alone: when that pod goes, every "
        "engine starts anew.",
        "15m",
    ),
)
