"""Six streams while a part around the engines is killed, and what the fleet says about it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from qwenfleet.deployments.operations.processes import of_fleet as of_token
from qwenfleet.loadtest import parts
from qwenfleet.loadtest.parts import Part
from tests.loss.observer import Observation, Observer

pytestmark = pytest.mark.integration

STRUCK_S = 8.0
"""How long the six streams run on after the strike, at least, before status is asked."""
SCRIPTED = """
name: doomed
models:
  - id: tiny
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 4096
    replicas: {min: 2}
    script: {num_tokens: 100000, step_s: 0.02}
gateway: {replicas: 1, port: {port}, keep_alive_s: 5}
"""
ENDED_S = 60
"""Time in which a fleet that cannot go on has ended."""


def token_path(fleet) -> Path:
    (token,) = Path(fleet.environment["XDG_STATE_HOME"]).glob("qwenfleet/*.token")
    return token


def processes(fleet, part):
    return parts.of_fleet(token_path(fleet))[part]


def observe(fleet, streams, undisturbed, name, strike):
    """Strike in the middle of the six streams; returns what was seen until full service."""
    observer = Observer(fleet, name, "tiny")
    with streams() as transcripts:
        begin = time.monotonic()
        while min(len(t.times) for n, t in transcripts.items() if n != "tools") < 10:
            assert time.monotonic() < begin + 120, "streams do not start"
            time.sleep(0.05)
        with observer.watching() as seen:
            moment = time.monotonic()
            strike()
            time.sleep(1.0)
            observer.note_status()
            observer.expect_full_service(gateways=2, engines=2)
    whole = {n: t for n, t in transcripts.items() if t.error is None and t.end}
    seen.lost = len(transcripts) - len(whole)
    seen.changed = sum(t.differences(undisturbed[n]) != [] for n, t in whole.items())
    gaps = [t.longest_gap(moment, STRUCK_S) for n, t in whole.items() if n != "tools"]
    seen.gap_s = max(gaps, default=0.0)
    return seen


@pytest.mark.parametrize("part", [Part.CONTROLLER, Part.REGISTRY])
def test_a_part_that_streams_do_not_need(fleet, streams, undisturbed, observed, part):
    (victim,) = processes(fleet, part)
    before = {engine["id"] for engine in fleet.ready("tiny")}
    seen = observe(fleet, streams, undisturbed, f"{part.name.lower()}, SIGKILL", victim.kill)
    observed.append(seen)
    assert (seen.lost, seen.changed) == (0, 0)
    assert {engine["id"] for engine in fleet.ready("tiny")} == before, "engines were replaced"


def test_sigkill_of_both_hosts(fleet, streams, undisturbed, observed):
    def strike():
        for victim in processes(fleet, Part.ENGINE):
            victim.kill()

    seen = observe(fleet, streams, undisturbed, "both engine hosts, SIGKILL", strike)
    observed.append(seen)
    assert (seen.lost, seen.changed) == (0, 0)
    assert any(answer.startswith("503 no_engine") for answer in seen.ready), seen.ready


def test_sigterm_of_a_gateway_lets_its_streams_end(fleet, streams, undisturbed, observed):
    victim = processes(fleet, Part.GATEWAY)[0]
    seen = observe(
        fleet,
        streams,
        undisturbed,
        "gateway, SIGTERM",
        lambda: victim.send_signal(signal.SIGTERM),
    )
    observed.append(seen)
    assert (seen.lost, seen.changed) == (0, 0)


def test_sigkill_of_a_gateway_ends_only_its_own_streams(fleet, streams, undisturbed, observed):
    victim = processes(fleet, Part.GATEWAY)[0]
    seen = observe(fleet, streams, undisturbed, "gateway, SIGKILL", victim.kill)
    observed.append(seen)
    assert seen.lost < 6
    assert seen.changed == 0


def test_sigkill_of_haproxy(fleet, streams, undisturbed, observed):
    victims = processes(fleet, Part.HAPROXY)

    def strike():
        for victim in victims:
            victim.kill()

    seen = observe(fleet, streams, undisturbed, "HAProxy, SIGKILL", strike)
    observed.append(seen)
    assert seen.changed == 0
    assert any("HAProxy" in line for line in seen.log), seen.log


@pytest.mark.parametrize(
    ("name", "status"), [("GCS", 1), ("raylet", 1), ("launcher", -signal.SIGKILL)]
)
def test_a_fleet_that_cannot_go_on_ends(run_fleet, tmp_path, observed, name, status):
    with run_fleet(SCRIPTED, 2, tmp_path, status=status) as fleet:
        token = token_path(fleet)
        observer = Observer(fleet, f"{name}, SIGKILL", "tiny")
        with observer.watching() as seen:
            if name == "launcher":
                fleet.process.kill()
            else:
                processes(fleet, Part[name.upper()])[0].kill()
            time.sleep(1.0)
            observer.note_status()
            fleet.process.wait(ENDED_S)
            give_up_at = time.monotonic() + ENDED_S
            while of_token(token) and time.monotonic() < give_up_at:
                time.sleep(0.2)
        observed.append(seen)
        assert of_token(token) == []
        if name != "launcher":
            assert any(name in line for line in seen.log), seen.log


@pytest.fixture(scope="module")
def head(run_program, tmp_path_factory):
    return run_program("tests.loss.head", tmp_path_factory.mktemp("head"))


def test_streams_outlive_the_head_of_their_cluster(head, observed):
    seen = Observation("head of two nodes (streams on the other one)", gap_s=head["gap_s"])
    seen.lost = sum(end != "data: [DONE]" for end in head["ends"])
    seen.changed = len(set(head["texts"])) - 1
    observed.append(seen)
    assert (seen.lost, seen.changed) == (0, 0)


def test_calls_to_a_lost_head_keep_one_thread_each(head):
    """At one call per second that times out after five, a leak would add six threads in 30 s."""
    for process, threads in head["threads"].items():
        assert max(threads) <= threads[0] + 3, (process, threads)
