"""Cases: every hostile request that a review of the fleet has tried, as data.

`quiet` is the bystanders' model. `loud` is scripted, has a long context, and takes what concerns
gateways; `tiny` is a real vLLM core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.hostile.senders import Sender, hold, post, post_each, raw_once, stop_reading, to_engines
from tests.hostile.shapes import (
    CHAT,
    TEXT,
    chat,
    digits,
    doubling,
    grammar,
    nested,
    properties,
    responses,
    schema,
    text,
    tools,
    turns,
    unknown_keys,
    with_body,
    words,
)

MB: Final = 10**6
REFUSED: Final = frozenset({400, 413})
SERVED: Final = frozenset({200, 400, 413, 429})
"""For what some client may need: it may be served, at nobody else's cost."""
HELD: Final = frozenset({0, 400, 408, 413, 429, 431})
"""For connections that are held open: they may be closed."""
SERVED_ONLY: Final = frozenset({200})
PROBE_S: Final = 3.0
"""The aim is 1 s on an idle machine. Here clients, gateway and six engines share two cores."""
ONGOING: Final = 200
"""The fleet's gateway.max_ongoing_requests, so that few connections exceed it."""
MORE: Final = 400
"""Requests above it: more than a gateway and Serve may let in to refuse them."""


@dataclass(frozen=True)
class Case:
    name: str
    send: Sender
    answers: frozenset[int]
    """Statuses that are right; 0: no answer."""
    probes: frozenset[int] = SERVED_ONLY
    """Statuses that bystanders may get meanwhile."""
    host_mb: float | None = None
    """Growth of the engine hosts' memory that is allowed, in MB; None: any."""
    probe_s: float = PROBE_S
    """Longest wait of a bystander."""
    is_ours: bool = True
    """Whether we word the answer; False: HAProxy does, before any rule of its configuration."""


