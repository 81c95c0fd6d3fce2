"""Renders the overhead benchmark's results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from qwenfleet.loadtest.cases import Case
from qwenfleet.loadtest.overhead import Results

BASELINE = "vllm"


def render(results: Results) -> str:
    """Render one table per server, compared with vLLM's own."""
    by_server: dict[str, list[Case]] = {}
    for case in results.cases:
        by_server.setdefault(case.server, []).append(case)
    baseline = by_server.pop(BASELINE, [])
    tables = [_table(name, baseline, theirs) for name, theirs in by_server.items()]
    idle = ", ".join(f"{name} {ms:.0f}" for name, ms in results.idle_cpu_ms_per_s.items())
    return "\n\n".join(
        [*tables, f"Medians of {results.runs} runs. CPU without a request, ms per second: {idle}."]
    )


def _table(name: str, baseline: Sequence[Case], theirs: Sequence[Case]) -> str:
    rows = [
        f"| answer | tokens | c | requests/s: {BASELINE} | {name} | ratio "
        f"| TTFT p50, ms: {BASELINE} | {name} | added "
        f"| CPU, ms per request: {BASELINE} | {name} | added | errors |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    known = {case.load: case for case in baseline}
    for case in theirs:
        base = known.get(case.load)
        if base is not None:
            rows.append(_row(base, case))
    return "\n".join(rows)


def _row(base: Case, case: Case) -> str:
    ratio = f"{case.requests_per_s / base.requests_per_s:.2f}" if base.requests_per_s else "-"
    cells = [
        "streamed" if case.stream else "whole",
        str(case.max_tokens),
        str(case.concurrency),
        f"{base.requests_per_s:.1f}",
        f"{case.requests_per_s:.1f}",
        ratio,
        *_pair(base.ttft_p50_ms, case.ttft_p50_ms),
        *_pair(base.cpu_ms_per_request, case.cpu_ms_per_request),
        str(base.errors + case.errors),
    ]
    return f"| {' | '.join(cells)} |"


def _pair(base: float | None, value: float | None) -> list[str]:
    """Format both values and the difference."""
    if base is None or value is None:
        return [*("-" if v is None else f"{v:.1f}" for v in (base, value)), "-"]
    return [f"{base:.1f}", f"{value:.1f}", f"{value - base:+.1f}"]
