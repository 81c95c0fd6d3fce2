"""What clients may take of a gateway, and of the HAProxy in front of it, before others notice."""

from pydantic import Field

from qwenfleet.cluster.config.section import Section


class AdmissionConfig(Section):
    """What clients may hold before a model sees their requests."""

    body_timeout_s: float = Field(
        default=60,
        gt=0,
        description="Time that a client has to send a request's body, in seconds.",
    )
    client_timeout_s: int = Field(
        default=60,
        ge=1,
        description="Time that a client may neither send its request's body nor read its answer, "
        "in seconds. After it, the proxy closes the connection, and the request stops.",
    )
    max_open_body_bytes: int = Field(
        default=256 * 2**20,
        ge=1,
        description="Bodies of all open requests of a gateway process, in bytes; max_body_bytes at "
        "least. A request that exceeds it gets 429.",
    )
    fill_in_the_middle_share: float = Field(
        default=1 / 16,
        ge=0,
        le=0.5,
        description="Share of max_ongoing_requests and of max_open_body_bytes that is kept for "
        "short fill-in-the-middle requests, so that an editor is served while long answers fill a "
        "gateway. Their number is rounded down.",
    )
    max_connections: int = Field(
        default=8192,
        ge=8,
        description="Connections of clients per node, at most; fewer if the node's limit of open "
        "files is too low. One address may hold an eighth of them without a request.",
    )
    max_requests_per_address: int | None = Field(
        default=None,
        ge=1,
        description="Concurrent requests of one address per node, at most; others get 429. Set it "
        "if clients connect directly. null: no bound, because a load balancer has one address for "
        "all.",
    )
