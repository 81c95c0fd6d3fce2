"""OutputTurns: outputs on their way to vLLM's output handler, the costly ones a few at a time.

Log probabilities cost a millisecond of the event loop for each token (20 of them, vLLM 0.32, two
busy cores, 30 Nov 2026), a hundred times what a token alone costs. So they wait while other outputs
come, and rest between two turns: a stream with them may be late, and no other stream is.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

VALUES_PER_TURN: Final = 84
"""Log probabilities of four tokens with 20 each: 4 ms of the loop, in a process where a request
takes some 20 turns of it. What has more makes a turn alone."""


MAX_REST_S: Final = 0.05
"""A loop that is busy with others delays the next turn by no more than this."""


class OutputTurns:
    """A queue with two lines. The outputs of one request keep their order. `clock` returns
    monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plain: list[EngineCoreOutput] = []
        self._costly: deque[EngineCoreOutput] = deque()
        self._late: Counter[str] = Counter()
        """Outputs in the second line, by request."""
        self._has_some = asyncio.Event()
        self._has_plain = asyncio.Event()
        self._timestamp = 0.0
        self._turn_at: float | None = None
        """When the costly turn began that has had no rest."""
        self.waiting_values = 0
        """Log probabilities in the second line."""

    def put(self, outputs: Sequence[EngineCoreOutput], timestamp: float) -> None:
        """Add outputs that came at `timestamp`, in seconds of vLLM's clock."""
        for output in outputs:
            if num_values(output) or output.request_id in self._late:
                self._costly.append(output)
                self._late[output.request_id] += 1
                self.waiting_values += num_values(output)
            else:
                self._plain.append(output)
                self._has_plain.set()
        self._timestamp = timestamp
        self._has_some.set()

    async def get(self) -> EngineCoreOutputs:
        """Return all plain outputs or, while there are none, a few of the costly ones."""
        await self._rest()
        await self._has_some.wait()
        taken, self._plain = self._plain, []
        self._has_plain.clear()
        if not taken:
            taken = self._next_turn()
            self._turn_at = self._clock()
        if not self._costly:
            self._has_some.clear()
        return EngineCoreOutputs(engine_index=0, outputs=taken, timestamp=self._timestamp)

    async def _rest(self) -> None:
        """After a costly turn, leave the loop, and the machine, to everyone else for as long as the
        turn took with what it set off, or until there is a plain output."""
        began_at, self._turn_at = self._turn_at, None
        if began_at is None or self._plain:
            return
        await asyncio.sleep(0)
        busy_s = self._clock() - began_at
        with suppress(TimeoutError):
            async with asyncio.timeout(min(busy_s, MAX_REST_S)):
                await self._has_plain.wait()

    def _next_turn(self) -> list[EngineCoreOutput]:
        taken = [self._next()]
        left = VALUES_PER_TURN - num_values(taken[0])
        while self._costly and num_values(self._costly[0]) <= left:
            taken.append(self._next())
            left -= num_values(taken[-1])
        return taken

    def _next(self) -> EngineCoreOutput:
        output = self._costly.popleft()
        self.waiting_values -= num_values(output)
        self._late[output.request_id] -= 1
        if not self._late[output.request_id]:
            del self._late[output.request_id]
        return output


def num_values(output: EngineCoreOutput) -> int:
    """Log probabilities in an output, of each of which vLLM makes an object with a text."""
    values = 0
    if output.new_logprobs is not None:
        values += output.new_logprobs.logprob_token_ids.size
    if output.new_prompt_logprobs_tensors is not None:
        values += output.new_prompt_logprobs_tensors.logprob_token_ids.numel()
    return values
