"""The Prometheus rule file: all recording rules and alerts as YAML."""

from __future__ import annotations

from qwenfleet.cluster.alerts import burn_rates, gateways, recording
from qwenfleet.cluster.alerts.engines import ENGINES
from qwenfleet.cluster.alerts.rule import Alert, Group, to_yaml
from qwenfleet.cluster.alerts.streams import STREAMS
from qwenfleet.cluster.alerts.watching import WATCHING


def groups() -> tuple[Group, ...]:
    """Return the groups of recording rules and alerts."""
    return (
        *recording.groups(),
        *burn_rates.groups(),
        Group("qwenfleet-engine-alerts", ENGINES),
        *gateways.groups(),
        Group("qwenfleet-stream-alerts", STREAMS),
        Group("qwenfleet-watching-alerts", WATCHING),
    )


def alerts() -> tuple[Alert, ...]:
    """Return all alerts; a name can have several rules."""
    return tuple(rule for group in groups() for rule in group.rules if isinstance(rule, Alert))


def rules(scale: float = 1.0) -> str:
    """Return the rule file. `scale` shortens windows, intervals and waits: with 1/60, hours become
    minutes."""
    return to_yaml(groups(), scale)
