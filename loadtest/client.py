"""One completion over HTTP, timed as a client sees it."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

PROMPT_CHARACTERS: Final = 64
REQUEST_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class Answer:
    """The result of one request. Times are seconds since it was sent."""

    ttft_s: float
    """Time to a stream's first token, or to the whole body."""
    latency_s: float
    tokens: int
    error: str = ""


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Body(msgspec.Struct):
    """The fields that are read from an answer or an event."""

    choices: list[Any] = []
    usage: _Usage | None = None


_decoder: Final = msgspec.json.Decoder(_Body)
_FAULTS: Final = (
    aiohttp.ClientError,
    HttpProcessingError,
    TimeoutError,
    ValueError,  # includes msgspec.DecodeError
    RecursionError,  # JSON that is nested too deep
)


def session(concurrency: int) -> aiohttp.ClientSession:
    """Return a session with one persistent connection per concurrent request."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
    )


def completion(model: str, *, max_tokens: int, is_stream: bool, rng: random.Random) -> bytes:
    """Return the body of a greedy completion of exactly `max_tokens` after a random prompt."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": "".join(rng.choices(string.ascii_lowercase, k=PROMPT_CHARACTERS)),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": is_stream,
    }
    if is_stream:
        body["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(body)


def chat(model: str, *, max_tokens: int, tools: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the body of a streamed chat of exactly `max_tokens`."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Write it."}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return msgspec.json.encode(body | ({"tools": tools} if tools else {}))


async def ask(
    http: aiohttp.ClientSession,
    url: str,
    body: bytes,
    *,
    is_stream: bool,
    path: str = "/v1/completions",
) -> Answer:
    """Send one request and read its answer to the end. Errors are returned in the answer."""
    started_at = time.perf_counter()
    try:
        async with http.post(
            f"{url}{path}", data=body, headers={"content-type": "application/json"}
        ) as response:
            if response.status != 200:
                text = (await response.text(errors="replace"))[:200]
                return _failed(started_at, f"HTTP {response.status}: {text}")
            if is_stream:
                return await _read_stream(response, started_at)
            whole = _decoder.decode(await response.read())
    except UnicodeDecodeError as error:  # msgspec 0.22; 0.23 raises its own DecodeError
        return _failed(started_at, f"DecodeError: {error}")
    except _FAULTS as error:
        return _failed(started_at, f"{type(error).__name__}: {error}")
    took_s = time.perf_counter() - started_at
    return Answer(took_s, took_s, whole.usage.completion_tokens if whole.usage else 0)


async def _read_stream(response: aiohttp.ClientResponse, started_at: float) -> Answer:
    ttft_s, tokens, is_done = 0.0, 0, False
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            is_done = True
            continue
        event = _decoder.decode(data)
        if event.choices and not ttft_s:
            ttft_s = time.perf_counter() - started_at
        if event.usage is not None:
            tokens = event.usage.completion_tokens
    latency_s = time.perf_counter() - started_at
    return Answer(ttft_s, latency_s, tokens, "" if is_done else "the stream ended without [DONE]")


def _failed(started_at: float, error: str) -> Answer:
    took_s = time.perf_counter() - started_at
    return Answer(took_s, took_s, 0, error)
