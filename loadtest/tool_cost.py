"""Cost of tool calls: CPU time per token of our parser and vLLM's, for text and arguments."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qwenfleet.deployments.vllm_adapter.parser_pair import ParserPair

TOKEN_CHARS: Final = 4
"""Characters of a token of code, about."""
TEXT_CHARS: Final = 4_000
ARGUMENT_CHARS: Final = (1_000, 10_000, 40_000)
LEAST_S: Final = 0.2
"""A case is repeated for so long."""
TOOLS: Final[Mapping[str, object]] = {
    "write_file": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "content": {"type": "string"}},
        "required": ["path", "content"],
    }
}
LINE: Final = "if a < b and c > 0:  # the usual line of code\n"


@dataclass(frozen=True)
class Case:
    """An answer in pieces of one token each."""

    name: str
    pieces: tuple[str, ...]
    has_tools: bool = True


@dataclass(frozen=True)
class Cost:
    """CPU seconds per token of each parser, by its name."""

    case: str
    token_s: Mapping[str, float]


def cases() -> Iterator[Case]:
    text = (LINE * (TEXT_CHARS // len(LINE) + 1))[:TEXT_CHARS]
    yield Case("text, no tools in the request", _pieces(text), has_tools=False)
    yield Case("text", _pieces(text))
    for chars in ARGUMENT_CHARS:
        yield Case(f"an argument of {chars // 1000} kB", _call((LINE * chars)[:chars]))


def measure() -> str:
    """Return a table for the docs."""
    return render([cost_of(pair, case) for pair in [_pair()] for case in cases()])


def render(costs: list[Cost]) -> str:
    names = list(costs[0].token_s)
    lines = [f"| answer | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for cost in costs:
        shown = " | ".join(f"{cost.token_s[name] * 1e6:,.1f} us" for name in names)
        lines.append(f"| {cost.case} | {shown} |")
    return "\n".join(lines)


def cost_of(pair: ParserPair, case: Case) -> Cost:
    from qwenfleet.deployments.vllm_adapter.parser_pair import OURS, VLLM

    ids = [pair.tokenizer.encode(piece, add_special_tokens=False) for piece in case.pieces]
    found: dict[str, float] = {}
    for name in (VLLM, OURS):
        tokens, spent_s = 0, 0.0
        while spent_s < LEAST_S:
            feed = pair.feed(name, has_tools=case.has_tools)
            last = len(case.pieces) - 1
            began = time.process_time()
            for index, piece in enumerate(case.pieces):
                feed(piece, ids[index], index == last)
            spent_s += time.process_time() - began
            tokens += len(case.pieces)
        found[name] = spent_s / tokens
    return Cost(case.name, found)


def _pieces(text: str) -> tuple[str, ...]:
    return tuple(text[at : at + TOKEN_CHARS] for at in range(0, len(text), TOKEN_CHARS))


def _call(content: str) -> tuple[str, ...]:
    head = "\n<function=write_file>\n<parameter=path>\na.py\n</parameter>\n<parameter=content>\n"
    tail = "\n</parameter>\n</function>\n"
    return ("<tool_call>", *_pieces(head + content + tail), "</tool_call>")


def _pair() -> ParserPair:
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    from pathlib import Path

    from qwenfleet.cluster.models import sources
    from qwenfleet.deployments.vllm_adapter.parser_pair import ParserPair

    return ParserPair(Path(sources.locate("tiny-qwen3-moe")), TOOLS)
