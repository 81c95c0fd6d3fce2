"""The configuration of a fleet: one frozen tree of settings, which `load` reads from YAML.

Objects take their own section (`GatewayConfig`, `ModelConfig`, …), not the whole tree.
"""

from ipaddress import ip_address
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from qwenfleet.cluster.config.admission import AdmissionConfig
from qwenfleet.cluster.config.auth import AuthConfig, AuthSetting
from qwenfleet.cluster.config.grammar import GrammarConfig
from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.cluster.config.logs import LogConfig
from qwenfleet.cluster.config.model import ModelConfig, Replicas
from qwenfleet.cluster.config.section import Section, refuse
from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.config.tls import TlsConfig
from qwenfleet.cluster.errors import ConfigError


class GatewayConfig(Section):
    """The HTTP gateways of the fleet."""

    replicas: int = Field(default=1, ge=1, description="Gateway processes.")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port to listen on.")
    max_body_bytes: int = Field(
        default=32 * 2**20, ge=1, description="Largest request body, in bytes."
    )
    request_timeout_s: float = Field(
        default=3600, gt=0, description="Time limit of a request, in seconds."
    )
    keep_alive_s: float = Field(
        default=15,
        gt=0,
        description="Idle time after which a stream gets an SSE comment, in seconds.",
    )
    max_ongoing_requests: int = Field(
        default=1024,
        ge=1,
        description="Concurrent requests per gateway process, at most; others get 429.",
    )
    admission: AdmissionConfig = Field(
        default=AdmissionConfig(), description="What clients may hold, and for how long."
    )
    retry_after_s: int = Field(
        default=5,
        ge=1,
        description="Retry-After value while no engine is ready or a gateway is full, in seconds.",
    )
    drain_s: float | None = Field(
        default=None,
        gt=0,
        description="Time that the requests of a gateway that stops have to finish, in seconds; "
        "null: request_timeout_s.",
    )
    no_engine_s: float | None = Field(
        default=None,
        gt=0,
        description="Time without a working engine of a model after which its requests get 503 "
        "`no_engine`, in seconds; null: 1.5 times the longest start of an engine that the gateway "
        "has seen, and 30 at least.",
    )
    limits: LimitsConfig = Field(
        default=LimitsConfig(),
        description="Bounds on the fields of one request; one beyond them gets 400 or 413.",
    )
    grammar: GrammarConfig = Field(
        default=GrammarConfig(), description="Limits of the grammars that requests may bring."
    )

    @property
    def longest_answer_s(self) -> float:
        """Seconds from a request's first byte to the end of its answer, at most."""
        return self.admission.body_timeout_s + self.request_timeout_s

    @property
    def longest_drain_s(self) -> float:
        """Seconds that the requests of a gateway that stops have to finish."""
        return self.request_timeout_s if self.drain_s is None else self.drain_s


class WireConfig(Section):
    """The connection between gateways and engines."""

    lease_s: float = Field(
        default=5,
        gt=0,
        description="Time after which a gateway counts as dead if its process gives no sign of "
        "life and its machine acknowledges nothing, in seconds.",
    )
    heartbeat_s: float = Field(
        default=0.5, gt=0, description="Time between two heartbeats, in seconds."
    )
    connect_timeout_s: float = Field(
        default=5, gt=0, description="Time limit for opening a connection, in seconds."
    )
    tls: TlsConfig | None = Field(
        default=None,
        description="TLS with certificates on both ends; null: plain TCP, on which prompts and "
        "outputs can be read on the way. A change needs a new fleet: gateways with it and engines "
        "without it do not connect.",
    )

    @model_validator(mode="after")
    def _lease_outlives_three_heartbeats(self) -> Self:
        if self.lease_s < 3 * self.heartbeat_s:
            raise refuse(
                f"wire.lease_s {self.lease_s:g} is shorter than three times "
                f"wire.heartbeat_s {self.heartbeat_s:g}",
                f"Set lease_s to at least {3 * self.heartbeat_s:g}.",
                ("lease_s",),
            )
        return self


