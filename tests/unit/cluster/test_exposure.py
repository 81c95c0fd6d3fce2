"""Judgements on ports and listeners."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwenfleet.cluster import exposure
from qwenfleet.cluster.finding import Finding, Level, Subject
from qwenfleet.cluster.listeners import Listener, Listening, Ports
from qwenfleet.cluster.programs import NOBODY, Owner

FREE = Ports("127.0.0.1", 8000, None, None, range(32768, 61000))
TAKEN = replace(FREE, refusal=("port 8000 on 127.0.0.1 is in use by x", "Stop it."))
DEMO = Owner("demo", 100)
OTHER = Owner(session="session_2026-11-22_17-26-45_445157_200")
OF_FLEET = (
    Listener("127.0.0.1", 8000, 120, "haproxy", "ann", DEMO),
    Listener("0.0.0.0", 13922, 120, "haproxy", "ann", DEMO, counters="HAProxy's statistics"),
    Listener("::", 38957, 110, "gcs_server", "ann", DEMO, "token"),
    Listener("::", 41945, 111, "raylet", "ann", DEMO, "token"),
    Listener("::", 43217, 112, "ServeController", "ann", DEMO, "token"),
)
GCS = Listener("::", 6379, 210, "gcs_server", "bob", OTHER, "token")
SSH = Listener("0.0.0.0", 22, 300, "sshd", "root")


def only(findings: list[Finding], level: Level) -> str:
    (finding,) = findings
    assert finding.level is level, finding
    return f"{finding.sentence}. {finding.way_out}"


def judged(*listeners: Listener, own: Owner = NOBODY) -> list[Finding]:
    return exposure.judge_listeners(Listening(listeners, own))


def test_free_ports_are_ok() -> None:
    assert "8000" in only(exposure.judge_ports(FREE, None), Level.OK)


def test_a_stranger_on_the_fleets_port_is_a_problem() -> None:
    assert "by x" in only(exposure.judge_ports(TAKEN, None), Level.PROBLEM)
    stranger = Listening((replace(GCS, port=8000),))
    assert "by x" in only(exposure.judge_ports(TAKEN, stranger), Level.PROBLEM)


def test_a_fleet_on_its_own_port_is_a_note_and_on_its_node_as_it_should_be() -> None:
    listening = Listening(OF_FLEET, own=DEMO)
    said = only(exposure.judge_ports(TAKEN, listening), Level.NOTE)
    assert "'demo' (pid 100)" in said
    assert "--port" in said
    assert only(exposure.judge_ports(TAKEN, listening, is_node=True), Level.OK)


def test_a_stranger_on_a_nodes_port_is_a_note() -> None:
    assert only(exposure.judge_ports(TAKEN, None, is_node=True), Level.NOTE)


def test_ports_that_the_kernel_may_give_away_are_a_note() -> None:
    low = replace(FREE, ephemeral=range(15000, 61000))
    assert "15000" in only(exposure.judge_ports(low, None), Level.NOTE)


def test_a_machine_without_ports_in_a_row_is_a_problem_unless_it_serves_already() -> None:
    full = replace(FREE, range_refusal=("no 106 ports in a row are free", "Stop something."))
    assert "in a row" in only(exposure.judge_ports(full, None), Level.PROBLEM)
    assert only(exposure.judge_ports(full, None, is_node=True), Level.OK)


def test_loopback_listeners_are_ok() -> None:
    assert only(judged(OF_FLEET[0]), Level.OK)


def test_a_fleets_listeners_are_one_note_that_says_what_guards_them() -> None:
    said = only(judged(*OF_FLEET), Level.NOTE)
    assert "your fleet 'demo' (pid 100) listens beyond loopback" in said
    assert "ask for a token (gcs_server 38957, raylet 41945 and 1 port of its workers" in said
    assert "HAProxy's statistics 13922 show counters to anyone" in said
    assert "HTTP" not in said
    assert "firewall" in said


@pytest.mark.parametrize(
    ("has_keys", "http", "gateway", "is_advised"),
    [
        (False, "HTTP 8000 answers anyone, without a key", "a gateway's HTTP, if one", True),
        (True, "HTTP 8000 asks for an API key", "is among them, for an API key", False),
        (None, "HTTP 8000 asks for a key if the fleet's file has `auth`", "if its file", True),
    ],
)
def test_http_beyond_loopback_is_said_with_what_guards_it(
    has_keys: bool | None, http: str, gateway: str, is_advised: bool
) -> None:
    proxy = replace(OF_FLEET[0], address="0.0.0.0", has_keys=has_keys)
    replica = Listener("0.0.0.0", 13930, 121, "ServeReplica", "ann", DEMO, has_keys=has_keys)
    said = only(judged(proxy, replica), Level.NOTE)
    assert http in said
    assert gateway in said
    assert ("qwenfleet keys new" in said) is is_advised


def test_another_ray_cluster_is_named_with_what_guards_it() -> None:
    (finding,) = judged(GCS)
    assert finding.subject is Subject.RAY
    assert "gcs_server, pid 210, user bob" in finding.sentence
    assert "ask for a token" in finding.sentence
    (finding,) = judged(replace(GCS, auth_mode="disabled"))
    assert "let anyone in" in finding.sentence
    assert "RAY_AUTH_MODE=token" in finding.way_out
    (finding,) = judged(replace(GCS, auth_mode=""))
    assert "cannot be seen" in finding.sentence


def test_on_its_own_node_a_ray_cluster_is_no_stranger() -> None:
    said = only(judged(GCS, own=OTHER), Level.NOTE)
    assert OTHER.session in said
    assert "no fleet of this user" not in said


def test_other_programs_are_one_note_with_each_once() -> None:
    said = only(judged(SSH, replace(SSH, address="::"), Listener("0.0.0.0", 53)), Level.NOTE)
    assert said.count("sshd (pid 300, user root) on 22") == 1
    assert "a program that this user may not see on 53" in said


def test_many_programs_and_many_ports_are_cut_short() -> None:
    crowd = [Listener("0.0.0.0", port, port, f"server{port}", "ann") for port in range(1000, 1020)]
    said = only(judged(*crowd), Level.NOTE)
    assert "12 more" in said
    busy = [replace(SSH, port=port) for port in range(1000, 1050)]
    said = only(judged(*busy), Level.NOTE)
    assert "1006 and 43 more" in said
    assert len(said) < 500
