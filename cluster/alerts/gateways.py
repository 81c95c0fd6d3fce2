"""Alerts on gateways that die or stand still, and on errors that HAProxy answers itself.

While HAProxy reaches no gateway, it answers 503 itself. Such a request is not counted by any
gateway, and so not by any objective.
"""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.alerts.rule import Alert, Group
from qwenfleet.cluster.metrics import LOOP_LAG

MIN_STALLS: Final = 3
"""One may be a garbage collection or a busy node; three within ten minutes have a cause."""
MIN_ERRORS: Final = 10
"""Minimum in five minutes: a count of 10 has an error of a third (1 / sqrt(10))."""


def _answers(window: str, matchers: str = "") -> str:
    """Return PromQL for HAProxy's answers per second, by fleet. POST only: a starting gateway
    answers health probes with 503, which is harmless."""
    return (
        "sum by (fleet) (label_replace("
        f'rate(ray_serve_num_http_requests_total{{method="POST"{matchers}}}[{window}]), '
        '"fleet", "$1", "application", "(.+)"))'
    )


def _unjudged(window: str) -> str:
    """Return PromQL for 5xx answers per second that gateways did not count as bad, by fleet."""
    answers = _answers(window, ', status_code=~"5.."')
    bad = f'ray_qwenfleet_slo_events_total{{slo="availability", verdict="bad"}}[{window}]'
    return f"({answers}\n    - (sum by (fleet) (rate({bad}))\n       or 0 * {answers}))"


def _stalls(window: str) -> str:
    """Return PromQL for the stalls of over a second of a fleet's gateways."""
    lag = LOOP_LAG.exported
    return (
        f"round(sum by (fleet) (increase({lag}_count[{window}]))\n"
        f'    - sum by (fleet) (increase({lag}_bucket{{le="1.0"}}[{window}])))'
    )


ALERTS: Final = (
    # An update or a RayService upgrade replaces each gateway once.
    Alert(
        "QwenfleetGatewayFlapping",
        "ticket",
        "count by (fleet) (group by (fleet, WorkerId) "
        '(last_over_time(ray_qwenfleet_clock_seconds{role="gateway"}[30m])))\n'
        "  >= on (fleet) 2 * max by (fleet) "
        '(max_over_time(qwenfleet:replicas_wanted{deployment="gateway"}[30m])) + 2',
        "Gateways of fleet {{ $labels.fleet }} keep restarting",
        "Fleet {{ $labels.fleet }}: {{ $value }} gateway processes ran within 30 minutes, more "
        "than an update starts.",
    ),
    # The long window counts errors; the short one ends the alert soon after a restart.
    Alert(
        "QwenfleetIngressErrors",
        "page",
        f"{_unjudged('2m')}\n"
        f"  / {_answers('2m')} > 0.01\n"
        f"  and {_unjudged('5m')} * 300 >= {MIN_ERRORS}",
        "Requests to fleet {{ $labels.fleet }} fail before they reach a gateway",
        "Fleet {{ $labels.fleet }}: HAProxy itself has answered requests with 5xx for five "
        "minutes, now {{ $value | humanizePercentage }}. The objectives do not count them.",
        "5m",
    ),
    Alert(
        "QwenfleetGatewayStalls",
        "ticket",
        f"{_stalls('10m')} >= {MIN_STALLS}\n  and {_stalls('2m')} > 0",
        "Gateways of fleet {{ $labels.fleet }} stand still",
        "Fleet {{ $labels.fleet }}: the event loops of gateways stood for over a second "
        "{{ $value }} times within ten minutes. All streams of such a gateway waited.",
    ),
)


def groups() -> tuple[Group, ...]:
    """Return the gateway alerts."""
    return (Group("qwenfleet-gateway-alerts", ALERTS),)
