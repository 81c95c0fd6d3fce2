"""FrontEnd: vLLM's OpenAI and Anthropic app for one model, over a ModelClient instead of an engine.

vLLM internals used here (0.32): AsyncLLM, EngineCoreClient.make_async_mp_client, VllmConfig,
build_app, init_app_state, make_arg_parser, ObservabilityConfig, OutputProcessor,
async_llm.init_tracer, enable_envs_cache and freeze_gc_heap. The process has no GPU:
VLLM_TARGET_DEVICE=cpu must be in its environment before vLLM is imported.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from vllm.config import ObservabilityConfig, SpeculativeConfig, VllmConfig
from vllm.config.reasoning import ReasoningConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.envs import enable_envs_cache
from vllm.reasoning import ReasoningParserManager
from vllm.tasks import SupportedTask
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine import async_llm
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.executor.abstract import Executor

from qwenfleet.cluster.config.grammar import GrammarConfig
from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.cluster.config.model import FRONT_END_ARGS, ModelConfig
from qwenfleet.cluster.config.vllm_arguments import SERVER
from qwenfleet.deployments.vllm_adapter import (
    detokenizer,
    error_answers,
    fim_requests,
    grammar_gate,
    logging_setup,
    request_checks,
    tool_answers,
    tool_parser,
)
from qwenfleet.deployments.vllm_adapter.engine_args import pinned, typed
from qwenfleet.deployments.vllm_adapter.grammar_gate import GatedLLM
from qwenfleet.deployments.vllm_adapter.model_client import ModelClient
from qwenfleet.deployments.vllm_adapter.output_guard import (
    GuardedOutputProcessor,
    GuardedStatLogger,
)
from qwenfleet.deployments.vllm_adapter.renderer_pools import (
    APART_THREADS,
    PROMPT_THREADS,
    RendererPools,
)
from qwenfleet.deployments.wire.frames import EngineDescription

SPECULATIVE: Final = frozenset({"speculative_config", "spec_method", "spec_model", "spec_tokens"})
CHATS: Final = ("openai_serving_chat", "anthropic_serving_messages", "openai_serving_responses")
"""Servers of the app's state whose requests may leave out their length."""
TASKS: Final[tuple[SupportedTask, ...]] = ("generate",)


class FrontEnd:
    """One model's app and the AsyncLLM that it calls."""

    def __init__(self, app: error_answers.Answers, llm: AsyncLLM, pools: RendererPools) -> None:
        self.app = app
        self.llm = llm
        self._pools = pools

    @property
    def is_errored(self) -> bool:
        """True once vLLM's output handler has ended: no request gets an answer any more."""
        return bool(self.llm.errored)

    @property
    def default_parameters(self) -> dict[str, Any]:
        """Sampling parameters and length of a chat that sets none, by the names of requests."""
        found: dict[str, Any] = self.app.inner.state.openai_serving_chat.default_sampling_params
        return dict(found)

    @property
    def rendering(self) -> dict[str, int]:
        """Work that waits for a thread of the renderer, by pool."""
        return self._pools.waiting


async def build(
    model: ModelConfig,
    path: str,
    description: EngineDescription,
    client: ModelClient,
    traces_url: str | None = None,
    limits: LimitsConfig = LimitsConfig(),  # noqa: B008  # frozen
    grammar: GrammarConfig | None = None,
) -> FrontEnd:
    """Load the tokenizer and build the app; its context comes from the engine's description, and
    the limits of grammars from `grammar`."""
    grammar_gate.leave_out_reading()
    tool_parser.register()
    arguments, config = await asyncio.to_thread(_configure, model, path, description, traces_url)
    with _engine_core(client):
        llm = GatedLLM(
            config,
            Executor,
            log_stats=False,
            log_requests=False,
            stat_loggers=[GuardedStatLogger],
        )
    llm.gate = await asyncio.to_thread(grammar_gate.gate_of, llm, grammar or GrammarConfig())
    await llm.gate.start()
    threads = config.model_config.renderer_num_workers - APART_THREADS
    pools = RendererPools(llm.renderer, threads)
    follow_limit(client, config.model_config, description)
    if _is_speculative(model):
        # Only its presence counts here: min_p and logit_bias do not work with a draft model.
        llm.input_processor.speculative_config = cast(SpeculativeConfig, object())
    request_checks.guard(llm.input_processor, limits)
    app = build_app(arguments, TASKS, config.model_config)
    # This layer counts requests by route for /metrics, which is not served here.
    counting: Any = PrometheusInstrumentatorMiddleware
    app.user_middleware = [layer for layer in app.user_middleware if layer.cls is not counting]
    error_answers.install(app)
    await init_app_state(llm, app.state, arguments, TASKS)
    _set_length(app.state, model.sampling.max_tokens)
    tool_answers.install(app.state)
    completions = app.state.openai_serving_completion
    fim_requests.install(completions, model, llm.renderer.get_tokenizer(), pools, limits)
    pools.set_apart(app.state.serving_tokenization)
    detokenizer.install()
    settle()
    return FrontEnd(error_answers.Answers(app), llm, pools)


