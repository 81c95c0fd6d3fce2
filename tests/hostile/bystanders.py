"""Bystanders: clients of a model that nobody attacks, in a process of their own.

`python -m tests.hostile.bystanders URL KEY MODEL ATTACKED` keeps 20 streams open. Every 250 ms it
sends a one-token request, and every second another one to the attacked model, and one to
/health/live, each on a new connection. It prints one line when all streams have begun, and then,
for each line that it reads, the Window since the last one.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec

from tests.hostile.window import Window

STREAMS = 20
PROBE_S = 0.25
LOOK_S = 1.0
PATIENCE_S = 60.0
SCRIPT = "abcdefghijklmnopqrstuvw"
"""The text that the bystanders' model repeats: a token that is missing or double shows in it."""
STREAM_TOKENS = 200_000


class Watch:
    """Collects what the bystanders see until the next mark."""

    def __init__(self) -> None:
        self._window = Window()
        self._refused: Counter[str] = Counter()
        self._waits: dict[object, tuple[float, str]] = {}
        """Begin and kind of each wait that has not ended."""

    def begin(self, waiter: object, kind: str) -> None:
        self._waits[waiter] = time.monotonic(), kind

    def end(self, waiter: object) -> None:
        self._note(*self._waits.pop(waiter))

    def refuse(self, why: str) -> None:
        self._refused[why] += 1

    def lose(self, why: str) -> None:
        self._window.lost.append(why)

    def change(self) -> None:
        self._window.changed += 1

    def mark(self) -> Window:
        for wait in self._waits.values():
            self._note(*wait)
        window, self._window = self._window, Window(lost=[])
        window.refused, self._refused = dict(self._refused), Counter()
        return window

    def _note(self, began_at: float, kind: str) -> None:
        took_s = time.monotonic() - began_at
        window = self._window
        match kind:
            case "probe":
                window.probes += 1
                window.worst_probe_s = max(window.worst_probe_s, took_s)
            case "neighbor":
                window.worst_neighbor_s = max(window.worst_neighbor_s, took_s)
            case "health":
                window.worst_health_s = max(window.worst_health_s, took_s)
            case _:
                window.gap_s = max(window.gap_s, took_s)


class Bystanders:
    def __init__(
        self, url: str, key: str, model: str, attacked: str, http: aiohttp.ClientSession
    ) -> None:
        self.watch = Watch()
        self.has_begun = asyncio.Event()
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._model = model
        self._attacked = attacked
        self._http = http
        self._begun: set[int] = set()

    async def every(self, period_s: float, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Ask at a fixed pace, whether or not the answers come."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(ask())
                await asyncio.sleep(period_s)

    async def probe(self) -> None:
        await self._ask("probe", "POST", "/v1/completions", self._model)

    async def ask_attacked(self) -> None:
        await self._ask("neighbor", "POST", "/v1/completions", self._attacked)

    async def look(self) -> None:
        await self._ask("health", "GET", "/health/live")

    async def _ask(self, kind: str, method: str, path: str, model: str = "") -> None:
        waiter = object()
        self.watch.begin(waiter, kind)
        body = {"model": model, "prompt": "x", "max_tokens": 1} if model else None
        url = self._url + path
        try:
            async with (
                asyncio.timeout(PATIENCE_S),
                self._http.request(method, url, json=body, headers=self._headers) as answer,
            ):
                await answer.read()
                if answer.status != 200:
                    self.watch.refuse(f"{kind} {answer.status}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.watch.refuse(f"{kind} {type(error).__name__}")
        finally:
            self.watch.end(waiter)

    async def follow(self, number: int) -> None:
        """Keep one stream open; begin another when it ends."""
        while True:
            try:
                why = await self._read(number)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                why = type(error).__name__
            if why:
                self.watch.lose(why)
                await asyncio.sleep(0.5)

    async def _read(self, number: int) -> str:
        """Read one stream to its end; return why it is not whole."""
        body = {"model": self._model, "prompt": "x", "max_tokens": STREAM_TOKENS, "stream": True}
        position = 0
        url = f"{self._url}/v1/completions"
        with self._waiting(number):
            async with self._http.post(url, json=body, headers=self._headers) as answer:
                if answer.status != 200:
                    return f"{answer.status} {(await answer.text())[:80]}"
                async for line in answer.content:
                    if line.startswith(b"data: [DONE]"):
                        return ""
                    if not line.startswith(b"data: "):
                        continue
                    event = msgspec.json.decode(line[6:])
                    if "error" in event:
                        return f"error event {event['error'].get('code')}"
                    text = "".join(choice["text"] for choice in event.get("choices", ()))
                    if text != _script(position, len(text)):
                        self.watch.change()
                        return ""
                    position += len(text)
                    self.watch.end(number)
                    self.watch.begin(number, "token")
                    self._begun.add(number)
                    if len(self._begun) == STREAMS:
                        self.has_begun.set()
        return "the connection closed"

    @contextmanager
    def _waiting(self, number: int) -> Iterator[None]:
        self.watch.begin(number, "token")
        try:
            yield
        finally:
            self.watch.end(number)


def _script(position: int, count: int) -> str:
    """Return the script's characters from a position on."""
    begin = position % len(SCRIPT)
    return (SCRIPT * (2 + count // len(SCRIPT)))[begin : begin + count]


async def main(url: str, key: str, model: str, attacked: str) -> None:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
        asyncio.TaskGroup() as tasks,
    ):
        all_of_them = Bystanders(url, key, model, attacked, http)
        for number in range(STREAMS):
            tasks.create_task(all_of_them.follow(number))
        await all_of_them.has_begun.wait()
        tasks.create_task(all_of_them.every(PROBE_S, all_of_them.probe))
        tasks.create_task(all_of_them.every(LOOK_S, all_of_them.ask_attacked))
        tasks.create_task(all_of_them.every(LOOK_S, all_of_them.look))
        print("begun", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(msgspec.json.encode(all_of_them.watch.mark()).decode(), flush=True)
        sys.exit()


class Crowd:
    """The process of the bystanders, from the side of a test."""

    def __init__(self, url: str, key: str, model: str, attacked: str) -> None:
        words = [sys.executable, "-m", "tests.hostile.bystanders", url, key, model, attacked]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "begun\n"

    def mark(self) -> Window:
        """Return what they saw since the last mark."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._read(), type=Window)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
