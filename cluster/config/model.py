"""One model of the fleet: its weights, its hardware, and its number of engines."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from qwenfleet.cluster.config import vllm_arguments
from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.section import Section, refuse
from qwenfleet.cluster.config.slo import SloConfig

FRONT_END_ARGS = tuple(sorted(vllm_arguments.GATEWAY | vllm_arguments.BOTH))
"""vLLM arguments that affect prompts, sampling and answers: the only ones that gateways read."""

ModelId = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=200,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
    ),
]
"""Printable ASCII, because labels of Ray's metrics accept no other character (ray 2.60)."""


class Replicas(Section):
    """The number of engines of one model."""

    min: int = Field(default=1, ge=1, description="Engines that always run.")
    max: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of engines; null: same as `min`, the only value supported so "
        "far.",
    )

    @model_validator(mode="after")
    def _max_fits_min(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise refuse(
                f"replicas.max {self.max} is below replicas.min {self.min}",
                f"Set max to {self.min}.",
                ("max",),
            )
        if self.max is not None and self.max > self.min:
            raise refuse(
                f"replicas.max {self.max} is above replicas.min {self.min}, "
                "but autoscaling is not implemented yet",
                "Set max equal to min.",
                ("max",),
            )
        return self


class SamplingDefaults(Section):
    """Parameters for requests that do not set them; null: the model card's, or vLLM's default."""

    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Sampling temperature; 0 is greedy."
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Nucleus sampling: probability mass to sample from."
    )
    top_k: int | None = Field(
        default=None, ge=-1, description="Number of tokens to sample from; 0 or -1: all."
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Minimum probability, relative to the most likely token's.",
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=2, description="Penalty on tokens in the prompt or output; 1: off."
    )
    presence_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Value subtracted from the logits of tokens in the output; 0: off.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Length of an answer of a chat, in tokens; less if the context leaves less. "
        "A request may ask for more. Null: all that the context leaves.",
    )


class ScriptConfig(Section):
    """Output of a scripted engine. For tests only: no model runs."""

    step_s: float = Field(default=0.01, ge=0, description="Time per decode step, in seconds.")
    prefill_tokens_per_s: float = Field(
        default=100_000, gt=0, description="Prompt tokens prefilled per second."
    )
    tokens: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(72, 101, 108, 108, 111, 32),
        min_length=1,
        strict=False,
        description="Token ids, repeated in a loop.",
    )
    num_tokens: int = Field(default=64, ge=1, description="Output length, in tokens.")
    fail_after_tokens: int | None = Field(
        default=None, ge=0, description="Crash after this many output tokens; null: never."
    )
    start_s: float = Field(default=0, ge=0, description="Start time of an engine, in seconds.")


class EngineGroup(Section):
    """Engines of one kind: number, hardware and layout."""

    replicas: Replicas = Field(default=Replicas(), description="Number of engines.")
    accelerator: str | None = Field(
        default=None,
        description="Ray's accelerator type for the engine's GPUs, such as H100 or "
        "AMD-Instinct-MI300X-OAM; null: engines run on CPUs.",
    )
    layout: Layout | None = Field(
        default=None,
        description="How one engine is sharded; null: the choice of `qwenfleet plan`, or one GPU "
        "or CPU process for a model that the planner does not know.",
    )
    env: dict[str, str] = Field(
        default={}, description="Environment variables of these engines; override qwenfleet's."
    )
    engine_args: dict[str, JsonValue] = Field(
        default={},
        description="Arguments of vLLM's engine or of its HTTP server, by the names that Python "
        "uses, unchanged; override those of a plan.",
    )

    @model_validator(mode="after")
    def _engine_args_are_vllms(self) -> Self:
        for name, value in self.engine_args.items():
            found = vllm_arguments.problem_of(name, value)
            if found is not None:
                raise refuse(*found, ("engine_args", name))
        return self