POLICY: Final = (
    Case("`n: 10000`", post(TEXT, text(model="loud", n=10_000)), REFUSED),
    Case(
        "20 streams with `logprobs: 20`, 500 tokens each",
        post(
            TEXT,
            text(logprobs=20, max_tokens=500, ignore_eos=True, stream=True),
            times=20,
            limit_s=120.0,  # they wait for everybody else
        ),
        SERVED,
    ),
    Case(
        "`prompt_logprobs: 20` on 30,000 tokens",
        post(TEXT, lambda: text(prompt="x" * 30_000, prompt_logprobs=20)()),
        REFUSED,
    ),
    Case("60 `bad_words`, 0.66 MB", post(TEXT, text(bad_words=words(60, 11_000))), REFUSED),
    Case("`bad_words` of 1.3 MB in a chat", post(CHAT, chat(bad_words=words(60, 22_000))), REFUSED),
    Case("60 `bad_words` of 2,240 tokens", post(TEXT, text(bad_words=words(60, 37))), REFUSED),
    Case(
        "1,025 `logit_bias` entries",
        post(TEXT, text(logit_bias={str(i): 1 for i in range(1025)})),
        REFUSED,
    ),
    Case("1,025 `allowed_token_ids`", post(TEXT, text(allowed_token_ids=[97] * 1025)), REFUSED),
    Case(
        "`min_tokens` with 129 `stop_token_ids`",
        post(TEXT, text(min_tokens=1, stop_token_ids=list(range(129)))),
        REFUSED,
    ),
    Case("100,000 `stop_token_ids`", post(TEXT, text(stop_token_ids=[97] * 100_000)), REFUSED),
    Case(
        "10,000 prompts in one request",
        post(TEXT, text(model="loud", prompt=["x"] * 10_000)),
        REFUSED,
    ),
    Case("a `stop` string of 1 MB", post(TEXT, lambda: text(stop="w" * MB)()), REFUSED),
    Case("20,000 `stop` strings", post(TEXT, text(stop=words(20_000, 8))), REFUSED),
    Case(
        "200,000 messages",
        post(CHAT, lambda: chat(messages=turns(200_000))()),
        REFUSED,
    ),
    Case(
        "100,000 messages to `/v1/messages`",
        post("/v1/messages", lambda: chat(messages=turns(100_000))()),
        REFUSED,
    ),
    Case(
        "100,000 items to `/v1/responses`",
        post("/v1/responses", lambda: responses(input=turns(100_000))),
        REFUSED,
    ),
    Case("1,000,000 unknown keys", post(TEXT, lambda: text(**unknown_keys(MB))()), SERVED),
    Case("a number of 1,000,000 digits", post(TEXT, lambda: digits(MB)), REFUSED),
    Case(
        "a JSON schema of 30,000 properties",
        post(CHAT, lambda: chat(response_format=schema(properties(30_000)))()),
        REFUSED,
    ),
    Case(
        "an enum of 200,000",
        post(CHAT, lambda: chat(response_format=schema({"enum": words(200_000, 8)}))()),
        REFUSED,
    ),
    Case(
        "5,000 tools",
        post(CHAT, lambda: chat(tools=tools(5_000))()),
        REFUSED,
    ),
    Case(
        "`/tokenize` of 30 MB",
        post("/tokenize", lambda: {"model": "tiny", "prompt": "x " * (15 * MB)}),
        SERVED,
    ),
    Case(
        "`/tokenize` of 30 MB, whose client leaves after 1 s",
        post("/tokenize", lambda: {"model": "tiny", "prompt": "x " * (15 * MB)}, limit_s=1.0),
        SERVED | {0},
    ),
    Case(
        "`/tokenize` of 4 MB, four at once",
        post("/tokenize", lambda: {"model": "tiny", "prompt": "x " * (2 * MB)}, times=4),
        SERVED,
    ),
    Case(
        "`/tokenize` of 4 MB with `return_token_strs`",
        post(
            "/tokenize",
            lambda: {"model": "tiny", "prompt": "x " * (2 * MB), "return_token_strs": True},
        ),
        SERVED,
    ),
    Case(
        "`/detokenize` of 4,000,000 tokens",
        post("/detokenize", lambda: {"model": "tiny", "tokens": [97] * (4 * MB)}),
        SERVED,
    ),
    Case(
        "`repetition_detection` with patterns of 1e9",
        post(
            TEXT,
            text(
                max_tokens=500,
                ignore_eos=True,
                repetition_detection={
                    "max_pattern_size": 10**9,
                    "min_pattern_size": 1,
                    "min_count": 2,
                },
            ),
        ),
        REFUSED,
    ),
    Case(
        "`X-Request-Id` of 12 KB on a stream",
        post(
            CHAT,
            chat(stream=True, max_tokens=200),
            headers={"x-request-id": "x" * 12_000},
        ),
        SERVED | {431},
    ),
)

CLIENTS_FAULTS: Final = (
    Case("JSON nested 200 deep", post(CHAT, lambda: nested(200)), SERVED),
    Case("JSON nested 900 deep", post(CHAT, lambda: nested(900)), REFUSED),
    Case("JSON nested 1,000 deep", post(CHAT, lambda: nested(1000)), REFUSED),
    Case("JSON nested 100,000 deep", post(CHAT, lambda: nested(100_000)), REFUSED),
    Case("`structured_outputs` that is a list", post(CHAT, chat(structured_outputs=[1])), REFUSED),
    Case("`top_k: 2**70`", post(CHAT, chat(top_k=2**70)), REFUSED),
    Case("`kv_transfer_params` that is a string", post(TEXT, text(kv_transfer_params="x")), SERVED),
    Case(
        "`X-Request-Id` that is not text",
        raw_once(lambda site: with_body(site.head, "X-Request-Id: \xff\xfe", chat()())),
        SERVED,
    ),
    Case(
        "a WebSocket upgrade",
        raw_once(
            lambda site: (
                site.head(
                    "GET",
                    CHAT,
                    "Connection: Upgrade",
                    "Upgrade: websocket",
                    "Sec-WebSocket-Version: 13",
                    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
                )
                + b"\r\n"
            )
        ),
        frozenset({400, 404, 405, 426}),
    ),
    Case(
        "an unknown model's name of 1 MB",
        post(TEXT, lambda: text(model="m" * MB)()),
        REFUSED | {404},
    ),
    Case(
        "headers of 64 KB",
        post(CHAT, chat(), headers={f"x-field-{i}": "x" * 8_000 for i in range(8)}),
        frozenset({400, 431}),
        is_ours=False,
    ),
    Case(
        "`x-request-timeout-s: soon`",
        post(CHAT, chat(), headers={"x-request-timeout-s": "soon"}),
        frozenset({400}),
    ),
    Case(
        '`{"$ref": "#"}` as schema',
        post(CHAT, chat(response_format=schema({"$ref": "#"}))),
        frozenset({400}),
    ),
    Case(
        "a grammar that is left-recursive",
        post(CHAT, chat(structured_outputs={"grammar": "root ::= root root | root"})),
        frozenset({400}),
    ),
)

