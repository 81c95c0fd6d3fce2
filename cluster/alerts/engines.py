"""Alerts on causes: engines, streams, queues, starts, drains, and the watching itself.

What they rest on, measured or read in Ray 2.60: its agent exports a process's gauges until 20 s
after the process's end and its counters for ever; every series has the labels WorkerId and
SessionName, one session for each Ray cluster. Hence gauges are summed at most over engines, which
have ids, and gateways' gauges are reduced by `min` or `max`.
"""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.alerts.rule import DEPLOYMENT, MODEL, Alert
from qwenfleet.cluster.labels import EngineState, Loss

DRAIN_SLACK_S: Final = 30
"""As `deployments/operations/drain.py` allows beyond the deadline."""

START_FAILURES: Final = (
    "sum by (fleet, model) (\n"
    "  ray_qwenfleet_engine_start_failures_total\n"
    "    - (ray_qwenfleet_engine_start_failures_total offset 1h\n"
    "       or 0 * ray_qwenfleet_engine_start_failures_total)\n"
    ")"
)
"""Of the last hour, by model."""
MODELS: Final = "group by (fleet, model, deployment) (last_over_time(qwenfleet:engines[1d]))"
"""Which model an engine deployment runs, as its engines said."""
SHORT: Final = '(qwenfleet:replicas_ready{deployment!="gateway"} < qwenfleet:replicas_wanted)'
"""Engine deployments with fewer ready replicas than wanted."""

ENGINES: Final = (
    # A model whose first engine still starts is no outage: it must have had one within a day.
    Alert(
        "QwenfleetNoEngine",
        "page",
        "max by (fleet, model) (ray_qwenfleet_usable_engines) == 0\n"
        "  and max by (fleet, model) (max_over_time(ray_qwenfleet_usable_engines[1d])) > 0",
        "No engine serves model {{ $labels.model }}",
        f"{MODEL}, every gateway sees no usable engine, and saw one within the last day. Its "
        "requests wait or are refused.",
        "2m",
    ),
    # Times at which a gateway lost engines, not engines: a node takes eight with it at once.
    Alert(
        "QwenfleetEngineFlapping",
        "ticket",
        "max by (fleet, model) (sum without (loss) "
        "(changes(ray_qwenfleet_engine_losses_total"
        f'{{loss!~"{Loss.DRAINED}|{Loss.REFUSED}"}}[30m]))) >= 3',
        "Engines of model {{ $labels.model }} are lost again and again",
        f"{MODEL}, a gateway lost engines without a drain {{{{ $value }}}} times in half an hour.",
    ),
    # A difference and no increase(): a counter whose first sample is 3 has counted 3. A deployment
    # none of whose engines has said which model it runs may be of any model of its fleet.
    Alert(
        "QwenfleetEngineStartsFail",
        "ticket",
        f"{START_FAILURES} > 0\n"
        "  and on (fleet, model) (\n"
        f"    {MODELS}\n"
        f"      and on (fleet, deployment) {SHORT}\n"
        "  )\n"
        f"or {START_FAILURES} > 0\n"
        "  and on (fleet) (\n"
        f"    {SHORT}\n"
        f"      unless on (fleet, deployment) {MODELS}\n"
        "  )",
        "Engines of model {{ $labels.model }} do not start",
        f"{MODEL}, engines that gave up their start within an hour: {{{{ $value }}}}. It still has "
        "fewer than wanted, and Serve gives up after three.",
        "1m",
    ),
    Alert(
        "QwenfleetColdStartSlow",
        "ticket",
        "(\n"
        "  sum by (fleet, model, deployment, engine) (\n"
        "    max by (fleet, model, deployment, engine, phase) "
        "(ray_qwenfleet_engine_start_seconds)\n"
        "  )\n"
        "  and on (fleet, deployment, engine) "
        f'ray_qwenfleet_engine_state{{state="{EngineState.STARTING}"}} == 1\n'
        ") > on (fleet, model) group_left ()\n"
        '  max by (fleet, model) (ray_qwenfleet_slo_threshold_seconds{slo="start"})',
        "Engine {{ $labels.engine }} takes too long to start",
        f"{MODEL}, engine {{{{ $labels.engine }}}} of {{{{ $labels.deployment }}}} has been "
        "starting for {{ $value | humanizeDuration }}, longer than slo.start_s.",
        "1m",
    ),
    # An engine that starts is on its way; one without a pod or GPU says nothing at all. The two Ray
    # clusters of an upgrade want twice as many as there may be room for.
    Alert(
        "QwenfleetReplicasMissing",
        "ticket",
        "qwenfleet:replicas_wanted\n"
        "  - (sum by (fleet, deployment) (qwenfleet:engines) or qwenfleet:replicas_ready) > 0\n"
        "  unless on (fleet) qwenfleet:sessions > 1",
        "Replicas of {{ $labels.deployment }} are wanted and not there",
        f"{DEPLOYMENT}, replicas that have been wanted for 15 minutes and neither run nor start: "
        "{{ $value }}.",
        "15m",
    ),
    # It reports no more once its drain has ended; what Ray still shows then is of a living process.
    Alert(
        "QwenfleetDrainOverGrace",
        "ticket",
        "max by (fleet, model, deployment, engine) (ray_qwenfleet_engine_drain_seconds)\n"
        "  > max by (fleet, model, deployment, engine) (ray_qwenfleet_engine_drain_grace_seconds)"
        f" + {DRAIN_SLACK_S}\n"
        "or max by (fleet, model, deployment, engine) (\n"
        "  ray_qwenfleet_engine_drain_seconds\n"
        "    and changes(ray_qwenfleet_engine_drain_seconds[2m]) == 0\n"
        "    and ray_qwenfleet_engine_drain_seconds offset 1m\n"
        ")",
        "Engine {{ $labels.engine }} should have gone",
        f"{MODEL}, engine {{{{ $labels.engine }}}} of {{{{ $labels.deployment }}}} has drained for "
        "{{ $value | humanizeDuration }}, its time is over, and it still holds its place.",
        "1m",
    ),
    Alert(
        "QwenfleetDrainCut",
        "ticket",
        "sum by (fleet, model) (increase(ray_qwenfleet_drain_cut_requests_total[15m])) > 0",
        "A drain of model {{ $labels.model }} cut requests",
        f"{MODEL}, about {{{{ $value | humanize }}}} requests had not left their engine when the "
        "time of its drain was over; they wait for another.",
    ),
    # By session: while a RayService is upgraded, gateways of one Ray cluster see only its engines.
    Alert(
        "QwenfleetGatewayDisagrees",
        "ticket",
        "sum by (fleet, model, SessionName) "
        "(max by (fleet, model, SessionName, engine) "
        f'(ray_qwenfleet_engine_state{{state="{EngineState.READY}"}}))\n'
        "  - min by (fleet, model, SessionName) (ray_qwenfleet_usable_engines) > 0",
        "A gateway does not use ready engines of model {{ $labels.model }}",
        f"{MODEL}, ready engines that a gateway has not been able to use for 10 minutes: "
        "{{ $value }}.",
        "10m",
    ),
)
