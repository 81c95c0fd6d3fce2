"""vLLM's real front end answers a client's faults with 4xx, in the form of the API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from vllm.exceptions import VLLMValidationError

from tests.unit.deployments.vllm_adapter.site import Site
from tests.unit.deployments.vllm_adapter.test_front_end import (
    no_blocking_call_on_the_loop,
    pytestmark,
)

__all__ = ["no_blocking_call_on_the_loop", "pytestmark"]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    COMPLETIONS: {"prompt": "x", "max_tokens": 2},
    RESPONSES: {"input": "x", "max_output_tokens": 2},
    MESSAGES: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
}
FAULTS: list[tuple[str, dict[str, Any]]] = [
    *((route, {"model": ["coder"]}) for route in BODIES),
    (CHAT, {"structured_outputs": 5}),
    (CHAT, {"structured_outputs": "json"}),
    (CHAT, {"structured_outputs": {"json": 5}}),
    (CHAT, {"top_k": 2**70}),
    (CHAT, {"kv_transfer_params": "x"}),
    (CHAT, {"vllm_xargs": {"kv_transfer_params": "x"}}),
    (CHAT, {"messages": 5}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": 5}]}),
    (CHAT, {"tools": [5], "tool_choice": {"type": "function", "function": {"name": "x"}}}),
    (CHAT, {"logit_bias": {"99999": 1}}),
    (CHAT, {"stop": [""]}),
    (CHAT, {"temperature": 3}),
    (CHAT, {"chat_template": "{{ messages }}"}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 1}]}]}),
    (COMPLETIONS, {"prompt": [2**70]}),
    (COMPLETIONS, {"prompt": [[]]}),
    (COMPLETIONS, {"prompt": None}),
    (COMPLETIONS, {"prompt_embeds": "eHg="}),
    (COMPLETIONS, {"logit_bias": {"a": 1}}),
    (COMPLETIONS, {"stop_token_ids": [10**6] * 64}),
    (COMPLETIONS, {"prompt": [1] * 5000}),
    (RESPONSES, {"top_k": 2**70}),
    (RESPONSES, {"tools": 5}),
    (RESPONSES, {"input": [{"role": "user"}]}),
    (RESPONSES, {"background": True}),
    (MESSAGES, {"max_tokens": -1}),
    (MESSAGES, {"max_tokens": 2**70}),
    (MESSAGES, {"top_k": 2**70}),
    (MESSAGES, {"messages": []}),
    (MESSAGES, {"messages": [{"role": "robot", "content": "x"}]}),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 5}}),
    ("/tokenize", {"prompt": 5}),
    ("/tokenize", {"prompt": None, "messages": []}),
    ("/detokenize", {"tokens": [2**40]}),
    ("/detokenize", {"tokens": [-1]}),
]


async def ask(site: Site, route: str, fault: dict[str, Any]) -> httpx.Response:
    return await site.ask(route, **BODIES[route] | fault)


def error_of(route: str, answer: httpx.Response) -> dict[str, Any]:
    """Return the error of an answer, which has the form of its API."""
    body = answer.json()
    error: dict[str, Any] = body["error"]
    if route.startswith(MESSAGES):
        assert set(body) == {"type", "error"}
        assert (body["type"], set(error)) == ("error", {"type", "message"})
    else:
        assert set(body) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["code"], str)
        assert isinstance(error["param"], str | None)
    return error


async def test_a_clients_fault_is_a_400_in_the_form_of_its_api(
    serve_engine: Any, build: Any, metrics: Any
) -> None:
    site = await build(await serve_engine())
    for route, fault in FAULTS:
        answer = await ask(site, route, fault)
        assert (answer.status_code, fault) == (400, fault), answer.text
        error = error_of(route, answer)
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert len(answer.content) < 1500
    assert {outcome for _, outcome in metrics.ended} == {"refused"}
    assert len(metrics.ended) == len(FAULTS)
    for route in BODIES:
        assert (await ask(site, route, {})).status_code == 200


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, RESPONSES])
async def test_a_fault_that_vllm_finds_in_a_stream_is_a_400_too(
    serve_engine: Any, build: Any, metrics: Any, route: str
) -> None:
    site = await build(await serve_engine())
    answer = await ask(site, route, {"stream": True, "logit_bias": {"99999": 1}})
    assert answer.status_code == 400, answer.text
    assert error_of(route, answer)["type"] == "invalid_request_error"
    assert "out-of-vocab" in answer.text
    assert answer.text.count("99999") < 5
    assert [outcome for _, outcome in metrics.ended] == ["refused"]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_fault_that_vllm_finds_last_is_a_400_on_anthropics_route_too(
    serve_engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    """vLLM's own event for it has neither its status nor its kind."""
    site = await build(await serve_engine())

    def refuse(*_: Any, **__: Any) -> None:
        raise VLLMValidationError("no such value")

    monkeypatch.setattr(site.front_end.llm.input_processor, "process_inputs", refuse)
    answer = await ask(site, MESSAGES, {"stream": is_stream})
    assert answer.status_code == 400, answer.text
    assert error_of(MESSAGES, answer) == {
        "type": "invalid_request_error",
        "message": "no such value",
    }


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"bad_words": [f"a word that has letters {i}" for i in range(60)]}, "tokens of bad_words"),
        ({"bad_words": ["x" * 1200], "n": 2, "temperature": 1}, "tokens of bad_words"),
        ({"min_tokens": 1, "stop_token_ids": list(range(64))}, ""),
        ({"prompt": "x" * 4000, "logprobs": 20, "echo": True}, "84000 values, above the limit"),
    ],
)
async def test_what_only_tokens_show_to_be_too_large_is_refused_before_an_engine(
    serve_engine: Any, build: Any, fault: dict[str, Any], reason: str, is_stream: bool
) -> None:
    engine = await serve_engine()
    site = await build(engine)
    answer = await ask(site, COMPLETIONS, {**fault, "stream": is_stream})
    assert (reason in answer.text, "[DONE]" in answer.text) == (True, is_stream and not reason)
    assert bool(engine.core.submits) == (not reason)


