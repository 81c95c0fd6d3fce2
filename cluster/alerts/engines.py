"""Alerts on engines: losses, starts, missing replicas, drains, and gateways that miss engines.

They rely on this behavior of Ray 2.60, measured or read in its source: the agent exports a
process's gauges until 20 s after its end, and its counters forever. Every series has the labels
WorkerId and SessionName, with one session per Ray cluster. So gauges are summed only over engines,
which have ids, and gauges of gateways are reduced by `min` or `max`.
"""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.alerts.rule import DEPLOYMENT, MODEL, Alert
from qwenfleet.cluster.labels import EngineState, Loss

DRAIN_SLACK_S: Final = 30
"""Time beyond the deadline that `deployments/operations/drain.py` allows."""

START_FAILURES: Final = (
    "sum by (fleet, model) (\n"
    "  ray_qwenfleet_engine_start_failures_total\n"
    "    - (ray_qwenfleet_engine_start_failures_total offset 1h\n"
    "       or 0 * ray_qwenfleet_engine_start_failures_total)\n"
    ")"
)
"""Failed starts of the last hour, by model."""
MODELS: Final = "group by (fleet, model, deployment) (last_over_time(qwenfleet:engines[1d]))"
"""The model of each engine deployment, as its engines reported it."""
SHORT: Final = '(qwenfleet:replicas_ready{deployment!="gateway"} < qwenfleet:replicas_wanted)'
"""Engine deployments with fewer ready replicas than wanted."""

START_SECONDS: Final = (
    "sum by (fleet, model, deployment, engine) (\n"
    "    max by (fleet, model, deployment, engine, phase) (ray_qwenfleet_engine_start_seconds)\n"
    "  )"
)
"""How long each engine has been starting, or took to start."""
START_LIMIT: Final = 'max by (fleet, model) (ray_qwenfleet_slo_threshold_seconds{slo="start"})'
PLANNED: Final = (
    "group by (fleet, model) (\n"
    "  max by (fleet, model, deployment, engine) (ray_qwenfleet_engine_drain_seconds)\n"
    "    <= max by (fleet, model, deployment, engine) "
    "(ray_qwenfleet_engine_drain_grace_seconds)\n"
    "  or (\n"
    f"  {START_SECONDS}\n"
    "  and on (fleet, deployment, engine) ray_qwenfleet_engine_replaces_drained == 1\n"
    f"  ) <= on (fleet, model) group_left () {START_LIMIT}\n"
    ")"
)
"""Models with an engine that drains within its deadline, or with one that starts in place of a
drained one within slo.start_s."""

ENGINES: Final = (
    # A first start is not an outage: the model must have had an engine within a day. Neither is a
    # drain of the last engine: an operator has to force it.
    Alert(
        "QwenfleetNoEngine",
        "page",
        "max by (fleet, model) (ray_qwenfleet_usable_engines) == 0\n"
        "  and max by (fleet, model) (max_over_time(ray_qwenfleet_usable_engines[1d])) > 0\n"
        f"  unless on (fleet, model) {PLANNED}",
        "No engine serves model {{ $labels.model }}",
        f"{MODEL}: gateways had a usable engine within the last day and now have none. Requests "
        "wait or are refused.",
        "2m",
    ),
    # Counts losses over time, not engines: a lost node takes eight engines at once.
    Alert(
        "QwenfleetEngineFlapping",
        "ticket",
        "max by (fleet, model) (sum without (loss) "
        "(changes(ray_qwenfleet_engine_losses_total"
        f'{{loss!~"{Loss.DRAINED}|{Loss.REFUSED}"}}[30m]))) >= 3',
        "Engines of model {{ $labels.model }} keep failing",
        f"{MODEL}: a gateway lost engines without a drain {{{{ $value }}}} times in 30 minutes.",
    ),
    # A difference instead of increase(): a counter whose first sample is 3 has counted 3. A
    # deployment whose engines have not reported a model may run any model of its fleet.
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
        "Engines of model {{ $labels.model }} fail to start",
        f"{MODEL}: failed engine starts within the last hour: {{{{ $value }}}}. Engines are still "
        "missing, and Serve gives up after three failures.",
        "1m",
    ),
    Alert(
        "QwenfleetColdStartSlow",
        "ticket",
        "(\n"
        f"  {START_SECONDS}\n"
        "  and on (fleet, deployment, engine) "
        f'ray_qwenfleet_engine_state{{state="{EngineState.STARTING}"}} == 1\n'
        f") > on (fleet, model) group_left ()\n  {START_LIMIT}",
        "Engine {{ $labels.engine }} takes too long to start",
        f"{MODEL}: engine {{{{ $labels.engine }}}} of {{{{ $labels.deployment }}}} has been "
        "starting for {{ $value | humanizeDuration }}, longer than slo.start_s.",
        "1m",
    ),
    # A starting engine is not missing; one without a pod or GPU reports nothing. During an upgrade,
    # two Ray clusters want replicas, and there may not be room for both.
    Alert(
        "QwenfleetReplicasMissing",
        "ticket",
        "qwenfleet:replicas_wanted\n"
        "  - (sum by (fleet, deployment) (qwenfleet:engines) or qwenfleet:replicas_ready) > 0\n"
        "  unless on (fleet) qwenfleet:sessions > 1",
        "Replicas of {{ $labels.deployment }} are missing",
        f"{DEPLOYMENT}: replicas that have been neither running nor starting for 15 minutes: "
        "{{ $value }}.",
        "15m",
    ),
    # It stops reporting when its drain has ended; a series that Ray still shows then means that
    # the process is alive.
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
        "Engine {{ $labels.engine }} did not stop after its drain",
        f"{MODEL}: engine {{{{ $labels.engine }}}} of {{{{ $labels.deployment }}}} has drained for "
        "{{ $value | humanizeDuration }}, longer than allowed, and still holds its resources.",
        "1m",
    ),
    Alert(
        "QwenfleetDrainCut",
        "ticket",
        "sum by (fleet, model) (increase(ray_qwenfleet_drain_cut_requests_total[15m])) > 0",
        "A drain of model {{ $labels.model }} interrupted requests",
        f"{MODEL}: about {{{{ $value | humanize }}}} requests had not left their engine at the "
        "drain deadline; they wait for another engine.",
    ),
    # By session: during a RayService upgrade, gateways see only the engines of their Ray cluster.
    Alert(
        "QwenfleetGatewayDisagrees",
        "ticket",
        "sum by (fleet, model, SessionName) "
        "(max by (fleet, model, SessionName, engine) "
        f'(ray_qwenfleet_engine_state{{state="{EngineState.READY}"}}))\n'
        "  - min by (fleet, model, SessionName) (ray_qwenfleet_usable_engines) > 0",
        "A gateway does not use ready engines of model {{ $labels.model }}",
        f"{MODEL}: ready engines that a gateway has not been able to use for 10 minutes: "
        "{{ $value }}.",
        "10m",
    ),
)
