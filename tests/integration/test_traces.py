"""One trace from the client's header to vLLM's own span, and through the loss of an engine."""

from __future__ import annotations

import os
import secrets
import signal

import httpx
import pytest

pytestmark = pytest.mark.integration

MESSAGES = [{"role": "user", "content": "hi"}]
REQUESTS = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 8},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 8},
    "/v1/responses": {"input": "hi", "max_output_tokens": 8},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 8},
}


def begin_trace(sampled="01"):
    """A client's trace: its id, its span's id, and the headers that say so."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace_id}-{span_id}-{sampled}", "tracestate": "vendor=7"}
    return trace_id, span_id, headers


def by_name(spans):
    assert len({span.name for span in spans}) == len(spans), spans
    return {span.name: span for span in spans}


@pytest.mark.parametrize("path", REQUESTS)
def test_a_stream_is_one_trace_from_the_clients_span_to_vllms_own(fleet, collector, path):
    trace_id, client_span, headers = begin_trace()
    body = REQUESTS[path] | {"model": "tiny", "stream": True, "temperature": 0}
    answer = httpx.post(f"{fleet.url}{path}", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text

    server = f"POST {path}"
    spans = by_name(collector.trace(trace_id, server, "attempt", "engine", "llm_request"))
    assert set(spans) == {server, "attempt", "engine", "llm_request"}
    gateway, attempt, engine = spans[server], spans["attempt"], spans["engine"]
    assert gateway.parent_id == client_span
    assert attempt.parent_id == spans["llm_request"].parent_id == gateway.span_id
    assert engine.parent_id == attempt.span_id
    assert (gateway.service, engine.service) == ("qwenfleet-gateway", "qwenfleet-engine")
    assert not any(span.is_error for span in spans.values())
    assert (
        gateway.attributes.items()
        >= {
            "http.response.status_code": 200,
            "gen_ai.request.model": "tiny",
            "gen_ai.usage.output_tokens": 8,
            "qwenfleet.outcome": "completed",
        }.items()
    )
    assert gateway.attributes["gen_ai.usage.input_tokens"] > 0
    assert attempt.attributes["qwenfleet.engine"] in {e["id"] for e in fleet.engines("tiny")}
    assert attempt.attributes["qwenfleet.engine"] == engine.attributes["qwenfleet.engine"]
    assert attempt.events == ["first_token"]
    assert sorted(engine.events) == ["first_token", "scheduled"]
    # vLLM's own times: the engine's clock was turned into the gateway's.
    times = {name: v for name, v in spans["llm_request"].attributes.items() if "latency" in name}
    assert 0 <= min(times.values()) <= max(times.values()) < 60, times


def test_unsampled_request_is_not_traced(fleet, collector):
    unwanted, _, headers = begin_trace(sampled="00")
    wanted, _, last = begin_trace()
    body = {"model": "scripted", "prompt": "hi", "max_tokens": 4}
    for sent in (headers, {"traceparent": "no such thing"}, last):
        answer = httpx.post(f"{fleet.url}/v1/completions", json=body, headers=sent, timeout=60)
        assert answer.status_code == 200, answer.text
    spans = collector.trace(wanted, "POST /v1/completions", "attempt", "engine", "llm_request")
    assert len(spans) == 4
    assert unwanted not in {span.trace_id for span in collector.spans}


def test_resumed_stream_shows_both_attempts(fleet, collector):
    trace_id, _, headers = begin_trace()
    body = {"model": "scripted", "prompt": "x", "stream": True, "max_tokens": 1500}
    events = 0
    pids = {engine["id"]: engine["pid"] for engine in fleet.ready("scripted")}
    with (
        httpx.Client(timeout=120) as client,
        client.stream("POST", f"{fleet.url}/v1/completions", json=body, headers=headers) as answer,
    ):
        lines = answer.iter_lines()
        while events < 20:
            events += next(lines).startswith("data: {")
        (killed,) = [e["id"] for e in fleet.engines("scripted") if e["running"]]
        os.kill(pids[killed], signal.SIGKILL)
        last = [line for line in lines if line][-1]
    assert last == "data: [DONE]"

    server = "POST /v1/completions"
    spans = collector.trace(trace_id, server, "attempt", "attempt", "engine", "llm_request")
    first, second = (span for span in spans if span.name == "attempt")
    (gateway,) = (span for span in spans if span.name == server)
    (engine,) = (span for span in spans if span.name == "engine")  # the killed one sent no span
    assert first.parent_id == second.parent_id == gateway.span_id
    assert first.is_error
    assert first.attributes["qwenfleet.engine"] == killed
    assert first.attributes["qwenfleet.end"] in {"reset", "silent"}
    assert second.attributes["qwenfleet.moved_from"] == killed
    assert second.attributes["qwenfleet.moved_by"] == first.attributes["qwenfleet.end"]
    assert second.links == [first.span_id]
    assert second.attributes["qwenfleet.gap_s"] > 0
    assert second.attributes["qwenfleet.tokens_before"] >= 20
    assert first.end_ns <= second.start_ns
    assert engine.parent_id == second.span_id
    assert not second.is_error
    assert not gateway.is_error
    tokens = [span.attributes["gen_ai.usage.output_tokens"] for span in (first, second, gateway)]
    assert tokens[0] + tokens[1] == tokens[2] == 1500
    fleet.expect_ready("scripted", 2, lost=killed)
