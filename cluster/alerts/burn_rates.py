"""Burn-rate alerts: how fast a model spends its error budget.

Factors and windows follow the Google SRE Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate
Alerts", for a period of 30 days: 14.4 times the allowed rate for an hour is 2 % of the budget, 6
times for six hours 5 %, 3 times for a day and once for three days 10 %. The short window, a twelfth
of the long one, ends the alert soon after the problem.

A budget of 1 - objective burns at most 1 / (1 - objective) times as fast as allowed: an objective
below 0.93 pages only at 6 times, and one below 0.83 never pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from qwenfleet.cluster.alerts.rule import MODEL, Alert, Group

MIN_BAD_EVENTS: Final = 10
"""Minimum in the long window: a count of 10 has an error of a third (1 / sqrt(10)). With fewer, one
failed request of three would page someone."""
MIN_REQUESTS: Final = 10
"""Minimum in the long window for inter-token gaps: one slow stream has thousands of bad ones."""


@dataclass(frozen=True)
class Burn:
    """A burn rate that must be exceeded in both windows."""

    factor: float
    long: str
    short: str


@dataclass(frozen=True)
class Objective:
    """One kind of objective and its alert."""

    slo: str
    alert: str
    bad: str
    """The bad event, as in "too many requests fail"."""


BURNS: Final[dict[Literal["page", "ticket"], tuple[Burn, Burn]]] = {
    "page": (Burn(14.4, "1h", "5m"), Burn(6, "6h", "30m")),
    "ticket": (Burn(3, "1d", "2h"), Burn(1, "3d", "6h")),
}
OBJECTIVES: Final = (
    Objective("availability", "QwenfleetAvailabilityBurn", "requests fail"),
    Objective("ttft", "QwenfleetTtftBurn", "first tokens are late"),
    Objective("inter_token", "QwenfleetInterTokenBurn", "tokens stall"),
)


def groups() -> tuple[Group, ...]:
    """Return the burn-rate alerts."""
    return (Group("qwenfleet-slo-alerts", tuple(_alerts())),)


def _alerts() -> Iterator[Alert]:
    for objective in OBJECTIVES:
        for severity, burns in BURNS.items():
            windows = " or ".join(f"{burn.long} and {burn.short}" for burn in burns)
            yield Alert(
                objective.alert,
                severity,
                "\nor\n".join(_burns(objective.slo, burn) for burn in burns),
                f"Too many {objective.bad} for model {{{{ $labels.model }}}}",
                f"{MODEL}: {objective.bad} so often that the 30-day error budget of the "
                f"{objective.slo} objective burns {{{{ $value | humanize }}}} times as fast as "
                f"allowed (over {windows}).",
            )


def _burns(slo: str, burn: Burn) -> str:
    """Return PromQL for the burn rate over the long window, by model."""
    parts = [
        f'qwenfleet:slo_bad:ratio_rate{burn.long}{{slo="{slo}"}} '
        f"/ qwenfleet:slo_budget:ratio > {burn.factor}",
        f"qwenfleet:slo_bad:ratio_rate{burn.short} / qwenfleet:slo_budget:ratio > {burn.factor}",
        "sum by (fleet, model, slo) "
        f'(increase(ray_qwenfleet_slo_events_total{{verdict="bad"}}[{burn.long}])) '
        f">= {MIN_BAD_EVENTS}",
    ]
    text = "\n  and ".join(parts)
    if slo == "inter_token":
        text += (
            "\n  and on (fleet, model) sum by (fleet, model) "
            f'(increase(ray_qwenfleet_slo_events_total{{slo="ttft"}}[{burn.long}])) '
            f">= {MIN_REQUESTS}"
        )
    return f"(\n  {text}\n)"
