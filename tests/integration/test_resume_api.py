"""Every API's answer is the same wherever its engine is cut: text, logprobs, tool calls, usage.

A whole gateway in this process, on a real vLLM core that drops the attempt of the n-th request
after its n-th token. Float32, as in test_resume_core.py.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from qwenfleet.cluster.config.fleet import FleetConfig, WireConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.models.sources import locate
from qwenfleet.cluster.planner.fleet_defaults import completed
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.engine_host.core import CoreStep
from qwenfleet.deployments.engine_host.host import EngineHost
from qwenfleet.deployments.ingress.http_app import GatewayApp
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.wire.frames import Output, Submit

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    # vLLM's client leaves its own to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

ABORT = 2
CUTS = 24
CONFIG = completed(
    FleetConfig(
        models=(
            ModelConfig(
                id="tiny",
                source="tiny-qwen3-moe",
                max_model_len=2048,
                kv_cache_gib=0.3,
                engine_args={"dtype": "float32"},
            ),
        ),
        wire=WireConfig(lease_s=30),
    )
)


class CuttingCore:
    """A core that drops first attempts: the n-th that it gets after its n-th token."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.cuts: dict[str, int] = {}
        self.is_cutting = False
        self.dropped = 0
        self.received: list[list[int]] = []
        """Tokens with which each later attempt came."""
        self._made: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    async def add(self, wire_id: str, submit: Submit) -> None:
        if self.is_cutting and submit.attempt == 0:
            self.cuts[wire_id] = len(self.cuts) + 1
        if submit.attempt > 0:
            self.received.append(submit.output_token_ids.tolist())
        await self._core.add(wire_id, submit)

    async def next_step(self) -> CoreStep:
        step = await self._core.next_step()
        outputs = []
        for output in step.outputs:
            outputs.append(output)
            self._made[output.wire_id] += len(output.token_ids)
            cut = self.cuts.get(output.wire_id)
            if cut == self._made[output.wire_id] and output.finish_reason is None:
                outputs.append(Output(output.wire_id, [], finish_reason=ABORT))
                await self._core.abort([output.wire_id])
                self.dropped += 1
        return CoreStep(outputs, step.load)


class Gateway:
    """GatewayApp over a ModelClient over the wire to one host, and a client of it."""

    def __init__(self) -> None:
        from qwenfleet.deployments.vllm_adapter.core import VllmCore

        (self._model,) = CONFIG.models
        self.core = CuttingCore(VllmCore(self._model, locate(self._model.source)))
        self._runner = asyncio.Runner()
        self.app = self._runner.run(self._start())

    async def _start(self) -> GatewayApp:
        from qwenfleet.deployments.vllm_adapter import front_end
        from qwenfleet.deployments.vllm_adapter.model_client import ModelClient

        description = await self.core.start()
        self.host = host = EngineHost(
            self.core,
            engine="engine-1",
            model="tiny",
            secret="s",
            description=description,
            wire=CONFIG.wire,
        )
        address, port = await host.listen("127.0.0.1")
        self._running = asyncio.create_task(host.run())
        metrics = GatewayMetrics(CONFIG.name, CONFIG.objectives)
        app = GatewayApp(CONFIG, metrics)
        (served,) = app.models.values()
        dispatcher = Dispatcher(
            "tiny", gateway="gw", wire=CONFIG.wire, retry_after_s=5, metrics=metrics
        )
        dispatcher.update(
            [EngineRecord("engine-1", "tiny", "", 0, "ready", host=address, port=port, secret="s")]
        )
        path = locate(self._model.source)
        self.front_end = await front_end.build(
            self._model, path, description, ModelClient(dispatcher)
        )
        served.engines, served.app = dispatcher, self.front_end.app
        return app

    def shutdown(self) -> None:
        from vllm import envs

        self.front_end.llm.shutdown()
        self._runner.run(self.host.drain("the test is over", 0))
        self._running.cancel()
        self.core.shutdown()
        self._runner.close()
        gc.unfreeze()
        envs.disable_envs_cache()
        gc.collect()

    def ask(self, path: str, body: dict[str, Any], times: int) -> list[str]:
        """The bodies of `times` equal requests at the same time."""

        async def ask_all() -> list[str]:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://gateway", timeout=120
            ) as client:
                answers = await asyncio.gather(
                    *(client.post(path, json=body | {"model": "tiny"}) for _ in range(times))
                )
            assert {answer.status_code for answer in answers} == {200}, answers[0].text
            return [answer.text for answer in answers]

        return self._runner.run(ask_all())


@pytest.fixture(scope="module")
def gateway():
    gateway = Gateway()
    yield gateway
    gateway.shutdown()


