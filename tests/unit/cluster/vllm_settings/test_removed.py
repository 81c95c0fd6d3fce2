import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import JsonValue

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.vllm_settings.removed import REMOVED_VARIABLES, of_config, removed_settings


def installed(*names: str) -> str:
    """Read files of vLLM without importing it."""
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


@pytest.mark.parametrize("setting", REMOVED_VARIABLES, ids=lambda setting: setting.name)
def test_vllm_does_not_read_a_removed_variable(setting, variables, arguments):
    assert len(variables) > 200
    assert setting.name not in variables
    for name in setting.now:
        assert name in variables | arguments
        assert name in setting.remedy


@pytest.mark.parametrize("name", ["rope_scaling", "swap_space", "task", "page_size"])
def test_vllm_refuses_arguments_that_it_does_not_have(name, arguments):
    assert "@dataclass\nclass EngineArgs:" in installed("engine/arg_utils.py")
    assert len(arguments) > 100
    assert name not in arguments


def test_removed_all2all_backends_are_those_that_vllm_replaces():
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
def test_a_removed_setting_is_reported_with_its_replacement(args, env, words):
    (reported,) = removed_settings(args, env)
    assert words in reported


def test_current_settings_get_no_warning():
    args: dict[str, JsonValue] = {"all2all_backend": "deepep_low_latency", "max_num_seqs": 64}
    assert removed_settings(args, {"VLLM_ROCM_USE_AITER": "1"}) == []


def test_every_pool_of_every_model_is_checked():
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
