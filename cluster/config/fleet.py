"""What a fleet is: one frozen tree of settings, which `config_file` reads from YAML.

Objects take their own section (`GatewayConfig`, `ModelConfig`, …), not the whole tree.
"""

from ipaddress import ip_address
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from qwenfleet.cluster.config.auth import AuthConfig, AuthSetting
from qwenfleet.cluster.config.model import ModelConfig, Replicas
from qwenfleet.cluster.config.section import Section, refuse
from qwenfleet.cluster.config.slo import SloConfig
from qwenfleet.cluster.errors import ConfigError


class GatewayConfig(Section):
    """The HTTP front of the fleet."""

    replicas: int = Field(default=1, ge=1, description="Gateway processes.")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port to listen on.")
    max_body_bytes: int = Field(
        default=32 * 2**20, ge=1, description="Largest request body, in bytes."
    )
    request_timeout_s: float = Field(
        default=3600, gt=0, description="Longest a request may take, in seconds."
    )
    keep_alive_s: float = Field(
        default=15,
        gt=0,
        description="Silence after which a stream gets an SSE comment, in seconds.",
    )
    max_ongoing_requests: int = Field(
        default=1024, ge=1, description="Requests that one gateway process works on at a time."
    )
    retry_after_s: int = Field(
        default=5, ge=1, description="Retry-After sent while no engine is ready, in seconds."
    )


class WireConfig(Section):
    """The connection between gateways and engines."""

    lease_s: float = Field(
        default=5, gt=0, description="Silence after which a gateway counts as gone, in seconds."
    )
    heartbeat_s: float = Field(
        default=0.5, gt=0, description="Time between two signs of life, in seconds."
    )
    connect_timeout_s: float = Field(
        default=5, gt=0, description="Longest wait for a connection, in seconds."
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
    """Which requests are traced, and where their spans go."""

    endpoint: str = Field(
        default="http://127.0.0.1:4318",
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
        description="URL at which a collector takes OTLP over HTTP, such as http://collector:4318; "
        "without a path /v1/traces is added.",
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of requests that are traced, of those whose `traceparent` header does "
        "not say whether they are.",
    )

    @property
    def traces_url(self) -> str:
        """Where spans are sent."""
        has_path = self.endpoint.rstrip("/").count("/") > 2
        return self.endpoint if has_path else f"{self.endpoint.rstrip('/')}/v1/traces"


class FleetConfig(Section):
    """The whole fleet."""

    # A value in the wrong place may be a key; `config_sentences` shows those that cannot be.
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
    gateway: GatewayConfig = Field(default=GatewayConfig(), description="The HTTP front.")
    wire: WireConfig = Field(default=WireConfig(), description="Gateway to engine connections.")
    cache_dir: str | None = Field(
        default=None,
        pattern=r"^/",
        description="Directory, on a volume that all nodes share, for weights from the Hub and for "
        "what engines compile; null: the home directory of each node.",
    )
    tracing: TracingConfig | None = Field(
        default=None, description="OpenTelemetry traces; null makes none."
    )
    slo: SloConfig = Field(
        default=SloConfig(), description="Objectives of every model that has none of its own."
    )
    auth: AuthSetting | None = Field(
        default=None,
        description="Who may use the fleet: a mapping with keys or keys_file, or the word none, "
        "which lets anyone in; null: anyone, on loopback only.",
    )

    @property
    def traces_url(self) -> str | None:
        """Where spans are sent; None when none are made."""
        return None if self.tracing is None else self.tracing.traces_url

    @property
    def objectives(self) -> dict[str, SloConfig]:
        """What the users of each model are promised, by its id."""
        return {model.id: model.slo or self.slo for model in self.models}

    @property
    def engine_pools(self) -> tuple[ModelConfig, ...]:
        """Every pool of every model, each as a model of its own."""
        return tuple(pool for model in self.models for pool in model.engine_pools)

    @property
    def num_engines(self) -> int:
        """Engines that always run, of all models."""
        return sum(pool.replicas.min for pool in self.engine_pools)

    @property
    def is_local(self) -> bool:
        """Whether HTTP is answered on loopback only, so that the whole fleet is on one machine."""
        return is_loopback(self.gateway.host)

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
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
        """Raises ConfigError when other machines reach this host and nothing says who may use the
        fleet. A Serve that ran before may listen elsewhere than at `gateway.host`."""
        if self.auth is None and not is_loopback(host):
            raise ConfigError(
                f"other machines can reach {host}, and no key guards the fleet",
                'Write `auth: {keys: ["HASH"]}` in the fleet\'s file, with the HASH that '
                "`qwenfleet keys new` prints, or `auth: none` to let anyone in.",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address or name to listen on."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def dump(config: Section) -> dict[str, Any]:
    """A tree as JSON-able values; its class's `model_validate` takes it back."""
    return config.model_dump(mode="json")
