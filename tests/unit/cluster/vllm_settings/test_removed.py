import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import JsonValue

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.vllm_settings.removed import REMOVED_VARIABLES, of_config, removed_settings


def installed(*names: str) -> str:
    """The text of files of vLLM, which is not imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vllm is not installed, so its names cannot be compared")
    return "\n".join((Path(spec.origin).parent / name).read_text() for name in names)


@pytest.fixture(scope="module")
def arguments() -> set[str]:
    text = installed("engine/arg_utils.py")
    body = text[text.index("\nclass EngineArgs") :].partition("def __post_init__")[0]
    return set(re.findall(r"^    ([a-z0-9_]+):", body, re.MULTILINE))


@pytest.fixture(scope="module")
def variables() -> set[str]:
    return set(re.findall(r'"(VLLM_[A-Z0-9_]+)"', installed("envs.py")))


@pytest.mark.parametrize("gone", REMOVED_VARIABLES, ids=lambda gone: gone.name)
def test_a_variable_that_is_gone_is_not_read_by_vllm(gone, variables, arguments):
    assert len(variables) > 200
    assert gone.name not in variables
    for name in gone.now:
        assert name in variables | arguments
        assert name in gone.remedy


@pytest.mark.parametrize("name", ["rope_scaling", "swap_space", "task", "page_size"])
def test_an_argument_that_vllm_does_not_have_is_refused_by_its_dataclass(name, arguments):
    assert "@dataclass\nclass EngineArgs:" in installed("engine/arg_utils.py")
    assert len(arguments) > 100
    assert name not in arguments


def test_all2all_backends_that_are_gone_are_what_vllm_falls_back_from():
    assert 'self.all2all_backend in ["pplx", "naive"]' in installed("config/parallel.py")


@pytest.mark.parametrize(
    ("args", "env", "words"),
    [
        ({}, {"VLLM_ATTENTION_BACKEND": "FLASHINFER"}, "attention_backend"),
        ({}, {"VLLM_USE_V1": "1"}, "only one"),
        ({}, {"SGLANG_USE_AITER": "0"}, "an SGLang variable"),
        ({"all2all_backend": "pplx"}, {}, "allgather_reducescatter"),
    ],
)
def test_what_is_gone_is_said_with_what_to_use(args, env, words):
    (reported,) = removed_settings(args, env)
    assert words in reported


def test_what_is_there_is_not_warned_of():
    args: dict[str, JsonValue] = {"all2all_backend": "deepep_low_latency", "max_num_seqs": 64}
    assert removed_settings(args, {"VLLM_ROCM_USE_AITER": "1"}) == []


def test_a_configuration_is_read_model_by_model_and_pool_by_pool():
    config = FleetConfig.model_validate(
        {
            "models": [
                {"id": "fine"},
                {
                    "id": "coder",
                    "env": {"VLLM_USE_V1": "1"},
                    "pools": [
                        {"name": "a"},
                        {"name": "b", "engine_args": {"all2all_backend": "naive"}},
                    ],
                },
            ]
        }
    )
    reported = of_config(config)
    assert len(reported) == 2
    assert all(sentence.startswith("model 'coder': ") for sentence in reported)
    assert "VLLM_USE_V1" in reported[0]
    assert "all2all_backend naive" in reported[1]
