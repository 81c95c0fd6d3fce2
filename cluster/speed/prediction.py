"""Predicted speed of an engine: TTFT, time per token and tokens per second, as ranges. Pure.

A range is the calibrated model's value divided by, and multiplied by, the model's error for setups
that its fit did not know. Every prediction is a range, never a single number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

from qwenfleet.cluster.hardware.accelerators import Vendor
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.speed.calibration import FEWEST_POINTS, tpot_cost, ttft_cost
from qwenfleet.cluster.speed.constants import SPREADS, VALUES
from qwenfleet.cluster.speed.cost import Workload
from qwenfleet.cluster.speed.measurements import POINTS, TTFT_POINTS
from qwenfleet.cluster.speed.steps import EngineShape, decode_step

MOST_SEQUENCES: Final = 4096
"""Upper limit of the search for a concurrency."""


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, inclusive."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"{self.low} to {self.high} is not a range")

    @classmethod
    def around(cls, value: float, spread: float) -> Range:
        """Range from `value` divided by `spread` to `value` times `spread`."""
        return cls(value / spread, value * spread)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def divides(self, amount: float) -> Range:
        """Range of `amount` divided by this range."""
        return Range(amount / self.high, amount / self.low)

    def text(self, unit: str) -> str:
        """Format with two significant digits: "17 to 32 ms"."""
        return f"{_two_digits(self.low)} to {_two_digits(self.high)} {unit}".rstrip()


@dataclass(frozen=True)
class PredictedSpeed:
    """Predicted speed of one engine under one load."""

    load: Workload
    ttft_s: Range
    """TTFT of a request that finds room; queueing is extra."""
    tpot_s: Range
    output_tokens_per_s: Range
    """Output rate of all sequences together."""
    total_tokens_per_s: Range
    """The same, with prompt tokens."""


@dataclass(frozen=True)
class ContextRow:
    """One row of the table of contexts."""

    context_tokens: int
    sequences: int
    """Number of sequences of this length that fit; may be 0."""
    tpot_s: Range | None
    """Time per token with that many sequences and without prefill; None for 0."""

    @property
    def output_tokens_per_s(self) -> Range | None:
        """Output rate of all sequences together."""
        return None if self.tpot_s is None else self.tpot_s.divides(self.sequences)


def predict(shape: EngineShape, load: Workload) -> PredictedSpeed:
    """Predict an engine whose KV cache holds the load; `planner.memory` checks that it does."""
    step = tpot_cost(shape, load).seconds(VALUES)
    tpot = Range.around(step, SPREADS[shape.accelerator.vendor])
    low, high = ttft_factors()
    first = ttft_cost(shape, load).seconds(VALUES)
    ttft = Range(first * low, first * high)
    request = ttft + tpot * max(load.output_tokens - 1, 0)
    output = request.divides(load.concurrency * load.output_tokens)
    total = output * ((load.prompt_tokens + load.output_tokens) / load.output_tokens)
    return PredictedSpeed(load, ttft, tpot, output, total)


@cache
def ttft_factors() -> tuple[float, float]:
    """Smallest and largest ratio of measured to predicted time to first token. They come from few
    points of one model, so they are not an error bound."""
    factors = [
        point.measured_ms / 1000 / ttft_cost(point.shape, point.load).seconds(VALUES)
        for point in TTFT_POINTS
    ]
    return min(factors), max(factors)


def most_sequences(
    shape: EngineShape,
    prompt_tokens: float,
    output_tokens: float,
    tpot_slo_s: float,
    routing_skew: float = 0.0,
    at_most: int = MOST_SEQUENCES,
) -> int:
    """Largest concurrency whose time per token meets the SLO at the slow end of its range; 0 if one
    sequence alone does not."""
    if not tpot_slo_s > 0:
        raise PlanError(
            f"the SLO's time per token is {tpot_slo_s:g} s",
            "Give a number above 0.",
        )
    spread = SPREADS[shape.accelerator.vendor]
    low, high = 0, at_most
    while low < high:
        middle = (low + high + 1) // 2
        load = Workload(middle, prompt_tokens, output_tokens, routing_skew)
        if tpot_cost(shape, load).seconds(VALUES) * spread <= tpot_slo_s:
            low = middle
        else:
            high = middle - 1
    return low


def context_table(
    shape: EngineShape,
    room: Callable[[int], int],
    contexts: Iterable[int],
    output_tokens: int,
    routing_skew: float = 0.0,
) -> list[ContextRow]:
    """Rows with the number of sequences of each length that fit (`room`), and how fast they decode
    at its end with cached prompts."""
    spread = SPREADS[shape.accelerator.vendor]
    rows = []
    for context in contexts:
        sequences = room(context)
        answer = max(1, min(output_tokens, context - 1))
        load = Workload(max(sequences, 1), max(context - answer, 1), answer, routing_skew)
        step = Range.around(decode_step(shape, load).seconds(VALUES), spread)
        rows.append(ContextRow(context, sequences, step if sequences else None))
    return rows


def caveats(shape: EngineShape, load: Workload) -> list[str]:
    """Caveats about a prediction, as sentences."""
    found = [
        f"Time to first token is based on {len(TTFT_POINTS)} published measurements, all of the "
        "480B model: too few to estimate an error. Queueing is not included.",
    ]
    name = shape.accelerator.name
    known = sum(point.shape.accelerator.name == name for point in POINTS)
    if known < FEWEST_POINTS:
        found.append(
            f"Of the {len(POINTS)} measurements that the speed model is fitted to, "
            f"{known or 'none'} {'is' if known < 2 else 'are'} of {name}."
        )
    if shape.accelerator.vendor is Vendor.AMD:
        found.append(
            "AMD: three published setups, two of them with AITER off, so ranges are wide. Measure "
            "before you buy."
        )
    longest = max(point.load.prompt_tokens for point in POINTS)
    if load.prompt_tokens > longest:
        found.append(
            f"No measurement has prompts above {longest:,.0f} tokens. For longer prompts the "
            "prediction is probably too slow, because attention is then most of the work and is "
            "fitted together with the rest."
        )
    if load.routing_skew and shape.geometry.is_moe:
        found.append(
            "Skewed routing is that of one repetitive workload, the most skew that was measured; "
            "the calibration assumes uniform routing."
        )
    if shape.layout.nodes > 1:
        found.append("The speed model is not fitted to any measurement over several nodes.")
    if shape.layout.pipeline_parallel_size > 1:
        found.append("The speed model is not fitted to any measurement with pipeline parallelism.")
    return found


def _two_digits(value: float) -> str:
    if value >= 100:
        digits = len(str(int(value))) - 2
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
