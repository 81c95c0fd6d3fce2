"""Answers of /infill: what llama.cpp's editors read, and where an answer ends before its engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from qwenfleet.deployments.ingress.infill import Wanted
from qwenfleet.deployments.ingress.infill_answers import Choice, InfillApp

ANY: dict[str, Any] = {
    "model": "coder",
    "is_stream": False,
    "answers": 1,
    "max_tokens": 128,
    "least_indent": 0,
    "most_s": 0.0,
    "paths": (),
}


def event(text: str, index: int = 0, tokens: int = 1, end: str | None = None, **more: Any) -> Any:
    """An event of vLLM's completions with continuous usage."""
    choice = {"index": index, "text": text, "finish_reason": end, "stop_reason": None, **more}
    return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}},
}


class Completions:
    """A completions app that plays events, and stops at a disconnect."""

    def __init__(self, clock: Any, *events: Any, status: int = 200) -> None:
        self.paths: list[str] = []
        self.num_sent = 0
        self.was_ended = False
        self._clock = clock
        self._events = events
        self._status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        assert (await receive())["type"] == "http.request"
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        ended = asyncio.ensure_future(receive())
        for each in self._events:
            self._clock.advance(0.5)
            await send({"type": "http.response.body", "body": each, "more_body": True})
            self.num_sent += 1
            await asyncio.sleep(0.001)
            if ended.done():
                self.was_ended = ended.result()["type"] == "http.disconnect"
                return
        ended.cancel()
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def ask(clock: Any, new_client: Any) -> Any:
    async def ask(*events: Any, status: int = 200, **wanted: Any) -> tuple[Any, Completions]:
        played = [each if isinstance(each, bytes) else sse(each) for each in events]
        app = Completions(clock, *played, status=status)
        client = new_client(b"{}")
        scope = {"type": "http", "path": "/infill", "raw_path": b"/infill"}
        await InfillApp(app, Wanted(**(ANY | wanted)), clock)(scope, client.receive, client.send)
        assert client.is_complete
        return client, app

    return ask


