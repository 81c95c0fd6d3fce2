"""InfillApp: answers `POST /infill` as llama.cpp's server does, by a model's completions.

The completion is always a stream, because llama.cpp ends an answer by what it has written so far:
at a line with too little indentation, or at the first line after a time. Then the app gets a
disconnect, which ends the work of the engine, and the editor gets its answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenfleet.deployments.ingress.infill import Wanted

COMPLETIONS: Final = "/v1/completions"
DONE: Final = b"[DONE]"
BLANKS: Final = re.compile(r"[ \t]*")


class Choice:
    """One of the answers, as far as it is known. Pure."""

    def __init__(self, wanted: Wanted) -> None:
        self.tokens = 0
        self.stop_type = ""
        """Why it ended, in llama.cpp's words; empty while it goes on."""
        self.stopping_word = ""
        self.is_cut = False
        """Whether it ended before the engine did."""
        self._wanted = wanted
        self._pieces: list[str] = []
        self._sent = 0
        """Pieces that the editor has."""
        self._indent: int | None = None
        """Blanks of a line that has nothing else yet; None inside a line, and before the second."""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, text: str, elapsed_s: float) -> None:
        """Take more text, `elapsed_s` seconds after the first one; it may end the answer."""
        if self.stop_type or self._wanted.max_tokens == 0:
            return
        is_late = 0 < self._wanted.most_s < elapsed_s and "\n" in text
        end = self._less_indentation(text)
        self._pieces.append(text[:end])
        if end is not None or is_late:
            self.stop_type, self.is_cut = "limit", True

    def end(self, reason: str, stopped_by: Any) -> None:
        """Take vLLM's reason for the end."""
        if self.stop_type:
            return
        self.stop_type = "limit" if reason == "length" else "eos"
        if isinstance(stopped_by, str):
            self.stop_type, self.stopping_word = "word", stopped_by

    def new_text(self) -> str:
        """Return what the editor does not have yet."""
        pieces, self._sent = self._pieces[self._sent :], len(self._pieces)
        return "".join(pieces)

    def _less_indentation(self, text: str) -> int | None:
        """Return where a line with too few blanks has its first other character; None if none
        has. Looks at each character once."""
        at = 0
        while self._wanted.least_indent > 0 and at < len(text):
            if self._indent is None:
                at = text.find("\n", at) + 1
                if not at:
                    return None
                self._indent = 0
            found = BLANKS.match(text, at)
            end = at if found is None else found.end()
            self._indent, at = self._indent + end - at, end
            if at == len(text):
                return None
            indent, self._indent = self._indent, None
            if indent < self._wanted.least_indent:
                return at
        return None


