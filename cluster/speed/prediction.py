"""How fast an engine is: times to and between tokens, tokens per second, as ranges. Pure.

A range is the calibrated model's value times and divided by how far the model was off for set-ups
that its fit did not know; there is no bare number.
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
"""Where the search for a concurrency ends."""


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"{self.low} to {self.high} is not a range")

    @classmethod
    def around(cls, value: float, spread: float) -> Range:
        """`value` divided by and times `spread`."""
        return cls(value / spread, value * spread)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def divides(self, amount: float) -> Range:
        """`amount` over it."""
        return Range(amount / self.high, amount / self.low)

    def text(self, unit: str) -> str:
        """With two digits that count: "17 to 32 ms"."""
        return f"{_two_digits(self.low)} to {_two_digits(self.high)} {unit}".rstrip()


@dataclass(frozen=True)
class PredictedSpeed:
    """Of one engine under one load."""

    load: Workload
    ttft_s: Range
    """Of a request that finds room; waiting in a queue comes on top."""
    tpot_s: Range
    output_tokens_per_s: Range
    """Of all sequences together."""
    total_tokens_per_s: Range
    """Prompts counted."""


@dataclass(frozen=True)
class ContextRow:
    """One line of the table of contexts."""

    context_tokens: int
    sequences: int
    """That have room at this length; 0 when not one has."""
    tpot_s: Range | None
    """With that many, and nothing to prefill; None for 0."""

    @property
    def output_tokens_per_s(self) -> Range | None:
        """Of all of them together."""
        return None if self.tpot_s is None else self.tpot_s.divides(self.sequences)


def predict(shape: EngineShape, load: Workload) -> PredictedSpeed:
    """The speed of an engine whose KV cache holds the load: `memory` says whether it does."""
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
    """The least and the largest of measured over modelled times to first token: a handful, of one
    model, so they are no error bound."""
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
    """The largest concurrency whose time per token is within the SLO at the slow end of its range;
    0 when one sequence alone is not."""
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
    """For each context, how many sequences of that length have `room` in the engine, and how fast
    they decode at the end of it: prompts are in the KV cache already."""
    spread = SPREADS[shape.accelerator.vendor]
    rows = []
    for context in contexts:
        sequences = room(context)
        answer = max(1, min(output_tokens, context - 1))
        load = Workload(max(sequences, 1), max(context - answer, 1), answer, routing_skew)
        step = Range.around(decode_step(shape, load).seconds(VALUES), spread)
        rows.append(ContextRow(context, sequences, step if sequences else None))
    return rows


def doubts(shape: EngineShape, load: Workload) -> list[str]:
    """What a reader of a prediction should know, as sentences."""
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
