"""Alerts on the objectives: how fast a model's error budget burns.

Factors and windows are those of the Google SRE Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate
Alerts", for a period of 30 days: 14.4 times as fast as allowed for an hour is 2 % of the budget, 6
times for six hours 5 %, 3 times for a day and once for three days 10 %. The short window, a twelfth
of the long one, ends the alert soon after the trouble.

A budget of 1 - objective burns at most 1 / (1 - objective) times as fast as allowed: an objective
below 0.93 is paged for at 6 times only, one below 0.83 never, which then is what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from qwenfleet.cluster.alerts.rule import Alert, Group

MIN_BAD_EVENTS: Final = 10
"""In the long window: a count of 10 is known to a third (1 / sqrt(10)); of less, chance would wake
somebody at night for one failed request of three."""
MIN_REQUESTS: Final = 10
"""In the long window, for inter-token gaps: one slow stream makes thousands of bad ones."""


@dataclass(frozen=True)
class Burn:
    """A factor, above which the budget burns in both windows."""

    factor: float
    long: str
    short: str


@dataclass(frozen=True)
class Objective:
    """One kind of objective, and its alert."""

    slo: str
    alert: str
    bad: str
    """What a bad event is, for a sentence that begins with a share."""


BURNS: Final[dict[Literal["page", "ticket"], tuple[Burn, Burn]]] = {
    "page": (Burn(14.4, "1h", "5m"), Burn(6, "6h", "30m")),
    "ticket": (Burn(3, "1d", "2h"), Burn(1, "3d", "6h")),
}
OBJECTIVES: Final = (
    Objective("availability", "QwenfleetAvailabilityBurn", "requests fail"),
    Objective("ttft", "QwenfleetTtftBurn", "first tokens come late"),
    Objective("inter_token", "QwenfleetInterTokenBurn", "tokens stall"),
)


def groups() -> tuple[Group, ...]:
    """All of them."""
    return (Group("qwenfleet-slo-alerts", tuple(_alerts())),)


def _alerts() -> Iterator[Alert]:
    for objective in OBJECTIVES:
        for severity, burns in BURNS.items():
            windows = " or ".join(f"{burn.long} and {burn.short}" for burn in burns)
            yield Alert(
                objective.alert,
                severity,
                "\nor\n".join(_burns(objective.slo, burn) for burn in burns),
                f"Too many {objective.bad} at model {{{{ $labels.model }}}}",
                f"Of fleet {{{{ $labels.fleet }}}}, model {{{{ $labels.model }}}}, so many "
                f"{objective.bad} that the {objective.slo} objective's budget of 30 days burns "
                f"{{{{ $value | humanize }}}} times as fast as it may (over {windows}).",
            )


def _burns(slo: str, burn: Burn) -> str:
    """Of each model, the factor over the long window."""
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
