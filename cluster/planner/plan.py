"""What the planner answers: candidates, refused layouts, the choice and its reason. Pure data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import sqrt
from typing import TYPE_CHECKING

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.planner.memory import GpuMemory
from qwenfleet.cluster.planner.request import PlanRequest
from qwenfleet.cluster.planner.rules import Judgement, Remark

if TYPE_CHECKING:
    from qwenfleet.cluster.speed.prediction import Range, Speed


class SloVerdict(IntEnum):
    """Whether a predicted range keeps what users are promised; better is less."""

    KEPT = 0
    """Even at its slow end, or nothing is promised."""
    POSSIBLE = 1
    """At its fast end only."""
    MISSED = 2


@dataclass(frozen=True)
class Candidate:
    """A layout that is legal and fits."""

    layout: Layout
    engines: int
    """That the plan would run."""
    memory: GpuMemory
    judgement: Judgement
    max_model_len: int
    """Longest prompt plus output of one sequence, in tokens; never above the model's."""
    holds_wanted_context: bool
    concurrency: int
    """Requests that one engine runs at once, by its share of the load and by what KV it has."""
    max_num_seqs: int
    """Of one data parallel rank, as it is written for vLLM: from what its KV cache holds."""
    speed: Speed | None = None
    """Of one engine; None when nothing predicts it."""
    slo: SloVerdict = SloVerdict.KEPT

    @property
    def num_gpus(self) -> int:
        """Of all its engines."""
        return self.engines * self.layout.num_gpus

    @property
    def kv_tokens(self) -> int:
        """Over all ranks of all engines."""
        return self.engines * self.engine_kv_tokens

    @property
    def engine_kv_tokens(self) -> int:
        """Over all ranks of one engine."""
        return self.layout.data_parallel_size * self.memory.kv_tokens

    @property
    def output_tokens_per_s(self) -> Range | None:
        """Of all engines."""
        return None if self.speed is None else self.speed.output_tokens_per_s * self.engines


@dataclass(frozen=True)
class Refused:
    """A layout that is not legal, cannot be placed, or does not fit."""

    layout: Layout
    breaches: tuple[Remark, ...]
    memory: GpuMemory


@dataclass(frozen=True)
class Plan:
    """The answer, with everything that was looked at."""

    request: PlanRequest
    candidates: tuple[Candidate, ...]
    """Best first; never empty."""
    refused: tuple[Refused, ...]
    reason: str
    warnings: tuple[str, ...]

    @property
    def choice(self) -> Candidate:
        """The best candidate."""
        return self.candidates[0]


SpeedModel = Callable[[PlanRequest, Layout, int], "Speed | None"]
"""One engine of a layout that runs so many requests at once; None where nothing can be said."""


def no_speed(request: PlanRequest, layout: Layout, concurrency: int) -> None:
    """Predicts nothing: KV capacity decides."""


def middle(found: Range) -> float:
    """The value that a range is around: it is that value times and divided by one factor."""
    return sqrt(found.low * found.high)
