"""Bodies: valid requests of every route, mutated by a seeded generator.

`make(number, fields)` is always the same request for the same number and the same fields, so one
that fails can be sent alone.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SEED: Final = 17
MAX_TOKENS: Final = 4
TEXT: Final = [{"role": "user", "content": "Write a loop."}]
TOOL: Final = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
JSON: Final = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "x", "schema": JSON}}
CALL: Final = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
NAMED: Final = {"type": "function", "function": {"name": "f"}}
ANTHROPIC_TOOL: Final = {"name": "f", "input_schema": {"type": "object", "properties": {}}}

INPUT: Final = {"type": "input_text", "text": "x"}

FILE: Final = {"path": "b.py", "text": "x = 1"}
VALID: Final[Mapping[str, Sequence[dict[str, Any]]]] = {
    "/v1/chat/completions": (
        {"messages": TEXT},
        {"messages": TEXT, "stream": True, "stream_options": {"include_usage": True}},
        {"messages": TEXT, "tools": [{"type": "function", "function": TOOL}], "tool_choice": NAMED},
        {"messages": TEXT, "response_format": FORMAT, "temperature": 0},
        {"messages": TEXT, "structured_outputs": {"choice": ["a", "b"]}},
        {"messages": TEXT, "logprobs": True, "top_logprobs": 2, "n": 2, "seed": 1},
        {
            "messages": [
                {"role": "system", "content": "s"},
                *TEXT,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}]},
            ],
            "stop": ["x"],
        },
    ),
    "/v1/completions": (
        {"prompt": "def f("},
        {"prompt": ["a", "b"], "stream": True},
        {"prompt": [1, 2, 3], "logprobs": 2, "echo": True},
        {"prompt": [[1, 2], [3]], "n": 2, "best_of": 2, "temperature": 1},
        {"prompt": "x", "structured_outputs": {"regex": "[ab]+"}, "stop_token_ids": [1]},
        {"prompt": "x", "prompt_logprobs": 1, "logit_bias": {"97": 3}, "bad_words": ["a"]},
        {"prompt": "def f(", "suffix": "\n", "fim": {"path": "a.py", "files": [FILE]}, "stop": "x"},
        {"prompt": "x", "min_tokens": 2, "allowed_token_ids": [97, 98], "top_k": 3, "min_p": 0.1},
    ),
    "/infill": (
        {"input_prefix": "def f(", "input_suffix": "):", "n_predict": 4},
        {
            "input_prefix": "a", "prompt": "b", "input_suffix": "c", "stream": True, "n_predict": 4,
            "input_extra": [{"filename": "a.py", "text": "x"}], "samplers": ["top_k", "infill"],
            "t_max_predict_ms": 500, "n_indent": 4, "cache_prompt": True, "n_cmpl": 2,
        },
    ),
    "/v1/responses": (
        {"input": "Hello"},
        {"input": "Hello", "stream": True, "instructions": "i"},
        {"input": [{"role": "user", "content": "x"}], "temperature": 0, "top_logprobs": 1},
        {
            "input": [
                {"type": "message", "role": "user", "content": [INPUT]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "r"},
            ],
            "tools": [TOOL | {"type": "function", "strict": True}],
        },
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": JSON}}},
    ),
    "/v1/messages": (
        {"messages": TEXT},
        {"messages": TEXT, "stream": True, "system": "s"},
        {"messages": TEXT, "tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}},
        {
            "messages": [
                *TEXT,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}],
                },
            ],
            "stop_sequences": ["x"],
            "thinking": {"type": "disabled"},
        },
    ),
    "/v1/messages/count_tokens": (
        {"messages": TEXT},
        {"messages": TEXT, "system": [{"type": "text", "text": "s"}], "tools": [ANTHROPIC_TOOL]},
    ),
    "/tokenize": (
        {"prompt": "x", "return_token_strs": True},
        {"messages": TEXT, "tools": [{"type": "function", "function": TOOL}]},
    ),
    "/detokenize": ({"tokens": [1, 2, 3]}, {"tokens": []}),
}  # fmt: skip
LENGTHS: Final = {"/v1/responses": "max_output_tokens", "/infill": "n_predict"}
EDITORS: Final = tuple(sorted(set().union(*VALID["/infill"])))
"""Fields that llama.cpp's editors send."""
MADE: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/infill", "/v1/responses", "/v1/messages"}
)
"""Routes that make tokens."""

ODD: Final[Sequence[Any]] = (
    None, True, False, 0, -1, 1, 2, 100, 2**31, 2**53, 2**63, 2**64, 2**70, -(2**70), 0.5, -0.0,
    1e308, float("nan"), float("inf"), "", " ", "x", "\x00", "\ud800", "é\u202e\U0001f600" * 20,
    "a" * 5000, "1", "null", "../../etc/passwd", "http://127.0.0.1:9/", "{{ 7 * 7 }}",
    "<|im_end|>", "data:,x", "auto",
    [], [None], [[]], [{}], ["x"] * 200, list(range(300)), [1.5], [-1], [2**40],
    {}, {"": ""}, {"a": {"b": [{}]}}, {"type": "x"}, {"type": "text", "text": 1},
    {"type": "object"}, {"role": "user"}, {"$ref": "#"}, {"$ref": "#/$defs/a"}, {"enum": []},
    {"pattern": "("}, {"minimum": 2**70}, {"grammar": "root ::= root"}, {"regex": "(a+)+$"},
    {"choice": []}, {"json": "{"}, {"structural_tag": "{}"},
    {"max_pattern_size": 5, "min_count": 2},
)  # fmt: skip
HEADERS: Final[Sequence[dict[str, str]]] = (
    {"x-request-id": "é\u00ff"},
    {"x-request-id": "a" * 3000},
    {"x-request-id": ""},
    {"content-type": "text/plain"},
    {"content-type": "application/json; charset=utf-16"},
    {"content-type": ""},
    {"content-encoding": "gzip"},
    {"x-request-timeout-s": "nan"},
    {"x-vllm-priority": "x"},
    {"x-data-parallel-rank": "99"},
    {"traceparent": "00-x"},
    {"accept": "text/html"},
    {"expect": "100-continue"},
)


