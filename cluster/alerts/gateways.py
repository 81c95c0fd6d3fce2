"""Alerts on gateways that die, and on answers that none of them gave.

HAProxy answers 503 by itself while it reaches no gateway: no gateway judges such a request, so that
no objective counts it.
"""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.alerts.rule import Alert, Group

MIN_ERRORS: Final = 10
"""In five minutes: a count of 10 is known to a third (1 / sqrt(10))."""


def _answers(window: str, matchers: str = "") -> str:
    """HAProxy's answers per second, by fleet. POST: a gateway that still starts answers probes of
    its health with 503, which hurts nobody."""
    return (
        "sum by (fleet) (label_replace("
        f'rate(ray_serve_num_http_requests_total{{method="POST"{matchers}}}[{window}]), '
        '"fleet", "$1", "application", "(.+)"))'
    )


def _unjudged(window: str) -> str:
    """Those with 5xx beyond what gateways judged bad themselves, per second, by fleet."""
    answers = _answers(window, ', status_code=~"5.."')
    bad = f'ray_qwenfleet_slo_events_total{{slo="availability", verdict="bad"}}[{window}]'
    return f"({answers}\n    - (sum by (fleet) (rate({bad}))\n       or 0 * {answers}))"


ALERTS: Final = (
    # An update replaces each gateway once, and so does an upgrade of a RayService.
    Alert(
        "QwenfleetGatewayFlapping",
        "ticket",
        "count by (fleet) (group by (fleet, WorkerId) "
        '(last_over_time(ray_qwenfleet_clock_seconds{role="gateway"}[30m])))\n'
        "  >= on (fleet) 2 * max by (fleet) "
        '(max_over_time(qwenfleet:replicas_wanted{deployment="gateway"}[30m])) + 2',
        "Gateways of fleet {{ $labels.fleet }} die again and again",
        "Of fleet {{ $labels.fleet }}, gateway processes seen within half an hour: {{ $value }}, "
        "more than an update makes.",
    ),
    # The long window is for their number; the short one ends it soon after a restart's few errors.
    Alert(
        "QwenfleetIngressErrors",
        "page",
        f"{_unjudged('2m')}\n"
        f"  / {_answers('2m')} > 0.01\n"
        f"  and {_unjudged('5m')} * 300 >= {MIN_ERRORS}",
        "Requests to fleet {{ $labels.fleet }} fail before a gateway has them",
        "Of fleet {{ $labels.fleet }}, for five minutes HAProxy itself has answered requests with "
        "5xx, now {{ $value | humanizePercentage }}. No objective counts them.",
        "5m",
    ),
)


def groups() -> tuple[Group, ...]:
    """All of them."""
    return (Group("qwenfleet-gateway-alerts", ALERTS),)
