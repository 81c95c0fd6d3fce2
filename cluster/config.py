"""What a fleet is: one frozen tree of settings, which `config_file` reads from YAML.

Objects take their own section (`GatewayConfig`, `ModelConfig`, …), not the whole tree. Scalars
are strict: YAML's `yes` is no number and `"8000"` is no port.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

OWNED_ENGINE_ARGS = {
    "model": "source",
    "served_model_name": "id",
    "max_model_len": "max_model_len",
    "data_parallel_rank": "replicas",
}
"""vLLM arguments that qwenfleet sets itself, each with the field to use instead."""

ModelId = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=200,
        pattern=r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?$",
    ),
]


class Section(BaseModel):
    """One part of the tree: frozen, closed and strict."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _refuse(problem: str, remedy: str, at: tuple[str | int, ...] = ()) -> PydanticCustomError:
    """A cross-field rule's error: the two halves of a `ConfigError`, and where in the section."""
    values = {"problem": problem, "remedy": remedy, "at": at}
    return PydanticCustomError("rule", "{problem}. {remedy}", values)


class Replicas(Section):
    """How many engines one model has."""

    min: int = Field(default=1, ge=1, description="Engines that always run.")
    max: int | None = Field(
        default=None,
        ge=1,
        description="Engines at most; null means `min`, and no other value works yet.",
    )

    @model_validator(mode="after")
    def _max_fits_min(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise _refuse(
                f"replicas.max {self.max} is below replicas.min {self.min}",
                f"Set max to {self.min}.",
                ("max",),
            )
        if self.max is not None and self.max > self.min:
            raise _refuse(
                f"replicas.max {self.max} is above replicas.min {self.min}, "
                "but autoscaling is not built yet",
                "Set max equal to min.",
                ("max",),
            )
        return self


class SamplingDefaults(Section):
    """Sampling parameters for requests that do not set their own; null leaves vLLM's default."""

    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Sampling temperature; 0 is greedy."
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Probability mass that sampling is cut to."
    )
    top_k: int | None = Field(
        default=None, ge=-1, description="Tokens that sampling is cut to; 0 or -1 keeps all."
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least probability, as a share of the likeliest token's.",
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=2, description="Factor on tokens seen in prompt or output; 1 is off."
    )
    presence_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Logit subtracted from tokens in the output; 0 is off.",
    )


class ScriptConfig(Section):
    """What a scripted engine plays: tests only, no model runs."""

    step_s: float = Field(default=0.01, ge=0, description="Time of one decode step, in seconds.")
    prefill_tokens_per_s: float = Field(
        default=100_000, gt=0, description="Prompt tokens prefilled per second."
    )
    tokens: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(72, 101, 108, 108, 111, 32),
        min_length=1,
        strict=False,
        description="Token ids, played in a loop.",
    )
    num_tokens: int = Field(default=64, ge=1, description="Output length, in tokens.")
    fail_after_tokens: int | None = Field(
        default=None, ge=0, description="Die after this many output tokens; null never dies."
    )
    start_s: float = Field(default=0, ge=0, description="Time to start an engine, in seconds.")


class ModelConfig(Section):
    """One model that the fleet serves."""

    id: ModelId = Field(
        description="The name that clients send as `model`: 1 to 200 characters, none of them a "
        "control character, no space at either end."
    )
    source: str = Field(
        default="", description="Hugging Face name or directory of the weights; empty means `id`."
    )
    replicas: Replicas = Field(default=Replicas(), description="How many engines run.")
    max_model_len: int | None = Field(
        default=None,
        gt=0,
        description="Longest prompt plus output, in tokens; null: the model's own.",
    )
    tool_call_parser: str | None = Field(
        default=None, description="vLLM's name of the tool-call parser; null serves no tool calls."
    )
    tool_strict_level: Literal["auto", "function", "parameter"] | None = Field(
        default=None,
        description="What vLLM's grammar holds a tool call to: auto as the request says, function "
        "its form, parameter its arguments too; null takes the model card's.",
    )
    chat_template: str | None = Field(
        default=None, description="Path of a chat template; null takes the model's own."
    )
    sampling: SamplingDefaults = Field(
        default=SamplingDefaults(), description="Sampling parameters of requests that set none."
    )
    kv_cache_gib: float = Field(
        default=1.0,
        gt=0,
        description="KV cache of one engine, in GiB. CPU engines only: on a GPU vLLM sizes it.",
    )
    engine: Literal["vllm", "scripted"] = Field(
        default="vllm", description="`scripted` plays tokens without a model, for tests."
    )
    script: ScriptConfig | None = Field(
        default=None, description="What a scripted engine plays; null plays the defaults."
    )
    accelerator: str | None = Field(
        default=None,
        description="Ray's accelerator type of the GPUs that an engine runs on, such as H100 or "
        "AMD-Instinct-MI300X-OAM; null runs engines on CPUs.",
    )
    engine_args: dict[str, JsonValue] = Field(
        default={}, description="Passed to vLLM's AsyncEngineArgs as they are."
    )

    @property
    def resolved_source(self) -> str:
        """Where the weights come from."""
        return self.source or self.id

    @property
    def num_gpus(self) -> int:
        """GPUs of one engine: the product of its parallel sizes; 0 on CPUs."""
        if self.accelerator is None:
            return 0
        sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        values = [self.engine_args.get(size) for size in sizes]
        return math.prod(value for value in values if isinstance(value, int))

    @model_validator(mode="after")
    def _script_needs_scripted_engine(self) -> Self:
        if self.script is not None and self.engine != "scripted":
            raise _refuse(
                f"script is set but engine is '{self.engine}'",
                "Set engine to 'scripted' or remove script.",
                ("script",),
            )
        return self

    @model_validator(mode="after")
    def _engine_args_are_not_ours(self) -> Self:
        for name in self.engine_args:
            field = OWNED_ENGINE_ARGS.get(name)
            if field is not None:
                raise _refuse(
                    f"engine_args.{name} is set by qwenfleet",
                    f"Use the model's '{field}' instead.",
                    ("engine_args", name),
                )
        return self


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
            raise _refuse(
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

    @property
    def traces_url(self) -> str | None:
        """Where spans are sent; None when none are made."""
        return None if self.tracing is None else self.tracing.traces_url

    @property
    def is_local(self) -> bool:
        """Whether HTTP is answered on loopback only, so that the whole fleet is on one machine."""
        return self.gateway.host in {"127.0.0.1", "localhost", "::1"}

    @model_validator(mode="after")
    def _model_ids_are_unique(self) -> Self:
        first: dict[str, int] = {}
        for index, model in enumerate(self.models):
            if model.id in first:
                raise _refuse(
                    f"models[{first[model.id]}] and models[{index}] both have id '{model.id}'",
                    "Give each model its own id.",
                    ("models", index, "id"),
                )
            first[model.id] = index
        return self


def dump(config: FleetConfig) -> dict[str, Any]:
    """The tree as JSON-able values; `FleetConfig.model_validate` takes it back."""
    return config.model_dump(mode="json")
