"""The pieces of PromQL that panels share: whose series, over which window, which percentile.

A model's name may hold quotes, braces and backslashes. Grafana's `:regex` format puts a backslash
before each character that means something in a regular expression, and joins several values as
`(a|b)`. In PromQL's double quotes those backslashes would have to be doubled and quotes escaped,
which Grafana's Prometheus source does, when no format is named, for backslashes only, unless its
feature toggle `prometheusSpecialCharsInLabelValues` is on. In backquotes PromQL reads every
character as it is, so that `:regex` is right there whatever the toggle: only a name with a
backquote cannot be chosen. A fleet's name is made of letters, digits and hyphens.
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
    """The series of a metric of ours, of the fleet and, where it has that label, of the models."""
    own = OURS if "model" in metric.labels else FLEET
    return f"{metric.exported}{{{','.join((own, *matchers))}}}"


def of_engines(metric: Metric, *matchers: str) -> str:
    """The same, of the chosen deployments."""
    return of_fleet(metric, DEPLOYMENT, *matchers)


def rule(name: str, *matchers: str) -> str:
    """The series of a recording rule."""
    return f"{name}{{{','.join((OURS, *matchers))}}}"


def rate(metric: Metric, by: str, *matchers: str) -> str:
    """Events per second."""
    return f"sum by ({by}) (rate({of_fleet(metric, *matchers)}{WINDOW}))"


def quantile(q: float, metric: Metric, by: str = "model") -> str:
    """Of the events in the window, of all processes together."""
    buckets = f"{metric.exported}_bucket{{{OURS}}}"
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({buckets}{WINDOW})))"


def of_vllm(name: str) -> str:
    """vLLM's series of a name without its prefix. They do not know their fleet: those of requests
    come from gateways and need `cluster`, those of schedulers from engines and need `here`."""
    return f"ray_vllm_{name}{{model_name=~`${{model:regex}}`}}"


def here(expr: str, *matchers: str) -> str:
    """What vLLM's schedulers report in the fleet's engines: there ReplicaId is the engine's id."""
    engines = of_fleet(ENGINE_STATE, *matchers)
    return (
        f'({expr} and on (ReplicaId) label_replace({engines}, "ReplicaId", "$1", "engine", "(.*)"))'
    )


def cluster(expr: str) -> str:
    """Series of the Ray cluster that the fleet is on: all know Ray's session."""
    return f"({expr} and on (SessionName) {of_fleet(BUILD_INFO)})"


def by_gateway(expr: str) -> str:
    """With a label `gateway`: the first digits of Ray's id of the process."""
    return f'label_replace({expr}, "gateway", "$1", "WorkerId", "(.{{8}}).*")'
