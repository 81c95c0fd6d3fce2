"""The benchmark of streamed chats compares both parsers in fleets that are otherwise equal."""

from __future__ import annotations

import json

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import BenchmarkError
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.loadtest import client, servers, tool_streams
from qwenfleet.loadtest.tool_streams import CASES, PARSERS, Cost


def test_a_row_has_both_parsers_and_their_ratio() -> None:
    costs = [
        Cost(parser, case, token_s, 1000.0)
        for parser, token_s in zip(PARSERS, (200e-6, 100e-6), strict=True)
        for case in CASES
    ]
    lines = tool_streams.render(costs).splitlines()
    assert lines[2] == "| chat without tools | 200 us | 100 us | 0.50 |"
    assert len(lines) == 2 + len(CASES)


def test_the_fleets_differ_in_their_parser_only() -> None:
    fleets = [
        FleetConfig.model_validate(tool_streams._config(parser)) for parser in PARSERS.values()
    ]
    parsers = [fleet.models[0].tool_call_parser for fleet in fleets]
    assert parsers == ["qwen3_xml", "qwen3_coder"]
    one, other = (fleet.models[0].model_copy(update={"tool_call_parser": None}) for fleet in fleets)
    assert one == other


def test_a_chat_has_tools_only_if_the_case_has() -> None:
    bodies = [
        json.loads(client.chat(servers.MODEL, max_tokens=8, tools=tools))
        for tools in CASES.values()
    ]
    assert ["tools" in body for body in bodies] == [False, True]
    assert {body["max_tokens"] for body in bodies} == {8}


async def test_a_stream_that_fails_is_no_result() -> None:
    (port,) = free_ports(1, "127.0.0.1")
    with pytest.raises(BenchmarkError, match="a stream failed"):
        await tool_streams._measure(f"http://127.0.0.1:{port}", "x", "y", (), 0.01)
