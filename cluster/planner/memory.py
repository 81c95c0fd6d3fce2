"""Memory of one GPU of a layout, and how much context it leaves room for. Pure.

These are estimates, not measurements: weights are counted exactly as vLLM 0.32 splits them, and
everything else that the runtime needs is one reserve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import Accelerator
from qwenfleet.cluster.models.geometry import BF16_BYTES, Geometry, KVDtype
from qwenfleet.cluster.units import GIB
from qwenfleet.cluster.vllm_settings.defaults import (
    BATCHED_TOKENS,
    BLOCK_TOKENS,
    UTILIZATION,
    VOCAB_PADDING,
)

RESERVE_BYTES: Final = 4 * GIB
"""Activations, CUDA or HIP graphs and communication buffers of one GPU: one round figure, not
measured. vLLM sizes its KV cache by a profiling run, so an engine that needs more has fewer KV
tokens than planned; it does not run out of memory."""
SEQUENCES: Final = 1024
"""Sequences of one step, from the same table as `BATCHED_TOKENS`. The maximum of a plan's
`max_num_seqs`, because the reserve is sized for vLLM's defaults."""
LEAST_SEQUENCES: Final = 8
"""The minimum of `max_num_seqs`: even an engine planned for one long context takes short requests,
and graphs for batches up to twice this are few (`VllmConfig._set_cudagraph_sizes`)."""