def _set_length(state: Any, max_tokens: int | None) -> None:
    """Give chats that ask for no length this one, or what the context leaves."""
    for name in CHATS:
        serving = getattr(state, name, None)
        if serving is not None and max_tokens is not None:
            serving.default_sampling_params["max_tokens"] = max_tokens


def follow_limit(client: ModelClient, config: Any, description: EngineDescription) -> None:
    """Let the front end take what every connected engine can run, from now on. vLLM reads the
    limit from its configuration at each request."""

    def take(max_model_len: int) -> None:
        config.max_model_len = max_model_len

    client.on_limit = take
    take((client.description or description).max_model_len)


def settle() -> None:
    """Do as vLLM's own processes do after their start: exclude long-lived objects from later
    garbage collections, and read settings once instead of for every token."""
    enable_envs_cache()
    freeze_gc_heap()


def _configure(
    model: ModelConfig, path: str, description: EngineDescription, traces_url: str | None
) -> tuple[Namespace, VllmConfig]:
    """vLLM's serving arguments, and a configuration without hardware."""
    empty = FlexibleArgumentParser()
    arguments = make_arg_parser(empty).parse_args([])
    arguments.model = path
    arguments.served_model_name = [model.id]
    arguments.tool_call_parser = model.tool_call_parser
    arguments.enable_auto_tool_choice = arguments.tool_call_parser is not None
    arguments.tool_strict_level = model.tool_strict_level or "auto"
    arguments.chat_template = model.chat_template
    arguments.enable_prompt_tokens_details = True
    arguments.disable_fastapi_docs = True
    chosen = _front_end_args(model)
    for name in SERVER & chosen.keys():
        setattr(arguments, name, chosen.pop(name))
    # So many copies of the tokenizer; RendererPools takes its own threads out of them.
    threads = chosen.pop("renderer_num_workers", PROMPT_THREADS) + APART_THREADS
    chosen["renderer_num_workers"] = threads
    engine = AsyncEngineArgs(
        **typed(pinned(chosen)), max_model_len=description.max_model_len, model=path
    )
    model_config = engine.create_model_config()
    model_config.served_model_name = model.id
    model_config.quantization = None  # no weights here; vLLM would reject GPU formats
    structured = engine.create_structured_outputs_config()
    # vLLM's serving classes read the reasoning parser from the server's arguments.
    arguments.structured_outputs_config = structured
    _import_plugins(arguments.tool_parser_plugin, structured.reasoning_parser_plugin)
    config = VllmConfig(
        model_config=model_config,
        structured_outputs_config=structured,
        observability_config=ObservabilityConfig(otlp_traces_endpoint=traces_url),
        logging_config=logging_setup.no_setup(),
        watermark_config=engine.create_watermark_config(),
        reasoning_config=_reasoning_config(engine),
    )
    config.scheduler_config.stream_interval = engine.stream_interval
    return arguments, config


def _import_plugins(tool_parser: str, reasoning_parser: str | None) -> None:
    """Import parsers that are not vLLM's own, as its server does."""
    if tool_parser:
        ToolParserManager.import_tool_parser(tool_parser)
    if reasoning_parser:
        ReasoningParserManager.import_reasoning_parser(reasoning_parser)


def _reasoning_config(engine: AsyncEngineArgs) -> ReasoningConfig | None:
    """The thinking budget's settings, as vLLM's own engine configuration derives them."""
    if engine.reasoning_parser or engine.reasoning_config is not None:
        engine._set_default_reasoning_config_args()
    config: ReasoningConfig | None = engine.reasoning_config
    return config


def _is_speculative(model: ModelConfig) -> bool:
    return any(model.engine_args.get(name) is not None for name in SPECULATIVE)


def _front_end_args(model: ModelConfig) -> dict[str, Any]:
    """The arguments that affect prompts, sampling and answers; the others concern hardware. A draft
    model stays with the engines."""
    chosen: dict[str, Any] = {
        name: value
        for name, value in model.engine_args.items()
        if name in FRONT_END_ARGS and name not in SPECULATIVE
    }
    # vLLM would hold every request to the length; `_set_length` makes it a default.
    sampling = model.sampling.model_dump(exclude_none=True, exclude={"max_tokens"})
    if sampling:
        chosen["override_generation_config"] = {
            **sampling,
            **(chosen.get("override_generation_config") or {}),
        }
    return chosen


@contextmanager
def _engine_core(client: ModelClient) -> Iterator[None]:
    """Make AsyncLLM's constructor use `client` as its engine client, and our output processor. It
    must not create a tracer provider either: vLLM's spans go to this process's provider."""
    names = vars(async_llm)
    init_tracer, processor = names["init_tracer"], names["OutputProcessor"]
    original = EngineCoreClient.make_async_mp_client

    def model_client(**_: Any) -> ModelClient:
        return client

    EngineCoreClient.make_async_mp_client = staticmethod(model_client)  # type: ignore[method-assign]
    names["init_tracer"] = lambda *_: None
    names["OutputProcessor"] = partial(GuardedOutputProcessor, on_failure=client.failed)
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = staticmethod(original)  # type: ignore[method-assign]
        names["init_tracer"], names["OutputProcessor"] = init_tracer, processor
