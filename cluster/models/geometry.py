"""The shapes of a model, and the counts of parameters, bytes and FLOPs derived from them. Pure.

Every count is for the whole model; `memory` splits it over the GPUs of a layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

BF16_BYTES: Final = 2
"""Bytes of an unquantized parameter, and of an element of an unquantized KV cache."""
MATRICES_PER_EXPERT: Final = 3
"""The gate, up and down matrices of SwiGLU, in dense MLPs and in experts."""


class KVDtype(StrEnum):
    """Element type of the KV cache, by the names of vLLM's `kv_cache_dtype`."""

    AUTO = "auto"
    """The model's own type: bfloat16."""
    FP8 = "fp8"

    @property
    def num_bytes(self) -> int:
        """Bytes of one element."""
        return 1 if self is KVDtype.FP8 else BF16_BYTES


class QuantMethod(StrEnum):
    """Storage formats of weights that the planner supports."""

    FP8 = "fp8"
    """e4m3, one scale per block."""
    NVFP4 = "nvfp4"
    """Four bits, one FP8 scale per 16 weights of a row."""


@dataclass(frozen=True)
class Quantization:
    """The storage format of the weights of linear layers."""

    method: QuantMethod
    block: tuple[int, int]
    """Output x input weights that share one scale: (128, 128), or (1, 16) for NVFP4."""
    unconverted: tuple[str, ...] = field(default=("lm_head", "mlp.gate"), compare=False)
    """Linear layers that stay bfloat16; embeddings and norms always do."""

    @property
    def name(self) -> str:
        """The format in words, such as `fp8 in blocks of 128 x 128`."""
        return f"{self.method.value} in blocks of {self.block[0]} x {self.block[1]}"

    @property
    def bits_per_weight(self) -> int:
        """Bits of one weight, without scales."""
        return 8 if self.method is QuantMethod.FP8 else 4

    @property
    def scale_bytes(self) -> int:
        """Bytes of one scale in the checkpoint: bfloat16 for `weight_scale_inv` of Qwen's FP8 (the
        only type that matches the size on disk), float8 for NVFP4."""
        return 2 if self.method is QuantMethod.FP8 else 1


FP8_BLOCKS: Final = Quantization(QuantMethod.FP8, (128, 128))
"""The format of Qwen's own `-FP8` models: quantization_config of their config.json."""
NVFP4_GROUPS: Final = Quantization(QuantMethod.NVFP4, (1, 16))
"""NVIDIA's format: one FP8 scale per 16 weights."""


