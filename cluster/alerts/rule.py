"""Prometheus rules as data: recording rules, alerts, and the YAML of their groups. Pure.

The PromQL is static: thresholds that an operator can change come from gauges of the gateways, so
rules do not depend on the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

from qwenfleet.cluster.metrics import EXPORTED_PREFIX

LEAST_WINDOW_S: Final = 20
"""Minimum of a scaled window: processes report to Ray 2.60's agent every 10 s
(metrics_report_interval_ms), so a rate over a shorter window often has no samples."""
FOREIGN: Final[Mapping[str, str]] = {
    EXPORTED_PREFIX + "serve_autoscaling_target_replicas": "Ray 2.60 Serve, deployment_state.py",
    EXPORTED_PREFIX + "serve_deployment_replica_healthy": "Ray 2.60 Serve, deployment_state.py",
    EXPORTED_PREFIX + "serve_num_http_requests_total": "Ray 2.60 Serve, haproxy_metrics.py",
    "up": "Prometheus itself, of every scrape",
}
"""Metrics of others that the rules use, with their source."""
MODEL: Final = "Fleet {{ $labels.fleet }}, model {{ $labels.model }}"
DEPLOYMENT: Final = "Fleet {{ $labels.fleet }}, deployment {{ $labels.deployment }}"
"""Start of a description; Prometheus fills in the labels."""
UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
WINDOW: Final = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<=offset )\d+[smhd]")
"""A range or an offset in PromQL; names of recording rules keep theirs."""


@dataclass(frozen=True)
class Recording:
    """A recording rule; `labels` are added to each of its series."""

    name: str
    expr: str
    labels: tuple[tuple[str, str], ...] = ()

    def as_tree(self, scale: float) -> dict[str, Any]:
        """Convert to Prometheus's format, with every window `scale` times as long."""
        tree: dict[str, Any] = {"record": self.name, "expr": scaled(self.expr, scale)}
        return tree | {"labels": dict(self.labels)} if self.labels else tree


@dataclass(frozen=True)
class Alert:
    """An alert; `lasting`, such as 15m, is how long its expression must hold before it fires."""

    name: str
    severity: Literal["page", "ticket"]
    """`page`: users are affected now. `ticket`: can wait for the next working day."""
    expr: str
    summary: str
    description: str
    lasting: str = "0s"

    def as_tree(self, scale: float) -> dict[str, Any]:
        """Convert to Prometheus's format, with every window and `for` `scale` times as long."""
        tree: dict[str, Any] = {"alert": self.name, "expr": scaled(self.expr, scale)}
        if self.lasting != "0s":
            tree["for"] = duration(seconds(self.lasting) * scale)
        return tree | {
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"RUNBOOKS_URL/{self.name}.md",
            },
        }


@dataclass(frozen=True)
class Group:
    """Rules that Prometheus evaluates in order; an empty `interval` means its default."""

    name: str
    rules: tuple[Recording | Alert, ...]
    interval: str = ""

    def as_tree(self, scale: float) -> dict[str, Any]:
        """Convert to Prometheus's format."""
        tree: dict[str, Any] = {"name": self.name}
        if self.interval:
            tree["interval"] = duration(seconds(self.interval) * scale)
        return tree | {"rules": [rule.as_tree(scale) for rule in self.rules]}


def seconds(text: str) -> int:
    """Convert a duration with one unit, such as 30d, to seconds."""
    return int(text[:-1]) * UNIT_S[text[-1]]


def duration(length_s: float) -> str:
    """Format whole seconds, at least one, with the largest unit that divides them."""
    whole = max(1, round(length_s))
    unit = next(unit for unit, size in reversed(UNIT_S.items()) if whole % size == 0)
    return f"{whole // UNIT_S[unit]}{unit}"


def scaled(expr: str, scale: float) -> str:
    """Return PromQL with every range and offset `scale` times as long, at least LEAST_WINDOW_S."""
    return WINDOW.sub(lambda found: duration(max(LEAST_WINDOW_S, seconds(found[0]) * scale)), expr)


class _Dumper(yaml.SafeDumper):
    """Writes multi-line strings as YAML blocks."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(groups: Iterable[Group], scale: float = 1.0) -> str:
    """Return a Prometheus rule file, which is also the `spec` of a PrometheusRule."""
    tree = {"groups": [group.as_tree(scale) for group in groups]}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
