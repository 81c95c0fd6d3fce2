"""The planner's answer: candidates, refused layouts, the choice and its reason. Pure data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import sqrt
from typing import TYPE_CHECKING

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.planner.memory import GpuMemory
from qwenfleet.cluster.planner.request import PlanRequest
from qwenfleet.cluster.planner.rules import Judgment, RuleRemark

if TYPE_CHECKING:
    from qwenfleet.cluster.speed.prediction import PredictedSpeed, Range


class SloVerdict(IntEnum):
    """Relation of a predicted range to the SLO; a smaller value is better."""

    KEPT = 0
    """Met even at the slow end of the range, or no SLO is set."""
    POSSIBLE = 1
    """Met only at the fast end of the range."""
    MISSED = 2


@dataclass(frozen=True)
class Candidate:
    """A legal layout that fits."""

    layout: Layout
    engines: int
    """Number of engines that the plan runs."""
    memory: GpuMemory
    judgment: Judgment
    max_model_len: int
    """Longest prompt plus output of one sequence, in tokens; never above the model's."""
    holds_wanted_context: bool
    concurrency: int
    """Requests that one engine runs at once, limited by its share of the load and its KV cache."""
    max_num_seqs: int
    """vLLM's limit for one data parallel rank, computed from its KV cache."""
    speed: PredictedSpeed | None = None
    """Speed of one engine; None without a prediction."""
    slo: SloVerdict = SloVerdict.KEPT

    @property
    def num_gpus(self) -> int:
        """GPUs of all its engines."""
        return self.engines * self.layout.num_gpus

    @property
    def kv_tokens(self) -> int:
        """KV tokens over all ranks of all engines."""
        return self.engines * self.engine_kv_tokens

    @property
    def engine_kv_tokens(self) -> int:
        """KV tokens over all ranks of one engine."""
        return self.layout.data_parallel_size * self.memory.kv_tokens

    @property
    def output_tokens_per_s(self) -> Range | None:
        """Output rate of all engines together."""
        return None if self.speed is None else self.speed.output_tokens_per_s * self.engines


@dataclass(frozen=True)
class RefusedLayout:
    """A layout that breaks a rule, cannot be placed, or does not fit."""

    layout: Layout
    breaches: tuple[RuleRemark, ...]
    memory: GpuMemory


@dataclass(frozen=True)
class Plan:
    """The answer, with every layout that was checked."""

    request: PlanRequest
    candidates: tuple[Candidate, ...]
    """Best first; never empty."""
    refused: tuple[RefusedLayout, ...]
    reason: str
    warnings: tuple[str, ...]

    @property
    def choice(self) -> Candidate:
        """The best candidate."""
        return self.candidates[0]


SpeedModel = Callable[[PlanRequest, Layout, int], "PredictedSpeed | None"]
"""Predicts one engine of a layout at a number of concurrent requests; None without a prediction."""


def no_speed(request: PlanRequest, layout: Layout, concurrency: int) -> None:
    """Predict nothing, so that KV capacity decides."""


def middle(found: Range) -> float:
    """Center of a range: a range is its center divided by and multiplied by one factor."""
    return sqrt(found.low * found.high)
