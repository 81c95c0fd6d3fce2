"""Judgments on ports in use, and on what is reachable without a token or a key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwenfleet.cluster.doctor import exposure
from qwenfleet.cluster.doctor.finding import Finding, Level, Subject
from qwenfleet.cluster.doctor.listeners import Listener, Listening, Ports
from qwenfleet.cluster.local.programs import NO_OWNER, Owner

FREE = Ports("127.0.0.1", 8000, None)
TAKEN = replace(FREE, refusal=("port 8000 on 127.0.0.1 is in use by x", "Stop it."))
DEMO = Owner("demo", 100)
OTHER = Owner(session="session_2026-11-22_17-26-45_445157_200")
OF_FLEET = (
    Listener("127.0.0.1", 8000, 120, "haproxy", "ann", DEMO, "token", is_keyless_http=True),
    Listener("0.0.0.0", 13922, 120, "haproxy", "ann", DEMO, "token"),
    Listener("::", 38957, 110, "gcs_server", "ann", DEMO, "token"),
    Listener("::", 43217, 112, "ServeController", "ann", DEMO, "token"),
)
GCS = Listener("::", 6379, 210, "gcs_server", "bob", OTHER, "token")
SSH = Listener("0.0.0.0", 22, 300, "sshd", "root")


def only(findings: list[Finding], level: Level) -> str:
    (finding,) = findings
    assert finding.level is level, finding
    return f"{finding.sentence}. {finding.remedy}"


def judged(*listeners: Listener, own: Owner = NO_OWNER) -> list[Finding]:
    return exposure.judge_listeners(Listening(listeners, own))


def test_free_ports_are_ok() -> None:
    assert "8000" in only(exposure.judge_ports(FREE, None), Level.OK)


def test_another_program_on_the_default_port_is_a_problem() -> None:
    assert "by x" in only(exposure.judge_ports(TAKEN, None), Level.PROBLEM)
    stranger = Listening((replace(GCS, port=8000),))
    assert "by x" in only(exposure.judge_ports(TAKEN, stranger), Level.PROBLEM)


def test_a_fleet_on_the_default_port_is_a_note_and_ok_on_its_own_node() -> None:
    listening = Listening(OF_FLEET, own=DEMO)
    reported = only(exposure.judge_ports(TAKEN, listening), Level.NOTE)
    assert "'demo' (pid 100)" in reported
    assert "--port" in reported
    assert only(exposure.judge_ports(TAKEN, listening, is_node=True), Level.OK)


def test_another_program_on_a_nodes_port_is_a_note() -> None:
    assert only(exposure.judge_ports(TAKEN, None, is_node=True), Level.NOTE)


@pytest.mark.parametrize(
    "listeners",
    [(), OF_FLEET, (GCS,), (SSH,), (replace(GCS, auth_mode=""),)],
    ids=["none", "a fleet on loopback", "Ray with a token", "another program", "unseen"],
)
def test_listeners_that_are_protected_or_not_ours_are_ok(listeners: tuple[Listener, ...]) -> None:
    assert only(judged(*listeners), Level.OK)


def test_http_without_a_key_is_one_note_for_ipv4_and_ipv6() -> None:
    proxy = replace(OF_FLEET[0], address="0.0.0.0")
    reported = only(judged(proxy, replace(proxy, address="::"), *OF_FLEET[1:]), Level.NOTE)
    assert reported.startswith(
        "your fleet 'demo' (pid 100) answers HTTP requests from other machines on port 8000 "
        "without a key. "
    )
    assert "`qwenfleet keys new`" in reported
    assert only(judged(replace(proxy, is_keyless_http=False)), Level.OK)


@pytest.mark.parametrize("own", [NO_OWNER, OTHER])
def test_a_ray_cluster_without_a_token_is_one_note(own: Owner) -> None:
    open_gcs = replace(GCS, auth_mode="disabled")
    raylet = replace(open_gcs, port=6380, pid=211, program="raylet")
    (finding,) = judged(raylet, open_gcs, own=own)
    assert (finding.level, finding.subject) == (Level.NOTE, Subject.RAY)
    assert finding.sentence == (
        f"the Ray cluster of {OTHER.session} accepts connections from other machines without a "
        "token (gcs_server on port 6379, pid 210, user bob; RAY_AUTH_MODE is disabled)"
    )
    assert "RAY_AUTH_MODE=token" in finding.remedy
    on_loopback = [replace(x, address="127.0.0.1") for x in (raylet, open_gcs)]
    assert only(judged(*on_loopback, own=own), Level.OK)
