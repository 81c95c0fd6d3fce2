"""The parts of vLLM that we use still exist. Checked in the sources, without importing vLLM."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.labels import FinishReason
from qwenfleet.deployments.vllm_adapter import failure_log
from qwenfleet.deployments.vllm_adapter.engine_args import NodePlace, sharding_args

ROOT = Path(__file__).resolve().parents[4]
ASYNC_LLM_PATHS = [
    "__init__",
    "shutdown",
    "get_supported_tasks",
    "add_request",
    "_add_request",
    "generate",
    "_run_output_handler",
    "abort",
    "errored",
]
"""The methods of AsyncLLM that a text request passes through, from start to abort."""


@cache
def tree_of(module: str) -> ast.Module:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], module)
    assert source.is_file(), f"vLLM changed: vllm/{module} is missing"
    return ast.parse(source.read_text())


def class_of(tree: ast.Module, name: str) -> ast.ClassDef:
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    assert found, f"vLLM changed: class {name} is missing"
    return found[0]


def functions_of(owner: ast.ClassDef) -> dict[str, ast.AST]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in owner.body if isinstance(node, kinds)}


def fields_of(module: str, name: str) -> set[str]:
    owner = class_of(tree_of(module), name)
    return {
        node.target.id
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def used_of_engine_core(method: str) -> set[str]:
    """Attributes of its engine core that AsyncLLM uses in this method."""
    methods = functions_of(class_of(tree_of("v1/engine/async_llm.py"), "AsyncLLM"))
    assert method in methods, f"vLLM changed: AsyncLLM.{method} is missing"
    return {
        node.attr
        for node in ast.walk(methods[method])
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) in {"self.engine_core", "engine_core"}
    }


@cache
def offered_by_the_model_client() -> frozenset[str]:
    tree = ast.parse((ROOT / "deployments" / "vllm_adapter" / "model_client.py").read_text())
    methods = functions_of(class_of(tree, "ModelClient"))
    attributes = {
        node.attr
        for node in ast.walk(methods["__init__"])
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }
    return frozenset(attributes | methods.keys())


@pytest.mark.parametrize("method", ASYNC_LLM_PATHS)
def test_the_model_client_has_everything_that_async_llm_uses(method: str) -> None:
    missing = used_of_engine_core(method) - offered_by_the_model_client()
    assert not missing, f"vLLM changed: AsyncLLM.{method} uses engine_core.{sorted(missing)}"


def test_async_llm_still_uses_everything_that_the_model_client_offers() -> None:
    used = set().union(*map(used_of_engine_core, ASYNC_LLM_PATHS))
    offered = {
        "abort_requests_async",
        "add_request_async",
        "engine_ranks_managed",
        "get_output_async",
        "get_supported_tasks_async",
        "resources",
        "shutdown",
    }
    assert used == offered, f"vLLM changed: {sorted(used ^ offered)}"


def test_async_llm_creates_its_engine_core_where_we_replace_it() -> None:
    methods = functions_of(class_of(tree_of("v1/engine/async_llm.py"), "AsyncLLM"))
    calls = [
        ast.unparse(node.func)
        for node in ast.walk(methods["__init__"])
        if isinstance(node, ast.Call)
    ]
    made = calls.count("EngineCoreClient.make_async_mp_client")
    assert made == 1, "vLLM changed: AsyncLLM makes its engine core in another way"


def test_async_llm_processes_outputs_where_we_guard_them() -> None:
    methods = functions_of(class_of(tree_of("v1/engine/async_llm.py"), "AsyncLLM"))
    calls = [
        ast.unparse(node.func)
        for node in ast.walk(methods["__init__"])
        if isinstance(node, ast.Call)
    ]
    assert calls.count("OutputProcessor") == 1, "vLLM changed: its output processor's name"
    handled = ast.unparse(methods["_run_output_handler"])
    assert handled.count("output_processor.process_outputs(") == 1
    assert "output_processor.propagate_error(e)" in handled
    processor = class_of(tree_of("v1/engine/output_processor.py"), "OutputProcessor")
    assert parameters_of(processor, "process_outputs") == {
        "self",
        "engine_core_outputs",
        "engine_core_timestamp",
        "iteration_stats",
        "weight_version",
    }
    assert {"propagate_error", "_finish_request"} <= functions_of(processor).keys()
    assert fields_of("v1/engine/output_processor.py", "OutputProcessorOutput") == {
        "request_outputs",
        "reqs_to_abort",
    }


@pytest.mark.parametrize(
    "module",
    ["chat_completion", "completion", "responses"],
)
def test_vllms_serving_classes_read_the_limit_at_each_request(module: str) -> None:
    """So that a gateway can change it while it runs."""
    tree = tree_of(f"entrypoints/openai/{module}/serving.py")
    stored = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and "max_model_len" in ast.unparse(node.value)
        and ast.unparse(node.targets[0]).startswith("self.")
    ]
    assert not stored, f"vLLM changed: it keeps a limit in {stored}"


def test_async_llm_checks_only_the_death_flag_that_we_provide() -> None:
    methods = functions_of(class_of(tree_of("v1/engine/async_llm.py"), "AsyncLLM"))
    reported = ast.unparse(methods["errored"])
    assert "self.engine_core.resources.engine_dead" in reported, "vLLM changed: AsyncLLM.errored"


def test_async_llm_creates_its_tracer_where_we_replace_it() -> None:
    tree = tree_of("v1/engine/async_llm.py")
    text = ast.unparse(functions_of(class_of(tree, "AsyncLLM"))["__init__"])
    for used in (
        "tracing_endpoint = self.observability_config.otlp_traces_endpoint",
        "init_tracer('vllm.llm_engine', tracing_endpoint)",
        "tracing_enabled=tracing_endpoint is not None",
    ):
        assert used in text, f"vLLM changed: AsyncLLM does not say {used}"


def test_vllms_own_span_takes_its_parent_from_an_outputs_trace_headers() -> None:
    owner = class_of(tree_of("v1/engine/output_processor.py"), "OutputProcessor")
    reported = ast.unparse(functions_of(owner)["do_tracing"])
    assert "extract_trace_context(engine_core_output.trace_headers)" in reported
    made = ast.unparse(tree_of("tracing/otel.py"))
    assert "tracer = trace.get_tracer(__name__)" in made, "vLLM changed: its spans' provider"
    assert "os.environ.get('OTEL_EXPORTER_OTLP_TRACES_ENDPOINT')" in made, "vLLM changed: a core's"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (
            "EngineCoreRequest",
            "request_id prompt_token_ids mm_features sampling_params pooling_params arrival_time "
            "lora_request cache_salt data_parallel_rank client_index priority trace_headers "
            "prompt_embeds resumable abort_immediately",
        ),
        (
            "EngineCoreOutput",
            "request_id new_token_ids new_logprobs new_prompt_logprobs_tensors finish_reason "
            "stop_reason events prefill_stats trace_headers",
        ),
        ("EngineCoreOutputs", "engine_index outputs scheduler_stats timestamp"),
        ("EngineCoreEvent", "type timestamp"),
    ],
)
def test_vllms_messages_still_have_the_fields_that_we_use(name: str, fields: str) -> None:
    missing = set(fields.split()) - fields_of("v1/engine/__init__.py", name)
    assert not missing, f"vLLM changed: {name} has no {sorted(missing)} any more"


def test_vllms_sampling_parameters_still_have_the_fields_that_we_use() -> None:
    touched = {"extra_args", "prompt_logprobs", "_bad_words_token_ids"}
    missing = touched - fields_of("sampling_params.py", "SamplingParams")
    assert not missing, f"vLLM changed: SamplingParams has no {sorted(missing)} any more"


def test_a_cpu_core_keeps_its_worker_process_and_sets_its_title_after_imports() -> None:
    reported = ast.unparse(tree_of("platforms/cpu.py"))
    asked = "os.environ.get('VLLM_ENABLE_V1_MULTIPROCESSING', '1') == '1'"
    assert f"{asked} and parallel_config.distributed_executor_backend == 'uni'" in reported
    owner = class_of(tree_of("v1/engine/core.py"), "EngineCoreProc")
    assert "EngineCore" in ast.unparse(functions_of(owner)["run_engine_core"])


def test_vllms_app_still_counts_requests_by_route() -> None:
    reported = ast.unparse(tree_of("entrypoints/serve/instrumentator/metrics.py"))
    assert "Instrumentator(" in reported, (
        "vLLM changed: front_end.py has nothing to take out any more"
    )


def test_vllms_finish_reasons_match_ours() -> None:
    reasons = class_of(tree_of("v1/engine/__init__.py"), "FinishReason")
    known = dict(
        ast.unparse(line).split(" = ") for line in reasons.body if isinstance(line, ast.Assign)
    )
    assert known == {reason.name: str(reason.value) for reason in FinishReason}, "vLLM moved"


def parameters_of(owner: ast.ClassDef, method: str) -> set[str]:
    function = functions_of(owner)[method]
    assert isinstance(function, ast.FunctionDef)
    return {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}


def test_vllm_takes_each_argument_that_a_layout_sets() -> None:
    layout = Layout(tensor_parallel_size=2, nodes=2)
    arguments = sharding_args(layout, NodePlace(1, "10.0.0.1", 1, 2))
    assert arguments.keys() <= fields_of("engine/arg_utils.py", "EngineArgs")


def test_vllm_runs_a_later_node_as_we_ask_it_to() -> None:
    executor = class_of(tree_of("v1/executor/multiproc_executor.py"), "MultiprocExecutor")
    assert "monitor_workers" in parameters_of(executor, "__init__")
    manager = class_of(tree_of("v1/engine/utils.py"), "CoreEngineProcManager")
    assert parameters_of(manager, "__init__") >= {
        "local_engine_count",
        "start_index",
        "local_start_index",
        "vllm_config",
        "local_client",
        "handshake_address",
        "executor_class",
        "log_stats",
    }
    assert "self.processes" in ast.unparse(manager), "whose end is waited for"
    assert "self.workers = " in ast.unparse(executor)
    handle = fields_of("v1/executor/multiproc_executor.py", "WorkerProcHandle")
    assert "proc" in handle
    assert "node_rank_within_dp" in functions_of(
        class_of(tree_of("config/parallel.py"), "ParallelConfig")
    )


def test_vllms_logging_setup_can_be_kept_out_of_a_replica() -> None:
    reported = fields_of("config/logging.py", "LoggingConfig")
    assert {"configure_logging", "pylogging_config_file"} <= reported
    known = fields_of("engine/arg_utils.py", "EngineArgs")
    assert {"logging_config", "log_level", "log_config_file"} <= known
    arguments = functions_of(class_of(tree_of("engine/arg_utils.py"), "EngineArgs"))
    asked = "logging_config = self.create_logging_config()"
    assert asked in ast.unparse(arguments["create_engine_config"])
    core = functions_of(class_of(tree_of("v1/engine/core.py"), "EngineCoreProc"))
    assert "configure_logging(logging_config)" in ast.unparse(core["run_engine_core"])


def test_vllms_processes_log_why_they_end_in_lines_that_are_known() -> None:
    ends = functions_of(class_of(tree_of("v1/engine/core.py"), "EngineCoreProc"))["run_engine_core"]
    worker = functions_of(class_of(tree_of("v1/executor/multiproc_executor.py"), "WorkerProc"))
    text = ast.unparse(ends) + ast.unparse(worker["worker_main"])
    for event in failure_log.ENDS:
        assert f"logger.exception('{event}')" in text
    for path in ("v1/engine/utils.py", "v1/executor/multiproc_executor.py"):
        assert failure_log.POINTER in ast.unparse(tree_of(path))
    setup = ast.unparse(tree_of("logger.py"))
    for part in ("pylogging_config_file", "pythonjsonlogger.jsonlogger.JsonFormatter"):
        assert part in setup


CHAT = "entrypoints/openai/chat_completion/serving.py"
ANTHROPIC = "entrypoints/anthropic/serving.py"
RESPONSES = "entrypoints/openai/responses/serving.py"


def test_vllms_servers_make_parsers_and_answers_where_we_replace_them() -> None:
    chat = functions_of(class_of(tree_of(CHAT), "OpenAIServingChat"))
    stream = ast.unparse(chat["chat_completion_stream_generator"])
    whole = ast.unparse(chat["chat_completion_full_generator"])
    assert "self._make_parser(request, tokenizer, chat_template_kwargs)" in stream
    assert "parser is not None" in stream
    assert "parser is not None" in whole
    assert "self.chat_completion_full_generator(" in ast.unparse(chat["_create_chat_completion"])
    messages = functions_of(class_of(tree_of(ANTHROPIC), "AnthropicServingMessages"))
    assert "self.messages_full_converter(" in ast.unparse(messages["create_messages"])
    for name in ("messages_full_converter", "message_stream_converter"):
        assert "_to_anthropic_stop_reason(" in ast.unparse(messages[name])
    responses = functions_of(class_of(tree_of(RESPONSES), "OpenAIServingResponses"))
    assert "self._make_response_parser(" in ast.unparse(responses["_create_responses"])
    assert "self._make_response_output_items(" in ast.unparse(responses["responses_full_generator"])
    events = ast.unparse(responses["_process_simple_streaming_events"])
    assert "split_delta(delta_message)" in events


def test_a_default_length_is_below_that_of_a_request() -> None:
    (limit,) = (
        node
        for node in tree_of("entrypoints/serve/utils/api_utils.py").body
        if isinstance(node, ast.FunctionDef) and node.name == "get_max_tokens"
    )
    text = ast.unparse(limit)
    assert (
        "max_tokens if max_tokens is not None else default_sampling_params.get('max_tokens')"
        in text
    )
