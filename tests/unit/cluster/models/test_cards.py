from pathlib import Path

import pytest

from qwenfleet.cluster.config.model import SamplingDefaults
from qwenfleet.cluster.models.cards import (
    EMBEDDED_DEFAULTS,
    NO_DEFAULTS,
    PUBLISHED_DEFAULTS,
    defaults_for,
)
from qwenfleet.cluster.models.sources import EMBEDDED
from qwenfleet.cluster.models.tiny_qwen3_moe import CONFIG

CODER_SAMPLING = {
    "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "max_tokens": 65_536,
}  # fmt: skip
SAMPLING_2507 = {
    "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0, "max_tokens": 16_384,
}  # fmt: skip


@pytest.mark.parametrize("size", ["480B-A35B", "30B-A3B"])
@pytest.mark.parametrize("suffix", ["", "-FP8"])
def test_qwen3_coder_gets_its_parser_and_its_cards_sampling(size: str, suffix: str) -> None:
    defaults = defaults_for(f"Qwen/Qwen3-Coder-{size}-Instruct{suffix}")
    assert defaults.tool_call_parser == "qwen3_coder"
    assert defaults.max_model_len == 262_144
    assert defaults.sampling == CODER_SAMPLING


@pytest.mark.parametrize("suffix", ["", "-FP8"])
def test_qwen3_2507_uses_hermes_calls_and_no_repetition_penalty(suffix: str) -> None:
    defaults = defaults_for(f"Qwen/Qwen3-30B-A3B-Instruct-2507{suffix}")
    assert defaults.tool_call_parser == "hermes"
    assert defaults.sampling == SAMPLING_2507


def test_a_directory_named_like_a_model_gets_its_defaults() -> None:
    directory = f"{Path('/models')}/Qwen3-Coder-30B-A3B-Instruct/"
    assert defaults_for(directory).tool_call_parser == "qwen3_coder"


@pytest.mark.parametrize(
    "source", ["Qwen/Qwen3-Coder-30B-A3B-Instruct-GGUF", "Qwen/Qwen3-30B-A3B", "meta/llama", ""]
)
def test_an_unknown_model_has_no_defaults(source: str) -> None:
    assert defaults_for(source) is NO_DEFAULTS


def test_smollm2_runs_eagerly_in_float16_up_to_its_native_limit() -> None:
    defaults = defaults_for("smollm2-135m-instruct")
    assert defaults.tool_call_parser == "hermes"
    assert defaults.max_model_len == 8192
    assert defaults.engine_args == {"enforce_eager": True, "dtype": "float16"}
    assert defaults.sampling == {"temperature": 0.2, "top_p": 0.9}


def test_the_tiny_model_uses_qwen3_coders_calls_and_a_shorter_context() -> None:
    defaults = defaults_for("tiny-qwen3-moe")
    assert defaults.tool_call_parser == "qwen3_coder"
    assert defaults.max_model_len == 4096 <= CONFIG["max_position_embeddings"]
    assert defaults.engine_args == {"enforce_eager": True}


def test_every_embedded_model_has_defaults() -> None:
    assert set(EMBEDDED_DEFAULTS) == set(EMBEDDED)


def test_the_configuration_accepts_all_sampling_defaults() -> None:
    for defaults in [*EMBEDDED_DEFAULTS.values(), *PUBLISHED_DEFAULTS.values()]:
        SamplingDefaults.model_validate(dict(defaults.sampling))
