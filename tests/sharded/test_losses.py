"""A rank dies: its engine goes with it, whole and alone, and the streams go on in a pool of another
layout."""

from __future__ import annotations

import re
import time

import psutil
import pytest

pytestmark = pytest.mark.integration

TOKENS = 1000
LESS_THAN_GRACE = "5.0"
"""Seconds. Ranks that wait for a dead one inside a collective get twice 4 s from vLLM, by which a
loss must not be delayed."""
AFTERMATH_S = 5
"""A gap that a loss opens begins in this time; later a new engine loads on the same cores."""
BURSTS = {"tools"}
"""vLLM's tool parser waits for whole parameters: this stream has gaps of its own."""


@pytest.fixture(scope="module")
def streams(mixed, running_streams):
    return lambda: running_streams(mixed.url, "tiny", TOKENS)


@pytest.fixture(scope="module")
def undisturbed(streams):
    with streams() as transcripts:
        pass
    return dict(transcripts)


def total(fleet, metric, label=""):
    pattern = rf"^ray_{metric}\{{[^}}]*{label}[^}}]*\}} ([\d.e+]+)$"
    return sum(map(float, re.findall(pattern, fleet.metrics(), re.MULTILINE)))


def resumes(fleet):
    return total(fleet, "qwenfleet_resumes_total")


@pytest.mark.parametrize(
    ("pool", "title"), [("tp2-ep", "Worker_TP1"), ("dp2-ep", "EngineCore_DP1")]
)
def test_streams_outlive_a_rank(mixed, streams, undisturbed, gaps, expect, pool, title):
    (engine,) = [engine for engine in mixed.ready("tiny") if engine["pool"] == pool]
    (other,) = [engine for engine in mixed.ready("tiny") if engine["pool"] != pool]
    family = psutil.Process(engine["pid"]).children(recursive=True)
    before = resumes(mixed)
    (victim,) = [process for process in family if title in " ".join(process.cmdline())]

    with streams() as transcripts:
        begin = time.monotonic()
        while min(len(t.times) for name, t in transcripts.items() if name not in BURSTS) < 10:
            assert time.monotonic() < begin + 120, "streams do not start"
            time.sleep(0.02)
        moment = time.monotonic()
        victim.kill()
    for name, transcript in transcripts.items():
        assert transcript.error is None, (name, transcript.error)
        assert transcript.differences(undisturbed[name]) == [], name

    longest = max(
        transcript.longest_gap(moment, AFTERMATH_S)
        for name, transcript in transcripts.items()
        if name not in BURSTS
    )
    gaps.setdefault(f"SIGKILL of {title}", []).append(longest)
    mixed.expect_ready("tiny", 2, without=engine["id"])
    assert other["id"] in {engine["id"] for engine in mixed.ready("tiny")}, "it lives on"
    assert not any(process.is_running() for process in family)
    expect(lambda: resumes(mixed) > before, 60, "resumes are counted")
    gap = "qwenfleet_resume_gap_seconds"
    assert total(mixed, f"{gap}_bucket", f'le="{LESS_THAN_GRACE}"') == total(mixed, f"{gap}_count")
