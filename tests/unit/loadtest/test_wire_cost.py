"""What a frame costs: each number is measured on a real connection."""

from __future__ import annotations

import re

import pytest

from qwenfleet.loadtest import __main__ as loadtest
from qwenfleet.loadtest import wire_cost


def test_every_size_of_frame_has_a_row_and_small_frames_pass_large_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wire_cost, "FRAMES", 5)
    monkeypatch.setattr(wire_cost, "TOKENS", 200_000)
    assert loadtest.main(["wire"]) == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \|$", printed, re.MULTILINE)
    assert [int(streams) for streams, _, _ in rows] == [1, 20, 200]
    assert all(float(cpu_us) > 0 for _, _, cpu_us in rows)
    found = re.search(r"after ([\d.]+) ms if 8 prompts of 0.2M .* took (\d+) ms", printed)
    assert found is not None
    assert float(found[1]) < float(found[2])
