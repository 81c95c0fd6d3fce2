"""Geometry: the shapes of a model, and the counts of parameters, bytes and FLOPs that follow. Pure.

Every count is of the whole model; `memory` splits it over the GPUs of a layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

BF16_BYTES: Final = 2
"""Of one parameter that is not quantised, and of one element of a KV cache that is not."""
MATRICES_PER_EXPERT: Final = 3
"""gate, up and down of SwiGLU, in dense MLPs as in experts."""


class KVDtype(StrEnum):
    """What the KV cache holds; the names are those of vLLM's `kv_cache_dtype`."""

    AUTO = "auto"
    """The model's own: bfloat16."""
    FP8 = "fp8"

    @property
    def num_bytes(self) -> int:
        """Of one element."""
        return 1 if self is KVDtype.FP8 else BF16_BYTES


class QuantMethod(StrEnum):
    """How weights are stored; the closed set that the planner can count."""

    FP8 = "fp8"
    """e4m3, one scale for each block."""
    NVFP4 = "nvfp4"
    """Four bits, one FP8 scale for each 16 weights of a row."""


@dataclass(frozen=True)
class Quantization:
    """What the weights of linear layers are stored as."""

    method: QuantMethod
    block: tuple[int, int]
    """Output by input weights that share one scale: (128, 128), or (1, 16) for NVFP4."""
    unconverted: tuple[str, ...] = field(default=("lm_head", "mlp.gate"), compare=False)
    """Linear layers that stay bfloat16; embeddings and norms always do."""

    @property
    def name(self) -> str:
        """Such as `fp8 in blocks of 128 x 128`."""
        return f"{self.method.value} in blocks of {self.block[0]} x {self.block[1]}"

    @property
    def bits_per_weight(self) -> int:
        """Without scales."""
        return 8 if self.method is QuantMethod.FP8 else 4

    @property
    def scale_bytes(self) -> int:
        """Of one scale in the checkpoint: bfloat16 `weight_scale_inv` of Qwen's FP8 (their size on
        disk fits no other), float8 in NVFP4."""
        return 2 if self.method is QuantMethod.FP8 else 1


FP8_BLOCKS: Final = Quantization(QuantMethod.FP8, (128, 128))
"""What Qwen's own `-FP8` models use: quantization_config of their config.json."""
NVFP4_GROUPS: Final = Quantization(QuantMethod.NVFP4, (1, 16))
"""NVIDIA's format: one FP8 scale for each 16 weights."""


