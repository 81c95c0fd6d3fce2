"""Service level objectives of a model, which alerts and dashboards measure.

A gateway judges each event when it happens, against the objective of that moment. So rules contain
no thresholds, and a changed objective takes effect without new rules and without a restart.
"""

from pydantic import Field

from qwenfleet.cluster.config.section import Section


class SloConfig(Section):
    """Service level objectives of a model, over 30 days."""

    availability_ratio: float = Field(
        default=0.999,
        gt=0,
        lt=1,
        description="Share of requests that are answered; invalid requests and those that the "
        "client canceled do not count.",
    )
    ttft_s: float = Field(
        default=5.0,
        gt=0,
        description="Target for the time from the request body to the first token, in seconds.",
    )
    ttft_ratio: float = Field(
        default=0.95, gt=0, lt=1, description="Share of first tokens that arrive within ttft_s."
    )
    inter_token_s: float = Field(
        default=0.1,
        gt=0,
        description="Target for the time between two token events of a stream, in seconds.",
    )
    inter_token_ratio: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="Share of later tokens that arrive within inter_token_s.",
    )
    start_s: float = Field(
        default=1800.0,
        gt=0,
        description="Target for the start of an engine, with weights, compilation and warm-up, in "
        "seconds.",
    )
