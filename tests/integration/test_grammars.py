"""Grammars that get past every gateway do not jam a real vLLM core, and its host sees them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import FinishReason

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.models.sources import locate
from qwenfleet.deployments.vllm_adapter.compile_pool import LIMIT_S
from qwenfleet.deployments.vllm_adapter.core import VllmCore
from qwenfleet.deployments.vllm_adapter.warm_up import own_request

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    # vLLM's client leaves its own to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

MODEL = ModelConfig(
    id="tiny",
    source="tiny-qwen3-moe",
    max_model_len=512,
    kv_cache_gib=0.1,
    engine_args={"dtype": "float32"},
)


class Engine:
    """A real core, asked as its host would."""

    def __init__(self) -> None:
        self.core = VllmCore(MODEL, locate(MODEL.source))
        self._runner = asyncio.Runner()
        self._ends: dict[str, asyncio.Future[int]] = {}
        self.run(self.core.start())
        self.run(self._follow())

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    async def _follow(self) -> None:
        async def follow() -> None:
            while True:
                for output in (await self.core.next_step()).outputs:
                    if output.finish_reason is not None and output.wire_id in self._ends:
                        self._ends[output.wire_id].set_result(output.finish_reason)

        self._following = asyncio.create_task(follow())

    async def ask(self, name: str, max_tokens: int = 8, **constraint: Any) -> asyncio.Future[int]:
        """Send a request; the future has its finish reason."""
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        if constraint:
            params.structured_outputs = StructuredOutputsParams(**constraint)
            params.structured_outputs._backend = "xgrammar"
            self.core._compile_report.expect()
        self._ends[name] = asyncio.get_running_loop().create_future()
        await self.core._alive.add_request_async(own_request(name, params))
        return self._ends[name]

    def shutdown(self) -> None:
        self._following.cancel()
        self.core.shutdown()
        self._runner.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as environment:
        # The other integration tests' fleet runs on the same cores.
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        made = Engine()
    yield made
    made.shutdown()


def test_a_grammar_that_is_slow_for_each_token_ends_its_request_and_no_other(engine) -> None:
    async def ask() -> tuple[int, int]:
        slow = await engine.ask("ambiguous", 400, grammar='root ::= root root root | "a" | "aa"')
        other = await engine.ask("other", 400)
        return await slow, await other

    assert engine.run(ask()) == (int(FinishReason.ERROR), int(FinishReason.LENGTH))


def test_a_grammar_that_never_compiles_fails_alone_and_the_next_one_is_compiled(engine) -> None:
    spread = random.Random(2)
    endless = "root ::= " + " ".join(f'"{spread.randbytes(8).hex()}"' for _ in range(200_000))

    async def ask() -> None:
        began_at = time.monotonic()
        jam = await engine.ask("jam", grammar=endless)
        next_one = await engine.ask("next", json={"type": "object"})
        plain = await engine.ask("plain")
        assert await plain == FinishReason.LENGTH
        oldest_s = 0.0
        while not jam.done() or not next_one.done():
            oldest_s = max(oldest_s, engine.core.compiles().oldest_s)
            assert time.monotonic() - began_at < 8 * LIMIT_S, "the pool is jammed"
            await asyncio.sleep(0.5)
        assert jam.result() == FinishReason.ERROR
        assert next_one.result() != FinishReason.ERROR
        assert oldest_s > LIMIT_S / 2
        await asyncio.sleep(1.0)
        engine.core.compiles()
        await asyncio.sleep(1.0)
        assert engine.core.compiles().stuck == 1

    engine.run(ask())
