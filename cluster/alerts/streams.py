"""Alerts on lost and moved streams, full KV caches and growing queues."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.alerts.rule import MODEL, Alert
from qwenfleet.cluster.labels import EngineState, Loss, Outcome

STREAMS: Final = (
    Alert(
        "QwenfleetStreamsLost",
        "ticket",
        "sum by (fleet, model) "
        f'(increase(ray_qwenfleet_requests_total{{outcome="{Outcome.ENGINE_LOST}"}}[15m])) > 0',
        "Streams of model {{ $labels.model }} were lost",
        f"{MODEL}: about {{{{ $value | humanize }}}} requests ended within the last 15 minutes "
        "because no engine could continue them.",
    ),
    Alert(
        "QwenfleetStreamsResumed",
        "ticket",
        "sum by (fleet, model) "
        f'(increase(ray_qwenfleet_resumes_total{{loss!="{Loss.DRAINED}"}}[30m]))\n'
        "  / clamp_min(sum by (fleet, model) (increase(ray_qwenfleet_requests_total[30m])), 1)"
        " > 0.05\n"
        "  and sum by (fleet, model) "
        f'(increase(ray_qwenfleet_resumes_total{{loss!="{Loss.DRAINED}"}}[30m])) >= 10',
        "Many streams of model {{ $labels.model }} resume on other engines",
        f"{MODEL}: within 30 minutes, resumes without a drain were "
        "{{ $value | humanizePercentage }} of the requests that ended.",
    ),
    # 0.9 as in gateway-api-inference-extension, tools/alerts/alert.yaml.
    Alert(
        "QwenfleetKvCachePressure",
        "ticket",
        "avg by (fleet, model, deployment) (\n"
        "  ray_qwenfleet_engine_kv_cache_usage_ratio\n"
        "    and on (fleet, deployment, engine) "
        f'ray_qwenfleet_engine_state{{state=~"{EngineState.READY}|{EngineState.QUARANTINED}"}}'
        " == 1\n"
        ") > 0.9\n"
        "  and sum by (fleet, model, deployment) "
        "(max_over_time(ray_qwenfleet_engine_waiting_requests[5m])) > 0",
        "The KV caches of {{ $labels.deployment }} are full",
        f"{MODEL}, deployment {{{{ $labels.deployment }}}}: the KV caches have been nearly full "
        "for 15 minutes, now {{ $value | humanizePercentage }} on average, and requests wait.",
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
        "The queue of model {{ $labels.model }} is growing or slow",
        f"{MODEL}: waiting requests: {{{{ $value }}}}. The queue has not been empty for 15 "
        "minutes, and it grows or takes longer than slo.ttft_s.",
        "5m",
    ),
)
