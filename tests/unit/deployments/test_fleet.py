"""The fleet client, with vLLM's own messages, against real hosts on loopback.

The one unit test module that imports vLLM: 9 s of CPU.
"""

from __future__ import annotations

import asyncio
import os
import random
import warnings
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

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

    from qwenfleet.deployments.fleet import FleetClient

from qwenfleet.cluster.config import WireConfig
from qwenfleet.cluster.errors import EngineLost, FleetError, NoEngine
from qwenfleet.deployments import exchange as exchange_module
from qwenfleet.deployments.answers import Family
from qwenfleet.deployments.exchange import Exchange
from qwenfleet.deployments.scripted_engine import LENGTH, STOP
from qwenfleet.deployments.transport import Output, Outputs

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


@pytest_asyncio.fixture
async def new_client(wire: WireConfig, metrics: Any) -> AsyncIterator[Callable[..., FleetClient]]:
    clients: list[FleetClient] = []

    def new(**fields: Any) -> FleetClient:
        settings = {"gateway": "gw-a", "wire": wire, "retry_after_s": 5, "metrics": metrics}
        clients.append(FleetClient("coder", **settings, rng=random.Random(0), **fields))
        return clients[-1]

    yield new
    for client in clients:
        tasks = list(client._tasks.values())
        client.shutdown()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def client(new_client: Any) -> FleetClient:
    made: FleetClient = new_client()
    return made


@pytest.fixture
def meet(client: FleetClient, eventually: Any) -> Callable[..., Any]:
    """Connects the client to engines."""

    async def meet(*engines: Any) -> None:
        client.update([engine.record for engine in engines])
        await eventually(
            lambda: all(
                engine.record.id in client._links and client._links[engine.record.id].is_open
                for engine in engines
            )
        )

    return meet


async def outputs_of(client: FleetClient, name: str) -> list[EngineCoreOutput]:
    """To the end of this request."""
    collected: list[EngineCoreOutput] = []
    while not (collected and collected[-1].finished):
        step = await asyncio.wait_for(client.get_output_async(), 10)
        assert step.engine_index == 0
        collected += [output for output in step.outputs if output.request_id == name]
    return collected


async def send(client: FleetClient, wanted: EngineCoreRequest, exchange: Exchange | None) -> None:
    """As AsyncLLM does it in the task of an exchange."""
    context = copy_context()
    context.run(exchange_module._current.set, exchange)
    await asyncio.get_running_loop().create_task(client.add_request_async(wanted), context=context)


@pytest.fixture
def new_exchange(metrics: Any) -> Callable[[], Exchange]:
    return lambda: Exchange(
        model="coder", family=Family.OPENAI, timeout_s=60, keep_alive_s=15, metrics=metrics
    )


async def failure_of(exchange: Exchange) -> FleetError:
    return await asyncio.wait_for(asyncio.shield(exchange._failure), 10)


