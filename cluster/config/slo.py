"""What users are promised: the objectives of a model, which alerts and dashboards measure.

A gateway judges each event when it happens, with the objective of that moment, so that no rule has
to know a threshold, and a changed objective needs neither new rules nor a restart.
"""

from pydantic import Field

from qwenfleet.cluster.config.section import Section


class SloConfig(Section):
    """What the users of a model are promised, over 30 days."""

    availability_ratio: float = Field(
        default=0.999,
        gt=0,
        lt=1,
        description="Share of requests that are answered; those that the client spoiled or left "
        "do not count.",
    )
    ttft_s: float = Field(
        default=5.0,
        gt=0,
        description="Longest good time from a request's body to its first token, in seconds.",
    )
    ttft_ratio: float = Field(
        default=0.95, gt=0, lt=1, description="Share of first tokens that come within ttft_s."
    )
    inter_token_s: float = Field(
        default=0.1,
        gt=0,
        description="Longest good time between two token events of a stream, in seconds.",
    )
    inter_token_ratio: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="Share of later tokens that come within inter_token_s.",
    )
    start_s: float = Field(
        default=1800.0,
        gt=0,
        description="Longest start of an engine, with weights, compilation and warm-up, in "
        "seconds.",
    )