@dataclass(frozen=True)
class Geometry:
    """A decoder-only transformer of the Llama or Qwen family, dense or with experts in each layer.

    Fields are named as in Hugging Face's config.json, shortened; sizes are in elements.
    """

    architecture: str
    """Hugging Face's class, such as Qwen3MoeForCausalLM."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    intermediate_size: int
    """Of the dense MLP; not used where there are experts."""
    num_experts: int
    """0 in a dense model."""
    experts_per_token: int
    moe_intermediate_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    """The longest context without a long-context method, in tokens."""
    rope_theta: float
    has_qk_norm: bool
    has_qkv_bias: bool
    quantization: Quantization | None = None
    long_context_tokens: int | None = None
    """The longest context of the YaRN that config.json itself sets; None without one."""
    has_dual_chunk: bool = field(default=False, compare=False)
    """Whether config.json asks for Qwen's own method, as its config_1m.json does."""

    @property
    def is_moe(self) -> bool:
        """Whether each layer has experts in place of one MLP."""
        return self.num_experts > 0

    @property
    def max_context_tokens(self) -> int:
        """The longest prompt plus output that the model is made for."""
        return self.long_context_tokens or self.max_position_embeddings

    @property
    def embedding_params(self) -> int:
        """Of the input embedding; an output head of its own has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def head_params(self) -> int:
        """Of the output head; 0 where it is the embedding."""
        return 0 if self.tie_word_embeddings else self.embedding_params

    @property
    def attention_params_per_layer(self) -> int:
        """Of the four projections of one layer, without norms and biases."""
        return 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)

    @property
    def expert_params(self) -> int:
        """Of one expert."""
        return MATRICES_PER_EXPERT * self.hidden_size * self.moe_intermediate_size

    @property
    def gate_params_per_layer(self) -> int:
        """Of one layer's router; 0 in a dense model."""
        return self.hidden_size * self.num_experts

    @property
    def small_params_per_layer(self) -> int:
        """Norms and biases of one layer: in every rank, and never quantised."""
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.has_qk_norm else 0)
        heads = self.num_heads + 2 * self.num_kv_heads
        return norms + (heads * self.head_dim if self.has_qkv_bias else 0)

    @property
    def mlp_params_per_layer(self) -> int:
        """All experts of one layer, or its dense MLP."""
        if self.is_moe:
            return self.num_experts * self.expert_params
        return MATRICES_PER_EXPERT * self.hidden_size * self.intermediate_size

    @property
    def active_mlp_params_per_layer(self) -> int:
        """What one token passes through: `experts_per_token` experts, or the dense MLP."""
        if self.is_moe:
            return self.experts_per_token * self.expert_params
        return self.mlp_params_per_layer

    @property
    def total_params(self) -> int:
        """All of them."""
        layer = self._params_per_layer(self.mlp_params_per_layer)
        outer = self.embedding_params + self.head_params + self.hidden_size
        return self.num_layers * layer + outer

    @property
    def active_params(self) -> int:
        """Those that one token uses, the input embedding counted whole."""
        layer = self._params_per_layer(self.active_mlp_params_per_layer)
        outer = self.embedding_params + self.head_params + self.hidden_size
        return self.num_layers * layer + outer

    @property
    def active_params_without_embedding(self) -> int:
        """Those that one token multiplies: a tied output head counts, an input embedding not."""
        return self.active_params - (0 if self.tie_word_embeddings else self.embedding_params)

    @property
    def quantised_params(self) -> int:
        """Attention projections and MLPs, which are what Qwen's FP8 converts; 0 without."""
        if self.quantization is None:
            return 0
        return self.num_layers * (self.attention_params_per_layer + self.mlp_params_per_layer)

    @property
    def scale_blocks(self) -> int:
        """Scales of the quantised weights; 0 without."""
        if self.quantization is None:
            return 0
        rows, columns = self.quantization.block
        return self.quantised_params // (rows * columns)

    @property
    def linear_bytes_per_param(self) -> float:
        """Of one weight of attention or an MLP with its share of a scale."""
        if self.quantization is None:
            return BF16_BYTES
        rows, columns = self.quantization.block
        per_scale = self.quantization.scale_bytes / (rows * columns)
        return self.quantization.bits_per_weight / 8 + per_scale

    @property
    def weight_bytes(self) -> int:
        """Of the checkpoint's tensors."""
        stored = self.quantised_params
        linear = stored * self.quantization.bits_per_weight // 8 if self.quantization else 0
        scales = self.scale_blocks * (self.quantization.scale_bytes if self.quantization else 0)
        return linear + scales + (self.total_params - stored) * BF16_BYTES

    @property
    def linear_flops_per_token(self) -> int:
        """Multiplications and additions of one token through all weights but the embedding."""
        return 2 * self.active_params_without_embedding

    @property
    def attention_flops_per_pair(self) -> int:
        """Of one new token with one token of its context, over all layers: q·k and p·v."""
        return self.num_layers * 4 * self.num_heads * self.head_dim

    def kv_bytes_per_token(self, dtype: KVDtype = KVDtype.AUTO) -> int:
        """Keys and values of one token over all layers, held once."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * dtype.num_bytes

    def _params_per_layer(self, mlp: int) -> int:
        attention = self.attention_params_per_layer + self.small_params_per_layer
        return attention + self.gate_params_per_layer + mlp