@dataclass(frozen=True)
class GpuMemory:
    """One GPU of the pipeline stage with the least room; all stages must hold the same tokens."""

    total_bytes: int
    usable_bytes: int
    """The share of `total_bytes` that vLLM may use."""
    weight_bytes: int
    activation_bytes: int
    graph_bytes: int
    """Graphs, communication buffers and the rest of the reserve."""
    kv_bytes_per_token: int
    """KV cache bytes of one token for this GPU's layers and heads."""

    @property
    def reserve_bytes(self) -> int:
        """Memory for everything except weights and KV cache."""
        return self.activation_bytes + self.graph_bytes

    @property
    def kv_bytes(self) -> int:
        """Memory left for the KV cache; negative if the weights do not fit."""
        return self.usable_bytes - self.weight_bytes - self.reserve_bytes

    @property
    def free_bytes(self) -> int:
        """Memory that vLLM does not use."""
        return self.total_bytes - self.usable_bytes

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that one data parallel rank holds, in whole blocks."""
        tokens = max(0, self.kv_bytes) // self.kv_bytes_per_token
        return tokens // BLOCK_TOKENS * BLOCK_TOKENS

    def sequences(self, length_tokens: int) -> int:
        """Number of sequences of this length that one data parallel rank holds at once."""
        blocks = -(-length_tokens // BLOCK_TOKENS)
        return self.kv_tokens // (blocks * BLOCK_TOKENS)


def sequence_limit(held: int, wanted: int) -> int:
    """Return `max_num_seqs` of a data parallel rank.

    `held` sequences of the planned length fit in its KV cache, and the load asks for `wanted`. The
    larger of the two is rounded up to a power of two, because requests may be shorter than planned
    and vLLM itself waits for free KV blocks. From LEAST_SEQUENCES to SEQUENCES.
    """
    most = max(held, wanted, LEAST_SEQUENCES)
    return min(SEQUENCES, 1 << (most - 1).bit_length())


def gpu_memory(
    geometry: Geometry,
    layout: Layout,
    accelerator: Accelerator,
    *,
    kv_dtype: KVDtype = KVDtype.AUTO,
    utilization: float = UTILIZATION,
    reserve_bytes: int = RESERVE_BYTES,
) -> GpuMemory:
    """Return the memory of the fullest GPU of a legal layout."""
    stages = pipeline_layers(geometry.num_layers, layout.pipeline_parallel_size)
    activations = activation_bytes(geometry, layout)
    found = [
        GpuMemory(
            total_bytes=accelerator.memory_bytes,
            usable_bytes=int(accelerator.memory_bytes * utilization),
            weight_bytes=stage_weight_bytes(geometry, layout, stage),
            activation_bytes=activations,
            graph_bytes=max(0, reserve_bytes - activations),
            kv_bytes_per_token=max(1, layers)
            * 2
            * kv_heads_per_rank(geometry, layout)
            * geometry.head_dim
            * kv_dtype.num_bytes,
        )
        for stage, layers in enumerate(stages)
    ]
    return min(found, key=lambda memory: memory.kv_bytes / memory.kv_bytes_per_token)


def pipeline_layers(num_layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage, by vLLM's rule (0.32 `distributed/utils.py`, get_pp_indices):
    the remainder goes to the stages before the last."""
    layers = [num_layers // stages] * stages
    for back in range(2, num_layers % stages + 2):
        layers[-back] += 1
    return layers


def kv_heads_per_rank(geometry: Geometry, layout: Layout) -> int:
    """KV heads on each rank. With more tensor parallel ranks than KV heads, ranks hold copies."""
    return max(1, geometry.num_kv_heads // layout.tensor_parallel_size)


def stage_weight_bytes(geometry: Geometry, layout: Layout, stage: int) -> int:
    """Weights of one GPU of a pipeline stage.

    Attention is split over TP and copied to each data parallel rank. Experts are distributed whole
    over TP x DP ranks, or each is split over as many ranks. Router gates and norms are on every
    rank. Embedding and head are split by vocabulary and are on the first and the last stage.
    """
    stages = pipeline_layers(geometry.num_layers, layout.pipeline_parallel_size)
    tp = layout.tensor_parallel_size
    heads = -(-geometry.num_heads // tp) + kv_heads_per_rank(geometry, layout)
    attention = 2 * geometry.hidden_size * geometry.head_dim * heads
    linear = (attention + _mlp_params(geometry, layout)) * geometry.linear_bytes_per_param
    copied = geometry.gate_params_per_layer + geometry.small_params_per_layer
    total = stages[stage] * (linear + copied * BF16_BYTES)
    vocabulary = -(-geometry.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    matrix = -(-vocabulary // tp) * geometry.hidden_size * BF16_BYTES
    is_first, is_last = stage == 0, stage == len(stages) - 1
    if is_first:
        total += matrix
    if is_last:
        total += geometry.hidden_size * BF16_BYTES
        total += 0 if geometry.tie_word_embeddings and is_first else matrix
    return -int(-total // 1)


def expert_split(layout: Layout) -> int:
    """Number of ranks that share one layer's experts: TP x DP, with or without expert parallelism
    (vLLM 0.32, FusedMoEParallelConfig: without it each expert is split over all of them)."""
    return layout.tensor_parallel_size * layout.data_parallel_size


def activation_bytes(geometry: Geometry, layout: Layout) -> int:
    """Estimate the largest tensors of one step: four hidden states, queries to values, the outputs
    of the MLP's matrices for this rank's share, and float32 logits of all sequences."""
    tp, tokens = layout.tensor_parallel_size, BATCHED_TOKENS
    hidden = 4 * tokens * geometry.hidden_size
    heads = -(-geometry.num_heads // tp) + 2 * kv_heads_per_rank(geometry, layout)
    attention = tokens * heads * geometry.head_dim
    if geometry.is_moe:
        routed = tokens * geometry.experts_per_token * layout.data_parallel_size
        width = 3 * geometry.moe_intermediate_size + geometry.hidden_size
        mlp = routed * width // expert_split(layout)
    else:
        mlp = tokens * 3 * -(-geometry.intermediate_size // tp)
    logits = SEQUENCES * geometry.vocab_size * 4
    return (hidden + max(attention, mlp)) * BF16_BYTES + logits


def _mlp_params(geometry: Geometry, layout: Layout) -> int:
    """MLP parameters of one layer on one GPU; on the fullest one if experts divide unevenly."""
    if not geometry.is_moe:
        width = -(-geometry.intermediate_size // layout.tensor_parallel_size)
        return 3 * geometry.hidden_size * width
    if layout.expert_parallel:
        return -(-geometry.num_experts // expert_split(layout)) * geometry.expert_params
    width = -(-geometry.moe_intermediate_size // expert_split(layout))
    return geometry.num_experts * 3 * geometry.hidden_size * width
