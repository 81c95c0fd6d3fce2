"""Parts of PromQL that panels share: selectors, windows and percentiles.

A model's name may contain quotes, braces and backslashes. Grafana's `:regex` format escapes each
special character of regular expressions with a backslash, and joins several values as `(a|b)`.
Inside PromQL's double quotes, those backslashes would have to be doubled and quotes escaped. By
default, Grafana's Prometheus source does this for backslashes only, unless its feature toggle
`prometheusSpecialCharsInLabelValues` is on. Inside backquotes, PromQL takes every character
literally, so `:regex` is correct with either toggle; only a name with a backquote cannot be
chosen. A fleet's name consists of letters, digits and hyphens.
(grafana.com, "Variable syntax"; packages/grafana-prometheus/src/escaping.ts;
prometheus.io, "Querying basics", string literals)
"""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.metrics import BUILD_INFO, ENGINE_STATE, Metric

FLEET: Final = 'fleet="$fleet"'
MODEL: Final = "model=~`${model:regex}`"
DEPLOYMENT: Final = "deployment=~`${deployment:regex}`"
OURS: Final = f"{FLEET},{MODEL}"
WINDOW: Final = "[$interval]"
QUANTILES: Final = (0.5, 0.9, 0.99)


def of_fleet(metric: Metric, *matchers: str) -> str:
    """Select a metric's series of the fleet and, if it has that label, of the models."""
    own = OURS if "model" in metric.labels else FLEET
    return f"{metric.exported}{{{','.join((own, *matchers))}}}"


def of_engines(metric: Metric, *matchers: str) -> str:
    """Select a metric's series of the fleet, the models and the chosen deployments."""
    return of_fleet(metric, DEPLOYMENT, *matchers)


def rule(name: str, *matchers: str) -> str:
    """Select the series of a recording rule."""
    return f"{name}{{{','.join((OURS, *matchers))}}}"


def rate(metric: Metric, by: str, *matchers: str) -> str:
    """Return PromQL for events per second."""
    return f"sum by ({by}) (rate({of_fleet(metric, *matchers)}{WINDOW}))"


def quantile(q: float, metric: Metric, by: str = "model") -> str:
    """Return PromQL for a quantile over the window, of all processes together."""
    buckets = f"{metric.exported}_bucket{{{OURS}}}"
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({buckets}{WINDOW})))"


def of_vllm(name: str) -> str:
    """Select vLLM's series by name without prefix. They have no fleet label: request metrics come
    from gateways and need `cluster`, scheduler metrics come from engines and need `here`."""
    return f"ray_vllm_{name}{{model_name=~`${{model:regex}}`}}"


def here(expr: str, *matchers: str) -> str:
    """Restrict vLLM's scheduler metrics to the fleet's engines, where ReplicaId is the engine
    id."""
    engines = of_fleet(ENGINE_STATE, *matchers)
    return (
        f'({expr} and on (ReplicaId) label_replace({engines}, "ReplicaId", "$1", "engine", "(.*)"))'
    )


def cluster(expr: str) -> str:
    """Restrict series to the fleet's Ray cluster, by the session label that all series have."""
    return f"({expr} and on (SessionName) {of_fleet(BUILD_INFO)})"


def by_gateway(expr: str) -> str:
    """Add a label `gateway`: the first digits of Ray's id of the process."""
    return f'label_replace({expr}, "gateway", "$1", "WorkerId", "(.{{8}}).*")'
