"""Cost of metrics: the CPU time of counting, compared with all CPU time of a loaded gateway."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.labels import Decision, Outcome
from qwenfleet.loadtest import scaling
from qwenfleet.loadtest.overhead import Say

TOKENS: Final = 50_000
REQUESTS: Final = 5_000
REPORTS: Final = 500
MODEL: Final = "coder"
REPORTS_PER_S: Final = 2.0
"""From MEET_INTERVAL_S in `deployments/gateway.py`."""


@dataclass(frozen=True)
class EventCost:
    """CPU seconds of each event."""

    token_s: float
    request_s: float
    report_s: float

    def cores(self, tokens_per_s: float, requests_per_s: float) -> float:
        """Return CPU seconds per second of one gateway."""
        return (
            self.token_s * tokens_per_s
            + self.request_s * requests_per_s
            + self.report_s * REPORTS_PER_S
        )


def measure(*, seconds: float, say: Say) -> str:
    """Return a sentence for the docs. Raises BenchmarkError if the fleet does not start."""
    (point,) = scaling.measure((1,), seconds=seconds, say=say)
    cost = counted_in_a_worker()
    case, gateway = point.case, point.cores["gateway"]
    share = cost.cores(case.tokens_per_s, case.requests_per_s) / gateway
    return (
        f"A token costs {cost.token_s * 1e6:.1f} us, a request {cost.request_s * 1e6:.0f} us, a "
        f"report, twice a second, {cost.report_s * 1e6:.0f} us: {share:.1%} of the {gateway:.2f} "
        f"cores that a gateway used for {case.tokens_per_s:.0f} tokens and "
        f"{case.requests_per_s:.0f} requests per second."
    )


def counted_in_a_worker() -> EventCost:
    """Run `count` in a Ray worker: Ray's metrics work only there."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        cost: EventCost = ray.get(ray.remote(count).remote())
    finally:
        ray.shutdown()
    return cost


def count() -> EventCost:
    """Count as a gateway does for one model."""
    from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics

    metrics = GatewayMetrics("benchmark", {MODEL: SloConfig()})
    metrics.begin()

    def token() -> None:
        metrics.next_token(MODEL, 0.02)
        metrics.tokens(MODEL, output=1)

    def request() -> None:
        metrics.routed(MODEL, Decision.SENT)
        metrics.tokens(MODEL, prompt=100)
        metrics.queued(MODEL, 0.1)
        metrics.first_token(MODEL, 0.2)
        metrics.completed(MODEL, 2.0)
        metrics.request_ended(MODEL, Outcome.COMPLETED, is_judged=True)

    def report() -> None:
        request()
        token()
        metrics.level(MODEL, in_progress=1, moving=0, engines=2)
        metrics.flush()

    return EventCost(_cpu_s(token, TOKENS), _cpu_s(request, REQUESTS), _cpu_s(report, REPORTS))


def _cpu_s(event: Callable[[], None], times: int) -> float:
    event()  # the first call creates Ray's instruments
    began = time.process_time()
    for _ in range(times):
        event()
    return (time.process_time() - began) / times
