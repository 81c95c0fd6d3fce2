"""Alerts on causes: engines, streams, queues, starts, drains, and the watching itself.

What they rest on, measured or read in Ray 2.60: its agent exports a process's gauges until 20 s
after the process's end and its counters for ever; every series has the labels WorkerId and
SessionName, one session for each Ray cluster. Hence gauges are summed at most over engines, which
have ids, and gateways' gauges are reduced by `min` or `max`.
"""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster import burn_rates, gateway_alerts, recording_rules
from qwenfleet.cluster.prometheus_rules import Alert, Group, to_yaml

SKEW_S: Final = 60
"""A clock gauge is up to 10 s old when Ray's agent has it, and up to 20 s more while that agent
shows it still; the rest is for the scrape."""
DRAIN_SLACK_S: Final = 30
"""As `deployments/drain.py` allows beyond the deadline."""

MODEL: Final = "Of fleet {{ $labels.fleet }}, model {{ $labels.model }}"
DEPLOYMENT: Final = "Of fleet {{ $labels.fleet }}, deployment {{ $labels.deployment }}"
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
        '(changes(ray_qwenfleet_engine_losses_total{loss!~"drained|refused"}[30m]))) >= 3',
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
        'ray_qwenfleet_engine_state{state="starting"} == 1\n'
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
        '(max by (fleet, model, SessionName, engine) (ray_qwenfleet_engine_state{state="ready"}))\n'
        "  - min by (fleet, model, SessionName) (ray_qwenfleet_usable_engines) > 0",
        "A gateway does not use ready engines of model {{ $labels.model }}",
        f"{MODEL}, ready engines that a gateway has not been able to use for 10 minutes: "
        "{{ $value }}.",
        "10m",
    ),
)

STREAMS: Final = (
    Alert(
        "QwenfleetStreamsLost",
        "ticket",
        "sum by (fleet, model) "
        '(increase(ray_qwenfleet_requests_total{outcome="engine_lost"}[15m])) > 0',
        "Streams of model {{ $labels.model }} were lost",
        f"{MODEL}, about {{{{ $value | humanize }}}} requests of the last 15 minutes ended because "
        "no engine could go on with them.",
    ),
    Alert(
        "QwenfleetStreamsResumed",
        "ticket",
        "sum by (fleet, model) "
        '(increase(ray_qwenfleet_resumes_total{loss!="drained"}[30m]))\n'
        "  / clamp_min(sum by (fleet, model) (increase(ray_qwenfleet_requests_total[30m])), 1)"
        " > 0.05\n"
        "  and sum by (fleet, model) "
        '(increase(ray_qwenfleet_resumes_total{loss!="drained"}[30m])) >= 10',
        "Many streams of model {{ $labels.model }} change engines",
        f"{MODEL}, in half an hour {{{{ $value | humanizePercentage }}}} as many streams went on "
        "at another engine, without a drain, as requests ended.",
    ),
    # 0.9 as in gateway-api-inference-extension, tools/alerts/alert.yaml.
    Alert(
        "QwenfleetKvCachePressure",
        "ticket",
        "avg by (fleet, model, deployment) (\n"
        "  ray_qwenfleet_engine_kv_cache_usage_ratio\n"
        "    and on (fleet, deployment, engine) "
        'ray_qwenfleet_engine_state{state=~"ready|quarantined"} == 1\n'
        ") > 0.9\n"
        "  and sum by (fleet, model, deployment) "
        "(max_over_time(ray_qwenfleet_engine_waiting_requests[5m])) > 0",
        "The KV caches of {{ $labels.deployment }} are full",
        f"{MODEL}, deployment {{{{ $labels.deployment }}}}: engines' KV caches have been "
        "{{ $value | humanizePercentage }} full for 15 minutes, and requests wait.",
        "15m",
    ),
    Alert(
        "QwenfleetQueueGrowing",
        "ticket",
        "qwenfleet:queued_requests\n"
        "  and min_over_time(qwenfleet:queued_requests[15m]) > 0\n"
        "  and on (fleet, model) (\n"
        "    avg_over_time(qwenfleet:queued_requests[5m])\n"
        "      > 1.2 * avg_over_time(qwenfleet:queued_requests[5m] offset 10m)\n"
        "    or on (fleet, model)\n"
        '    qwenfleet:queue_seconds:quantile5m{quantile="0.9"}\n'
        "      > on (fleet, model)\n"
        '    max by (fleet, model) (ray_qwenfleet_slo_threshold_seconds{slo="ttft"})\n'
        "  )",
        "Requests of model {{ $labels.model }} queue",
        f"{MODEL}, requests that wait: {{{{ $value }}}}. Some did all of the last 15 minutes, and "
        "the queue grows or takes longer than a first token may.",
        "5m",
    ),
)

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


def groups() -> tuple[Group, ...]:
    """Recording rules and alerts."""
    return (
        *recording_rules.groups(),
        *burn_rates.groups(),
        Group("qwenfleet-engine-alerts", ENGINES),
        *gateway_alerts.groups(),
        Group("qwenfleet-stream-alerts", STREAMS),
        Group("qwenfleet-watching-alerts", WATCHING),
    )


def alerts() -> tuple[Alert, ...]:
    """All alerts; one name may have several rules."""
    return tuple(rule for group in groups() for rule in group.rules if isinstance(rule, Alert))


def rules(scale: float = 1.0) -> str:
    """The rule file. `scale` shortens windows, intervals and waits: 1/60 makes minutes of hours."""
    return to_yaml(groups(), scale)
