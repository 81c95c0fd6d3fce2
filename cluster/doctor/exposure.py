"""Ports that are taken, a Ray that is open without a token, and HTTP that is open without a key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok, problem
from qwenfleet.cluster.doctor.listeners import Listener, Listening, Ports
from qwenfleet.cluster.local.programs import NOBODY, Owner

NAMED = ("gcs_server", "raylet")
"""Ray's own servers, the first of which says most."""


def judge_ports(
    ports: Ports, listening: Listening | None, *, is_node: bool = False
) -> list[Finding]:
    """On a cluster's node another port is no matter of ours, and the default one may be ours."""
    if ports.refusal is None:
        return [ok(Subject.PORTS, f"port {ports.port} on {ports.host} is free")]
    there = listening or Listening(())
    for owner in {x.owner for x in there.listeners if x.port == ports.port} - {NOBODY}:
        sentence = f"port {ports.port} is held by {_whose(owner)}"
        if is_node and owner == there.own:
            return [ok(Subject.PORTS, sentence)]
        if owner.fleet:
            return [note(Subject.PORTS, sentence, "Give another fleet its own with --port.")]
    judge = note if is_node else problem
    return [judge(Subject.PORTS, *ports.refusal)]


def judge_listeners(listening: Listening) -> list[Finding]:
    """What other machines can reach and use without a token or a key."""
    reachable = [listener for listener in listening.listeners if not listener.is_local]
    findings = [*_judge_ray(reachable), *_judge_http(reachable)]
    said = "other machines reach neither a Ray without a token nor HTTP without a key"
    return findings or [ok(Subject.LISTENERS, said)]


def _judge_ray(reachable: Sequence[Listener]) -> list[Finding]:
    """One finding for each Ray cluster; what this user may not see is left out."""
    clusters: dict[Owner, list[Listener]] = defaultdict(list)
    for listener in reachable:
        if listener.owner.is_ray and listener.auth_mode not in {"", "token"}:
            clusters[listener.owner].append(listener)
    findings = []
    for owner, group in clusters.items():
        first = min(
            group, key=lambda x: NAMED.index(x.program) if x.program in NAMED else len(NAMED)
        )
        sentence = (
            f"{_whose(owner)} is open to other machines without a token ({first.program} "
            f"{first.port}, pid {first.pid}, user {first.user}; RAY_AUTH_MODE is "
            f"{first.auth_mode})"
        )
        way_out = (
            "Start it with RAY_AUTH_MODE=token, or let a firewall guard it: whoever reaches it can "
            "run code as that user."
        )
        findings.append(note(Subject.RAY, sentence, way_out))
    return findings


def _judge_http(reachable: Sequence[Listener]) -> list[Finding]:
    """One finding for each fleet, whether it listens by IPv4, IPv6 or both."""
    findings = []
    for owner, port in dict.fromkeys((x.owner, x.port) for x in reachable if x.is_keyless_http):
        sentence = f"{_whose(owner)} answers HTTP of other machines at port {port} without a key"
        way_out = (
            "Write `auth` into the fleet's file, see `qwenfleet keys new`, or let a firewall guard "
            "the port."
        )
        findings.append(note(Subject.LISTENERS, sentence, way_out))
    return findings


def _whose(owner: Owner) -> str:
    if owner.fleet:
        return f"your fleet '{owner.fleet}' (pid {owner.fleet_pid})"
    return f"the Ray cluster of {owner.session}"
