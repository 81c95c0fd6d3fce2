"""Judgments on environment variables."""

from __future__ import annotations

import pytest

from qwenfleet.cluster.doctor import variables
from qwenfleet.cluster.doctor.finding import Level


def reported(values: dict[str, str], *, is_node: bool = False) -> list[str]:
    findings = variables.judge(variables.relevant(values), is_node=is_node)
    return [f"{finding.sentence}. {finding.remedy}" for finding in findings if finding.remedy]


def test_harmless_variables_are_ok() -> None:
    harmless = {"PATH": "/bin", "VLLM_LOGGING_LEVEL": "DEBUG", "HF_HUB_OFFLINE": "0"}
    (finding,) = variables.judge(variables.relevant(harmless), is_node=False)
    assert finding.level is Level.OK


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("RAY_ADDRESS", "10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379"),
        ("RAY_AUTH_MODE", "disabled", "does not require a token"),
        ("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1", "Ray Serve will read"),
        ("VLLM_CPU_KVCACHE_SPACE", "40", "overrides kv_cache_gib"),
        ("VLLM_USE_FLASHINFER_SAMPLER", "1", "inherit VLLM_USE_FLASHINFER_SAMPLER"),
        ("VLLM_ATTENTION_BACKEND", "X", "vLLM 0.32 does not read VLLM_ATTENTION_BACKEND"),
        ("HF_HUB_OFFLINE", "1", "cannot be downloaded"),
        ("https_proxy", "http://proxy:3128", "no_proxy=127.0.0.1,localhost"),
    ],
)
def test_each_variable_is_a_note_of_its_own(name: str, value: str, word: str) -> None:
    (only,) = reported({name: value})
    assert word in only


@pytest.mark.parametrize(
    ("no_proxy", "expected"),
    [
        ("127.0.0.1,localhost,.corp", 0),
        ("*", 0),
        ("localhost", 1),
        (".corp", 1),
    ],
)
def test_a_proxy_is_a_note_only_if_loopback_goes_through_it(no_proxy: str, expected: int) -> None:
    assert len(reported({"HTTP_PROXY": "http://proxy", "NO_PROXY": no_proxy})) == expected


def test_hosts_that_are_already_exempt_stay_in_the_remedy() -> None:
    (only,) = reported({"HTTP_PROXY": "http://proxy", "NO_PROXY": ".corp"})
    assert "no_proxy=.corp,127.0.0.1,localhost" in only


def test_secrets_are_not_shown() -> None:
    values = {
        "HF_TOKEN": "hf_secret",
        "HTTP_PROXY": "http://user:secret@proxy",
        "VLLM_API_KEY": "secret",
        "RAY_AUTH_TOKEN": "secret",
    }
    assert "secret" not in " ".join(reported(values)).replace("HF_TOKEN", "")


def test_rays_variables_are_not_judged_on_a_node() -> None:
    values = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_ADDRESS": "x:1", "VLLM_X": "1"}
    (only,) = reported(values, is_node=True)
    assert "VLLM_X" in only


def test_the_plugin_list_is_judged_with_vllm_and_not_here() -> None:
    assert reported({"VLLM_PLUGINS": "qwenfleet_resume"}) == []