@dataclass(frozen=True)
class Geometry:
    """A decoder-only transformer of the Llama or Qwen family, dense or with experts in every layer.

    Fields are named as in Hugging Face's config.json, shortened; sizes are in elements.
    """

    architecture: str
    """Class in transformers, such as Qwen3MoeForCausalLM."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    intermediate_size: int
    """Width of the dense MLP; unused in a model with experts."""
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
    """The longest context with the YaRN that config.json itself sets; None without YaRN."""
    has_dual_chunk: bool = field(default=False, compare=False)
    """True if config.json asks for dual chunk attention, as Qwen's config_1m.json does."""

    @property
    def is_moe(self) -> bool:
        """True if each layer has experts instead of one MLP."""
        return self.num_experts > 0

    @property
    def max_context_tokens(self) -> int:
        """The longest prompt plus output that the model supports, in tokens."""
        return self.long_context_tokens or self.max_position_embeddings

    @property
    def embedding_params(self) -> int:
        """Parameters of the input embedding; a separate output head has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def head_params(self) -> int:
        """Parameters of the output head; 0 if it is tied to the embedding."""
        return 0 if self.tie_word_embeddings else self.embedding_params

    @property
    def attention_params_per_layer(self) -> int:
        """Parameters of the four projections of one layer, without norms and biases."""
        return 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)

    @property
    def expert_params(self) -> int:
        """Parameters of one expert."""
        return MATRICES_PER_EXPERT * self.hidden_size * self.moe_intermediate_size

    @property
    def gate_params_per_layer(self) -> int:
        """Parameters of one layer's router; 0 in a dense model."""
        return self.hidden_size * self.num_experts

    @property
    def small_params_per_layer(self) -> int:
        """Norms and biases of one layer, which every rank holds and which are never quantized."""
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.has_qk_norm else 0)
        heads = self.num_heads + 2 * self.num_kv_heads
        return norms + (heads * self.head_dim if self.has_qkv_bias else 0)

    @property
    def mlp_params_per_layer(self) -> int:
        """Parameters of all experts of one layer, or of its dense MLP."""
        if self.is_moe:
            return self.num_experts * self.expert_params
        return MATRICES_PER_EXPERT * self.hidden_size * self.intermediate_size

    @property
    def active_mlp_params_per_layer(self) -> int:
        """Parameters that one token uses: `experts_per_token` experts, or the dense MLP."""
        if self.is_moe:
            return self.experts_per_token * self.expert_params
        return self.mlp_params_per_layer

    @property
    def total_params(self) -> int:
        """All parameters."""
        layer = self._params_per_layer(self.mlp_params_per_layer)
        outer = self.embedding_params + self.head_params + self.hidden_size
        return self.num_layers * layer + outer

    @property
    def active_params(self) -> int:
        """Parameters that one token uses, counting the whole input embedding."""
        layer = self._params_per_layer(self.active_mlp_params_per_layer)
        outer = self.embedding_params + self.head_params + self.hidden_size
        return self.num_layers * layer + outer

    @property
    def active_params_without_embedding(self) -> int:
        """Parameters that one token multiplies: includes a tied output head, excludes the input
        embedding."""
        return self.active_params - (0 if self.tie_word_embeddings else self.embedding_params)

    @property
    def quantized_params(self) -> int:
        """Parameters of attention projections and MLPs, which Qwen's FP8 converts; 0 without
        quantization."""
        if self.quantization is None:
            return 0
        return self.num_layers * (self.attention_params_per_layer + self.mlp_params_per_layer)

    @property
    def scale_blocks(self) -> int:
        """Number of scales of the quantized weights; 0 without quantization."""
        if self.quantization is None:
            return 0
        rows, columns = self.quantization.block
        return self.quantized_params // (rows * columns)

    @property
    def linear_bytes_per_param(self) -> float:
        """Bytes of one weight of attention or an MLP, with its share of a scale."""
        if self.quantization is None:
            return BF16_BYTES
        rows, columns = self.quantization.block
        per_scale = self.quantization.scale_bytes / (rows * columns)
        return self.quantization.bits_per_weight / 8 + per_scale

    @property
    def weight_bytes(self) -> int:
        """Bytes of the checkpoint's tensors."""
        stored = self.quantized_params
        linear = stored * self.quantization.bits_per_weight // 8 if self.quantization else 0
        scales = self.scale_blocks * (self.quantization.scale_bytes if self.quantization else 0)
        return linear + scales + (self.total_params - stored) * BF16_BYTES

    @property
    def linear_flops_per_token(self) -> int:
        """Multiplications and additions of one token in all weights except the embedding."""
        return 2 * self.active_params_without_embedding

    @property
    def attention_flops_per_pair(self) -> int:
        """FLOPs of one new token with one token of its context, over all layers: q·k and p·v."""
        return self.num_layers * 4 * self.num_heads * self.head_dim

    def kv_bytes_per_token(self, dtype: KVDtype = KVDtype.AUTO) -> int:
        """Return the bytes of one token's keys and values over all layers, stored once."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * dtype.num_bytes

    def _params_per_layer(self, mlp: int) -> int:
        attention = self.attention_params_per_layer + self.small_params_per_layer
        return attention + self.gate_params_per_layer + mlp