@dataclass(frozen=True)
class Body:
    number: int
    path: str
    data: bytes
    headers: dict[str, str] = field(default_factory=dict)


def make(number: int, fields: Mapping[str, Sequence[str]], model: str = "tiny") -> Body:
    """Return a request. `fields` are the names that each route's model knows."""
    rng = random.Random(f"{SEED}.{number}")
    path = rng.choice(list(VALID))
    body = copy.deepcopy(rng.choice(VALID[path])) | {"model": model}
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
        rng.choice(CHANGES)(rng, body, fields[path])
    if path in MADE:
        _limit(rng, body, LENGTHS.get(path, "max_tokens"))
    data = json.dumps(body).encode("utf-8", errors="surrogatepass")
    if rng.random() < 0.15:
        data = rng.choice(DAMAGES)(rng, data)
    headers = dict(rng.choice(HEADERS)) if rng.random() < 0.1 else {}
    return Body(number, path, data, headers)


def _limit(rng: random.Random, body: dict[str, Any], name: str) -> None:
    """Keep answers short: the fuzz is about bodies."""
    asked = body.get(name)
    if name not in body or asked is None or (isinstance(asked, int | float) and asked > MAX_TOKENS):
        body[name] = rng.randint(1, MAX_TOKENS)
    elif name == "n_predict" and not (isinstance(asked, int) and asked >= 0):
        body[name] = MAX_TOKENS  # -1: no bound
    if isinstance(body.get("max_completion_tokens"), int):
        body["max_completion_tokens"] = min(MAX_TOKENS, body["max_completion_tokens"])


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside a value."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    found = [(*place, key) for key, _ in inner]
    for key, each in inner:
        found += _places(each, (*place, key))
    return found


def _holder(body: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        body = body[key]
    return body


def _odd(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(ODD))


def _set_field(rng: random.Random, body: dict[str, Any], fields: Sequence[str]) -> None:
    body[rng.choice(list(fields))] = _odd(rng)


def _set_inside(rng: random.Random, body: dict[str, Any], _: Sequence[str]) -> None:
    place = rng.choice(_places(body))
    _holder(body, place)[place[-1]] = _odd(rng)


def _remove(rng: random.Random, body: dict[str, Any], _: Sequence[str]) -> None:
    place = rng.choice(_places(body))
    del _holder(body, place)[place[-1]]


def _add_inside(rng: random.Random, body: dict[str, Any], fields: Sequence[str]) -> None:
    holders = [body, *(_holder(body, place)[place[-1]] for place in _places(body))]
    holder = rng.choice([each for each in holders if isinstance(each, dict)])
    holder[rng.choice([*fields, "type", "role", "content", "strict", "$defs", ""])] = _odd(rng)


def _repeat(rng: random.Random, body: dict[str, Any], _: Sequence[str]) -> None:
    values = [_holder(body, place)[place[-1]] for place in _places(body)]
    lists = [each for each in values if isinstance(each, list) and each]
    if lists:
        chosen = rng.choice(lists)
        chosen += copy.deepcopy(chosen[:1]) * rng.choice((1, 30))


def _nest(rng: random.Random, body: dict[str, Any], _: Sequence[str]) -> None:
    place = rng.choice(_places(body))
    holder = _holder(body, place)
    for _level in range(rng.choice((2, 30, 150))):
        holder[place[-1]] = rng.choice(([holder[place[-1]]], {"a": holder[place[-1]]}))


CHANGES: Final[Sequence[Callable[[random.Random, dict[str, Any], Sequence[str]], None]]] = (
    _set_field, _set_field, _set_field, _set_inside, _set_inside, _remove, _add_inside, _repeat,
    _nest,
)  # fmt: skip


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    piece = rng.choice((b"\0", b"\xff\xfe", b"NaN", b"1e999", b",", b"\xed\xa0\x80", b'"a":1,'))
    return data[:at] + piece + data[at:]


def _wrap(rng: random.Random, data: bytes) -> bytes:
    begin, end = rng.choice(((b"[", b"]"), (b"\xef\xbb\xbf", b""), (b"", b"}"), (b'"', b'"')))
    return begin + data + end


def _double(_: random.Random, data: bytes) -> bytes:
    """Name every top field twice."""
    return data[:-1] + b", " + data[1:]


def _deep(rng: random.Random, data: bytes) -> bytes:
    depth = rng.choice((500, 1000, 5000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return data[:-1] + b', "metadata": ' + opened * depth + b"1" + closed * depth + b"}"


DAMAGES: Final[Sequence[Callable[[random.Random, bytes], bytes]]] = (
    _cut, _flip, _flip, _insert, _insert, _wrap, _double, _deep
)  # fmt: skip
