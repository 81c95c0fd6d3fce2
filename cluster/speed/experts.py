"""Number of distinct experts that a batch of tokens uses, in all and on the busiest rank. Pure.

A decode step reads, once, the weights of every expert that any of its tokens is routed to.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Final

from qwenfleet.cluster.models.geometry import Geometry

MEASURED_SHARES: Final = (
    (0, 0.0),
    (16, 0.598),
    (40, 0.846),
    (64, 0.941),
    (80, 0.970),
    (96, 0.986),
    (128, 0.9987),
    (160, 1.0),
)
"""Number of busiest experts among 160, and their share of calls: mean over the layers of
Qwen3-Coder-480B, 72.0 million calls on the "sonnet" workload, as published with measurements of
that model. Sonnet is repetitive, so this is an upper bound on skew."""
MEASURED_EXPERTS: Final = 160


def routing_shares(geometry: Geometry, skew: float) -> tuple[float, ...]:
    """Probability that one token calls each expert of a layer, busiest first.

    `skew` 0 is uniform and 1 is as measured; values between mix the two. The sum is
    `experts_per_token`, except that each probability is clipped at 1.
    """
    return _shares(geometry.num_experts, geometry.experts_per_token, skew)


def experts_touched(geometry: Geometry, tokens: float, skew: float = 0.0) -> float:
    """Expected number of distinct experts of one layer that `tokens` tokens call."""
    return math.fsum(1 - (1 - share) ** tokens for share in routing_shares(geometry, skew))


def busiest_rank_experts(geometry: Geometry, tokens: float, ranks: int, skew: float = 0.0) -> float:
    """Expected number of distinct experts called on the busiest of `ranks` ranks.

    Experts are distributed regardless of their calls, so ranks differ by chance. This is the
    expected maximum of `ranks` normal variables by Blom's formula, accurate to a few percent.
    """
    if ranks == 1:
        return experts_touched(geometry, tokens, skew)
    called = [1 - (1 - share) ** tokens for share in routing_shares(geometry, skew)]
    mean = math.fsum(called) / ranks
    spread = math.sqrt(math.fsum(chance * (1 - chance) for chance in called) / ranks)
    above = NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))
    return max(min(mean + above * spread, geometry.num_experts / ranks), mean)


@cache
def _shares(num_experts: int, experts_per_token: int, skew: float) -> tuple[float, ...]:
    if not 0 <= skew <= 1:
        raise ValueError(f"routing skew must be from 0 to 1, not {skew}")
    uniform = experts_per_token / num_experts
    edges = [_measured_share(rank / num_experts) for rank in range(num_experts + 1)]
    skewed = [experts_per_token * (after - before) for before, after in pairwise(edges)]
    return tuple(min(1.0, (1 - skew) * uniform + skew * share) for share in skewed)


def _measured_share(of_experts: float) -> float:
    """Share of calls that go to this share of busiest experts; linear between measured points."""
    at = of_experts * MEASURED_EXPERTS
    for (left, before), (right, after) in pairwise(MEASURED_SHARES):
        if at <= right:
            return before + (after - before) * (at - left) / (right - left)
    return 1.0
