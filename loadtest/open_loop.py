"""Open loop: streams arrive at random at a mean rate, whatever happens to the earlier ones."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

STREAM_TIMEOUT_S: Final = 300.0
"""Two engines of a model may be killed before either has loaded again."""


@dataclass(frozen=True)
class Ask:
    """One kind of request: a greedy completion, so that its text is always the same."""

    model: str
    prompt: str
    max_tokens: int
    weight: float
    """Share of all requests, relative to the other kinds."""

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(
            {
                "model": self.model,
                "prompt": self.prompt,
                "max_tokens": self.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        )


@dataclass(frozen=True)
class Stream:
    """One streamed answer, as its client saw it. Times are of the monotonic clock."""

    ask: Ask
    began_at: float
    ended_at: float
    text: str
    fault: str
    """Why it is not whole; empty if it is."""
    gap_s: float
    """Longest time between two events, in seconds."""


async def run(
    asks: Sequence[Ask],
    *,
    url: str,
    per_s: float,
    until: float,
    rng: random.Random,
    ended: Callable[[Stream], None],
) -> None:
    """Start `per_s` streams per second on average until `until`, then wait for the last one.
    `ended` gets each stream when it has ended."""
    weights = [ask.weight for ask in asks]
    async with session() as http, asyncio.TaskGroup() as tasks:
        due_at = time.monotonic()
        while (due_at := due_at + rng.expovariate(per_s)) < until:
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            (ask,) = rng.choices(asks, weights)
            task = tasks.create_task(listen(http, url, ask))
            task.add_done_callback(lambda done: None if done.cancelled() else ended(done.result()))


def session() -> aiohttp.ClientSession:
    """Return a session without a limit on connections."""
    timeout = aiohttp.ClientTimeout(total=STREAM_TIMEOUT_S)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def listen(http: aiohttp.ClientSession, url: str, ask: Ask) -> Stream:
    """Stream one completion to its end. Faults are in the result."""
    began_at = last_at = time.monotonic()
    texts: list[str] = []
    gap_s, fault = 0.0, "the stream ended without [DONE]"
    headers = {"content-type": "application/json"}
    try:
        async with http.post(f"{url}/v1/completions", data=ask.body, headers=headers) as response:
            if response.status != 200:
                fault = f"HTTP {response.status}: {(await response.text(errors='replace'))[:200]}"
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                now = time.monotonic()
                gap_s, last_at = max(gap_s, now - last_at) if texts else 0.0, now
                data = line[5:].strip()
                if data == b"[DONE]":
                    fault = ""
                    continue
                event: dict[str, Any] = msgspec.json.decode(data)
                if "error" in event:
                    fault = f"error event: {str(event['error'])[:200]}"
                    break
                texts += [choice["text"] for choice in event.get("choices", ())]
    except (aiohttp.ClientError, HttpProcessingError, TimeoutError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    return Stream(ask, began_at, time.monotonic(), "".join(texts), fault, gap_s)
