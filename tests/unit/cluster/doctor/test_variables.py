"""Judgements on environment variables."""

from __future__ import annotations

import pytest

from qwenfleet.cluster.doctor import variables
from qwenfleet.cluster.doctor.finding import Level


def reported(values: dict[str, str], *, is_node: bool = False) -> list[str]:
    findings = variables.judge(variables.relevant(values), is_node=is_node)
    return [f"{finding.sentence}. {finding.way_out}" for finding in findings if finding.way_out]


def test_an_environment_without_surprises_is_ok() -> None:
    harmless = {"PATH": "/bin", "VLLM_LOGGING_LEVEL": "DEBUG", "HF_HUB_OFFLINE": "0"}
    (finding,) = variables.judge(variables.relevant(harmless), is_node=False)
    assert finding.level is Level.OK


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("RAY_ADDRESS", "10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379"),
        ("RAY_AUTH_MODE", "disabled", "asks nobody for a token"),
        ("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1", "Ray Serve will read"),
        ("VLLM_CPU_KVCACHE_SPACE", "40", "overrides kv_cache_gib"),
        ("VLLM_USE_FLASHINFER_SAMPLER", "1", "inherit VLLM_USE_FLASHINFER_SAMPLER"),
        ("VLLM_ATTENTION_BACKEND", "X", "vLLM 0.32 does not read VLLM_ATTENTION_BACKEND"),
        ("HF_HUB_OFFLINE", "1", "cannot be loaded"),
        ("https_proxy", "http://proxy:3128", "no_proxy=127.0.0.1,localhost"),
    ],
)
def test_each_surprise_is_one_note_of_its_own(name: str, value: str, word: str) -> None:
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
def test_a_proxy_surprises_only_when_loopback_goes_through_it(no_proxy: str, expected: int) -> None:
    assert len(reported({"HTTP_PROXY": "http://proxy", "NO_PROXY": no_proxy})) == expected


def test_what_is_exempt_already_stays_in_the_advice() -> None:
    (only,) = reported({"HTTP_PROXY": "http://proxy", "NO_PROXY": ".corp"})
    assert "no_proxy=.corp,127.0.0.1,localhost" in only


def test_no_secret_is_shown() -> None:
    values = {
        "HF_TOKEN": "hf_secret",
        "HTTP_PROXY": "http://user:secret@proxy",
        "VLLM_API_KEY": "secret",
        "RAY_AUTH_TOKEN": "secret",
    }
    assert "secret" not in " ".join(reported(values)).replace("HF_TOKEN", "")


def test_on_a_node_rays_variables_are_its_clusters() -> None:
    values = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_ADDRESS": "x:1", "VLLM_X": "1"}
    (only,) = reported(values, is_node=True)
    assert "VLLM_X" in only


def test_the_list_of_plugins_is_judged_with_vllm() -> None:
    assert reported({"VLLM_PLUGINS": "qwenfleet_resume"}) == []
