"""Rules for which layouts are legal for a model on a kind of GPU, each with its numbers. Pure.

A layout is refused if vLLM 0.32 refuses to load it, or if it loads but makes no sense. A layout
that only costs speed gets a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import Accelerator, ComputeDtype
from qwenfleet.cluster.models.geometry import Geometry, QuantMethod
from qwenfleet.cluster.planner.memory import GpuMemory, expert_split, pipeline_layers
from qwenfleet.cluster.units import GIB
from qwenfleet.cluster.vllm_settings.defaults import VOCAB_PADDING

LEAST_BLOCK: Final = 32
"""vLLM 0.32 `fused_moe/oracle/fp8.py`, refine_fp8_moe_block_shape: it splits scale blocks down to
the greatest common divisor, but not below 32."""


class Rule(StrEnum):
    """Reasons to refuse a layout or to attach a note."""

    HEADS = "heads"
    """Attention heads divide over TP."""
    KV_HEADS = "kv-heads"
    """KV heads divide over TP, or TP is a multiple of the KV heads, which are then copied."""
    LAYERS = "layers"
    """Each pipeline stage has a layer."""
    EXPERTS = "experts"
    """Experts divide over the ranks that share them; expert parallelism needs an MoE model."""
    BLOCKS = "blocks"
    """A rank's part of a quantized matrix consists of whole scale blocks."""
    INTERMEDIATE = "intermediate"
    """The MLP's width divides over the ranks that share it."""
    VOCABULARY = "vocabulary"
    """The vocabulary, padded to 64, divides over TP."""
    QUANTIZATION = "quantization"
    """The accelerator multiplies the weights' type, or can at least store it."""
    DATA_PARALLEL = "data-parallel"
    """Data parallel ranks of one engine share experts; those of a dense model share nothing."""
    NODES = "nodes"
    """A TP group stays on one node, and a layout uses only as many nodes as it needs and exist."""
    MEMORY = "memory"
    """Weights and the reserve leave room for a KV cache."""
    CONTEXT = "context"
    """The KV cache of a rank holds one sequence of the requested context."""


@dataclass(frozen=True)
class RuleRemark:
    """A rule's remark on a layout: a sentence without a period."""

    rule: Rule
    sentence: str
    is_discouraged: bool = False
    """True if the layout is legal but not recommended."""


@dataclass(frozen=True)
class Judgment:
    """The remarks of all rules on one layout."""

    breaches: tuple[RuleRemark, ...] = ()
    notes: tuple[RuleRemark, ...] = ()

    @property
    def is_legal(self) -> bool:
        """True if the layout breaks no rule."""
        return not self.breaches

    @property
    def is_discouraged(self) -> bool:
        """True if the layout loads but is not recommended, mostly because it is slow."""
        return any(note.is_discouraged for note in self.notes)


def judge_shape(geometry: Geometry, layout: Layout, accelerator: Accelerator) -> Judgment:
    """Judge whether vLLM loads this model in this layout on this kind of GPU, memory aside."""
    breaches: list[RuleRemark] = []
    notes: list[RuleRemark] = []
    for check in CHECKS:
        for remark, is_breach in check(geometry, layout):
            (breaches if is_breach else notes).append(remark)
    for remark, is_breach in _quantization(geometry, accelerator):
        (breaches if is_breach else notes).append(remark)
    return Judgment(tuple(breaches), tuple(notes))