WIRE: Final = (
    Case(
        "a `request_id` of 4 MB",
        post("/v1/responses", lambda: responses(request_id="i" * (4 * MB))),
        SERVED,
    ),
    Case(
        "a `request_id` of 25 MB",
        post("/v1/responses", lambda: responses(request_id="i" * (25 * MB))),
        SERVED,
    ),
    Case(
        "24 prompts of 1,000,000 tokens at once",
        post(TEXT, lambda: text(model="loud", prompt=[97] * MB)(), times=24, limit_s=60.0),
        frozenset({200, 429}),
    ),
    Case(
        "100 prompts of 100,000 tokens at once",
        post(TEXT, lambda: text(model="loud", prompt=[97] * 100_000)(), times=100, limit_s=60.0),
        frozenset({200, 429}),
    ),
    Case(
        "250 MB to an engine's port, without the secret",
        to_engines((250 * MB).to_bytes(4, "big") + bytes(250 * MB)),
        frozenset({0}),
        host_mb=64,
    ),
    Case(
        "300 silent connections to an engine's port",
        to_engines(b"\0", count=300, for_s=8),
        frozenset({0}),
        host_mb=64,
    ),
)

EDGE: Final = (
    Case(
        "4,200 connections that never end their headers",
        hold(4_200, lambda site: site.head("POST", CHAT, "X-Slow: ")),
        HELD,
    ),
    Case(
        f"{ONGOING + MORE} half-sent bodies",
        hold(
            ONGOING + MORE,
            lambda site: site.head("POST", CHAT, "Content-Length: 1000") + b'\r\n{"model": "tiny",',
        ),
        HELD,
        frozenset({200, 429}),
    ),
    Case(
        f"{ONGOING + MORE} streams at once",
        post(
            TEXT,
            text(model="loud", max_tokens=1000, stream=True),
            times=ONGOING + MORE,
            limit_s=10.0,
        ),
        frozenset({0, 200, 429}),
        frozenset({200, 429}),
        probe_s=6.0,  # 200 of them are served: ordinary requests, of 10 ms each at their begin
    ),
    Case(
        "50 streams that nobody reads",
        stop_reading(
            TEXT, {"model": "tiny", "prompt": "x", "max_tokens": 2000, "ignore_eos": True}, 50
        ),
        frozenset({200}),
        probe_s=15.0,  # two real cores compute for them, on the gateway's own CPUs
    ),
)

GRAMMAR: Final = (
    Case(
        "a regex with nested counts",
        post(CHAT, chat(structured_outputs={"regex": "((a{1,300}){1,300}){1,300}b"})),
        SERVED,
    ),
    Case(
        "60 such regexes at once, each another one",
        post_each(
            CHAT,
            lambda: [
                chat(structured_outputs={"regex": f"((a{{1,{n}}}){{1,200}}){{1,200}}b"})()
                for n in range(200, 260)
            ],
            limit_s=60.0,
        ),
        SERVED,
    ),
    Case(
        "a schema with 60 levels of `$ref` that double",
        post(CHAT, lambda: chat(response_format=schema(doubling(60)))()),
        SERVED,
    ),
    Case(
        "200,000 `choice`s",
        post(CHAT, lambda: chat(structured_outputs={"choice": words(200_000, 8)})()),
        REFUSED,
    ),
    Case(
        "50,000 `choice`s",
        post(CHAT, lambda: chat(structured_outputs={"choice": words(50_000, 12)})()),
        REFUSED,
    ),
    Case(
        "a grammar of 2 MB",
        post(CHAT, lambda: chat(structured_outputs={"grammar": grammar(2 * MB)})()),
        REFUSED,
    ),
)
"""Last, because a core that is jammed stays so for minutes."""

CASES: Final = (*POLICY, *CLIENTS_FAULTS, *WIRE, *EDGE, *GRAMMAR)
