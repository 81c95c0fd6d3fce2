"""A request for a plan: model, machines, load and goal, validated on creation. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import KnownModel
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.plan_errors import (
    ContextTooLong,
    PlanError,
    Quantity,
    RequestTooLong,
    WrongQuantity,
)
from qwenfleet.cluster.vllm_settings.defaults import UTILIZATION
from qwenfleet.cluster.vllm_settings.long_context import yarn_overrides

SLO_EXAMPLE: Final = "Write it like ttft=2s,tpot=50ms."
LEAST_CONTEXT_TOKENS: Final = 8192
"""Minimum context of an engine if the request sets none: the prefill of one step."""
DURATION: Final = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>ms|s)")


class Goal(StrEnum):
    """Criterion for the choice among layouts that fit."""

    THROUGHPUT = "throughput"
    """Output tokens per second of all machines."""
    LATENCY = "latency"
    """Time between two tokens."""
    COST = "cost"
    """Fewest GPUs that carry the load within the SLO."""


class LongContext(StrEnum):
    """Method to serve more tokens than the model was trained on; see `long_context`."""

    YARN = "yarn"


class Routing(StrEnum):
    """Distribution of a load's tokens over experts; see `speed.experts`."""

    UNIFORM = "uniform"
    """All experts equally often, as in the calibration."""
    SKEWED = "skewed"
    """Skew measured for Qwen3-Coder-480B, an upper bound."""


@dataclass(frozen=True)
class Slo:
    """Latency objectives in seconds; None means no objective."""

    ttft_s: float | None = None
    """Time to the first token."""
    tpot_s: float | None = None
    """Time between two tokens after it."""

    @property
    def name(self) -> str:
        """Text form that `parse_slo` reads; empty without an objective."""
        promised = [("ttft", self.ttft_s), ("tpot", self.tpot_s)]
        return ",".join(f"{what}={value * 1000:g}ms" for what, value in promised if value)


def parse_slo(text: str) -> Slo:
    """Parse `ttft=2s,tpot=50ms`, or either part alone. Raises PlanError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip().lower() for piece in part.partition("="))
        duration = DURATION.fullmatch(value)
        if name not in ("ttft", "tpot") or duration is None:
            raise PlanError(f"'{part.strip()}' is not part of an SLO", SLO_EXAMPLE)
        if name in found:
            raise PlanError(f"the SLO '{text}' sets {name} twice", SLO_EXAMPLE)
        seconds = float(duration["number"]) / (1000 if duration["unit"] == "ms" else 1)
        if seconds <= 0:
            raise PlanError(f"the SLO's {name} is {value}", "Give a time above 0.")
        found[name] = seconds
    return Slo(found.get("ttft"), found.get("tpot"))


@dataclass(frozen=True)
class FleetLoad:
    """A steady load on the whole fleet; the defaults represent a few coding agents."""

    concurrency: int = 32
    """Concurrent requests over all engines."""
    prompt_tokens: int = 8192
    output_tokens: int = 512

    def __post_init__(self) -> None:
        for quantity, value in [
            (Quantity.CONCURRENCY, self.concurrency),
            (Quantity.PROMPT_TOKENS, self.prompt_tokens),
            (Quantity.OUTPUT_TOKENS, self.output_tokens),
        ]:
            if value < 1:
                raise WrongQuantity(quantity, value, "a number of 1 or more")

    @classmethod
    def within(
        cls,
        context_tokens: int,
        *,
        concurrency: int = concurrency,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> FleetLoad:
        """Build a load with default lengths, shortened to fit the context."""
        output = output_tokens
        if output is None:
            output = max(1, min(cls.output_tokens, context_tokens // 2))
        prompt = prompt_tokens
        if prompt is None:
            prompt = max(1, min(cls.prompt_tokens, context_tokens - output))
        return cls(concurrency, prompt, output)

    @property
    def sequence_tokens(self) -> int:
        """Length of one request when it ends."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class PlanRequest:
    """All inputs of the planner."""

    model: KnownModel
    machines: Machines
    context_tokens: int | None = None
    """Longest prompt plus output that must fit. None prefers the model's own context but accepts
    less."""
    long_context: LongContext | None = None
    """Method for a context above the model's own."""
    kv_dtype: KVDtype = KVDtype.AUTO
    routing: Routing = Routing.UNIFORM
    """Affects only predicted speeds, and only those of MoE models."""
    goal: Goal = Goal.THROUGHPUT
    slo: Slo = field(default_factory=Slo)
    load: FleetLoad = field(default_factory=FleetLoad)
    layout: Layout | None = None
    """Layout to check; None lets the planner choose."""
    utilization: float = UTILIZATION
    least_tokens: int | None = None
    """Minimum context of an engine without `context_tokens`; None means a request of the load."""

    def __post_init__(self) -> None:
        if not 0 < self.utilization <= 1:
            wanted = "a number above 0 and up to 1"
            raise WrongQuantity(Quantity.MEMORY_SHARE, self.utilization, wanted)
        check_context(self.model, self.context_tokens, self.long_context)
        if self.load.sequence_tokens > self.wanted_context_tokens:
            raise RequestTooLong(
                self.load.prompt_tokens, self.load.output_tokens, self.wanted_context_tokens
            )

    @property
    def routing_skew(self) -> float:
        """Skew for the speed model: 0 is uniform, 1 is as measured."""
        return 1.0 if self.routing is Routing.SKEWED else 0.0

    @property
    def wanted_context_tokens(self) -> int:
        """Requested context, or the model's own."""
        return self.context_tokens or self.model.geometry.max_context_tokens

    @property
    def least_context_tokens(self) -> int:
        """Minimum context of an engine: the requested one, or enough for a request of the load."""
        little = min(LEAST_CONTEXT_TOKENS, self.model.geometry.max_context_tokens)
        usual = max(little, self.load.sequence_tokens)
        return self.context_tokens or self.least_tokens or usual


def check_context(
    model: KnownModel, context_tokens: int | None, method: LongContext | None = None
) -> None:
    """Raise PlanError for a context that neither the model nor `method` supports."""
    if context_tokens is None:
        return
    if context_tokens < 1:
        raise WrongQuantity(Quantity.CONTEXT, context_tokens, "a number of 1 or more")
    longest = model.geometry.max_context_tokens
    if context_tokens <= longest:
        return
    if method is LongContext.YARN:
        yarn_overrides(model.geometry, context_tokens)  # raises beyond YaRN's largest factor
        return
    raise ContextTooLong(model.name, context_tokens, longest)
