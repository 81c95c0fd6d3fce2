"""Rows: what was seen during each attack, as a table, alone or next to an earlier run.

Each run writes its rows to build/hostile.json. `python -m tests.hostile.report BEFORE AFTER` prints
the table of two such files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.hostile.window import Window

FILE = Path(__file__).resolve().parents[2] / "build" / "hostile.json"


class Row(msgspec.Struct):
    name: str
    answers: dict[str, int]
    """How often the hostile client got each answer."""
    slowest_s: float
    """Its longest wait for one."""
    seen: Window
    moved: int
    gateway_mb: float
    """Growth of the gateway's memory, at most."""
    host_mb: float
    """Growth of the memory of the engine host that grew most."""
    calm_s: float
    """Time from the last answer until bystanders were served as before; -1: not in time."""
    faults: list[str]


def keep(rows: Sequence[Row]) -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(list(rows))))


def table(rows: Sequence[Row]) -> str:
    """Render one run."""
    lines = [
        "| hostile request | answers | worst probe, same model, s | streams moved, lost, changed "
        "| longest gap, s | gateway, engine host: MB more | calm after, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {_answers(row)} | {_worst(row)} | {_streams(row)} "
            f"| {row.seen.gap_s:.1f} | {row.gateway_mb:.0f}, {row.host_mb:.0f} | {_calm(row)} |"
        )
    return "\n".join(lines)


def compare(before: Sequence[Row], after: Sequence[Row]) -> str:
    """Render two runs; the attacks of the second one decide the rows."""
    earlier = {row.name: row for row in before}
    lines = [
        "| hostile request | answers | worst probe, same model, s | streams moved, lost, changed "
        "| gateway, engine host: MB more |",
        "|---|---|---|---|---|",
    ]
    for row in after:
        old = earlier.get(row.name)
        cells = [
            f"{'-' if old is None else show(old)} → {show(row)}"
            for show in (_answers, _worst, _streams, _memory)
        ]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _answers(row: Row) -> str:
    counted = sorted(row.answers.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count} x {what}" if count > 1 else what for what, count in counted)


def _worst(row: Row) -> str:
    refused = sum(row.seen.refused.values())
    waits = f"{row.seen.worst_probe_s:.1f}, {row.seen.worst_neighbor_s:.1f}"
    return waits + (f" ({refused} refused)" if refused else "")


def _streams(row: Row) -> str:
    return f"{row.moved}, {len(row.seen.lost)}, {row.seen.changed}"


def _memory(row: Row) -> str:
    return f"{row.gateway_mb:.0f}, {row.host_mb:.0f}"


def _calm(row: Row) -> str:
    return "never" if row.calm_s < 0 else f"{row.calm_s:.0f}"


def _read(path: str) -> list[Row]:
    return msgspec.json.decode(Path(path).read_bytes(), type=list[Row])


if __name__ == "__main__":
    print(compare(_read(sys.argv[1]), _read(sys.argv[2])))
