"""Throughput of 1, 2 and 4 gateways with scripted engines, whose tokens cost almost no CPU."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from qwenfleet.loadtest import cases, process_tree, servers
from qwenfleet.loadtest.cases import Case
from qwenfleet.loadtest.closed_loop import ClosedLoop
from qwenfleet.loadtest.overhead import SEED, Say, workspace

GATEWAYS: Final = (1, 2, 4)
ENGINES: Final = 2
LOAD: Final = ClosedLoop(is_stream=True, max_tokens=256, concurrency=64)
STEP_S: Final = 0.004
"""32 streams on each engine make 8,000 tokens per second, more than a gateway can handle."""
KINDS: Final = {"gateway": ":gateway", "engine": ":engine-", "haproxy": "haproxy"}
"""Text in the command line of each kind of process."""


@dataclass(frozen=True)
class Point:
    """The measurement of one number of gateways."""

    gateways: int
    case: Case
    cores: dict[str, float]
    """Cores used by each kind of process, including this client."""

    def as_json(self) -> dict[str, Any]:
        return {"gateways": self.gateways, "cores": self.cores, **asdict(self.case)}


def measure(gateways: Sequence[int], *, seconds: float, say: Say) -> list[Point]:
    """Measure each number of gateways. Raises BenchmarkError if a fleet does not start."""
    process_tree.adopt_orphans()
    points = []
    for count in gateways:
        with (
            workspace() as directory,
            servers.configured_fleet("fleet", directory, _config(count)) as server,
        ):
            points.append(_measure_one(server, count, seconds))
            say(f"{count} gateways: {points[-1].case.tokens_per_s:.0f} tokens/s")
    return points


def render(points: Sequence[Point]) -> str:
    """Render a Markdown table with one row per number of gateways."""
    kinds = list(points[0].cores) if points else []
    rows = [
        "| gateways | tokens/s | TTFT p50, ms | latency p99, ms | errors "
        f"| {' | '.join(f'cores: {kind}' for kind in kinds)} | tokens/s per gateway core |",
        f"|---|---|---|---|---{'|---' * len(kinds)}|---|",
    ]
    for point in points:
        case = point.case
        cells = [
            str(point.gateways),
            f"{case.tokens_per_s:.0f}",
            *("-" if ms is None else f"{ms:.0f}" for ms in (case.ttft_p50_ms, case.latency_p99_ms)),
            str(case.errors),
            *(f"{point.cores[kind]:.2f}" for kind in kinds),
            f"{case.tokens_per_s / max(point.cores['gateway'], 1e-9):.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _config(gateways: int) -> dict[str, object]:
    model = {
        "id": servers.MODEL,
        "engine": "scripted",
        "replicas": {"min": ENGINES},
        "max_model_len": servers.MAX_MODEL_LEN,
        "script": {"step_s": STEP_S, "num_tokens": LOAD.max_tokens},
    }
    return {"models": [model], "gateway": {"replicas": gateways}}


def _measure_one(server: servers.Server, gateways: int, seconds: float) -> Point:
    before, client_s, started_at = _cpu_s_by_kind(), time.process_time(), time.monotonic()
    sample = servers.load(server, LOAD, seconds, random.Random(SEED))
    elapsed_s = time.monotonic() - started_at
    after = _cpu_s_by_kind()
    cores = {kind: (after[kind] - before[kind]) / elapsed_s for kind in after}
    cores["client"] = (time.process_time() - client_s) / elapsed_s
    return Point(gateways, cases.measured(server.name, LOAD, sample), cores)


def _cpu_s_by_kind() -> dict[str, float]:
    def kind_of(command: str) -> str:
        return next((kind for kind, mark in KINDS.items() if mark in command), "other")

    return dict.fromkeys((*KINDS, "other"), 0.0) | process_tree.cpu_s_by(kind_of)
