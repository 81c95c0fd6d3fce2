"""The model client, with vLLM's own messages, against real hosts on loopback."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import warnings
from contextvars import copy_context
from typing import Any, cast

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import (
        EngineCoreEvent,
        EngineCoreEventType,
        EngineCoreOutput,
        EngineCoreRequest,
        FinishReason,
    )
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    from qwenfleet.deployments.vllm_adapter.model_client import ModelClient

from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.ingress import exchange as exchange_module
from qwenfleet.deployments.ingress.errors import EngineRefused, GatewayFailed
from qwenfleet.deployments.ingress.exchange import Exchange
from qwenfleet.deployments.wire.frames import Output, Outputs

FOREVER = 1_000_000
PROMPT = list(range(1000, 1040))


def request(name: str = "cmpl-1", **params: Any) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=list(PROMPT),
        mm_features=None,
        sampling_params=SamplingParams(**({"temperature": 0.5, "max_tokens": None} | params)),
        pooling_params=None,
        arrival_time=1.0,
        lora_request=None,
        cache_salt="tenant-1",
        data_parallel_rank=None,
        priority=3,
    )


def key_of(client: ModelClient, request_id: str) -> int:
    """Return the number of the request's attempt on the wire."""
    return client._dispatcher._flights[request_id].key


def link_to(client: ModelClient, engine: Any) -> Any:
    return client._dispatcher._roster._links.get(engine.record.id)


async def outputs_of(client: ModelClient, name: str) -> list[EngineCoreOutput]:
    """All outputs of this request, to its end."""
    collected: list[EngineCoreOutput] = []
    while not (collected and collected[-1].finished):
        step = await asyncio.wait_for(client.get_output_async(), 10)
        assert step.engine_index == 0
        collected += [output for output in step.outputs if output.request_id == name]
    return collected


async def next_output(client: ModelClient) -> EngineCoreOutput:
    (output,) = (await asyncio.wait_for(client.get_output_async(), 10)).outputs
    return output


def seed_of(submit: Any) -> int | None:
    params = MsgpackDecoder(EngineCoreRequest).decode(submit.request).sampling_params
    return cast(int | None, params.seed)


async def send(client: ModelClient, wanted: EngineCoreRequest, exchange: Exchange | None) -> None:
    """Send a request as AsyncLLM does in the task of an exchange."""
    (context := copy_context()).run(exchange_module._current.set, exchange)
    await asyncio.get_running_loop().create_task(client.add_request_async(wanted), context=context)


async def failure_of(exchange: Exchange) -> FleetError:
    return await asyncio.wait_for(asyncio.shield(exchange._failure), 10)


async def test_a_request_runs_to_its_end_under_its_own_id(
    client: ModelClient, serve_engine: Any, meet: Any
) -> None:
    await meet(await serve_engine())
    await client.add_request_async(request())
    outputs = await outputs_of(client, "cmpl-1")
    assert [token for output in outputs for token in output.new_token_ids] == [10, 11, 12, 13, 14]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert [output.finish_reason for output in outputs[:-1]] == [None] * 4
    assert outputs[0].prefill_stats is not None
    assert outputs[0].prefill_stats.num_prompt_tokens == len(PROMPT)
    assert all(output.prefill_stats is None for output in outputs[1:])


async def test_the_engine_gets_the_request_and_the_original_is_unchanged(
    client: ModelClient, serve_engine: Any, meet: Any
) -> None:
    engine = await serve_engine()
    await meet(engine)
    original = request(max_tokens=2, stop=["\n"], seed=7)
    before = MsgpackEncoder().encode(original)
    await client.add_request_async(original)
    outputs = await outputs_of(client, "cmpl-1")
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert original.prompt_token_ids == PROMPT
    assert MsgpackEncoder().encode(original) == before
    (submit,) = engine.core.submits
    assert (submit.request_id, submit.attempt, submit.max_tokens) == ("cmpl-1", 0, 2)
    assert submit.prompt_token_ids == PROMPT
    assert (submit.priority, submit.cache_salt, submit.dp_rank) == (3, "tenant-1", 0)
    carried = MsgpackDecoder(EngineCoreRequest).decode(submit.request)
    assert carried.prompt_token_ids is None
    assert carried.sampling_params == original.sampling_params
    assert carried.request_id == "", "the core has an id of the host's"


