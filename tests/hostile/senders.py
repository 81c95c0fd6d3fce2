"""Senders: how a hostile client sends. Each returns the answers that it got.

Hostile clients have another address than the bystanders, so that a bound for each address can tell
them apart.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

ADDRESS: Final = "127.0.0.2"
KEPT_BYTES: Final = 4096
"""Bytes that are kept of an answer, of its begin and of its end."""
LIMIT_S: Final = 20.0
"""A client that has waited for so long disconnects."""


@dataclass(frozen=True)
class Site:
    """A fleet as its hostile client knows it."""

    host: str
    port: int
    key: str
    engines: tuple[tuple[str, int], ...] = ()
    """Addresses at which engines listen for gateways."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def head(self, method: str, target: str, *fields: str) -> bytes:
        """Return the head of a raw request, without the empty line at its end."""
        key = f"Authorization: Bearer {self.key}"
        lines = [f"{method} {target} HTTP/1.1", "Host: fleet", key]
        return "\r\n".join([*lines, *fields, ""]).encode("latin-1")


@dataclass(frozen=True)
class Answer:
    """What one request got. Status 0: no answer, and `fault` says why."""

    status: int
    head: bytes = b""
    tail: bytes = b""
    size_bytes: int = 0
    took_s: float = 0.0
    fault: str = ""

    @property
    def verdict(self) -> str:
        """The status, also of an error that came inside a stream, or the fault."""
        if self.status == 200 and (failure := stream_failure(self.tail)):
            return f"200 then {failure}"
        return str(self.status or self.fault)


def stream_failure(tail: bytes) -> str:
    """Return the code of the error event that ends a stream; empty if there is none."""
    for line in reversed(tail.split(b"\n")):
        if not line.startswith(b"data: {"):
            continue
        try:
            event = json.loads(line[6:])
        except ValueError:
            return ""
        error = event.get("error") or (event if event.get("type") == "error" else None)
        if error is None:
            return ""
        return str(error.get("code") or error.get("type")) if isinstance(error, dict) else "error"
    return ""


Sender = Callable[[Site], Awaitable[list[Answer]]]


async def request(
    site: Site,
    http: aiohttp.ClientSession,
    path: str,
    body: bytes,
    headers: dict[str, str] | None = None,
    limit_s: float = LIMIT_S,
) -> Answer:
    """Send one body and read the whole answer; disconnect at the limit."""
    began_at = time.monotonic()
    fields = {"content-type": "application/json", "authorization": f"Bearer {site.key}"}
    fields["content-length"] = str(len(body))
    status, size, head, tail, fault = 0, 0, b"", b"", ""
    url = site.url + path
    try:
        async with (
            asyncio.timeout(limit_s),
            http.post(url, data=io.BytesIO(body), headers=fields | (headers or {})) as answer,
        ):
            status = answer.status
            async for piece in answer.content.iter_any():
                size += len(piece)
                head = (head + piece)[:KEPT_BYTES] if len(head) < KEPT_BYTES else head
                tail = (tail + piece)[-KEPT_BYTES:]
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        fault = "no answer" if isinstance(error, TimeoutError) else type(error).__name__
        status = 0
    return Answer(status, head, tail, size, time.monotonic() - began_at, fault)


def session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, force_close=True, local_addr=(ADDRESS, 0))
    return aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None), max_field_size=2**20
    )


def post(
    path: str,
    body: Callable[[], Any],
    *,
    times: int = 1,
    headers: dict[str, str] | None = None,
    limit_s: float = LIMIT_S,
) -> Sender:
    """Send what `body` returns, as JSON unless it is bytes, `times` times at once."""

    async def send(site: Site) -> list[Answer]:
        made = body()
        data = made if isinstance(made, bytes) else json.dumps(made).encode()
        async with session() as http:
            asked = [request(site, http, path, data, headers, limit_s) for _ in range(times)]
            return list(await asyncio.gather(*asked))

    return send


