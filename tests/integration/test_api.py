"""What the routes answer, through HAProxy and two gateways."""

from __future__ import annotations

import httpx
import pytest

from qwenfleet.cluster.metrics import (
    ENGINE_DRAIN_GRACE,
    ENGINE_DRAIN_SECONDS,
    HEAD_FAULT_TOLERANCE,
    METRICS,
)

pytestmark = pytest.mark.integration

CHAT = {"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}


def test_models_lists_every_model_with_its_context(fleet):
    models = httpx.get(f"{fleet.url}/v1/models").json()["data"]

    assert {model["id"]: model["max_model_len"] for model in models} == {
        "smollm2": 8192,
        "tiny": 2048,
        "scripted": 4096,
    }
    parameters = {model["id"]: model["default_parameters"] for model in models}
    assert parameters["smollm2"] == {"temperature": 0.2, "top_p": 0.9}


def test_health_is_ready_once_an_engine_answered(fleet):
    assert httpx.get(f"{fleet.url}/health/live").status_code == 200
    assert httpx.get(f"{fleet.url}/health/ready").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path",
    [
        "/metrics", "/version", "/load", "/scale_elastic_ep", "/is_scaling_elastic_ep", "/docs",
        "/openapi.json", "/invocations", "/kv_event_sources", "/v1/systemone", "/ping",
        "/generative_scoring", "/v1/chat/completions/batch", "/v1/chat/completions/render",
        "/v1/models/tiny", "/health",
    ],
)  # fmt: skip
def test_no_other_route_is_reachable(fleet, path):
    for method in ("GET", "POST"):
        answer = httpx.request(method, fleet.url + path, json=CHAT)
        assert answer.status_code == 404, (method, path, answer.text)


def test_tokenize_and_detokenize_are_inverse(fleet):
    tokens = httpx.post(
        f"{fleet.url}/tokenize", json={"model": "smollm2", "prompt": "def reverse(s):"}
    ).json()["tokens"]
    text = httpx.post(f"{fleet.url}/detokenize", json={"model": "smollm2", "tokens": tokens})

    assert text.json()["prompt"] == "def reverse(s):"


@pytest.mark.parametrize("model", ["smollm2", "tiny", "scripted"])
def test_completions_and_responses_answer_for_each_model(fleet, model):
    completion = httpx.post(
        f"{fleet.url}/v1/completions",
        json={"model": model, "prompt": "def f(", "max_tokens": 4},
        timeout=120,
    ).json()
    response = httpx.post(
        f"{fleet.url}/v1/responses",
        json={"model": model, "input": "Hello", "max_output_tokens": 4},
        timeout=120,
    ).json()

    assert completion["model"] == model
    assert completion["usage"]["completion_tokens"] == 4
    assert response["model"] == model
    assert response["usage"]["output_tokens"] == 4


def test_logprobs_cross_the_wire(fleet):
    answer = httpx.post(
        f"{fleet.url}/v1/completions",
        json={"model": "tiny", "prompt": "x", "max_tokens": 3, "logprobs": 2, "ignore_eos": True},
        timeout=120,
    ).json()
    logprobs = answer["choices"][0]["logprobs"]

    assert len(logprobs["token_logprobs"]) == 3
    assert all(value < 0 for value in logprobs["token_logprobs"])
    assert all(len(top) >= 2 for top in logprobs["top_logprobs"])


def test_sampling_with_n_and_penalties_gives_each_choice(fleet):
    answer = httpx.post(
        f"{fleet.url}/v1/completions",
        json={
            "model": "tiny", "prompt": "x", "max_tokens": 6, "n": 3, "temperature": 1.0, "seed": 7,
            "presence_penalty": 0.5, "ignore_eos": True,
        },
        timeout=120,
    ).json()  # fmt: skip

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 18


def test_an_unknown_model_is_answered_with_those_there_are(fleet):
    answer = httpx.post(f"{fleet.url}/v1/chat/completions", json=CHAT | {"model": "gpt-5"})

    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert all(name in message for name in ("gpt-5", "smollm2", "tiny", "scripted"))


def test_request_without_a_model_must_name_one(fleet):
    answer = httpx.post(f"{fleet.url}/v1/completions", json={"prompt": "x"})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "model_required"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model": "tiny", "messages": [', id="truncated"),
        pytest.param(b"", id="empty"),
        pytest.param(b"[1, 2]", id="no object"),
        pytest.param(b'{"model": "tiny", "messages": []}', id="no messages"),
        pytest.param(b'{"model": "tiny", "messages": "hi"}', id="messages is a string"),
        pytest.param(b'{"model": 7, "messages": []}', id="model is a number"),
        pytest.param(
            b'{"model": "tiny", "temperature": "hot", "messages": [{"role": "user"}]}',
            id="temperature is a word",
        ),
    ],
)
def test_a_malformed_body_is_a_400_with_a_sentence(fleet, body):
    answer = httpx.post(f"{fleet.url}/v1/chat/completions", content=body)

    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert len(message) > 10
    assert "Traceback" not in message


def test_a_prompt_longer_than_the_context_names_both_numbers(fleet):
    answer = httpx.post(
        f"{fleet.url}/v1/completions",
        json={"model": "tiny", "prompt": "x" * 3000, "max_tokens": 10},
        timeout=60,
    )

    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "2048" in message
    assert "2049" in message  # vLLM stops counting there: "at least 2049 input tokens"


def test_a_body_over_the_limit_is_a_413(fleet):
    answer = httpx.post(f"{fleet.url}/v1/completions", content=b"x" * 1_000_001)

    assert answer.status_code == 413
    assert "1000000" in answer.json()["error"]["message"]


def test_every_metric_is_exported_and_vllms_own_are_kept(fleet):
    for model in ("smollm2", "tiny"):
        for _ in range(2):  # the second finds its prompt in the prefix cache of one engine
            answer = httpx.post(
                f"{fleet.url}/v1/completions",
                json={"model": model, "prompt": "a prompt of some blocks " * 60, "max_tokens": 2},
                timeout=120,
            )
            assert answer.status_code == 200
    httpx.post(f"{fleet.url}/v1/completions", json={"model": "gpt-5"})
    # Of an engine that drains, and of clusters that say what their head has.
    absent = {ENGINE_DRAIN_SECONDS, ENGINE_DRAIN_GRACE, HEAD_FAULT_TOLERANCE}
    expected = {metric.exported for metric in set(METRICS.values()) - absent}

    def missing(text: str) -> set[str]:
        names = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}
        bases = {name.removesuffix("_count").removesuffix("_bucket") for name in names} | names
        return expected - bases

    from_start = _poll_metrics(fleet, lambda text: not missing(text))
    assert missing(from_start) == set()
    for model in ("smollm2", "tiny"):
        for name in (
            "ray_vllm_num_requests_running",  # from the engine
            "ray_vllm_kv_cache_usage_perc",
            "ray_vllm_time_to_first_token_seconds_count",  # from the gateway
        ):
            assert any(
                line.startswith(name + "{") and f'model_name="{model}"' in line
                for line in from_start.splitlines()
            ), (name, model)


def _poll_metrics(fleet, claim) -> str:
    """Ray's agent reports every few seconds."""
    import time

    give_up_at = time.monotonic() + 60
    while not claim(text := fleet.metrics()) and time.monotonic() < give_up_at:
        time.sleep(1)
    return text
