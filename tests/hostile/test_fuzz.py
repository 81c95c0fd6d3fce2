"""2,000 bodies over all routes: each is answered, none with a fault of the fleet."""

from __future__ import annotations

import ast
import asyncio
import json
import os
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest

from qwenfleet.deployments.ingress import infill
from tests.hostile import bodies, report
from tests.hostile.senders import Answer, Site, request, session
from tests.hostile.test_cases import ECHO_BYTES, harm, settle
from tests.hostile.window import Window

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

BODIES = int(os.environ.get("HOSTILE_BODIES", "2000"))
CLIENTS = 8
ANSWER_S = 60.0
"""A body that is not answered by then hangs; other bodies may be in front of it."""
SHOWN = 12
MODELS = {
    "/v1/chat/completions": ("openai/chat_completion/protocol.py", "ChatCompletionRequest"),
    "/v1/completions": ("openai/completion/protocol.py", "CompletionRequest"),
    "/v1/responses": ("openai/responses/protocol.py", "ResponsesRequest"),
    "/v1/messages": ("anthropic/protocol.py", "AnthropicMessagesRequest"),
    "/v1/messages/count_tokens": ("anthropic/protocol.py", "AnthropicCountTokensRequest"),
    "/tokenize": (
        "serve/tokenize/protocol.py",
        "TokenizeCompletionRequest",
        "TokenizeChatRequest",
    ),
    "/detokenize": ("serve/tokenize/protocol.py", "DetokenizeRequest"),
}
"""The file and the classes of each route's requests in vLLM 0.32's entrypoints."""


@pytest.fixture(scope="session")
def fields() -> dict[str, list[str]]:
    """The fields of each route's models, from the text of the installed vLLM: no import of it."""
    vllm = find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    entrypoints = Path(vllm.origin).parent / "entrypoints"
    assert bodies.VALID.keys() == MODELS.keys() | {"/infill"}
    known = {
        path: sorted(set().union(*(fields_of(entrypoints / file, name) for name in names)))
        for path, (file, *names) in MODELS.items()
    }
    known["/infill"] = sorted({*infill.UNABLE, *infill.SAMPLING, *infill.CARRIED, *bodies.EDITORS})
    known["/v1/completions"].append("fim")
    return known


def fields_of(file: Path, name: str) -> set[str]:
    """Return the annotated names of a class, but for its model's."""
    (found,) = [
        each
        for each in ast.parse(file.read_text()).body
        if isinstance(each, ast.ClassDef) and each.name == name
    ]
    lines = [each for each in found.body if isinstance(each, ast.AnnAssign)]
    names = {each.target.id for each in lines if isinstance(each.target, ast.Name)}
    assert names
    return names - {"model"}


def fault_of(body: bodies.Body, answer: Answer) -> str:
    """Return what is wrong with an answer; empty if it is right."""
    if answer.status == 0 or answer.status >= 500 or answer.verdict.startswith("200 then"):
        return answer.verdict
    if answer.status >= 400 and answer.size_bytes > ECHO_BYTES:
        return f"{answer.status} of {answer.size_bytes} bytes"
    if answer.status >= 400 and not is_in_the_apis_shape(body.path, answer):
        return f"{answer.status} in another API's shape"
    return ""


def is_in_the_apis_shape(path: str, answer: Answer) -> bool:
    try:
        answered = json.loads(answer.head)
        error = answered["error"]
        is_anthropic = path.startswith("/v1/messages")
        shape = answered.get("type") == "error" if is_anthropic else "code" in error
        return shape and isinstance(error["type"], str) and len(error["message"]) > 0
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


async def ask_all(site: Site, made: list[bodies.Body]) -> list[Answer]:
    """Send all bodies in their order, a few at the same time."""
    answers: dict[int, Answer] = {}
    left = iter(made)

    async def client() -> None:
        for body in left:
            answers[body.number] = await request(
                site, http, body.path, body.data, body.headers, limit_s=ANSWER_S
            )

    async with session() as http:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return [answers[body.number] for body in made]


def described(faults: dict[tuple[str, str], list[tuple[bodies.Body, Answer]]]) -> str:
    """One line for each kind of fault, with the number and the begin of its shortest body."""
    lines = []
    for (path, fault), found in sorted(faults.items(), key=lambda pair: -len(pair[1]))[:SHOWN]:
        body, answer = min(found, key=lambda pair: len(pair[0].data))
        lines.append(
            f"{len(found)} x {path} {fault}, such as number {body.number}: "
            f"{body.data[:300]!r} {str(body.headers)[:60]}\n    {answer.head[:200]!r}"
        )
    return "\n".join(lines)


def test_every_body_is_answered_and_no_part_of_the_fleet_is_lost(
    fields, site, crowd, machinery, gateway_log, memory, rows
):
    made = [bodies.make(number, fields) for number in range(BODIES)]
    before = machinery.pids
    crowd.mark()
    growth = memory(machinery)
    answers = asyncio.run(ask_all(site, made))
    seen, calm_s = settle(crowd, Window())
    gateway_mb, host_mb = growth.end()
    moved = gateway_log.count("request resumed", "quiet")
    faults = defaultdict(list)
    for body, answer in zip(made, answers, strict=True):
        if fault := fault_of(body, answer):
            faults[body.path, fault].append((body, answer))
    verdicts = Counter(answer.verdict for answer in answers)
    suffered = harm(seen)
    slowest_s = max(answer.took_s for answer in answers)
    name = f"{BODIES:,} fuzzed bodies"
    rows.append(
        report.Row(name, verdicts, slowest_s, seen, moved, gateway_mb, host_mb, calm_s, suffered)
    )
    report.keep(rows)
    assert not faults, described(faults)
    assert machinery.pids == before, "an engine or the gateway was lost"
    assert suffered == []
    assert moved == 0
    assert verdicts["200"] > BODIES / 5, "most bodies do not reach an engine"


def test_the_same_number_makes_the_same_body(fields):
    assert [bodies.make(n, fields) for n in range(50)] == [
        bodies.make(n, fields) for n in range(50)
    ]
