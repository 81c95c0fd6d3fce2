"""The speed model's few parameters, fitted to `calibration_points`, and how far off it is. Pure.

`python -m qwenfleet.cluster.speed.calibration` writes what a plan needs of it to `constants.py`:
run it when a measurement or the model changes.

The time of a step is a sum of parts, each times one parameter, so the fit is of a few positive
numbers to the logarithms of the measured times: Gauss-Newton, damped, on numpy's least squares.
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
from qwenfleet.cluster.speed.cost import Cost, Parameter, Workload
from qwenfleet.cluster.speed.measurements import POINTS, CalibrationPoint, Quantity
from qwenfleet.cluster.speed.steps import EngineShape, decode_step, prefill

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]

START_TIME_S: Final = 1e-4
START_FACTOR: Final = 2.0
"""Where the fit begins: 0.1 ms per layer, and half of what the data sheet says."""
HOLD: Final = 0.05
"""Weight that keeps a parameter of which the points say nothing where it began, against 1 of a
whole series. A start twice as large moves no prediction by more than a few percent."""
COVERAGE: Final = 0.8
"""Share of measurements that a range is made to hold."""
FEWEST_POINTS: Final = 5
FEWEST_SERIES: Final = 3
"""With less than either, an error is not a number but "too few"."""

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
"""Times in seconds per layer and step; the others are factors on what data sheets say."""

SPREADS: Final[Mapping[Vendor, float]] = MappingProxyType(
    {{
{spreads}    }}
)
"""A range is a prediction divided by and times this: it holds a share `calibration.COVERAGE` of the
measurements of set-ups that the fit does not know."""
'''


@dataclass(frozen=True)
class HeldOut:
    """One measurement beside what fits that do not know it predict."""

    point: CalibrationPoint
    without_point_ms: float
    without_series_ms: float

    @property
    def error(self) -> float:
        """Of the fit without this point, as a share: 0.1 is 10 % too slow."""
        return self.without_point_ms / self.point.measured_ms - 1

    @property
    def series_error(self) -> float:
        """Of the fit without any point of its series: what a new set-up must expect."""
        return self.without_series_ms / self.point.measured_ms - 1


@dataclass(frozen=True)
class Fitted:
    """Values of all parameters, and how far predictions for a vendor were off."""

    values: Mapping[Parameter, float]
    held_out: tuple[HeldOut, ...]

    def spread(self, vendor: Vendor) -> float:
        """What a prediction is multiplied and divided with to hold a share `COVERAGE` of what is
        measured on a set-up that the fit does not know."""
        return spread([one for one in self.held_out if one.point.vendor is vendor])


def tpot_cost(shape: EngineShape, load: Workload) -> Cost:
    """Per token after the first: a step, and its share of the prefills that come between. While a
    sequence makes its tokens, each of the others beside it is replaced once."""
    beside = load.concurrency if load.concurrency > 1 else 0.0
    share = prefill(shape, load.prompt_tokens) * (beside / load.output_tokens)
    return decode_step(shape, load) + share


def ttft_cost(shape: EngineShape, load: Workload) -> Cost:
    """The prompt and one step, of an engine that has room for it; the HTTP server not counted."""
    alone = prefill(shape, load.prompt_tokens, is_alone=True)
    return alone + decode_step(shape, load)


def cost_of(point: CalibrationPoint) -> Cost:
    """Of what a point measured."""
    if point.quantity is Quantity.STEP:
        return decode_step(point.shape, point.load)
    tpot = tpot_cost(point.shape, point.load)
    if point.quantity is Quantity.TPOT:
        return tpot
    return tpot + ttft_cost(point.shape, point.load) * (1 / point.load.output_tokens)


def fit(points: Sequence[CalibrationPoint]) -> dict[Parameter, float]:
    """Values of all parameters. Every series counts as much as every other."""
    import numpy as np  # here, so that commands that predict nothing start without it

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
    """Logarithms of the parameters: Levenberg's damping, until nothing moves."""
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
        if tried @ tried <= off @ off:
            at, off, slopes, damping = at + move, tried, tried_slopes, damping / 3
            if np.abs(move).max() < 1e-6:
                break
        else:
            damping *= 4
    return at


def hold_out(points: Sequence[CalibrationPoint]) -> tuple[HeldOut, ...]:
    """Each point, predicted by a fit without it and by one without its series."""
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
    """What the model says of a point."""
    return cost_of(point).seconds(values) * 1000


def spread(held_out: Sequence[HeldOut]) -> float:
    """The factor that holds a share `COVERAGE` of the measurements when their series were held
    out, each series counting as one; 1 is none."""
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
    """Of the absolute errors, as a share; None with too few points or series to say."""
    if len(held_out) < FEWEST_POINTS or series_of(held_out) < FEWEST_SERIES:
        return None
    return median(abs(one.series_error if by_series else one.error) for one in held_out)


def series_of(held_out: Sequence[HeldOut]) -> int:
    """How many set-ups they are."""
    return len({one.point.series for one in held_out})


@cache
def fitted() -> Fitted:
    """The fit to all points, and one without each point and each series: 63 fits, 0.2 s."""
    return Fitted(fit(POINTS), hold_out(POINTS))


def constants(model: Fitted) -> str:
    """The text of `constants.py`."""
    values = [f"        Parameter.{p.name}: {model.values[p]:.8g},\n" for p in PARAMETERS]
    spreads = [f"        Vendor.{vendor.name}: {model.spread(vendor):.8g},\n" for vendor in Vendor]
    return CONSTANTS.format(values="".join(values), spreads="".join(spreads))


def main() -> None:
    """Write them."""
    Path(speed_constants.__file__).write_text(constants(fitted()), encoding="utf-8")


if __name__ == "__main__":
    main()