class TracingConfig(Section):
    """Sampling and export of traces."""

    endpoint: str = Field(
        default="http://127.0.0.1:4318",
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
        description="URL of a collector that accepts OTLP over HTTP, such as "
        "http://collector:4318. /v1/traces is added if the URL has no path.",
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of requests to trace. A `traceparent` header overrides it for its "
        "request.",
    )

    @property
    def traces_url(self) -> str:
        """The full URL for spans."""
        has_path = self.endpoint.rstrip("/").count("/") > 2
        return self.endpoint if has_path else f"{self.endpoint.rstrip('/')}/v1/traces"


class FleetConfig(Section):
    """The whole fleet."""

    # A value in the wrong place may be an API key; `explain` shows only values that cannot be one.
    model_config = ConfigDict(hide_input_in_errors=True)

    name: str = Field(
        default="qwenfleet",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$",
        description="Name of the fleet on its Ray cluster: 1 to 42 lower-case letters, digits and "
        "'-', a letter or digit at both ends.",
    )
    models: tuple[ModelConfig, ...] = Field(
        default=(ModelConfig(id="smollm2-135m-instruct", replicas=Replicas(min=2, max=2)),),
        min_length=1,
        strict=False,
        description="The models to serve.",
    )
    gateway: GatewayConfig = Field(default=GatewayConfig(), description="The HTTP gateways.")
    wire: WireConfig = Field(
        default=WireConfig(), description="Connections between gateways and engines."
    )
    cache_dir: str | None = Field(
        default=None,
        pattern=r"^/",
        description="Directory on a volume shared by all nodes, for weights from the Hub and for "
        "compilation caches; null: the home directory of each node.",
    )
    tracing: TracingConfig | None = Field(
        default=None, description="OpenTelemetry traces; null: no traces."
    )
    logging: LogConfig = Field(
        default=LogConfig(), description="The log that `kubectl logs` shows of a pod."
    )
    slo: SloConfig = Field(
        default=SloConfig(), description="Objectives of every model without its own."
    )
    auth: AuthSetting | None = Field(
        default=None,
        description="API keys: a mapping with keys or keys_file, or the word none, which allows "
        "anyone; null: anyone, on loopback only.",
    )

    @property
    def traces_url(self) -> str | None:
        """The full URL for spans; None without tracing."""
        return None if self.tracing is None else self.tracing.traces_url

    @property
    def objectives(self) -> dict[str, SloConfig]:
        """The objectives of each model, by model id."""
        return {model.id: model.slo or self.slo for model in self.models}

    @property
    def engine_pools(self) -> tuple[ModelConfig, ...]:
        """Every pool of every model, each in the form of a model."""
        return tuple(pool for model in self.models for pool in model.engine_pools)

    @property
    def num_engines(self) -> int:
        """The number of engines that always run, over all models."""
        return sum(pool.replicas.min for pool in self.engine_pools)

    @property
    def has_keys(self) -> bool:
        """True if requests need an API key."""
        return isinstance(self.auth, AuthConfig)

    @model_validator(mode="after")
    def _model_ids_are_unique(self) -> Self:
        first: dict[str, int] = {}
        for index, model in enumerate(self.models):
            if model.id in first:
                raise refuse(
                    f"models[{first[model.id]}] and models[{index}] both have id '{model.id}'",
                    "Give each model its own id.",
                    ("models", index, "id"),
                )
            first[model.id] = index
        return self

    @model_validator(mode="after")
    def _keys_guard_what_others_can_reach(self) -> Self:
        try:
            self.check_guarded(self.gateway.host)
        except ConfigError as error:
            raise refuse(error.problem, error.remedy, ("gateway", "host")) from error
        return self

    def check_guarded(self, host: str) -> None:
        """Raise ConfigError if other machines can reach this host and `auth` is not set. The host
        is an argument because a Serve that already runs may not listen at `gateway.host`."""
        if self.auth is None and not is_loopback(host):
            raise ConfigError(
                f"other machines can reach {host}, and the fleet requires no API key",
                'Write `auth: {keys: ["HASH"]}` in the fleet\'s file, with the HASH that '
                "`qwenfleet keys new` prints, or `auth: none` to allow anyone.",
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to a listening address or host name."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def dump(config: Section) -> dict[str, Any]:
    """Return a tree as JSON-compatible values, which `model_validate` of its class reads back."""
    return config.model_dump(mode="json")
