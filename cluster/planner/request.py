"""What a plan is asked for: a model, machines, a load, a goal; checked when it is made. Pure."""

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
from qwenfleet.cluster.vllm_settings.defaults import UTILISATION
from qwenfleet.cluster.vllm_settings.long_context import yarn_overrides

SLO_EXAMPLE: Final = "Write it like ttft=2s,tpot=50ms."
LEAST_CONTEXT_TOKENS: Final = 8192
"""What an engine must hold when no context is asked for: one step's prefill."""
DURATION: Final = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>ms|s)")


class Goal(StrEnum):
    """What the choice between layouts that fit is made by."""

    THROUGHPUT = "throughput"
    """Output tokens per second of all machines."""
    LATENCY = "latency"
    """Time between two tokens, then time to the first."""
    COST = "cost"
    """Output tokens per second of each GPU."""


class LongContext(StrEnum):
    """How a model serves more tokens than it was trained on; see `long_context`."""

    YARN = "yarn"


class Routing(StrEnum):
    """Which experts the tokens of a load call; see `expert_coverage`."""

    UNIFORM = "uniform"
    """All as often, which speeds are calibrated with."""
    SKEWED = "skewed"
    """As was measured of Qwen3-Coder-480B: an upper bound on skew."""


@dataclass(frozen=True)
class Slo:
    """What users are promised, in seconds; None promises nothing."""

    ttft_s: float | None = None
    """Time to the first token."""
    tpot_s: float | None = None
    """Time between two tokens after it."""

    @property
    def name(self) -> str:
        """As `parse_slo` reads it; empty when nothing is promised."""
        promised = [("ttft", self.ttft_s), ("tpot", self.tpot_s)]
        return ",".join(f"{what}={value * 1000:g}ms" for what, value in promised if value)


def parse_slo(text: str) -> Slo:
    """Read `ttft=2s,tpot=50ms`, either part alone too. Raises PlanError."""
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
    """A steady load on the whole fleet; the defaults stand for a few coding agents."""

    concurrency: int = 32
    """Requests that run at once, over all engines."""
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
        """The usual lengths where none are given, shorter where the context asks for it."""
        output = output_tokens
        if output is None:
            output = max(1, min(cls.output_tokens, context_tokens // 2))
        prompt = prompt_tokens
        if prompt is None:
            prompt = max(1, min(cls.prompt_tokens, context_tokens - output))
        return cls(concurrency, prompt, output)

    @property
    def sequence_tokens(self) -> int:
        """Of one request at its end."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class PlanRequest:
    """Everything that the planner looks at."""

    model: KnownModel
    machines: Machines
    context_tokens: int | None = None
    """Longest prompt plus output that must fit; None prefers the model's own and takes less."""
    long_context: LongContext | None = None
    """How a context above the model's own is reached."""
    kv_dtype: KVDtype = KVDtype.AUTO
    routing: Routing = Routing.UNIFORM
    """Speeds alone depend on it, and of a dense model not even they."""
    goal: Goal = Goal.THROUGHPUT
    slo: Slo = field(default_factory=Slo)
    load: FleetLoad = field(default_factory=FleetLoad)
    layout: Layout | None = None
    """Asked for by name; None lets the planner choose."""
    utilisation: float = UTILISATION
    least_tokens: int | None = None
    """What an engine must hold when no context is asked for; None: a request of the load."""

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            wanted = "a number above 0 and up to 1"
            raise WrongQuantity(Quantity.MEMORY_SHARE, self.utilisation, wanted)
        check_context(self.model, self.context_tokens, self.long_context)
        if self.load.sequence_tokens > self.wanted_context_tokens:
            raise RequestTooLong(
                self.load.prompt_tokens, self.load.output_tokens, self.wanted_context_tokens
            )

    @property
    def routing_skew(self) -> float:
        """As the speed model takes it: 0 is uniform, 1 as measured."""
        return 1.0 if self.routing is Routing.SKEWED else 0.0

    @property
    def wanted_context_tokens(self) -> int:
        """What is asked for, or the model's own."""
        return self.context_tokens or self.model.geometry.max_context_tokens

    @property
    def least_context_tokens(self) -> int:
        """What an engine must hold: what is asked for, or a request of the load and a little."""
        little = min(LEAST_CONTEXT_TOKENS, self.model.geometry.max_context_tokens)
        usual = max(little, self.load.sequence_tokens)
        return self.context_tokens or self.least_tokens or usual


def check_context(
    model: KnownModel, context_tokens: int | None, method: LongContext | None = None
) -> None:
    """Raise PlanError for a context that the model is not made for and `method` does not reach."""
    if context_tokens is None:
        return
    if context_tokens < 1:
        raise WrongQuantity(Quantity.CONTEXT, context_tokens, "a number of 1 or more")
    longest = model.geometry.max_context_tokens
    if context_tokens <= longest:
        return
    if method is LongContext.YARN:
        yarn_overrides(model.geometry, context_tokens)  # raises beyond what YaRN is used for
        return
    raise ContextTooLong(model.name, context_tokens, longest)