async def test_a_request_runs_to_its_end_under_its_own_id(
    client: FleetClient, serve_engine: Any, meet: Any
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


async def test_the_engine_gets_the_request_and_the_original_stays_as_it_was(
    client: FleetClient, serve_engine: Any, meet: Any
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
    assert carried.request_id == "cmpl-1"


async def test_concurrent_requests_keep_their_tokens_apart(
    client: FleetClient, serve_engine: Any, meet: Any
) -> None:
    await meet(await serve_engine(), await serve_engine(engine="engine-2", tokens=(1, 2)))
    names = [f"cmpl-{index}" for index in range(8)]
    for name in names:
        await client.add_request_async(request(name))
    tokens: dict[str, list[int]] = {name: [] for name in names}
    unfinished = set(names)
    while unfinished:
        for output in (await asyncio.wait_for(client.get_output_async(), 10)).outputs:
            tokens[output.request_id] += output.new_token_ids
            if output.finished:
                unfinished.remove(output.request_id)
    streams = [tuple(stream) for stream in tokens.values()]
    assert set(streams) == {(10, 11, 12, 13, 14), (1, 2, 1, 2, 1)}
    assert streams.count((1, 2, 1, 2, 1)) == 4


async def test_an_abort_reaches_the_core(
    client: FleetClient, serve_engine: Any, meet: Any, eventually: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    await meet(engine)
    await client.add_request_async(request("dropped"))
    await client.add_request_async(request("kept"))
    await eventually(lambda: len(engine.core.active) == 2)
    await client.abort_requests_async(["dropped", "one that never was"])
    await eventually(lambda: engine.core.active == {"kept.0@gw-a"})


async def test_outputs_of_an_aborted_request_are_dropped(
    client: FleetClient, serve_engine: Any, meet: Any, gate: Any, observed_core: Any
) -> None:
    await meet(await serve_engine(core=observed_core(sleep=gate, num_tokens=FOREVER)))
    for name in ("dropped", "kept"):
        await client.add_request_async(request(name))
    link = client._links["engine-1"]
    await client.abort_requests_async(["dropped"])
    late = Output("dropped.0@gw-a", [1], finish_reason=STOP)
    client.on_outputs(link, Outputs([late, Output("kept.0@gw-a", [2])]))
    client.on_outputs(link, Outputs([Output("cmpl-9.0@gw-stranger", [3]), late]))
    client.on_outputs(link, Outputs([Output("kept.1@gw-a", [4]), Output("kept.0@gw-a", [5])]))
    seen = [(await asyncio.wait_for(client.get_output_async(), 10)).outputs for _ in range(2)]
    assert [[(o.request_id, o.new_token_ids) for o in outputs] for outputs in seen] == [
        [("kept", [2])],
        [("kept", [5])],
    ]


async def test_an_engine_cannot_answer_for_another(
    client: FleetClient, serve_engine: Any, meet: Any, gate: Any, observed_core: Any
) -> None:
    for name in ("engine-1", "engine-2"):
        await meet(await serve_engine(engine=name, core=observed_core(sleep=gate)))
    await client.add_request_async(request())
    (flight,) = client._flights.values()
    owner = flight.link.engine
    stranger = client._links["engine-1" if owner == "engine-2" else "engine-2"]
    client.on_outputs(stranger, Outputs([Output("cmpl-1.0@gw-a", [666])]))
    client.on_outputs(flight.link, Outputs([Output("cmpl-1.0@gw-a", [7], finish_reason=LENGTH)]))
    (output,) = await outputs_of(client, "cmpl-1")
    assert output.new_token_ids == [7]


async def test_a_killed_engine_fails_its_exchanges_and_the_next_request_goes_elsewhere(
    client: FleetClient, serve_engine: Any, meet: Any, new_exchange: Any, metrics: Any
) -> None:
    doomed, safe = await serve_engine(num_tokens=FOREVER), await serve_engine(engine="engine-2")
    await meet(doomed)
    exchanges = [new_exchange(), new_exchange()]
    for index, exchange in enumerate(exchanges):
        await send(client, request(f"cmpl-{index}"), exchange)
        assert exchange.prompt_tokens == len(PROMPT)
    await meet(safe)
    await doomed.kill()
    for exchange in exchanges:
        lost = await failure_of(exchange)
        assert isinstance(lost, EngineLost)
        assert (lost.model, lost.engine) == ("coder", "engine-1")
    assert metrics.losses == ["coder"]
    assert client.has_engine
    await client.add_request_async(request("after"))
    outputs = await outputs_of(client, "after")
    assert len(outputs) == 5
    assert not client.resources.engine_dead


async def test_a_dead_core_fails_its_exchanges_with_the_reason(
    client: FleetClient, serve_engine: Any, meet: Any, new_exchange: Any
) -> None:
    await meet(await serve_engine(num_tokens=50, fail_after_tokens=3))
    exchange = new_exchange()
    await send(client, request(), exchange)
    assert "after 3 tokens" in str(await failure_of(exchange))
    assert exchange.output_tokens == 3


async def test_a_request_outside_any_exchange_ends_as_vllm_ends_its_own(
    client: FleetClient, serve_engine: Any, meet: Any
) -> None:
    engine = await serve_engine(num_tokens=FOREVER)
    await meet(engine)
    await client.add_request_async(request())
    await asyncio.wait_for(client.get_output_async(), 10)
    await engine.kill()
    assert (await outputs_of(client, "cmpl-1"))[-1].finish_reason is FinishReason.ERROR


async def test_without_an_engine_the_exchange_is_told_when_to_come_back(
    client: FleetClient, new_exchange: Any
) -> None:
    exchange = new_exchange()
    await send(client, request(), exchange)
    error = await failure_of(exchange)
    assert isinstance(error, NoEngine)
    assert error.retry_after_s == 5
    assert client._flights == {}
    assert exchange.prompt_tokens == 0


async def test_a_draining_engine_gets_nothing_new_and_keeps_its_streams(
    client: FleetClient, serve_engine: Any, meet: Any, eventually: Any, new_exchange: Any
) -> None:
    engine = await serve_engine(num_tokens=200)
    await meet(engine)
    await client.add_request_async(request())
    await asyncio.wait_for(client.get_output_async(), 10)
    draining = asyncio.create_task(engine.host.drain("scaled down", 20))
    await eventually(lambda: not client.has_engine)
    late = new_exchange()
    await send(client, request("late"), late)
    assert isinstance(await failure_of(late), NoEngine)
    assert (await outputs_of(client, "cmpl-1"))[-1].finish_reason is FinishReason.STOP
    await draining


async def test_a_rejected_attempt_fails_its_exchange_only(
    client: FleetClient, serve_engine: Any, meet: Any, new_exchange: Any, observed_core: Any
) -> None:
    class Picky(observed_core.Core):  # type: ignore[misc]
        async def add(self, wire_id: str, submit: Any) -> None:
            if submit.request_id == "odd":
                raise ValueError("this core does not run odd requests")
            await super().add(wire_id, submit)

    await meet(await serve_engine(core=Picky(observed_core.model())))
    exchange = new_exchange()
    await send(client, request("odd"), exchange)
    assert "does not run odd requests" in str(await failure_of(exchange))
    await client.add_request_async(request())
    assert len(await outputs_of(client, "cmpl-1")) == 5


async def test_only_ready_engines_of_its_model_are_met_and_each_once(
    client: FleetClient, serve_engine: Any, meet: Any, eventually: Any
) -> None:
    engine = await serve_engine()
    others = [
        replace(engine.record, id="other-model", model="helper"),
        replace(engine.record, id="starting", state="starting"),
        replace(engine.record, id="draining", state="draining"),
    ]
    client.update([*others, engine.record])
    (link,) = client._links.values()
    client.update([*others, engine.record])
    assert list(client._links.values()) == [link]
    await eventually(lambda: client.has_engine)
    assert client.description is not None
    assert client.description.max_model_len == 4096


async def test_a_lost_engine_is_tried_again_after_a_pause(
    serve_engine: Any, new_client: Any, metrics: Any, clock: Any, eventually: Any
) -> None:
    client = new_client(clock=clock)
    engine = await serve_engine()
    wrong = replace(engine.record, secret="wrong")
    client.update([wrong])
    await eventually(lambda: not client._tasks)
    assert metrics.losses == []  # it was never ours
    client.update([engine.record])
    assert not client._tasks
    clock.advance(0.5)
    client.update([engine.record])
    await eventually(lambda: client.has_engine)


async def test_a_whole_output_of_vllm_passes_with_the_gateways_clock(
    serve_engine: Any, new_client: Any, clock: Any, eventually: Any, gate: Any,
    observed_core: Any,
) -> None:  # fmt: skip
    client = new_client(clock=clock)
    engine = await serve_engine(core=observed_core(sleep=gate))
    client.update([engine.record])
    await eventually(lambda: client.has_engine)
    await client.add_request_async(request())
    whole = EngineCoreOutput(
        "cmpl-1.0@gw-a",
        [7],
        stop_reason="\n",
        events=[EngineCoreEvent.new_event(EngineCoreEventType.QUEUED, 40.0)],
    )
    extra = bytes(MsgpackEncoder(size_threshold=1 << 40).encode(whole)[0])  # type: ignore[arg-type]
    frame = Outputs([Output("cmpl-1.0@gw-a", [7], extra=extra)], clock_s=50.0)
    client.on_outputs(client._links["engine-1"], frame)
    (output,) = (await asyncio.wait_for(client.get_output_async(), 10)).outputs
    assert (output.request_id, output.new_token_ids, output.stop_reason) == ("cmpl-1", [7], "\n")
    assert output.events is not None
    assert output.events[0].timestamp == clock() - 10  # ten seconds before the step, as it was


def test_vllms_finish_reasons_are_those_of_the_wire() -> None:
    known = {reason.name: int(reason) for reason in FinishReason}
    expected = {"STOP": STOP, "LENGTH": LENGTH, "ABORT": 2, "ERROR": 3, "REPETITION": 4}
    assert known == expected, "vLLM moved: FinishReason"
