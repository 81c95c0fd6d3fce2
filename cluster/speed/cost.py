"""The load, and the cost of a step as parts that each scale with one fitted parameter. Pure.

A part is the ideal time of its cause, at the full rate of memory, links or matrix units.
`calibration` fits how much slower each is in practice, and the time that no rate explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from qwenfleet.cluster.plan_errors import PlanError, Quantity, WrongQuantity


class Parameter(StrEnum):
    """Fitted parameters: times in seconds per layer and step, or factors on ideal times."""

    LAYER_NVIDIA = "layer, NVIDIA"
    LAYER_AMD = "layer, AMD"
    TENSOR_PARALLEL = "tensor parallelism"
    DATA_PARALLEL = "data and expert parallelism"
    MEMORY_HOPPER = "memory, Hopper and older"
    MEMORY_BLACKWELL = "memory, Blackwell"
    MEMORY_AMD = "memory, AMD"
    COMPUTE = "compute"

    @property
    def is_time(self) -> bool:
        """True if it is seconds per layer, not a factor."""
        return self in TIMES


TIMES = frozenset(
    {
        Parameter.LAYER_NVIDIA,
        Parameter.LAYER_AMD,
        Parameter.TENSOR_PARALLEL,
        Parameter.DATA_PARALLEL,
    }
)


class Cause(StrEnum):
    """Causes of a step's time."""

    OVERHEAD = "overhead"
    """Launches, scheduling and the latency of collectives, which no rate explains."""
    WEIGHTS = "weights"
    KV_CACHE = "KV cache"
    LINKS = "links"
    COMPUTE = "compute"
    PREFILL = "prefill"
    """Prefill of prompts between the steps of other sequences."""


@dataclass(frozen=True)
class Workload:
    """A steady load: `concurrency` sequences run at all times, each of the same lengths."""

    concurrency: float
    """Sequences that one engine runs at once."""
    prompt_tokens: float
    output_tokens: float
    routing_skew: float = 0.0
    """0: all experts are called equally often; 1: as measured, see `experts`."""

    def __post_init__(self) -> None:
        for quantity, value in [
            (Quantity.CONCURRENCY, self.concurrency),
            (Quantity.PROMPT_TOKENS, self.prompt_tokens),
            (Quantity.OUTPUT_TOKENS, self.output_tokens),
        ]:
            if not value > 0:
                raise WrongQuantity(quantity, value, "a number above 0")
        if not 0 <= self.routing_skew <= 1:
            raise PlanError(
                f"routing_skew is {self.routing_skew:g}",
                "Give a number from 0 (uniform) to 1 (as measured).",
            )

    @property
    def context_tokens(self) -> float:
        """Context of one sequence in the middle of its answer."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True)
class Part:
    """One cause of a step's time."""

    cause: Cause
    parameter: Parameter | None
    """Factor of the amount; None for a factor of 1."""
    amount: float
    """Layers if the parameter is a time, ideal seconds if it is a factor."""


@dataclass(frozen=True)
class StepCost:
    """A sum of parts."""

    parts: tuple[Part, ...] = ()

    def __add__(self, other: StepCost) -> StepCost:
        return StepCost(self.parts + other.parts)

    def __mul__(self, factor: float) -> StepCost:
        return StepCost(tuple(replace(part, amount=part.amount * factor) for part in self.parts))

    def amount(self, parameter: Parameter | None) -> float:
        """Sum of the amounts that one parameter multiplies."""
        return sum(part.amount for part in self.parts if part.parameter is parameter)

    def by_cause(self, values: Mapping[Parameter, float]) -> dict[Cause, float]:
        """Seconds of each cause."""
        seconds = dict.fromkeys(Cause, 0.0)
        for part in self.parts:
            value = 1.0 if part.parameter is None else values[part.parameter]
            seconds[part.cause] += part.amount * value
        return seconds

    def seconds(self, values: Mapping[Parameter, float]) -> float:
        """Total seconds."""
        return sum(self.by_cause(values).values())