def judge_nodes(layout: Layout, *, nodes: int, gpus_per_node: int) -> Judgment:
    """Judge whether the layout can be placed on `nodes` nodes of this size."""
    needed = -(-layout.num_gpus // gpus_per_node)
    name, gpus = layout.name, layout.num_gpus
    tp = layout.tensor_parallel_size
    problem = ""
    if tp > gpus_per_node or layout.gpus_per_node % tp:
        on_each = min(layout.gpus_per_node, gpus_per_node)
        problem = (
            f"a tensor parallel group of {tp} would span nodes: each node holds {on_each} of the "
            "engine's GPUs"
        )
    elif layout.gpus_per_node > gpus_per_node:
        problem = (
            f"{name} needs {layout.gpus_per_node} GPUs per node, but a node has {gpus_per_node}"
        )
    elif layout.nodes > needed:
        problem = (
            f"{name} asks for {layout.nodes} nodes, but its {gpus} GPUs fit on {needed} with "
            f"{gpus_per_node} GPUs each"
        )
    elif layout.nodes > nodes:
        problem = f"{name} needs {gpus} GPUs on {layout.nodes} nodes; available nodes: {nodes}"
    return Judgment((RuleRemark(Rule.NODES, problem),) if problem else ())


def judge_memory(accelerator: Accelerator, memory: GpuMemory, context_tokens: int) -> Judgment:
    """Judge whether the weights and one sequence of `context_tokens` fit."""
    weights = f"{memory.weight_bytes / GIB:.1f} GiB"
    if memory.kv_bytes <= 0:
        sentence = (
            f"weights need {weights} of each GPU and the reserve {memory.reserve_bytes / GIB:.1f}, "
            f"but vLLM may use only {memory.usable_bytes / GIB:.1f} of the "
            f"{accelerator.memory_gib:.1f} GiB of one {accelerator.name}"
        )
        return Judgment((RuleRemark(Rule.MEMORY, sentence),))
    if memory.kv_tokens < context_tokens:
        sentence = (
            f"next to {weights} of weights, one {accelerator.name} has "
            f"{memory.kv_bytes / GIB:.1f} GiB for the KV cache: {memory.kv_tokens:,} tokens, but "
            f"one sequence of {context_tokens:,} must fit"
        )
        return Judgment((RuleRemark(Rule.CONTEXT, sentence),))
    return Judgment()


Found = list[tuple[RuleRemark, bool]]
"""Each remark, and True if it is a breach."""


def _heads(geometry: Geometry, layout: Layout) -> Found:
    tp, heads, kv = layout.tensor_parallel_size, geometry.num_heads, geometry.num_kv_heads
    if heads % tp:
        sentence = f"{heads} attention heads do not divide evenly over TP{tp}"
        return [(RuleRemark(Rule.HEADS, sentence), True)]
    if kv % tp and tp % kv:
        sentence = f"TP{tp} is neither a divisor nor a multiple of the {kv} KV heads"
        return [(RuleRemark(Rule.KV_HEADS, sentence), True)]
    if tp > kv:
        sentence = f"TP{tp} exceeds the {kv} KV heads, so each head is stored {tp // kv} times"
        return [(RuleRemark(Rule.KV_HEADS, sentence), False)]
    return []


def _layers(geometry: Geometry, layout: Layout) -> Found:
    layers, stages = geometry.num_layers, layout.pipeline_parallel_size
    if stages > layers:
        sentence = f"{layers} layers are fewer than the {stages} stages of PP{stages}"
        return [(RuleRemark(Rule.LAYERS, sentence), True)]
    if layers % stages:
        split = "+".join(map(str, pipeline_layers(layers, stages)))
        return [(RuleRemark(Rule.LAYERS, f"{layers} layers are split unevenly, {split}"), False)]
    return []


def _experts(geometry: Geometry, layout: Layout) -> Found:
    ranks, experts = layout.expert_parallel_size, geometry.num_experts
    if not geometry.is_moe:
        found: Found = []
        if layout.expert_parallel:
            sentence = "expert parallelism needs a model with experts, and this model is dense"
            found.append((RuleRemark(Rule.EXPERTS, sentence), True))
        if layout.data_parallel_size > 1:
            sentence = (
                f"the {layout.data_parallel_size} data parallel ranks of a dense model share "
                "nothing: run that many engines instead"
            )
            found.append((RuleRemark(Rule.DATA_PARALLEL, sentence), True))
        return found
    if experts % ranks:
        sentence = f"{experts} experts do not divide evenly over {ranks} ranks (TP x DP)"
        return [(RuleRemark(Rule.EXPERTS, sentence), True)]
    if layout.data_parallel_size > 1 and not layout.expert_parallel:
        sentence = (
            f"without expert parallelism each expert is split over all {expert_split(layout)} "
            "ranks (TP x DP), and no published measurement shows that this is fast"
        )
        return [(RuleRemark(Rule.DATA_PARALLEL, sentence, is_discouraged=True), False)]
    return []


def _mlp_width(geometry: Geometry, layout: Layout) -> Found:
    """Check matrices that are split internally: experts without EP, or a dense MLP."""
    if geometry.is_moe and layout.expert_parallel:  # experts stay whole
        return []
    ranks = expert_split(layout) if geometry.is_moe else layout.tensor_parallel_size
    width = geometry.moe_intermediate_size if geometry.is_moe else geometry.intermediate_size
    what = "moe_intermediate_size" if geometry.is_moe else "intermediate_size"
    if width % ranks:
        sentence = f"{what} {width:,} does not divide evenly over {ranks} ranks"
        return [(RuleRemark(Rule.INTERMEDIATE, sentence), True)]
    block = geometry.quantization.block[1] if geometry.quantization else 1
    if ranks == 1 or width // ranks % block == 0:
        return []
    misfit = (
        f"{what} {width:,} over {ranks} ranks is {width // ranks} each, not a multiple of the "
        f"scale block of {block}"
    )
    refined = math.gcd(width // ranks, block)
    if not geometry.is_moe or refined < LEAST_BLOCK:
        least = f" (common divisor {refined} is below {LEAST_BLOCK})" if geometry.is_moe else ""
        return [(RuleRemark(Rule.BLOCKS, f"{misfit}: vLLM refuses it{least}"), True)]
    sentence = (
        f"{misfit}: vLLM 0.29 and later split blocks to {refined} and use untuned Triton kernels, "
        "so it loads but runs slowly"
    )
    return [(RuleRemark(Rule.BLOCKS, sentence, is_discouraged=True), False)]


def _attention_blocks(geometry: Geometry, layout: Layout) -> Found:
    """Check q, k and v of a rank: vLLM 0.32 `fp8_utils.py`, validate_fp8_block_shape."""
    tp = layout.tensor_parallel_size
    if geometry.quantization is None or tp == 1 or geometry.num_heads % tp:
        return []
    block = max(geometry.quantization.block)
    heads = {"query": geometry.num_heads // tp, "key": max(1, geometry.num_kv_heads // tp)}
    for what, count in heads.items():
        if count * geometry.head_dim % block:
            sentence = (
                f"the {what} projection of a rank of TP{tp} has {count * geometry.head_dim} rows, "
                f"not a multiple of the scale block of {block}"
            )
            return [(RuleRemark(Rule.BLOCKS, sentence), True)]
    return []


def _vocabulary(geometry: Geometry, layout: Layout) -> Found:
    tp = layout.tensor_parallel_size
    padded = -(-geometry.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    if padded % tp:
        sentence = (
            f"the vocabulary of {padded:,} (padded to a multiple of {VOCAB_PADDING}) does not "
            f"divide evenly over TP{tp}"
        )
        return [(RuleRemark(Rule.VOCABULARY, sentence), True)]
    return []


def _quantization(geometry: Geometry, accelerator: Accelerator) -> Found:
    if geometry.quantization is None:
        return []
    method = geometry.quantization.method
    native = ComputeDtype.FP8 if method is QuantMethod.FP8 else ComputeDtype.NVFP4
    if accelerator.flops(native) is not None:
        return []
    if method in accelerator.weight_only:
        sentence = (
            f"{accelerator.name} has no {method.value} matrix units: vLLM's Marlin kernels keep "
            "the weights quantized and multiply in bfloat16, so it loads but prefill is slower"
        )
        return [(RuleRemark(Rule.QUANTIZATION, sentence, is_discouraged=True), False)]
    has = ", ".join(d.value for d, rate in accelerator.flops_per_s.items() if rate is not None)
    sentence = (
        f"the weights are {method.value}, but {accelerator.name} has matrix units only for {has}"
    )
    return [(RuleRemark(Rule.QUANTIZATION, sentence), True)]


CHECKS: Final[tuple[Callable[[Geometry, Layout], Found], ...]] = (
    _heads,
    _layers,
    _experts,
    _mlp_width,
    _attention_blocks,
    _vocabulary,
)
