"""How engines and gateways log to the output of their pods."""

from typing import Literal

from pydantic import Field

from qwenfleet.cluster.config.section import Section

LogFormat = Literal["plain", "json"]


class LogConfig(Section):
    """The log that engines and gateways write to the output of their pods."""

    format: LogFormat = Field(
        default="plain",
        description="Form of a line: `plain` (time, level, event, then name=value) or `json`.",
    )
    access: bool = Field(
        default=True,
        description="Whether gateways write a JSON line per request: key, model, status, tokens, "
        "times, engine. No line has text of a request or an answer.",
    )