async def test_a_prompt_that_waits_takes_four_bytes_for_each_token_and_no_collection_visits_it(
    client: ModelClient,
) -> None:
    original = request()
    original.prompt_token_ids = list(range(1000, 101_000))
    await client.add_request_async(original)
    (flight,) = client._dispatcher._flights.values()
    assert flight.prompt_token_ids == original.prompt_token_ids
    assert sys.getsizeof(flight.prompt_token_ids) < 401_000
    assert not gc.is_tracked(original.prompt_token_ids), "vLLM's own list"


@pytest.mark.parametrize("seed", [None, 7])
async def test_only_a_client_seeds_a_request_on_every_engine(
    client: ModelClient, serve_engine: Any, meet: Any, seed: int | None
) -> None:
    """A seed takes the fast sampler of NVIDIA GPUs out of use (vLLM 0.32, topk_topp_sampler.py)."""
    doomed = await serve_engine(num_tokens=FOREVER)
    await meet(doomed)
    await client.add_request_async(request(temperature=0.8, seed=seed))
    await next_output(client)
    safe = await serve_engine(engine="engine-2")
    await meet(safe)
    await doomed.kill()
    await outputs_of(client, "cmpl-1")
    assert [seed_of(s) for s in (*doomed.core.submits, *safe.core.submits)] == [seed, seed]


async def test_every_attempt_has_the_same_request(
    client: ModelClient, serve_engine: Any, meet: Any
) -> None:
    doomed = await serve_engine(num_tokens=FOREVER)
    await meet(doomed)
    await client.add_request_async(request(temperature=0.8, max_tokens=40))
    first = [await next_output(client) for _ in range(3)]
    safe = await serve_engine(engine="engine-2")
    await meet(safe)
    await doomed.kill()
    await outputs_of(client, "cmpl-1")
    (at_first,), (later,) = doomed.core.submits, safe.core.submits
    assert later.request == at_first.request
    assert (later.attempt, later.max_tokens, later.priority) == (1, 40, 3)
    assert later.prompt_token_ids == PROMPT
    received = [token for output in first for token in output.new_token_ids]
    assert later.output_token_ids.tolist()[: len(received)] == received


async def test_after_a_resume_the_front_end_sees_one_request_and_one_prefill(
    client: ModelClient, serve_engine: Any, meet: Any, new_exchange: Any, metrics: Any
) -> None:
    script = {"tokens": tuple(range(100)), "num_tokens": 100}
    doomed = await serve_engine(**script)
    await meet(doomed)
    exchange = new_exchange()
    await send(client, request(), exchange)
    collected = [await next_output(client) for _ in range(5)]
    safe = await serve_engine(engine="engine-2", **script)
    await meet(safe)
    await doomed.kill()
    collected += await outputs_of(client, "cmpl-1")
    assert [token for output in collected for token in output.new_token_ids] == list(range(100))
    assert [output.prefill_stats is not None for output in collected] == [True] + [False] * 99
    assert collected[-1].finish_reason is FinishReason.STOP
    assert len(safe.core.submits) == 1
    assert (exchange.prompt_tokens, exchange.output_tokens) == (len(PROMPT), 100)
    assert exchange.cached_tokens == 0  # the second engine's cached tokens do not count
    assert (len(metrics.ttfts), len(metrics.gaps)) == (1, 99)


async def test_cached_tokens_are_noted_once(
    client: ModelClient, serve_engine: Any, meet: Any, new_exchange: Any
) -> None:
    await meet(await serve_engine())
    await client.add_request_async(request("before"))
    await outputs_of(client, "before")
    exchange = new_exchange()
    await send(client, request(), exchange)
    outputs = await outputs_of(client, "cmpl-1")
    assert exchange.cached_tokens == 32  # whole blocks of 16, of 40 tokens
    assert outputs[0].prefill_stats is not None
    assert outputs[0].prefill_stats.num_cached_tokens == 32


