"""The benchmark of tool calls compares both parsers on the same answers."""

from __future__ import annotations

import os
import re
import warnings

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from qwenfleet.deployments.vllm_adapter import parser_pair

from qwenfleet.loadtest import tool_cost


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_parsers_find_the_call_and_have_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_cost, "LEAST_S", 1e-9)
    monkeypatch.setattr(tool_cost, "ARGUMENT_CHARS", (1_000,))
    table = tool_cost.measure().splitlines()
    assert table[0] == f"| answer | {parser_pair.VLLM} | {parser_pair.OURS} |"
    assert len(table) == 5
    assert all(re.search(r"\d us \| [\d.,]+\d us \|$", line) for line in table[2:])
    pair = tool_cost._pair()
    case = list(tool_cost.cases())[-1]
    for name in (parser_pair.VLLM, parser_pair.OURS):
        feed = pair.feed(name, has_tools=True)
        deltas = [
            feed(piece, list(piece.encode()), index == len(case.pieces) - 1)
            for index, piece in enumerate(case.pieces)
        ]
        calls = [call for delta in deltas if delta is not None for call in delta.tool_calls]
        assert calls[0].function.name == "write_file"
        arguments = "".join(call.function.arguments or "" for call in calls)
        assert tool_cost.LINE.strip() in arguments
        assert arguments.endswith('"}')