class Pool(EngineGroup):
    """A group of a model's engines on the same kind of machine. `env` and `engine_args` are merged
    over the model's own."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?$",
        description="1 to 30 lower-case letters, digits and '-', with a letter or digit at both "
        "ends.",
    )


class ModelConfig(EngineGroup):
    """One model that the fleet serves."""

    id: ModelId = Field(
        description="Name that clients send as `model`: 1 to 200 printable ASCII characters, "
        "without a space at either end."
    )
    source: str = Field(
        default="",
        description="Hugging Face name or directory of the weights; empty: same as `id`.",
    )
    max_model_len: int | None = Field(
        default=None,
        gt=0,
        description="Maximum prompt plus output, in tokens; null: the model's own, or less if the "
        "layout holds less.",
    )
    tool_call_parser: str | None = Field(
        default=None,
        description="vLLM's name of the tool-call parser; null: the model card's, or no tool calls "
        "for an unknown model.",
    )
    tool_strict_level: Literal["auto", "function", "parameter"] | None = Field(
        default=None,
        description="How strictly vLLM's grammar constrains tool calls: auto: as the request asks; "
        "function: their form; parameter: their arguments too; null: the model card's setting.",
    )
    chat_template: str | None = Field(
        default=None, description="Path of a chat template; null: the model's own."
    )
    fill_in_the_middle: Literal["raw", "chat"] | None = Field(
        default=None,
        description="Prompt of a completion with `suffix`: raw: the model's tokens around both "
        "texts; chat: the same as the question of a chat, for Instruct checkpoints; null: the "
        "model card's, or raw for an unknown model.",
    )
    sampling: SamplingDefaults = Field(
        default=SamplingDefaults(),
        description="Sampling parameters and length of answers for requests that do not set them.",
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="KV cache per rank of an engine, in GiB; null: 1, or less if the memory of the "
        "machine or of the container leaves less, and 0.25 at least. CPU engines only: on GPUs "
        "vLLM chooses the size.",
    )
    engine: Literal["vllm", "scripted"] = Field(
        default="vllm", description="`scripted` generates fixed tokens without a model, for tests."
    )
    script: ScriptConfig | None = Field(
        default=None, description="Output of a scripted engine; null: the defaults."
    )
    slo: SloConfig | None = Field(
        default=None, description="Objectives of this model; null: the fleet's."
    )
    pools: tuple[Pool, ...] = Field(
        default=(),
        strict=False,
        description="Groups of engines on different machines that all serve this model; empty: "
        "one group, described by the fields above.",
    )

    @property
    def resolved_source(self) -> str:
        """The source of the weights."""
        return self.source or self.id

    @property
    def sharding(self) -> Layout:
        """The layout of one engine."""
        return self.layout or Layout()

    @property
    def num_gpus(self) -> int:
        """The number of GPUs of one engine; 0 on CPUs."""
        return 0 if self.accelerator is None else self.sharding.num_gpus

    @property
    def runs_vllm_on_cpu(self) -> bool:
        """True if its engines use this machine's cores and memory."""
        return self.accelerator is None and self.engine == "vllm"

    @property
    def engine_pools(self) -> tuple["ModelConfig", ...]:
        """This model with the settings of each of its pools, in order; itself without pools."""
        return tuple(map(self._as_pool, self.pools)) or (self,)

    def _as_pool(self, pool: Pool) -> "ModelConfig":
        return self.model_copy(
            update={
                "pools": (),
                "replicas": pool.replicas,
                "accelerator": pool.accelerator,
                "layout": pool.layout,
                "engine_args": {**self.engine_args, **pool.engine_args},
                "env": {**self.env, **pool.env},
            }
        )

    @model_validator(mode="after")
    def _script_needs_scripted_engine(self) -> Self:
        if self.script is not None and self.engine != "scripted":
            raise refuse(
                f"script is set but engine is '{self.engine}'",
                "Set engine to 'scripted' or remove script.",
                ("script",),
            )
        return self

    @model_validator(mode="after")
    def _pools_replace_the_models_own_fields(self) -> Self:
        if not self.pools:
            return self
        for name in ("accelerator", "layout", "replicas"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise refuse(
                    f"{name} is set together with pools",
                    f"Move it into the pools of '{self.id}'.",
                    (name,),
                )
        self._refuse_front_end_args_of_pools()
        names = [pool.name for pool in self.pools]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise refuse(
                    f"pools[{names.index(name)}] and pools[{index}] are both called '{name}'",
                    "Give each pool its own name.",
                    ("pools", index, "name"),
                )
        return self

    def _refuse_front_end_args_of_pools(self) -> None:
        """Gateways serve all pools of a model, and read the model's own arguments only."""
        for index, pool in enumerate(self.pools):
            for name in pool.engine_args:
                if name in FRONT_END_ARGS and name not in vllm_arguments.PER_POOL:
                    raise refuse(
                        f"engine_args.{name} is set in a pool, but gateways read it for all pools",
                        f"Move it to the engine_args of '{self.id}'.",
                        ("pools", index, "engine_args", name),
                    )
