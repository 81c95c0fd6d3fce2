"""Whatever happens to an engine, six streams of six kinds end as if nothing had happened."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

pytestmark = pytest.mark.integration

REPETITIONS = int(os.environ.get("LOSS_REPETITIONS", "20"))
AFTERMATH_S = 5
"""A gap that a loss opens begins in this time; later a new engine loads on the same cores."""
FREEZE_S = 7
"""Beyond what it takes to notice a frozen process; its streams run on elsewhere by then."""
BURSTS = {"tools"}
"""vLLM's tool parser waits for whole parameters: this stream has gaps of its own."""


class Victim:
    """One engine and its processes. Asked for before there is load: two engines at work leave two
    cores no time to answer."""

    def __init__(self, engine):
        self.id = engine["id"]
        self.host = psutil.Process(engine["pid"])
        self.family = self.host.children(recursive=True)

    def process(self, role):
        if role == "host":
            return self.host
        wanted = {"core": "EngineCore", "worker": "Worker"}[role]
        (found,) = [p for p in self.family if wanted in " ".join(p.cmdline())]
        return found


def expect_same(transcripts, undisturbed):
    for name, transcript in transcripts.items():
        assert transcript.error is None, (name, transcript.error)
        assert transcript.differences(undisturbed[name]) == [], name


def disturb(streams, undisturbed, strike, within_s=AFTERMATH_S):
    """Run the six streams, strike in the middle; the longest gap of any of them."""
    with streams() as transcripts:
        begin = time.monotonic()
        while min(len(t.times) for name, t in transcripts.items() if name not in BURSTS) < 10:
            assert time.monotonic() < begin + 120, "streams do not start"
            time.sleep(0.02)
        moment = time.monotonic()
        strike()
    expect_same(transcripts, undisturbed)
    return max(
        transcript.longest_gap(moment, within_s)
        for name, transcript in transcripts.items()
        if name not in BURSTS
    )


def test_undisturbed_streams_are_long_and_repeat_themselves(streams, undisturbed, gaps):
    for name, transcript in undisturbed.items():
        assert transcript.error is None, (name, transcript.error)
        assert len(transcript.times) > 60, (name, transcript)
        assert transcript.end in {"data: [DONE]", "message_stop"}
    gap = disturb(streams, undisturbed, lambda: None)
    gaps.setdefault("nothing, for comparison", []).append(gap)


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_sigkill_of_a_host(fleet, streams, undisturbed, gaps, repetition):
    victim = Victim(fleet.ready("tiny")[repetition % 2])
    gap = disturb(streams, undisturbed, victim.host.kill)
    gaps.setdefault("SIGKILL of the host", []).append(gap)
    fleet.expect_ready("tiny", 2, without=victim.id)
    assert not any(process.is_running() for process in victim.family)


@pytest.mark.parametrize("role", ["core", "worker"])
def test_sigkill_of_a_core_or_worker(fleet, streams, undisturbed, gaps, role):
    victim = Victim(fleet.ready("tiny")[0])
    gap = disturb(streams, undisturbed, victim.process(role).kill)
    gaps.setdefault(f"SIGKILL of the {role}", []).append(gap)
    fleet.expect_ready("tiny", 2, without=victim.id)
    assert not any(process.is_running() for process in victim.family)


@pytest.mark.parametrize("role", ["core", "worker", "host"])
def test_a_zombie_wakes_and_adds_nothing(fleet, streams, undisturbed, gaps, role):
    victim = Victim(fleet.ready("tiny")[0])
    frozen = victim.process(role)

    def freeze_for_a_while():
        frozen.suspend()
        threading.Timer(FREEZE_S, frozen.resume).start()

    gap = disturb(streams, undisturbed, freeze_for_a_while)
    gaps.setdefault(f"SIGSTOP of the {role}", []).append(gap)
    fleet.expect_ready("tiny", 2)
    assert victim.id in {engine["id"] for engine in fleet.ready("tiny")}, "it lives on"
    fleet.expect_idle("tiny")
    with streams() as transcripts:
        pass
    expect_same(transcripts, undisturbed)


def test_an_operator_drains_an_engine(fleet, streams, undisturbed, gaps):
    engine = fleet.ready("tiny")[0]["id"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(fleet.cli, "drain", engine)  # it takes seconds to import Ray
        while not answer.done():
            gap = disturb(streams, undisturbed, lambda: None, within_s=30)
        answer = answer.result()
    assert answer.returncode == 0, answer.stderr
    assert f"{engine} stopped" in answer.stdout
    gaps.setdefault("`qwenfleet drain`", []).append(gap)
    fleet.expect_ready("tiny", 2, without=engine)