class InfillApp:
    """The app of one request. `clock` returns monotonic seconds."""

    def __init__(
        self, inner: ASGIApp, wanted: Wanted, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner = inner
        self._wanted = wanted
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(self._wanted, send, self._clock)
        scope = {**scope, "path": COMPLETIONS, "raw_path": COMPLETIONS.encode()}
        # Before 2.4, Starlette's streams listen for a disconnect.
        scope["asgi"] = {**scope.get("asgi", {}), "spec_version": "2.3"}

        async def receive_or_end() -> Message:
            got = asyncio.ensure_future(receive())
            ended = asyncio.ensure_future(answer.has_ended.wait())
            try:
                await asyncio.wait({got, ended}, return_when=asyncio.FIRST_COMPLETED)
                return got.result() if got.done() else {"type": "http.disconnect"}
            finally:
                got.cancel()
                ended.cancel()

        await self._inner(scope, receive_or_end, answer.take)


class _Answer:
    """Reads a completion's stream, and sends llama.cpp's answer."""

    def __init__(self, wanted: Wanted, send: Send, clock: Callable[[], float]) -> None:
        self.has_ended = asyncio.Event()
        self._wanted = wanted
        self._send = send
        self._clock = clock
        self._began_at = clock()
        self._first_at: float | None = None
        self._choices = [Choice(wanted) for _ in range(wanted.answers)]
        self._usage: dict[str, Any] = {}
        self._is_refusal = False
        self._rest = b""

    async def take(self, message: Message) -> None:
        """Take what the completion's app sends."""
        if self.has_ended.is_set():
            return
        if message["type"] == "http.response.start":
            self._is_refusal = message["status"] != 200
            if self._is_refusal or self._wanted.is_stream:
                await self._send(message)
            return
        if self._is_refusal:
            await self._send(message)
            return
        *events, self._rest = (self._rest + message.get("body", b"")).split(b"\n\n")
        for event in events:
            if self.has_ended.is_set():
                return
            data = event.removeprefix(b"data: ")
            if data == DONE or not event.startswith(b"data: "):
                continue
            await self._take_event(msgspec.json.decode(data))
        if self.has_ended.is_set():
            return
        if self._has_all or not message.get("more_body", False):
            await self._finish()

    @property
    def _has_all(self) -> bool:
        """Whether nothing that comes is of use. After an engine's own end, the usage comes."""
        ended = all(choice.stop_type for choice in self._choices)
        return ended and any(choice.is_cut for choice in self._choices)

    async def _take_event(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            await self._fail(event["error"])
            return
        now = self._clock()
        self._usage = event.get("usage") or self._usage
        for found in event.get("choices") or ():
            if self._first_at is None:
                self._first_at = now
            choice = self._choices[found["index"]]
            choice.tokens = (event.get("usage") or {}).get("completion_tokens", choice.tokens)
            choice.add(found["text"], now - self._first_at)
            if found.get("finish_reason") is not None:
                choice.end(found["finish_reason"], found.get("stop_reason"))
            if self._wanted.is_stream:
                await self._send_text(found["index"], choice)

    async def _send_text(self, index: int, choice: Choice) -> None:
        text = choice.new_text()
        if text:
            await self._send_event(
                {
                    "index": index,
                    "content": text,
                    "tokens": [],
                    "stop": False,
                    "id_slot": -1,
                    "tokens_predicted": choice.tokens,
                    "tokens_evaluated": self._prompt_tokens,
                }
            )

    async def _send_event(self, event: dict[str, Any]) -> None:
        body = b"data: " + msgspec.json.encode(event) + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _fail(self, error: Any) -> None:
        """End the answer with an error that came after vLLM had begun to stream."""
        self.has_ended.set()
        body = {"error": error}
        if self._wanted.is_stream:
            await self._send_event(body)
            await self._send({"type": "http.response.body", "body": b""})
            return
        code = error.get("code") if isinstance(error, dict) else None
        await self._send_json(body, code if isinstance(code, int) and code >= 400 else 500)

    async def _send_json(self, body: Any, status: int) -> None:
        headers = [(b"content-type", b"application/json")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": msgspec.json.encode(body)})

    async def _finish(self) -> None:
        self.has_ended.set()
        if self._wanted.is_stream:
            for index, choice in enumerate(self._choices):
                last = self._whole(index, choice)
                await self._send_event(last | {"content": ""} if "content" in last else last)
            await self._send({"type": "http.response.body", "body": b""})
            return
        answers = [self._whole(*pair) for pair in enumerate(self._choices)]
        whole: Any = answers[0] if len(answers) == 1 else answers
        await self._send_json(whole, 200)

    @property
    def _prompt_tokens(self) -> int:
        return int(self._usage.get("prompt_tokens") or 0)

    def _whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return llama.cpp's last object of an answer."""
        details = self._usage.get("prompt_tokens_details") or {}
        cached = int(details.get("cached_tokens") or 0)
        is_warm_up = self._wanted.max_tokens == 0
        tokens = 0 if is_warm_up else choice.tokens
        now = self._clock()
        first_at = now if self._first_at is None else self._first_at
        whole: dict[str, Any] = {
            "index": index,
            "content": choice.text,
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._wanted.model,
            "tokens_predicted": tokens,
            "tokens_evaluated": self._prompt_tokens,
            "generation_settings": {"n_predict": self._wanted.max_tokens},
            "has_new_line": "\n" in choice.text,
            "truncated": False,
            "stop_type": "limit" if is_warm_up else choice.stop_type or "eos",
            "stopping_word": choice.stopping_word,
            "tokens_cached": self._prompt_tokens + tokens,
            "timings": {
                "cache_n": cached,
                **_timing("prompt", self._prompt_tokens - cached, first_at - self._began_at),
                **_timing("predicted", tokens, now - first_at),
            },
        }
        return _picked(whole, self._wanted.paths)


def _timing(name: str, tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / seconds if seconds else 0.0,
    }


def _picked(whole: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """Return the values at these paths, by path, as llama.cpp's json_get_nested_values does."""
    if not paths:
        return whole
    picked = {}
    for path in paths:
        value: Any = whole
        for key in path.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            picked[path] = value
    return picked
