"""Every argument of vLLM 0.32, and who reads it: gateways, engines, both, or nobody. Pure.

vLLM's own server has one list of arguments for its front end and its engine, which are separate
here. The list is closed: a unit test sorts each argument of the installed vLLM, and a name that is
in no list is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SERVER: Final = _names(
    """
    anthropic_disabled_thinking_effort chat_template_content_format default_chat_template_kwargs
    enable_force_include_usage enable_per_request_metrics exclude_tools_when_tool_choice_none
    fingerprint_mode fingerprint_value log_error_stack response_role return_tokens_as_token_ids
    tool_parser_plugin trust_request_chat_template
    """
)
"""Arguments of vLLM's HTTP server, which only gateways read."""

GATEWAY: Final = SERVER | {"renderer_num_workers", "stream_interval"}
"""Arguments that only gateways read."""

BOTH: Final = _names(
    """
    code_revision config_format enable_trace_replay generation_config hf_config_path hf_overrides
    hf_token language_model_only limit_mm_per_prompt max_logprobs
    override_generation_config reasoning_config reasoning_parser reasoning_parser_plugin
    return_sampling_mask revision spec_method spec_model spec_tokens speculative_config
    structured_outputs_config tokenizer tokenizer_mode tokenizer_revision trust_remote_code
    watermark_config
    """
)
"""Arguments that gateways and engines read: prompts, sampling and their checks."""

PER_POOL: Final = frozenset(
    {"hf_overrides", "spec_method", "spec_model", "spec_tokens", "speculative_config"}
)
"""Those of BOTH that may differ between the pools of one model: they follow from its hardware."""

ENGINE: Final = _names(
    """
    additional_config all2all_backend allow_deprecated_quantization async_scheduling
    attention_backend attention_config aux_output_config block_size collect_detailed_traces
    compilation_config cp_kv_cache_interleave_size cpu_distributed_timeout_seconds cpu_offload_gb
    cpu_offload_params cudagraph_capture_sizes cudagraph_metrics custom_histogram_buckets
    dbo_decode_token_threshold dbo_prefill_token_threshold dcp_comm_backend
    dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size device_ids
    disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce
    disable_hybrid_kv_cache_manager disable_nccl_for_dp_synchronization disable_sliding_window
    distributed_executor_backend distributed_timeout_seconds download_dir dp_sync_interval dtype
    enable_batch_sharded_sampling enable_chunked_prefill enable_cumem_allocator enable_dbo
    enable_ep_weight_filter enable_fault_tolerance enable_flashinfer_autotune enable_hc_sp
    enable_layerwise_nvtx_tracing enable_logging_iteration_details
    enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint enable_mfu_metrics
    enable_nccl_comm_suspend enable_prefix_caching enable_return_routed_experts
    enable_shm_tensor_arena enable_sleep_mode enforce_eager engram_config eplb_config
    expert_placement_strategy fail_on_environ_validation fault_tolerance_config
    gdn_prefill_backend gpu_memory_utilization ignore_patterns ir_op_priority jit_monitor_mode
    jit_monitor_verbose kda_decode_backend kda_prefill_backend kernel_config kv_cache_dtype
    kv_cache_dtype_skip_layers kv_cache_memory_bytes kv_cache_metrics kv_cache_metrics_sample
    kv_events_config kv_offloading_backend kv_offloading_size kv_sharing_fast_prefill
    kv_transfer_config linear_backend load_format log_config_file log_level logging_config
    logits_processors logprobs_mode long_prefill_token_threshold
    long_prefill_token_threshold_adaptive
    mamba_backend mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds
    mamba_config mamba_ssm_cache_dtype mamba_ssu_algorithm max_cudagraph_capture_size
    max_num_active_seqs max_num_batched_tokens max_num_scheduled_tokens max_num_seqs
    max_parallel_loading_workers model_class_overrides model_impl model_loader_extra_config
    model_weights moe_backend num_gpu_blocks_override numa_bind numa_bind_cpus numa_bind_nodes
    offload_backend offload_group_size offload_num_in_group offload_params offload_prefetch_step
    optimization_level otlp_traces_endpoint per_request_spec_decode_metrics performance_mode
    prefill_context_parallel_size prefill_schedule_interval prefix_cache_retention_interval
    prefix_caching_hash_algo prefix_match_unit profiler_config pt_load_map_location quantization
    quantization_config ray_workers_use_nsight replayssm_buffer_len safetensors_load_strategy
    safetensors_prefetch_block_size safetensors_prefetch_num_threads scheduler_cls
    scheduler_reserve_full_isl scheduling_policy seed show_hidden_metrics_for_version
    shutdown_timeout skip_mm_profiling sleep_mode_offload_cudagraph sleep_preserve_parameter_names
    sparse_indexer_topk_backend swa_bounded_replay ubatch_size use_fp64_gumbel use_replayssm
    use_tqdm_on_load watermark weight_transfer_config worker_cls worker_extension_cls
    """
)
"""Arguments that only engines read: hardware, memory, scheduling, kernels."""