async def test_a_clients_id_of_megabytes_does_not_reach_the_engine(
    client: ModelClient, serve_engine: Any, meet: Any
) -> None:
    engine = await serve_engine()
    await meet(engine)
    made = request("x" * 2**22)
    made.external_req_id = made.request_id
    await client.add_request_async(made)
    assert len(await outputs_of(client, made.request_id)) == 5
    (submit,) = engine.core.submits
    assert len(submit.request) < 1000
    assert len(submit.request_id) == 64


async def test_a_refused_request_fails_its_exchange_only(
    client: ModelClient, serve_engine: Any, meet: Any, new_exchange: Any, observed_core: Any
) -> None:
    class Picky(observed_core.Core):  # type: ignore[misc]
        async def add(self, wire_id: str, submit: Any) -> None:
            if submit.request_id == "odd":
                raise ValueError("this core does not run odd requests")
            await super().add(wire_id, submit)

    await meet(await serve_engine(core=Picky(observed_core.model())))
    exchange = new_exchange()
    await send(client, request("odd"), exchange)
    refused = await failure_of(exchange)
    assert isinstance(refused, EngineRefused)
    assert "does not run odd requests" in str(refused)
    await client.add_request_async(request())
    assert len(await outputs_of(client, "cmpl-1")) == 5
    # A request without an exchange ends as vLLM ends its own.
    await client.add_request_async(request("odd"))
    assert (await outputs_of(client, "odd"))[-1].finish_reason is FinishReason.ERROR


