"""The fit of the speed model's parameters to `measurements`, and the model's errors. Pure.

`python -m qwenfleet.cluster.speed.calibration` writes the values that a plan needs to
`constants.py`: run it after a measurement or the model changes.

The time of a step is a sum of parts, each multiplied by one parameter. The fit finds a few positive
numbers from the logarithms of the measured times: damped Gauss-Newton on numpy's least squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final, TypeAlias

from qwenfleet.cluster.hardware.accelerators import Vendor
from qwenfleet.cluster.speed import constants as speed_constants
from qwenfleet.cluster.speed.cost import Parameter, StepCost, Workload
from qwenfleet.cluster.speed.measurements import POINTS, CalibrationPoint, MeasuredTime
from qwenfleet.cluster.speed.steps import EngineShape, decode_step, prefill

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]

START_TIME_S: Final = 1e-4
START_FACTOR: Final = 2.0
"""Starting point of the fit: 0.1 ms per layer, and half the rates of the data sheet."""
HOLD: Final = 0.05
"""Weight that holds a parameter without data at its starting point; a whole series weighs 1. A
start twice as large moves predictions by a few percent at most."""
COVERAGE: Final = 0.8
"""Share of measurements that a range must contain."""
FEWEST_POINTS: Final = 5
FEWEST_SERIES: Final = 3
"""Fewer points or series make the report print "too few" instead of an error."""

PARAMETERS: Final = tuple(Parameter)
CONSTANTS: Final = '''\
"""The speed model's fit. Data, written by `python -m qwenfleet.cluster.speed.calibration`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from qwenfleet.cluster.hardware.accelerators import Vendor
from qwenfleet.cluster.speed.cost import Parameter

VALUES: Final[Mapping[Parameter, float]] = MappingProxyType(
    {{
{values}    }}
)
"""Times in seconds per layer and step; the others are factors on the rates of data sheets."""