OWNED: Final[Mapping[str, str]] = {
    "model": "source",
    "served_model_name": "id",
    "max_model_len": "max_model_len",
    "data_parallel_rank": "replicas",
    "tensor_parallel_size": "layout",
    "pipeline_parallel_size": "layout",
    "data_parallel_size": "layout",
    "data_parallel_size_local": "layout",
    "enable_expert_parallel": "layout",
    "enable_eplb": "layout",
    "nnodes": "layout",
    "node_rank": "layout",
    "master_addr": "layout",
    "master_port": "layout",
    "data_parallel_start_rank": "layout",
    "data_parallel_address": "layout",
    "data_parallel_rpc_port": "layout",
    "data_parallel_backend": "layout",
    "data_parallel_external_lb": "layout",
    "data_parallel_multi_port_external_lb": "layout",
    "data_parallel_hybrid_lb": "layout",
    "elastic_ep_max_dp_size": "layout",
    "enable_elastic_ep": "layout",
    "chat_template": "chat_template",
    "enable_auto_tool_choice": "tool_call_parser",
    "tool_call_parser": "tool_call_parser",
    "tool_strict_level": "tool_strict_level",
}
"""Arguments that qwenfleet sets, each with the model's field to use instead."""

GRAMMAR_BACKEND: Final = "xgrammar"
"""The one backend of structured outputs. An engine has a single one, for all its requests; tool
calls need this one (vLLM 0.32 serialize_guidance_grammar reads only the older structural tags)."""

_TEXT: Final = "Remove it: models take text and answer with text."
_LORA: Final = "Remove it: adapters are not supported. Serve a model with merged weights."
_HTTP: Final = "Remove it: clients reach the gateway's own HTTP server. Use the section 'gateway'."
_TLS: Final = "Remove it: TLS ends in front of the fleet."
_CORS: Final = "Remove it: a proxy in front of the fleet answers cross-origin requests."
_LOGS: Final = "Remove it: prompts and outputs are never logged. Use 'tracing'."
_STATS: Final = "Remove it: routing needs the engines' statistics, and they are always on."
_ROUTE: Final = "Remove it: gateways do not serve the route that it is for."
_INTERNAL: Final = "Remove it: it is for vLLM's own server processes, which do not run here."
_COHERE: Final = "Remove it: Cohere's API is not served."

REFUSED: Final[Mapping[str, str]] = {
    name: remedy
    for remedy, names in {
        _TEXT: "allowed_local_media_path allowed_media_domains convert diffusion_config "
        "ec_manager_config ec_transfer_config enable_mm_embeds enable_mm_processor_stats "
        "enable_prompt_embeds interleave_mm_strings io_processor_plugin media_io_kwargs "
        "mm_device_do_normalize mm_encoder_attn_backend mm_encoder_attn_dtype "
        "mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin "
        "mm_encoder_fp8_scale_save_path mm_encoder_only mm_encoder_tp_mode mm_hasher_algorithm "
        "mm_ipc_gpu_memory_gb mm_processor_cache_gb mm_processor_cache_type mm_processor_device "
        "mm_processor_kwargs mm_shm_cache_max_object_size_mb mm_tensor_ipc pooler_config runner "
        "skip_tokenizer_init tokens_only trust_request_mm_kwargs video_pruning_method "
        "video_pruning_rate enable_flash_late_interaction",
        _LORA: "default_mm_loras enable_lora enable_mixed_moe_lora_format enable_moe_shared_loras "
        "enable_tower_connector_lora fully_sharded_loras lora_dtype lora_modules "
        "lora_target_modules max_cpu_loras max_lora_cls_labels max_lora_rank max_loras "
        "specialize_active_lora",
        _HTTP: "host port grpc grpc_port uds root_path h11_max_header_count "
        "h11_max_incomplete_event_size middleware uvicorn_log_level disable_uvicorn_access_log "
        "disable_access_log_for_endpoints enable_request_id_headers disable_fastapi_docs "
        "enable_offline_docs",
        _TLS: "enable_ssl_refresh ssl_ca_certs ssl_cert_reqs ssl_certfile ssl_ciphers ssl_keyfile",
        _CORS: "allow_credentials allowed_headers allowed_methods allowed_origins",
        _LOGS: "enable_log_deltas enable_log_outputs enable_log_requests max_log_len",
        _STATS: "aggregate_engine_logging disable_log_stats enable_prompt_tokens_details "
        "enable_server_load_tracking",
        _ROUTE: "enable_scale_out enable_tokenizer_info_endpoint tool_server",
        _INTERNAL: "_api_process_count _api_process_rank api_server_count config "
        "data_parallel_supervisor_port dp_supervisor_probe_failure_threshold "
        "dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s headless model_tag",
        _COHERE: "cohere_format cohere_is_reasoning_model",
        "Use the setting 'auth' of the fleet.": "api_key",
        "Use gateway.keep_alive_s.": "sse_keep_alive_interval",
        "Use gateway.max_ongoing_requests.": "max_num_queued_reqs max_num_queued_tokens",
    }.items()
    for name in names.split()
}
"""Arguments that nobody may set, each with what to do instead."""


def problem_of(name: str, value: object = None) -> tuple[str, str] | None:
    """Say why an argument cannot be set, and what to do instead; None if it can be."""
    if name == "structured_outputs_config" and isinstance(value, dict):
        backend = value.get("backend", GRAMMAR_BACKEND)
        if backend != GRAMMAR_BACKEND:
            return (
                f"engine_args.structured_outputs_config has backend '{backend}'",
                f"Remove it: all engines of a fleet use {GRAMMAR_BACKEND}.",
            )
    if name in GATEWAY or name in BOTH or name in ENGINE:
        return None
    if name in OWNED:
        return (
            f"engine_args.{name} is set by qwenfleet",
            f"Use the model's '{OWNED[name]}' instead.",
        )
    if name in REFUSED:
        return f"engine_args.{name} has no place in a fleet", REFUSED[name]
    close = difflib.get_close_matches(name.replace("-", "_"), GATEWAY | BOTH | ENGINE, n=1)
    remedy = f"Did you mean {close[0]}?" if close else "Remove it, or check its spelling."
    return f"engine_args.{name} is not an argument of vLLM 0.32", remedy
