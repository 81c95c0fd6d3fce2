"""CPU of a gateway for each token of streamed chats, with vLLM's parser of tool calls and ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenfleet.cluster.errors import BenchmarkError
from qwenfleet.loadtest import client, process_tree, servers
from qwenfleet.loadtest.client import Answer
from qwenfleet.loadtest.overhead import Say, workspace
from qwenfleet.loadtest.tool_cost import LINE, TOOLS

PARSERS: Final[Mapping[str, str]] = {"vLLM 0.32": "qwen3_xml", "qwenfleet": "qwen3_coder"}
"""Names in a table, and in a configuration: `qwen3_xml` is vLLM's own for the same dialect."""
STREAMS: Final = 32
MAX_TOKENS: Final = 256
STEP_S: Final = 0.01
FUNCTIONS: Final = tuple(
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in TOOLS.items()
)
CASES: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "chat without tools": (),
    "chat with a tool, text": FUNCTIONS,
}


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the gateway per token of one case with one parser."""

    parser: str
    case: str
    token_s: float
    tokens_per_s: float


def measure(*, seconds: float, say: Say) -> list[Cost]:
    """Measure each parser in a fleet of its own. Raises BenchmarkError if one does not start, or
    if a stream fails."""
    process_tree.adopt_orphans()
    costs = []
    for name, parser in PARSERS.items():
        with (
            workspace() as directory,
            servers.configured_fleet("fleet", directory, _config(parser)) as server,
        ):
            for case, tools in CASES.items():
                costs.append(asyncio.run(_measure(server.url, name, case, tools, seconds)))
                say(f"{name}, {case}: {costs[-1].token_s * 1e6:.0f} us per token")
    return costs


def render(costs: Sequence[Cost]) -> str:
    """Render a Markdown table with one row per case."""
    names = list(PARSERS)
    found = {(cost.case, cost.parser): cost for cost in costs}
    lines = [
        f"| gateway's CPU per streamed token | {' | '.join(names)} | ratio |",
        f"|---|{'---:|' * (len(names) + 1)}",
    ]
    for case in CASES:
        times_s = [found[case, name].token_s for name in names]
        shown = " | ".join(f"{one_s * 1e6:.0f} us" for one_s in times_s)
        lines.append(f"| {case} | {shown} | {times_s[-1] / times_s[0]:.2f} |")
    return "\n".join(lines)


async def _measure(
    url: str, parser: str, case: str, tools: Sequence[Mapping[str, Any]], seconds: float
) -> Cost:
    body = client.chat(servers.MODEL, max_tokens=MAX_TOKENS, tools=tools)
    async with client.session(STREAMS) as http:

        async def stream_until(stop_at: float) -> list[Answer]:
            answers: list[Answer] = []
            while not answers or time.perf_counter() < stop_at:
                path = "/v1/chat/completions"
                answers.append(await client.ask(http, url, body, is_stream=True, path=path))
            return answers

        await stream_until(0.0)
        before_s, began = _gateway_s(), time.perf_counter()
        lists = await asyncio.gather(*(stream_until(began + seconds) for _ in range(STREAMS)))
        spent_s, elapsed_s = _gateway_s() - before_s, time.perf_counter() - began
    answers = [answer for found in lists for answer in found]
    for answer in answers:
        if answer.error:
            raise BenchmarkError(f"a stream failed: {answer.error}", "Run it on an idle machine.")
    tokens = sum(answer.tokens for answer in answers)
    return Cost(parser, case, spent_s / tokens, tokens / elapsed_s)


def _config(parser: str) -> dict[str, object]:
    model = {
        "id": servers.MODEL,
        "engine": "scripted",
        "max_model_len": servers.MAX_MODEL_LEN,
        "tool_call_parser": parser,
        "script": {"step_s": STEP_S, "num_tokens": MAX_TOKENS, "tokens": list(LINE.encode())},
    }
    return {"models": [model], "gateway": {"replicas": 1}}


def _gateway_s() -> float:
    found = process_tree.cpu_s_by(lambda command: "gateway" if ":gateway" in command else "")
    return found.get("gateway", 0.0)
