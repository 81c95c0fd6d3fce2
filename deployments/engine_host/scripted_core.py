"""ScriptedCore: a core that plays tokens from a script, to test everything in front of an engine.

It batches continuously like vLLM: each step prefills new prompts and gives every running attempt
one token. Its prefix cache follows vLLM's rules: whole blocks only, never the prompt's last token,
least recently used blocks are evicted first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from qwenfleet.cluster.config.model import ModelConfig, ScriptConfig
from qwenfleet.cluster.labels import FinishReason
from qwenfleet.deployments.engine_host.compile_watch import Compiles
from qwenfleet.deployments.engine_host.core import CoreDead, CoreStep
from qwenfleet.deployments.wire.frames import EngineDescription, Output, RankLoad, Submit

BLOCK_SIZE: Final = 16
NUM_BLOCKS: Final = 4096
DEFAULT_MAX_MODEL_LEN: Final = 4096


@dataclass
class _Play:
    """One attempt and its position in the script."""

    prompt_tokens: int
    prefill_tokens: int
    cached_tokens: int
    position: int
    end: int
    end_reason: FinishReason


class PrefixCache:
    """The whole blocks of tokens that are cached, in order of last use."""

    def __init__(self, num_blocks: int = NUM_BLOCKS) -> None:
        self._num_blocks = num_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def hit_tokens(self, prompt: list[int], salt: str | None) -> int:
        """Count this prompt's cached tokens, then cache its blocks."""
        chain = self._chain(prompt, salt)
        hits = 0
        while hits < len(chain) and chain[hits] in self._blocks:
            hits += 1
        for block in chain:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._num_blocks:
            self._blocks.popitem(last=False)
        # The last token is always computed: the first output comes from its logits.
        return min(hits, (len(prompt) - 1) // BLOCK_SIZE) * BLOCK_SIZE

    def _chain(self, prompt: list[int], salt: str | None) -> list[int]:
        chain: list[int] = []
        parent = hash(salt)
        for end in range(BLOCK_SIZE, len(prompt) + 1, BLOCK_SIZE):
            parent = hash((parent, *prompt[end - BLOCK_SIZE : end]))
            chain.append(parent)
        return chain


class ScriptedCore:
    """Implements `core.Core` without vLLM."""

    draft: EngineDescription | None = None

    def __init__(
        self, model: ModelConfig, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._model = model
        self._script = model.script or ScriptConfig()
        self._sleep = sleep
        self._cache = PrefixCache()
        self._plays: dict[str, _Play] = {}
        self._has_work = asyncio.Event()
        self._tokens_made = 0

    async def start(self) -> EngineDescription:
        await self._sleep(self._script.start_s)
        return EngineDescription(
            max_model_len=self._model.max_model_len or DEFAULT_MAX_MODEL_LEN,
            block_size=BLOCK_SIZE,
            num_gpu_blocks=NUM_BLOCKS,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
        )

    async def add(self, wire_id: str, submit: Submit) -> None:
        prompt = [*submit.prompt_token_ids, *submit.output_token_ids]
        cached = self._cache.hit_tokens(prompt, submit.cache_salt)
        end, reason = self._script.num_tokens, FinishReason.STOP
        if submit.max_tokens is not None and submit.max_tokens < end:
            end, reason = submit.max_tokens, FinishReason.LENGTH
        self._plays[wire_id] = _Play(
            prompt_tokens=len(submit.prompt_token_ids),
            prefill_tokens=len(prompt) - cached,
            cached_tokens=cached,
            position=len(submit.output_token_ids),
            end=end,
            end_reason=reason,
        )
        self._has_work.set()

    async def abort(self, wire_ids: list[str]) -> None:
        for wire_id in wire_ids:
            self._plays.pop(wire_id, None)

    async def next_step(self) -> CoreStep:
        if not self._plays:
            self._has_work.clear()
            await self._has_work.wait()
        prefill = sum(play.prefill_tokens for play in self._plays.values())
        await self._sleep(self._script.step_s + prefill / self._script.prefill_tokens_per_s)
        outputs = [self._advance(wire_id, play) for wire_id, play in list(self._plays.items())]
        return CoreStep(outputs, [RankLoad(running=len(self._plays), kv_usage=self._kv_usage)])

    async def probe(self) -> None:
        self._has_work.set()

    def cpu_s(self) -> float | None:
        return None

    def compiles(self) -> Compiles:
        return Compiles()

    def shutdown(self) -> None:
        self._plays.clear()

    @property
    def _kv_usage(self) -> float:
        """Share of blocks in use by attempts; blocks that are only cached count as free."""
        used = sum(-(-(p.prompt_tokens + p.position) // BLOCK_SIZE) for p in self._plays.values())
        return min(1.0, used / NUM_BLOCKS)

    def _advance(self, wire_id: str, play: _Play) -> Output[str]:
        limit = self._script.fail_after_tokens
        if limit is not None and self._tokens_made >= limit:
            raise CoreDead(f"the script stopped this engine after {limit} tokens")
        token = self._script.tokens[play.position % len(self._script.tokens)]
        cached = play.cached_tokens if play.prefill_tokens else None
        play.prefill_tokens = 0
        play.position += 1
        self._tokens_made += 1
        is_over = play.position >= play.end
        if is_over:
            del self._plays[wire_id]
        return Output(
            wire_id=wire_id,
            token_ids=[token],
            finish_reason=play.end_reason if is_over else None,
            cached_tokens=cached,
        )
