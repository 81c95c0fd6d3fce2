"""Cost of one decode step and of one prefill of an engine. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import Accelerator, ComputeDtype, Vendor
from qwenfleet.cluster.models.geometry import BF16_BYTES, Geometry, KVDtype, QuantMethod
from qwenfleet.cluster.speed.cost import Cause, Parameter, Part, StepCost, Workload
from qwenfleet.cluster.speed.experts import busiest_rank_experts, experts_touched


@dataclass(frozen=True)
class EngineShape:
    """A model on the GPUs of one engine."""

    geometry: Geometry
    accelerator: Accelerator
    layout: Layout
    kv_dtype: KVDtype = KVDtype.AUTO

    @property
    def flops_per_s(self) -> float:
        """Rate of all GPUs in the precision of the weights, or in bfloat16 if they lack it."""
        method = self.geometry.quantization.method if self.geometry.quantization else None
        wanted = {
            QuantMethod.FP8: ComputeDtype.FP8,
            QuantMethod.NVFP4: ComputeDtype.NVFP4,
            None: ComputeDtype.BF16,
        }[method]
        native = None if method in self.accelerator.weight_only else self.accelerator.flops(wanted)
        return self.layout.num_gpus * (native or self._bf16_flops_per_s)

    @property
    def attention_flops_per_s(self) -> float:
        """Rate of all GPUs in bfloat16, which attention uses."""
        return self.layout.num_gpus * self._bf16_flops_per_s

    @property
    def _bf16_flops_per_s(self) -> float:
        return self.accelerator.flops(ComputeDtype.BF16) or 0.0

    @property
    def layer_parameter(self) -> Parameter:
        """Parameter for the fixed time of each layer."""
        is_amd = self.accelerator.vendor is Vendor.AMD
        return Parameter.LAYER_AMD if is_amd else Parameter.LAYER_NVIDIA

    @property
    def memory_parameter(self) -> Parameter:
        """Parameter for how much slower memory is than its data sheet."""
        if self.accelerator.vendor is Vendor.AMD:
            return Parameter.MEMORY_AMD
        is_blackwell = self.accelerator.flops(ComputeDtype.NVFP4) is not None
        return Parameter.MEMORY_BLACKWELL if is_blackwell else Parameter.MEMORY_HOPPER

    def link_bytes_per_s(self, ranks: int) -> float:
        """Link rate of one GPU in a group of `ranks` adjacent ranks; the network's rate if the
        group spans nodes."""
        if ranks > self.layout.gpus_per_node:
            return self.accelerator.nic_bytes_per_s
        return self.accelerator.link_bytes_per_s


def decode_step(shape: EngineShape, load: Workload) -> StepCost:
    """Cost of one token for each sequence. With pipeline parallelism each stage works on a part of
    the sequences, and a sequence gets its next token after all stages."""
    layout, geometry = shape.layout, shape.geometry
    in_flight = max(1.0, load.concurrency / layout.pipeline_parallel_size)
    per_rank = max(1.0, in_flight / layout.data_parallel_size)
    bandwidth = shape.accelerator.hbm_bytes_per_s
    weights = weight_bytes_read(shape, in_flight, load.routing_skew) / bandwidth
    kv_copies = min(layout.tensor_parallel_size, geometry.num_kv_heads)
    kv_bytes = geometry.kv_bytes_per_token(shape.kv_dtype) * load.context_tokens / kv_copies
    compute = in_flight * geometry.linear_flops_per_token / shape.flops_per_s
    memory = shape.memory_parameter
    return _overhead(shape) + StepCost(
        (
            Part(Cause.WEIGHTS, memory, weights),
            Part(Cause.KV_CACHE, memory, per_rank * kv_bytes / bandwidth),
            Part(Cause.LINKS, None, link_seconds(shape, in_flight)),
            Part(Cause.COMPUTE, Parameter.COMPUTE, compute * layout.pipeline_parallel_size),
        )
    )


def prefill(shape: EngineShape, prompt_tokens: float, *, is_alone: bool = False) -> StepCost:
    """Extra cost of one prompt in a step: its share of all GPUs of the engine, or, if it is alone,
    its own time while the other data parallel ranks have no attention to compute."""
    geometry = shape.geometry
    ranks = shape.layout.data_parallel_size if is_alone else 1
    projections = 2 * geometry.num_layers * geometry.attention_params_per_layer
    others = geometry.linear_flops_per_token - projections
    linear = prompt_tokens * (projections * ranks + others) / shape.flops_per_s
    pairs = prompt_tokens**2 / 2 * ranks
    attention = pairs * geometry.attention_flops_per_pair / shape.attention_flops_per_s
    return StepCost((Part(Cause.PREFILL, Parameter.COMPUTE, linear + attention),))


def weight_bytes_read(shape: EngineShape, tokens: float, skew: float) -> float:
    """Bytes that the busiest GPU of each stage reads in one step of `tokens`, over all layers."""
    geometry, layout = shape.geometry, shape.layout
    tensor_parallel = layout.tensor_parallel_size
    each = geometry.linear_bytes_per_param
    per_layer = geometry.attention_params_per_layer * each / tensor_parallel
    per_layer += (geometry.gate_params_per_layer + geometry.small_params_per_layer) * BF16_BYTES
    if not geometry.is_moe:
        per_layer += geometry.mlp_params_per_layer * each / tensor_parallel
    elif layout.expert_parallel:
        experts = busiest_rank_experts(geometry, tokens, layout.expert_parallel_size, skew)
        per_layer += experts * geometry.expert_params * each
    else:
        # vLLM splits each expert over all ranks, so every rank sees every token.
        experts = experts_touched(geometry, tokens, skew) / (
            tensor_parallel * layout.data_parallel_size
        )
        per_layer += experts * geometry.expert_params * each
    head = geometry.embedding_params * BF16_BYTES / tensor_parallel
    return geometry.num_layers * per_layer + head


def link_seconds(shape: EngineShape, tokens: float) -> float:
    """Seconds of collectives in one step at the links' full rate; their latency is overhead.

    Each layer has two all-reduces over the tensor parallel ranks. Data parallel ranks share experts
    by an all-gather and a reduce-scatter of all tokens: vLLM's `allgather_reducescatter`.
    """
    layout, geometry = shape.layout, shape.geometry
    ranks, groups = layout.tensor_parallel_size, layout.data_parallel_size
    token_bytes = geometry.hidden_size * BF16_BYTES
    moved = 0.0
    if ranks > 1:
        per_rank = max(1.0, tokens / groups) * token_bytes
        moved += 2 * 2 * (ranks - 1) / ranks * per_rank / shape.link_bytes_per_s(ranks)
    if groups > 1 and geometry.is_moe:
        share = (ranks * groups - 1) / (ranks * groups)
        moved += 2 * share * tokens * token_bytes / shape.link_bytes_per_s(ranks * groups)
    return geometry.num_layers * moved


def _overhead(shape: EngineShape) -> StepCost:
    layers, layout = float(shape.geometry.num_layers), shape.layout
    parts = [Part(Cause.OVERHEAD, shape.layer_parameter, layers)]
    if layout.tensor_parallel_size > 1:
        parts.append(Part(Cause.OVERHEAD, Parameter.TENSOR_PARALLEL, layers))
    if layout.data_parallel_size > 1 and shape.geometry.is_moe:
        parts.append(Part(Cause.OVERHEAD, Parameter.DATA_PARALLEL, layers))
    return StepCost(tuple(parts))
