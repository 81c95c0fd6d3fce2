"""Whose listeners are in a fleet's way, and which of them other machines can reach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from qwenfleet.cluster.finding import Finding, Subject, note, ok, problem
from qwenfleet.cluster.listeners import OWN_PORTS, Listener, Listening, Ports
from qwenfleet.cluster.programs import NOBODY, Owner

SHOWN = 8
"""Programs that are named one by one."""
NAMED = ("gcs_server", "raylet")
"""Ray's own servers, whose ports are worth a number."""
_ASKS = {
    True: ("for an API key", "asks for an API key"),
    False: ("for nothing", "answers anyone, without a key"),
    None: ("for a key if its file has `auth`", "asks for a key if the fleet's file has `auth`"),
}
"""What HTTP asks for, of a gateway and of HAProxy, by whether the fleet has keys."""


def judge_ports(
    ports: Ports, listening: Listening | None, *, is_node: bool = False
) -> list[Finding]:
    """On a cluster's node another port is no matter of ours, and the default one may be ours."""
    findings = []
    if ports.refusal is not None:
        findings.append(_judge_refusal(ports, listening, is_node=is_node))
    if ports.range_refusal is not None and not is_node:
        findings.append(problem(Subject.PORTS, *ports.range_refusal))
    if ports.ephemeral.start < OWN_PORTS.stop:
        sentence = (
            f"the kernel gives ports from {ports.ephemeral.start} on to any connection, and fleets "
            f"take theirs from {OWN_PORTS.start} to {OWN_PORTS.stop - 1}: one may be gone before "
            "HAProxy starts"
        )
        way_out = "Run `sysctl -w net.ipv4.ip_local_port_range='32768 60999'`, Linux's default."
        findings.append(note(Subject.PORTS, sentence, way_out))
    said = f"port {ports.port} on {ports.host} is free, and so are those of HAProxy and Ray"
    return findings or [ok(Subject.PORTS, said)]


def _judge_refusal(ports: Ports, listening: Listening | None, *, is_node: bool) -> Finding:
    assert ports.refusal is not None
    there = listening or Listening(())
    for owner in {x.owner for x in there.listeners if x.port == ports.port} - {NOBODY}:
        sentence = f"port {ports.port} is held by {_whose(owner)}"
        if is_node and owner == there.own:
            return ok(Subject.PORTS, sentence)
        if owner.fleet:
            return note(Subject.PORTS, sentence, "Give another fleet its own with --port.")
    judge = note if is_node else problem
    return judge(Subject.PORTS, *ports.refusal)


def judge_listeners(listening: Listening) -> list[Finding]:
    """One finding for each Ray cluster, and one for all other programs."""
    groups: dict[Owner, list[Listener]] = defaultdict(list)
    for listener in listening.listeners:
        if not listener.is_local:
            groups[listener.owner].append(listener)
    others = groups.pop(NOBODY, [])
    findings = [
        _judge_own(owner, group)
        if owner.fleet or owner == listening.own
        else _judge_other_ray(owner, group)
        for owner, group in groups.items()
    ]
    if others:
        findings.append(_judge_others(others))
    return findings or [
        ok(Subject.LISTENERS, "nothing on this machine can be reached from another one")
    ]


def _judge_own(owner: Owner, group: Sequence[Listener]) -> Finding:
    """A fleet's: Ray asks for its token, the rest shows counters or is HTTP."""
    guarded = [x for x in group if not x.counters and x.program not in {"haproxy", "ServeReplica"}]
    parts = [_said_of_ray(guarded, "token" if owner.fleet else group[0].auth_mode)]
    counters = [f"{listener.counters} {listener.port}" for listener in group if listener.counters]
    if counters:
        parts.append(f"{_listed(counters)} show counters to anyone")
    keys = group[0].has_keys
    replicas = [str(x.port) for x in group if x.program == "ServeReplica" and not x.counters]
    if replicas:
        parts.append(
            f"of its gateways and engines {_listed(replicas)}: Ray's ask for a token, an engine's "
            f"wire for its secret, and a gateway's HTTP, if one is among them, {_ASKS[keys][0]}"
        )
    http = [str(x.port) for x in group if x.program == "haproxy" and not x.counters]
    if http:
        parts.append(f"HTTP {_listed(http)} {_ASKS[keys][1]}")
    sentence = f"{_whose(owner)} listens beyond loopback: {'; '.join(filter(None, parts))}"
    way_out = (
        "Let a firewall keep other machines from them; on one machine nothing needs them open. "
        "A cluster's nodes need Ray's among themselves."
    )
    if http and not keys:
        way_out += " Keys for HTTP: write `auth` into the fleet's file, see `qwenfleet keys new`."
    return note(Subject.LISTENERS, sentence, way_out)


def _said_of_ray(group: Sequence[Listener], auth_mode: str) -> str:
    if not group:
        return ""
    servers = sorted((NAMED.index(x.program), x.port) for x in group if x.program in NAMED)
    named = [f"{NAMED[index]} {port}" for index, port in servers]
    rest = len(group) - len(named)
    if rest:
        named.append(f"{rest} port{'' if rest == 1 else 's'} of its workers and agents")
    if auth_mode == "token":
        return f"Ray's ports ask for a token ({_listed(named)})"
    if auth_mode:
        return f"Ray's ports let anyone in ({_listed(named)})"
    return f"whether Ray's ports ask for a token cannot be seen ({_listed(named)})"


def _judge_other_ray(owner: Owner, group: Sequence[Listener]) -> Finding:
    head = min(group, key=lambda x: NAMED.index(x.program) if x.program in NAMED else len(NAMED))
    sentence = (
        f"a Ray cluster that is no fleet of this user runs here ({head.program}, pid {head.pid}, "
        f"user {head.user}) and listens beyond loopback: {_said_of_ray(group, head.auth_mode)}"
    )
    way_out = "Nothing to do if you know it: `qwenfleet serve` starts a Ray of its own."
    if head.auth_mode not in {"", "token"}:
        way_out = "Start it with RAY_AUTH_MODE=token: who reaches it can run code as that user."
    return note(Subject.RAY, sentence, way_out)


def _judge_others(group: Sequence[Listener]) -> Finding:
    """Sorted by name, each program once with its ports."""
    ports: dict[tuple[str, str], list[str]] = defaultdict(list)
    for listener in group:
        pid = "" if listener.pid is None else f" (pid {listener.pid}, user {listener.user})"
        port = str(listener.port)
        if port not in ports[listener.program, pid]:  # IPv4 and IPv6 are one to us
            ports[listener.program, pid].append(port)
    names = [f"{program}{pid} on {_listed(own)}" for (program, pid), own in sorted(ports.items())]
    more = len(names) - SHOWN
    shown = names[:SHOWN] + ([f"{more} more"] if more > 0 else [])
    sentence = (
        f"programs that are not of a fleet can be reached from other machines: {'; '.join(shown)}"
    )
    way_out = "Stop or firewall what you did not expect; `ss -ltnp` as root lists them all."
    return note(Subject.LISTENERS, sentence, way_out)


def _whose(owner: Owner) -> str:
    if owner.fleet:
        return f"your fleet '{owner.fleet}' (pid {owner.fleet_pid})"
    return f"the Ray cluster of {owner.session}"


def _listed(names: Iterable[str]) -> str:
    """The first few, and how many more."""
    first = list(names)
    if len(first) == 1:
        return first[0]
    if len(first) > SHOWN:
        first = [*first[: SHOWN - 1], f"{len(first) - SHOWN + 1} more"]
    return f"{', '.join(first[:-1])} and {first[-1]}"