def post_each(path: str, bodies: Callable[[], Sequence[Any]], limit_s: float = LIMIT_S) -> Sender:
    """Send each of what `bodies` returns, as JSON, all at once."""

    async def send(site: Site) -> list[Answer]:
        data = [json.dumps(body).encode() for body in bodies()]
        async with session() as http:
            asked = [request(site, http, path, one, limit_s=limit_s) for one in data]
            return list(await asyncio.gather(*asked))

    return send


async def _open(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    ours = (ADDRESS, 0) if host.startswith("127.") else None
    try:
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.open_connection(host, port, local_addr=ours)
    except (OSError, TimeoutError):
        return None


async def _read_some(reader: asyncio.StreamReader, until: float) -> bytes:
    """Return what comes before the end of the connection or of the time."""
    seen = b""
    try:
        async with asyncio.timeout_at(until):
            while len(seen) < KEPT_BYTES and (piece := await reader.read(KEPT_BYTES)):
                seen += piece
    except (OSError, TimeoutError):
        pass
    return seen


async def raw(site: Site, data: bytes, wait_s: float = 5.0) -> Answer:
    """Send bytes on a connection, and return what comes back until it closes."""
    opened = await _open(site.host, site.port)
    if opened is None:
        return Answer(0, fault="no connection")
    reader, writer = opened
    try:
        writer.write(data)
        seen = await _read_some(reader, asyncio.get_running_loop().time() + wait_s)
    finally:
        writer.close()
    return answer_of(seen)


def answer_of(seen: bytes) -> Answer:
    """Read the status line of a raw answer."""
    words = seen.split(b" ", 2)
    if not seen.startswith(b"HTTP/") or len(words) < 3:
        return Answer(0, seen[:KEPT_BYTES], fault="not HTTP" if seen else "no answer")
    return Answer(int(words[1]), seen[:KEPT_BYTES], seen[-KEPT_BYTES:], len(seen))


def raw_once(data: Callable[[Site], bytes]) -> Sender:
    """Send raw bytes once."""

    async def send(site: Site) -> list[Answer]:
        return [await raw(site, data(site))]

    return send


def hold(count: int, data: Callable[[Site], bytes], for_s: float = 10.0) -> Sender:
    """Open many connections, send the same bytes on each, and keep them open."""

    async def send(site: Site) -> list[Answer]:
        until = asyncio.get_running_loop().time() + for_s
        return await _hold([(site.host, site.port)], count, data(site), until)

    return send


async def _hold(
    addresses: Sequence[tuple[str, int]], count: int, data: bytes, until: float
) -> list[Answer]:
    opened = await asyncio.gather(*(_open(*one) for one in addresses for _ in range(count)))
    connections = [pair for pair in opened if pair is not None]
    try:
        for _, writer in connections:
            writer.write(data)
        seen = await asyncio.gather(*(_read_some(reader, until) for reader, _ in connections))
    finally:
        for _, writer in connections:
            writer.transport.abort()
    answers = [answer_of(each) for each in seen]
    return answers + [Answer(0, fault="no connection")] * (len(opened) - len(connections))


def stop_reading(path: str, body: dict[str, Any], times: int, for_s: float = 10.0) -> Sender:
    """Open streams and read nothing of them."""

    async def send(site: Site) -> list[Answer]:
        data = json.dumps(body | {"stream": True}).encode()
        fields = ("Content-Type: application/json", f"Content-Length: {len(data)}")
        sent = site.head("POST", path, *fields) + b"\r\n" + data
        opened = await asyncio.gather(*(_open(site.host, site.port) for _ in range(times)))
        connections = [pair for pair in opened if pair is not None]
        for reader, writer in connections:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(sent)
            assert not reader.at_eof()
        await asyncio.sleep(for_s)
        for _, writer in connections:
            writer.transport.abort()
        return [Answer(200)] * len(connections)

    return send


def to_engines(data: bytes, *, count: int = 1, for_s: float = 5.0) -> Sender:
    """Send bytes to the port of one engine, without its secret."""

    async def send(site: Site) -> list[Answer]:
        assert site.engines, "no engine's port was found"
        until = asyncio.get_running_loop().time() + for_s
        return await _hold(site.engines[:1], count, data, until)

    return send
