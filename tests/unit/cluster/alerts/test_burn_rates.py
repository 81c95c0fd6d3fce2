"""Tests the burn-rate alerts: one for each objective, with the workbook's shares."""

from __future__ import annotations

from qwenfleet.cluster.alerts import burn_rates
from qwenfleet.cluster.metrics import CLOSED


def test_every_objective_has_an_alert() -> None:
    assert {objective.slo for objective in burn_rates.OBJECTIVES} == set(CLOSED["slo"])


def test_burn_rates_use_the_workbooks_shares_of_30_days() -> None:
    hours = {"1h": 1, "6h": 6, "1d": 24, "3d": 72}
    shares = [
        round(burn.factor * hours[burn.long] / (30 * 24), 3)
        for burns in burn_rates.BURNS.values()
        for burn in burns
    ]
    assert shares == [0.02, 0.05, 0.1, 0.1]
