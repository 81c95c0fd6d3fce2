"""WarmUp: the first requests of a new core, which trigger compilation and prove that it resumes.

vLLM internals used here (0.32): EngineCoreRequest, SamplingParams, and what resume_plugin.py names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient

from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.deployments.engine_host.core import CoreDead
from qwenfleet.deployments.vllm_adapter.resume_plugin import PLUGIN, RECEIVED_TOKENS

WARM_UP_TOKENS: Final = 3
WARM_UP_TIMEOUT_S: Final = 600.0
"""The first sampling or logprobs request compiles: 14.5 s was seen on two busy CPU cores, minutes
on a GPU."""


class WarmUp:
    """Runs on one core before its first client request."""

    def __init__(
        self,
        model: str,
        client: AsyncMPClient,
        next_outputs: Callable[[], Awaitable[EngineCoreOutputs]],
    ) -> None:
        """`next_outputs` waits for the core's next step and raises CoreDead, with the reason."""
        self._model = model
        self._client = client
        self._next_outputs = next_outputs

    async def run(self, rank: int) -> None:
        """Use sampling and logprobs once on a rank, which compiles them, then prove that it
        resumes. Raises EngineStartError.

        The proof holds in any precision: of tokens 1 and 2, 1 is far ahead but must not follow 1.
        """
        await self._complete(
            f"warm-up-sampling-{rank}",
            rank,
            SamplingParams(
                temperature=0.7,
                top_p=0.8,
                top_k=20,
                repetition_penalty=1.05,
                seed=0,
                logprobs=1,
                max_tokens=WARM_UP_TOKENS,
                ignore_eos=True,
            ),
        )
        params = SamplingParams(
            temperature=0.0,
            max_tokens=WARM_UP_TOKENS,
            ignore_eos=True,
            allowed_token_ids=[1, 2],
            logit_bias={1: 100.0},
        )
        params._bad_words_token_ids = [[1, 1]]
        whole = await self._complete(f"warm-up-greedy-{rank}", rank, params)
        params.extra_args = {RECEIVED_TOKENS: whole[:1]}
        rest = await self._complete(f"warm-up-resume-{rank}", rank, params)
        if rest != whole[1:]:
            raise EngineStartError(
                self._model,
                f"its core cannot resume a stream: after token {whole[:1]} it made {rest} instead "
                f"of {whole[1:]}. Resuming needs the vLLM plugin {PLUGIN}: install qwenfleet with "
                f"pip on the engine's node, and leave VLLM_PLUGINS unset or add {PLUGIN} to it",
            )

    async def _complete(self, request_id: str, rank: int, params: SamplingParams) -> list[int]:
        """Run one request; returns its tokens."""
        tokens: list[int] = []
        is_finished = False
        try:
            async with asyncio.timeout(WARM_UP_TIMEOUT_S):
                await self._client.add_request_async(own_request(request_id, params, rank))
                while not is_finished:
                    for output in (await self._next_outputs()).outputs:
                        tokens += output.new_token_ids
                        is_finished = output.finish_reason is not None
        except TimeoutError as error:
            raise EngineStartError(
                self._model,
                f"its warm-up timed out: {len(tokens)} tokens in {WARM_UP_TIMEOUT_S:.0f} s",
            ) from error
        except CoreDead as error:
            raise EngineStartError(self._model, f"{error} during its warm-up") from error
        return tokens


def own_request(
    request_id: str, params: SamplingParams, rank: int | None = None
) -> EngineCoreRequest:
    """A request of the engine itself, with a prompt of eight tokens that every model has."""
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(range(1, 9)),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=rank,
    )