async def test_an_abort_reaches_the_core(
    client: ModelClient, serve_engine: Any, meet: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    await meet(engine)
    for name in ("dropped", "kept"):
        await client.add_request_async(request(name))
    await eventually(lambda: len(engine.core.active) == 2)
    await client.abort_requests_async(["dropped", "one that never was"])
    await eventually(lambda: engine.core.names == {"kept.0"})


async def test_the_fleet_is_alive_whatever_happens_to_its_engines(
    client: ModelClient, serve_engine: Any, meet: Any, eventually: Any
) -> None:
    assert client._dispatcher.description is None
    assert not client._dispatcher.num_engines
    engine = await serve_engine()
    await meet(engine)
    assert client._dispatcher.num_engines
    assert client._dispatcher.description is not None
    assert client._dispatcher.description.max_model_len == 4096
    await engine.kill()
    await eventually(lambda: not client._dispatcher.num_engines)
    assert not client.resources.engine_dead
    assert client.engine_ranks_managed == [0]
    assert await client.get_supported_tasks_async() == ("generate",)


async def test_a_whole_vllm_output_is_converted_to_the_gateways_clock(
    serve_engine: Any, new_client: Any, clock: Any, eventually: Any, gate: Any,
    observed_core: Any,
) -> None:  # fmt: skip
    client = new_client(clock=clock)
    engine = await serve_engine(core=observed_core(sleep=gate))
    client._dispatcher.update([engine.record])
    await eventually(lambda: client._dispatcher.num_engines)
    await client.add_request_async(request())
    key = key_of(client, "cmpl-1")
    whole = EngineCoreOutput(
        "7@gw-a",
        [7],
        stop_reason="\n",
        events=[EngineCoreEvent.new_event(EngineCoreEventType.QUEUED, 40.0)],
    )
    extra = bytes(MsgpackEncoder(size_threshold=1 << 40).encode(whole)[0])  # type: ignore[arg-type]
    frame = Outputs([Output(key, [7], extra=extra)], clock_s=50.0)
    client._dispatcher.on_outputs(link_to(client, engine), frame)
    (output,) = (await asyncio.wait_for(client.get_output_async(), 10)).outputs
    assert (output.request_id, output.new_token_ids, output.stop_reason) == ("cmpl-1", [7], "\n")
    assert output.events is not None
    assert output.events[0].timestamp == clock() - 10  # ten seconds before the step, as it was


async def test_queue_events_of_later_attempts_are_dropped(
    serve_engine: Any, client: ModelClient, meet: Any, gate: Any, observed_core: Any
) -> None:
    """vLLM keeps the first time that a request was scheduled, and the last that it was queued."""
    engine = await serve_engine(core=observed_core(sleep=gate))
    await meet(engine)
    await client.add_request_async(request())
    kinds = [EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED]
    key = key_of(client, "cmpl-1")
    whole = EngineCoreOutput(
        "7@gw-a", [7], events=[EngineCoreEvent.new_event(kind, 40.0) for kind in kinds]
    )
    extra = bytes(MsgpackEncoder(size_threshold=1 << 40).encode(whole)[0])  # type: ignore[arg-type]
    event_types = []
    for _ in range(2):
        frame = Outputs([Output(key, [7], extra=extra)])
        client._dispatcher.on_outputs(link_to(client, engine), frame)
        output = await next_output(client)
        event_types.append([event.type for event in output.events or ()])
    assert event_types == [kinds, [EngineCoreEventType.SCHEDULED]]


async def test_vllms_span_and_the_core_get_different_trace_contexts(
    client: ModelClient, serve_engine: Any, meet: Any, new_exchange: Any, recorder: Any
) -> None:
    engine = await serve_engine(num_tokens=3, spans=recorder.spans)
    await meet(engine)
    exchange = new_exchange()
    scope = {"method": "POST", "path": "/v1/completions", "headers": []}
    exchange.span = recorder.spans.request(scope)
    wanted = request()
    wanted.trace_headers = {"traceparent": "what AsyncLLM got"}
    await send(client, wanted, exchange)
    outputs = await outputs_of(client, "cmpl-1")
    assert [output.trace_headers for output in outputs] == [wanted.trace_headers] * 3
    (submit,) = engine.core.submits
    assert MsgpackDecoder(EngineCoreRequest).decode(submit.request).trace_headers is None
    assert list(submit.trace_headers) == ["traceparent"]
    with exchange.span:
        pass
    assert (
        f"-{recorder.only('engine').context.span_id:016x}-" in submit.trace_headers["traceparent"]
    )


async def test_an_output_that_does_not_decode_ends_its_request_and_no_other(
    client: ModelClient, serve_engine: Any, meet: Any, gate: Any, observed_core: Any
) -> None:
    engine = await serve_engine(core=observed_core(sleep=gate))
    await meet(engine)
    for name in ("before", "odd", "after"):
        await client.add_request_async(request(name))
    outputs = [
        Output(key_of(client, "before"), [1]),
        Output(key_of(client, "odd"), [2], finish_reason=99),
        Output(key_of(client, "after"), [3]),
    ]
    client._dispatcher.on_outputs(link_to(client, engine), Outputs(outputs))
    seen: dict[str, Any] = {}
    while len(seen) < 3:
        for output in (await asyncio.wait_for(client.get_output_async(), 10)).outputs:
            seen[output.request_id] = output
    assert seen["before"].new_token_ids == [1]
    assert seen["after"].new_token_ids == [3]
    assert seen["odd"].finish_reason is FinishReason.ERROR


async def test_a_failure_to_note_an_output_ends_its_request_and_no_other(
    client: ModelClient, serve_engine: Any, meet: Any, new_exchange: Any
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    await meet(await serve_engine())
    odd = new_exchange()
    odd.note_tokens = fail
    await send(client, request("odd"), odd)
    await client.add_request_async(request("sound"))
    assert isinstance(await failure_of(odd), GatewayFailed)
    outputs = await outputs_of(client, "sound")
    assert [token for output in outputs for token in output.new_token_ids] == [10, 11, 12, 13, 14]


async def test_the_owner_of_a_request_is_known_until_its_exchange_has_ended(
    client: ModelClient, serve_engine: Any, meet: Any, new_exchange: Any
) -> None:
    """The output handler may fail at a request's last output, after its flight has landed."""
    await meet(await serve_engine())
    exchange = new_exchange()
    await send(client, request(), exchange)
    await outputs_of(client, "cmpl-1")
    client.failed("cmpl-1")
    client.failed("one that never was")
    assert isinstance(await failure_of(exchange), GatewayFailed)
    del exchange
    gc.collect()
    assert not client._exchanges