def sse(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def events_of(client: Any) -> list[Any]:
    parts = client.body.split(b"\n\n")
    assert parts.pop() == b""
    return [json.loads(part.removeprefix(b"data: ")) for part in parts]


async def test_a_whole_answer_has_what_the_editors_read(ask: Any) -> None:
    client, app = await ask(
        event("ab"), event("c\n", tokens=3), event("", tokens=4, end="stop"), USAGE,
        b"data: [DONE]\n\n",
    )  # fmt: skip
    assert (app.paths, app.was_ended) == (["/v1/completions"], False)
    assert client.headers[b"content-type"] == b"application/json"
    answer = json.loads(client.body)
    assert answer["content"] == "abc\n"
    assert (answer["stop"], answer["stop_type"], answer["truncated"]) == (True, "eos", False)
    assert (answer["tokens_predicted"], answer["tokens_evaluated"]) == (4, 9)
    assert (answer["tokens_cached"], answer["has_new_line"]) == (13, True)
    timings = answer["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (4, 5, 4)
    assert timings["prompt_ms"] == 500
    assert timings["predicted_per_second"] == pytest.approx(4 / 2.0)


async def test_an_editor_gets_the_fields_that_it_asks_for(ask: Any) -> None:
    paths = ("content", "timings/prompt_n", "truncated", "no/such")
    client, _ = await ask(event("ab", end="length"), paths=paths)
    assert json.loads(client.body) == {"content": "ab", "timings/prompt_n": 9, "truncated": False}


async def test_a_stream_has_its_pieces_and_then_the_end(ask: Any) -> None:
    client, _ = await ask(event("ab"), event("c", end="length"), USAGE, is_stream=True)
    assert client.headers[b"content-type"] == b"text/event-stream"
    first, second, last = events_of(client)
    assert (first["content"], first["stop"], second["content"]) == ("ab", False, "c")
    assert (last["content"], last["stop"], last["stop_type"]) == ("", True, "limit")
    assert b"[DONE]" not in client.body


async def test_several_answers_are_a_list(ask: Any) -> None:
    client, _ = await ask(
        event("a", 1), event("b", 0, end="stop"), event("c", 1, end="stop", stop_reason="x"),
        answers=2,
    )  # fmt: skip
    first, second = json.loads(client.body)
    assert (first["content"], first["index"], first["stop_type"]) == ("b", 0, "eos")
    assert (second["content"], second["index"], second["stop_type"]) == ("ac", 1, "word")
    assert second["stopping_word"] == "x"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_line_with_less_indentation_ends_the_answer_and_its_engine(
    ask: Any, is_stream: bool
) -> None:
    client, app = await ask(
        event("x = 1\n    y"), event("\n  "), event("  z\n"), event("  w"), event("more"),
        least_indent=4, is_stream=is_stream,
    )  # fmt: skip
    assert (app.num_sent, app.was_ended) == (4, True)
    if is_stream:
        *pieces, last = events_of(client)
        text = "".join(piece["content"] for piece in pieces)
    else:
        last = json.loads(client.body)
        text = last["content"]
    assert text == "x = 1\n    y\n    z\n  "
    assert last["stop_type"] == "limit"


async def test_after_its_time_the_next_line_ends_the_answer(ask: Any) -> None:
    client, app = await ask(
        event("a\n"), event("b"), event("c"), event("d\ne"), event("f"), most_s=0.8
    )
    assert (app.num_sent, app.was_ended) == (4, True)
    assert json.loads(client.body)["content"] == "a\nbcd\ne"


async def test_a_warm_up_has_no_text(ask: Any) -> None:
    client, _ = await ask(event("a", end="length"), USAGE, max_tokens=0)
    answer = json.loads(client.body)
    assert (answer["content"], answer["tokens_predicted"], answer["stop_type"]) == ("", 0, "limit")


async def test_a_refusal_passes_as_it_is(ask: Any) -> None:
    client, _ = await ask(b'{"error": {}}', status=400)
    assert (client.status, client.body) == (400, b'{"error": {}}')


async def test_events_may_come_in_pieces(ask: Any) -> None:
    whole = sse(event("ab")) + b": ping\n\n" + sse(event("c", end="stop"))
    client, _ = await ask(whole[:30], whole[30:70], whole[70:])
    assert json.loads(client.body)["content"] == "abc"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\n    b\n    c", "a\n    b\n    c"),
        ("a\n\tb", "a\n\t"),
        ("a\n\n    b", "a\n"),
        ("    a\nb", "    a\n"),
        ("a", "a"),
    ],
)
def test_indentation_is_counted_as_llama_cpp_counts_it(text: str, kept: str) -> None:
    """In blanks, from the second line on; an empty line has none."""
    for size in (1, 2, len(text)):
        choice = Choice(Wanted(**(ANY | {"least_indent": 4})))
        for start in range(0, len(text), size):
            choice.add(text[start : start + size], 0.0)
        assert choice.text == kept
        assert choice.is_cut is (kept != text)


ERROR = b'data: {"error": {"message": "an engine failed", "type": "server_error", "code": 503}}'


@pytest.mark.parametrize("before", [(), (event("a"),)])
async def test_an_error_after_the_first_event_is_not_an_answer(before: Any) -> None:
    for is_stream in (False, True):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for body in (*(b"data: " + json.dumps(each).encode() for each in before), ERROR):
                chunk = {"type": "http.response.body", "body": body + b"\n\n", "more_body": True}
                await send(chunk)
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        app = InfillApp(inner, Wanted(**(ANY | {"is_stream": is_stream})))
        await app({"type": "http"}, receive, send)
        bodies = [each["body"] for each in sent if each["type"] == "http.response.body"]
        assert sent[0]["status"] == (200 if is_stream else 503)
        assert b"an engine failed" in b"".join(bodies)
        assert b'"stop":true' not in b"".join(bodies)


@pytest.mark.parametrize("least", [1, 4])
def test_indentation_is_counted_across_pieces_and_looked_at_once(least: int) -> None:
    text = "x = 1\n" + " " * 5000 + "y\n" + " " * (least - 1) + "z"
    for size in (1, 3, 10_000):
        choice = Choice(Wanted(**(ANY | {"least_indent": least})))
        for at in range(0, len(text), size):
            choice.add(text[at : at + size], 0.0)
        assert choice.text == text[:-1]
        assert choice.is_cut