SPREADS: Final[Mapping[Vendor, float]] = MappingProxyType(
    {{
{spreads}    }}
)
"""A range is a prediction divided by, and multiplied by, this factor: it contains the share
`calibration.COVERAGE` of the measurements of setups that the fit does not know."""
'''


@dataclass(frozen=True)
class HeldOut:
    """One measurement, and the predictions of fits that do not know it."""

    point: CalibrationPoint
    without_point_ms: float
    without_series_ms: float

    @property
    def error(self) -> float:
        """Error of the fit without this point, as a share: 0.1 is 10 % too slow."""
        return self.without_point_ms / self.point.measured_ms - 1

    @property
    def series_error(self) -> float:
        """Error of the fit without this point's series: what to expect for a new setup."""
        return self.without_series_ms / self.point.measured_ms - 1


@dataclass(frozen=True)
class Fitted:
    """Values of all parameters, and the held-out predictions."""

    values: Mapping[Parameter, float]
    held_out: tuple[HeldOut, ...]

    def spread(self, vendor: Vendor) -> float:
        """Factor of a vendor's ranges: they contain the share `COVERAGE` of the measurements of
        setups that the fit does not know."""
        return spread([one for one in self.held_out if one.point.vendor is vendor])


def tpot_cost(shape: EngineShape, load: Workload) -> StepCost:
    """Cost per token after the first: a step, and a share of the prefills between steps. While one
    sequence generates its tokens, every concurrent sequence is replaced once."""
    prefills = load.concurrency if load.concurrency > 1 else 0.0
    share = prefill(shape, load.prompt_tokens) * (prefills / load.output_tokens)
    return decode_step(shape, load) + share


def ttft_cost(shape: EngineShape, load: Workload) -> StepCost:
    """Cost of a prompt and one step on an engine with room for it, without the HTTP server."""
    alone = prefill(shape, load.prompt_tokens, is_alone=True)
    return alone + decode_step(shape, load)


def cost_of(point: CalibrationPoint) -> StepCost:
    """Cost of the quantity that a point measured."""
    if point.quantity is MeasuredTime.STEP:
        return decode_step(point.shape, point.load)
    tpot = tpot_cost(point.shape, point.load)
    if point.quantity is MeasuredTime.TPOT:
        return tpot
    return tpot + ttft_cost(point.shape, point.load) * (1 / point.load.output_tokens)


def fit(points: Sequence[CalibrationPoint]) -> dict[Parameter, float]:
    """Fit all parameters. Every series has the same weight."""
    import numpy as np  # here, so that commands without predictions start without it

    costs = [cost_of(point) for point in points]
    amounts = np.array([[cost.amount(parameter) for parameter in PARAMETERS] for cost in costs])
    constant = np.array([cost.amount(None) for cost in costs])
    measured = np.array([point.measured_ms / 1000 for point in points])
    series = [point.series for point in points]
    weights = np.array([series.count(name) ** -0.5 for name in series])
    start = np.log([START_TIME_S if p.is_time else START_FACTOR for p in PARAMETERS])
    found = _solve(amounts, constant, measured, weights, start)
    return {p: float(np.exp(value)) for p, value in zip(PARAMETERS, found, strict=True)}


def _solve(amounts: Array, constant: Array, measured: Array, weights: Array, start: Array) -> Array:
    """Solve for the logarithms of the parameters with Levenberg's damping, until they converge."""
    import numpy as np

    hold = HOLD * np.eye(len(start))

    def residuals(at: Array) -> tuple[Array, Array]:
        parts = amounts * np.exp(at)
        times = parts.sum(axis=1) + constant
        off = np.concatenate([weights * np.log(times / measured), hold @ (at - start)])
        return off, np.vstack([weights[:, None] * parts / times[:, None], hold])

    at, damping = start, 0.01
    off, slopes = residuals(at)
    for _ in range(200):
        damped = np.vstack([slopes, math.sqrt(damping) * np.eye(len(start))])
        move = np.linalg.lstsq(damped, np.concatenate([-off, np.zeros(len(start))]))[0]
        tried, tried_slopes = residuals(at + move)
        if tried @ tried <= off @ off:  # better: accept, damp less
            at, off, slopes, damping = at + move, tried, tried_slopes, damping / 3
            if np.abs(move).max() < 1e-6:
                break
        else:  # worse: retry with more damping
            damping *= 4
    return at


def hold_out(points: Sequence[CalibrationPoint]) -> tuple[HeldOut, ...]:
    """Predict each point by a fit without it and by a fit without its series."""
    without_series = {
        name: fit([other for other in points if other.series != name])
        for name in {point.series for point in points}
    }
    return tuple(
        HeldOut(
            point,
            predicted_ms(point, fit([other for other in points if other is not point])),
            predicted_ms(point, without_series[point.series]),
        )
        for point in points
    )


def predicted_ms(point: CalibrationPoint, values: Mapping[Parameter, float]) -> float:
    """Predict the time that a point measured, in milliseconds."""
    return cost_of(point).seconds(values) * 1000


def spread(held_out: Sequence[HeldOut]) -> float:
    """Smallest factor that contains the share `COVERAGE` of measurements predicted without their
    series, each series with the same weight; 1 without measurements."""
    counts = [one.point.series for one in held_out]
    off = sorted(
        (abs(math.log1p(one.series_error)), 1 / counts.count(one.point.series)) for one in held_out
    )
    wanted = COVERAGE * sum(weight for _, weight in off)
    reached = 0.0
    for distance, weight in off:
        reached += weight
        if reached >= wanted - 1e-9:
            return math.exp(distance)
    return 1.0


def median_error(held_out: Sequence[HeldOut], *, by_series: bool) -> float | None:
    """Median absolute error as a share; None with too few points or series."""
    if len(held_out) < FEWEST_POINTS or series_of(held_out) < FEWEST_SERIES:
        return None
    return median(abs(one.series_error if by_series else one.error) for one in held_out)


def series_of(held_out: Sequence[HeldOut]) -> int:
    """Number of setups among the points."""
    return len({one.point.series for one in held_out})


@cache
def fitted() -> Fitted:
    """Fit to all points, and without each point and each series: 63 fits, 0.2 s."""
    return Fitted(fit(POINTS), hold_out(POINTS))


def constants(model: Fitted) -> str:
    """Generate the text of `constants.py`."""
    values = [f"        Parameter.{p.name}: {model.values[p]:.8g},\n" for p in PARAMETERS]
    spreads = [f"        Vendor.{vendor.name}: {model.spread(vendor):.8g},\n" for vendor in Vendor]
    return CONSTANTS.format(values="".join(values), spreads="".join(spreads))


def main() -> None:
    """Write `constants.py`."""
    Path(speed_constants.__file__).write_text(constants(fitted()), encoding="utf-8")


if __name__ == "__main__":
    main()
