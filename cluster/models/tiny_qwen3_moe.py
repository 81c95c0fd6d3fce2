"""A random Qwen3-MoE of 2 MB with a byte tokenizer, for tests in which the architecture matters.

Tensor and expert parallelism, tool grammars, FIM tokens and routing work as with Qwen3-Coder; its
output has no meaning. It writes printable ASCII and never stops by itself, because channel 0 of
every embedding is a constant, which turns column 0 of the output head into a bias per token.

Shape legend: V vocabulary, D hidden, O rows out, I columns in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenfleet.cluster.models.byte_tokenizer import (
    ADDED_TOKENS,
    NUM_BYTES,
    TOKEN_IDS,
    write_byte_tokenizer,
)
from qwenfleet.cluster.models.checkpoint import bfloat16_bits, write_bfloat16, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "tiny-qwen3-moe"
REVISION = "1"
SEED = 20251122

HIDDEN, LAYERS, EXPERTS, EXPERTS_PER_TOKEN, MOE_INTERMEDIATE = 128, 2, 8, 2, 128
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
"""Two KV heads allow tensor parallel size 2; all of vLLM's attention backends support size 64."""

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": TOKEN_IDS["<|endoftext|>"],
    "decoder_sparse_step": 1,
    "eos_token_id": TOKEN_IDS["<|im_end|>"],
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * MOE_INTERMEDIATE,
    "max_position_embeddings": 32768,
    "mlp_only_layers": [],
    "moe_intermediate_size": MOE_INTERMEDIATE,
    "norm_topk_prob": True,
    "num_attention_heads": HEADS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": EXPERTS_PER_TOKEN,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10_000_000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": NUM_BYTES + len(ADDED_TOKENS),
}
"""The fields of Qwen3-Coder-30B-A3B's config.json with smaller values."""

EMBEDDING_BIAS = 4.0
"""Value of channel 0 of every embedding."""

UNLIKELY = -16.0
"""Column 0 of the head for suppressed tokens: -10 or less on a logit with deviation 2.3."""

LOGIT_DEVIATION = 2.5
"""Gives an entropy per token of 2.8 nats; 96 equally likely tokens would have 4.6."""

QK_NORM = 2.0
"""Sharp attention prevents loops in greedy text: 130 of 148 trigrams are new; with 1.0, 26 were."""

RESIDUAL_GAIN = 2.0


def build(directory: Path) -> None:
    """Write the model to a directory, with the same bytes on every machine."""
    write_json(directory / "config.json", CONFIG)
    write_json(directory / "generation_config.json", _generation_config())
    write_byte_tokenizer(directory, CONFIG["max_position_embeddings"])
    weights = {name: bfloat16_bits(tensor) for name, tensor in _weights()}
    write_bfloat16(directory / "model.safetensors", weights)


def _generation_config() -> dict[str, Any]:
    ends = [TOKEN_IDS["<|im_end|>"], TOKEN_IDS["<|endoftext|>"]]
    return {"do_sample": True, "eos_token_id": ends, "pad_token_id": TOKEN_IDS["<|endoftext|>"]}


def _weights() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every tensor by transformers' name, drawn in this order from one random stream."""
    import numpy as np

    bits = np.random.PCG64(SEED)
    vocabulary = CONFIG["vocab_size"]

    def matrix(rows: int, columns: int, gain: float) -> NDArray[np.float32]:
        return _uniform_OI(bits, rows, columns, deviation=gain / columns**0.5)

    def residual(columns: int, gain: float) -> NDArray[np.float32]:
        weight_DI = matrix(HIDDEN, columns, gain)
        weight_DI[0] = 0  # keeps the bias channel of the embedding
        return weight_DI

    embedding_VD = matrix(vocabulary, HIDDEN, HIDDEN**0.5)
    embedding_VD[:, 0] = EMBEDDING_BIAS
    yield "model.embed_tokens.weight", embedding_VD
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", np.ones(HIDDEN, np.float32)
        for norm in ("q_norm", "k_norm"):
            weight = np.full(HEAD_DIM, QK_NORM, np.float32)
            yield f"{prefix}.self_attn.{norm}.weight", weight
        yield f"{prefix}.self_attn.q_proj.weight", matrix(HEADS * HEAD_DIM, HIDDEN, 1)
        yield f"{prefix}.self_attn.k_proj.weight", matrix(KV_HEADS * HEAD_DIM, HIDDEN, 1)
        yield f"{prefix}.self_attn.v_proj.weight", matrix(KV_HEADS * HEAD_DIM, HIDDEN, 1)
        yield f"{prefix}.self_attn.o_proj.weight", residual(HEADS * HEAD_DIM, RESIDUAL_GAIN)
        yield f"{prefix}.mlp.gate.weight", matrix(EXPERTS, HIDDEN, 2)
        for expert in range(EXPERTS):
            mlp = f"{prefix}.mlp.experts.{expert}"
            yield f"{mlp}.gate_proj.weight", matrix(MOE_INTERMEDIATE, HIDDEN, 1)
            yield f"{mlp}.up_proj.weight", matrix(MOE_INTERMEDIATE, HIDDEN, 1)
            yield f"{mlp}.down_proj.weight", residual(MOE_INTERMEDIATE, RESIDUAL_GAIN)
    yield "model.norm.weight", np.ones(HIDDEN, np.float32)
    head_VD = matrix(vocabulary, HIDDEN, LOGIT_DEVIATION)
    head_VD[:, 0] = UNLIKELY
    head_VD[[ord("\n"), *range(0x20, 0x7F)], 0] = 0
    yield "lm_head.weight", head_VD


def _uniform_OI(
    bits: np.random.PCG64, rows: int, columns: int, deviation: float
) -> NDArray[np.float32]:
    """Return uniform weights with a standard deviation, from raw bits: numpy may change its
    distributions between versions, but not the stream of a bit generator."""
    import numpy as np

    unit = (bits.random_raw(rows * columns) >> np.uint64(40)).astype(np.float64) / 2**24
    weights = (2 * unit - 1) * 3**0.5 * deviation
    return weights.astype(np.float32).reshape(rows, columns)