def test_gateway_freezes_its_heap_and_skips_unread_work(gateway):
    """As vLLM's own server, which freezes its heap in a lifespan that our app has not."""
    from vllm import envs

    assert gc.get_freeze_count() > 100_000
    assert envs._is_envs_cache_enabled()
    layers = [str(layer.cls) for layer in gateway.front_end.app.inner.user_middleware]
    assert not [layer for layer in layers if "nstrumentator" in layer], layers


ASK = [{"role": "user", "content": "Plan a move"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 4, "maxLength": 12},
        "days": {"type": "array", "items": {"enum": ["Mon", "Tue"]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "plan", "description": "Keeps a plan", "parameters": SCHEMA}
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}
COMPLETION = COUNTED | {
    "prompt": "def reverse(text):", "ignore_eos": True, "max_tokens": CUTS + 6,
}  # fmt: skip
CASES = {
    "greedy": ("/v1/completions", COMPLETION | {"temperature": 0, "logprobs": 2}),
    "echo": (
        "/v1/completions",
        COMPLETION | {"temperature": 0, "logprobs": 1, "echo": True, "min_tokens": 20},
    ),
    "two choices": (
        "/v1/completions",
        COMPLETION | {"n": 2, "temperature": 0.9, "seed": 3, "logprobs": 1},
    ),
    "penalties": (
        "/v1/completions",
        COMPLETION
        | {
            "temperature": 0.7,
            "seed": 5,
            "presence_penalty": 1.5,
            "frequency_penalty": 0.8,
            "repetition_penalty": 1.1,
        },
    ),
    "stop string": (
        "/v1/completions",
        COMPLETION | {"temperature": 0, "max_tokens": 60, "stop": ["~;&2"], "logprobs": 1},
    ),
    "whole answer": (
        "/v1/completions",
        COMPLETION | {"stream": False, "stream_options": None, "temperature": 0, "logprobs": 1},
    ),
    "json": (
        "/v1/chat/completions",
        COUNTED
        | {
            "messages": ASK,
            "temperature": 0.7,
            "seed": 1,
            "max_completion_tokens": 120,
            "logprobs": True,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "plan", "schema": SCHEMA, "strict": True},
            },
        },
    ),
    "required tool": (
        "/v1/chat/completions",
        COUNTED
        | {
            "messages": ASK,
            "temperature": 0,
            "max_completion_tokens": 200,
            "tools": [{"type": "function", "function": FUNCTION | {"strict": True}}],
            "tool_choice": "required",
        },
    ),
    "responses": (
        "/v1/responses",
        {"input": "Plan a move", "stream": True, "temperature": 0, "max_output_tokens": CUTS + 6},
    ),
    "anthropic": (
        "/v1/messages",
        {"messages": ASK, "stream": True, "temperature": 0, "max_tokens": CUTS + 6},
    ),
    "anthropic tool": (
        "/v1/messages",
        {
            "messages": ASK,
            "stream": True,
            "temperature": 0,
            "max_tokens": 200,
            "tools": [{"name": "plan", "description": "Keeps a plan", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any"},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_the_same_wherever_its_engine_is_cut(gateway, new_transcript, case):
    path, body = CASES[case]
    gateway.core.is_cutting = False
    gateway.ask(path, body, times=1)  # the prefix cache is the same for all that follow
    undisturbed = new_transcript()
    undisturbed.take_body(*gateway.ask(path, body, times=1))
    gateway.core.cuts, gateway.core.dropped = {}, 0
    gateway.core.is_cutting = True

    answers = gateway.ask(path, body, times=CUTS)

    assert undisturbed.texts or undisturbed.tools
    assert (undisturbed.finish == {0: "stop"}) >= ("stop" in body)
    assert gateway.core.dropped >= CUTS - 1
    for answer in answers:
        transcript = new_transcript()
        transcript.take_body(answer)
        assert transcript.differences(undisturbed) == [], (transcript, undisturbed)


def test_an_unseeded_sample_that_moves_loses_and_doubles_no_token(gateway):
    """Its tokens cannot be compared with another run's, but with what its engines got."""
    body = {
        "prompt": "def reverse(text):",
        "temperature": 1.0,
        "ignore_eos": True,
        "max_tokens": CUTS + 6,
        "return_token_ids": True,
    }
    gateway.core.cuts, gateway.core.dropped, gateway.core.received = {}, 0, []
    gateway.core.is_cutting = True
    answers = [json.loads(text) for text in gateway.ask("/v1/completions", body, times=CUTS)]
    tokens = [answer["choices"][0]["token_ids"] for answer in answers]
    assert {len(answer) for answer in tokens} == {CUTS + 6}
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {CUTS + 6}
    assert gateway.core.dropped == CUTS
    assert sorted(map(len, gateway.core.received)) == list(range(1, CUTS + 1))
    prefixes = {tuple(answer[:n]) for answer in tokens for n in range(1, CUTS + 1)}
    assert all(tuple(received) in prefixes for received in gateway.core.received)
    assert len({tuple(answer) for answer in tokens}) > 1, "no seed makes them equal"