async def test_the_app_answers_what_vllm_has_no_handler_for(serve_engine: Any, build: Any) -> None:
    """Without the policy in front of it, which refuses these faults first."""
    site = await build(await serve_engine())
    arguments = {"name": "f", "arguments": "[" * 1200 + "]" * 1200}
    call = {"role": "assistant", "tool_calls": [{"id": "1", "function": arguments}]}
    transport = httpx.ASGITransport(site.front_end.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for fault in ({"top_k": 2**70}, {"messages": [call]}):
            body = {"model": "coder"} | BODIES[CHAT] | fault
            answer = await client.post(CHAT, json=body)
            assert answer.status_code == 400, answer.text
            error_of(CHAT, answer)


async def test_the_app_counts_no_requests_for_a_page_that_is_not_served(
    serve_engine: Any, build: Any
) -> None:
    site = await build(await serve_engine())
    await ask(site, "/tokenize", {})
    layers, layer = [], site.front_end.app.inner.middleware_stack
    while layer is not None:
        layers.append(type(layer).__name__)
        layer = getattr(layer, "app", None)
    assert not [name for name in layers if "Instrumentator" in name], layers


async def test_a_failure_of_the_front_end_itself_stays_a_500(
    serve_engine: Any, build: Any, metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await build(await serve_engine())

    def fail(*_: Any, **__: Any) -> None:
        raise AttributeError("a bug at 0x7f00")

    monkeypatch.setattr(site.front_end.llm.input_processor, "process_inputs", fail)
    for route in (CHAT, MESSAGES):
        answer = await ask(site, route, {})
        assert answer.status_code == 500
        assert "a bug" not in answer.text
        assert error_of(route, answer)["message"].startswith("the gateway failed")
    assert {outcome for _, outcome in metrics.ended} == {"failed"}
