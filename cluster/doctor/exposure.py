"""Ports in use, Ray clusters reachable without a token, and HTTP reachable without a key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok, problem
from qwenfleet.cluster.doctor.listeners import Listener, Listening, Ports
from qwenfleet.cluster.local.programs import NO_OWNER, Owner

NAMED = ("gcs_server", "raylet")
"""Ray's own servers; a finding names the first of them that listens."""


def judge_ports(
    ports: Ports, listening: Listening | None, *, is_node: bool = False
) -> list[Finding]:
    """Findings about the default port. On a cluster's node that fleet itself may hold it."""
    if ports.refusal is None:
        return [ok(Subject.PORTS, f"port {ports.port} on {ports.host} is free")]
    found = listening or Listening(())
    for owner in {x.owner for x in found.listeners if x.port == ports.port} - {NO_OWNER}:
        sentence = f"port {ports.port} is in use by {_whose(owner)}"
        if is_node and owner == found.own:  # the fleet that is being examined
            return [ok(Subject.PORTS, sentence)]
        if owner.fleet:
            remedy = "Start another fleet on another port, with --port."
            return [note(Subject.PORTS, sentence, remedy)]
    judge = note if is_node else problem
    return [judge(Subject.PORTS, *ports.refusal)]


def judge_listeners(listening: Listening) -> list[Finding]:
    """Findings about what other machines can use without a token or a key."""
    reachable = [listener for listener in listening.listeners if not listener.is_local]
    findings = [*_judge_ray(reachable), *_judge_http(reachable)]
    summary = "Ray clusters and fleets that other machines can reach require a token or a key"
    return findings or [ok(Subject.LISTENERS, summary)]


def _judge_ray(reachable: Sequence[Listener]) -> list[Finding]:
    """One finding for each Ray cluster; processes that this user cannot inspect are left out."""
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
            f"{_whose(owner)} accepts connections from other machines without a token "
            f"({first.program} on port {first.port}, pid {first.pid}, user {first.user}; "
            f"RAY_AUTH_MODE is {first.auth_mode})"
        )
        remedy = (
            "Start it with RAY_AUTH_MODE=token, or block its ports with a firewall: anyone who can "
            "reach it can run code as that user."
        )
        findings.append(note(Subject.RAY, sentence, remedy))
    return findings


def _judge_http(reachable: Sequence[Listener]) -> list[Finding]:
    """One finding for each fleet, whether it listens by IPv4, IPv6 or both."""
    findings = []
    for owner, port in dict.fromkeys((x.owner, x.port) for x in reachable if x.is_keyless_http):
        sentence = (
            f"{_whose(owner)} answers HTTP requests from other machines on port {port} without a "
            "key"
        )
        remedy = (
            "Add `auth` to the fleet's configuration (see `qwenfleet keys new`), or block the port "
            "with a firewall."
        )
        findings.append(note(Subject.LISTENERS, sentence, remedy))
    return findings


def _whose(owner: Owner) -> str:
    if owner.fleet:
        return f"your fleet '{owner.fleet}' (pid {owner.fleet_pid})"
    return f"the Ray cluster of {owner.session}"
