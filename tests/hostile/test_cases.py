"""No request of one client is felt by the clients of another model."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.hostile import report
from tests.hostile.cases import CASES, PROBE_S, SERVED_ONLY, Case
from tests.hostile.senders import Answer
from tests.hostile.window import Window

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CALM_PROBE_S = 1.5
CALM_S = 30.0
"""Time in which bystanders are served as before, once the hostile client has its answer."""
SERVED_S = 15.0
"""Time for a short request to an attacked model."""
SERVED_SHARE = 0.1
"""Share of a bystander's probes that are served, also while one client holds all places that are
free."""
ECHO_BYTES = 4096
"""Longest answer to a request that is refused: a client's own data is not sent back."""
JAMMED_S = 30.0
RECOVERY_S = 300.0
JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}


def settle(crowd, seen):
    """Wait until the bystanders are served as before; return all that they saw, and how long."""
    began_at = time.monotonic()
    while True:
        time.sleep(1.0)
        now = crowd.mark()
        seen = seen.plus(now)
        took_s = time.monotonic() - began_at
        if now.is_calm(CALM_PROBE_S):
            return seen, took_s
        if took_s > CALM_S:
            return seen, -1.0


def still_served(site) -> list[str]:
    """Return which short requests to the attacked models fail now."""
    asked = [("loud", {}), ("tiny", {}), ("tiny", {"response_format": JSON})]
    with ThreadPoolExecutor(len(asked) * 2) as pool:  # each model has two engines
        found = pool.map(lambda pair: fault_of_a_short_request(site, *pair), asked * 2)
        return sorted({fault for fault in found if fault})


def fault_of_a_short_request(site, model: str, fields) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    kind = f"a {'structured' if fields else 'short'} request to {model} afterwards"
    try:
        answer = httpx.post(
            f"{site.url}/v1/chat/completions",
            json=body | fields,
            headers={"authorization": f"Bearer {site.key}"},
            timeout=SERVED_S,
        )
    except httpx.HTTPError as error:
        return f"{kind}: {type(error).__name__}"
    return "" if answer.status_code == 200 else f"{kind}: {answer.status_code} {answer.text[:100]}"


def wrong_answers(case: Case, answers: Sequence[Answer]) -> list[str]:
    faults = []
    for answer in answers:
        if answer.status not in case.answers or answer.verdict.startswith("200 then"):
            faults.append(f"answered {answer.verdict}: {answer.head[:200]!r}")
        elif answer.status >= 400 and answer.size_bytes > ECHO_BYTES:
            faults.append(f"{answer.status} has {answer.size_bytes} bytes")
        elif must_be_in_the_apis_shape(case, answer) and not is_in_the_apis_shape(answer):
            faults.append(f"{answer.status} is not the API's: {answer.head[-200:]!r}")
    return sorted(set(faults))[:3]


def must_be_in_the_apis_shape(case: Case, answer: Answer) -> bool:
    return answer.status >= 400 and case.is_ours and 0 not in case.answers


def is_in_the_apis_shape(answer: Answer) -> bool:
    """Whether the body is JSON with an error's message. A raw answer has its headers first."""
    body = answer.head.partition(b"\r\n\r\n")[2] if answer.head[:5] == b"HTTP/" else answer.head
    try:
        return len(json.loads(body)["error"]["message"]) > 10
    except (ValueError, KeyError, TypeError):
        return False


def harm(seen: Window, probes: frozenset[int] = SERVED_ONLY, probe_s: float = PROBE_S) -> list[str]:
    """Return what bystanders suffered."""
    allowed = {f"{kind} {status}" for kind in ("probe", "neighbor") for status in probes}
    refused = {why: count for why, count in seen.refused.items() if why not in allowed}
    faults = [f"bystanders got {refused}"] if refused else []
    if (served := seen.probes - seen.refused.get("probe 429", 0)) < seen.probes * SERVED_SHARE:
        faults.append(f"only {served} of {seen.probes} probes were served")
    if seen.worst_probe_s > probe_s:
        faults.append(f"a bystander's probe took {seen.worst_probe_s:.1f} s")
    if seen.worst_neighbor_s > probe_s:
        faults.append(f"another client of the model waited {seen.worst_neighbor_s:.1f} s")
    if seen.worst_health_s > probe_s:
        faults.append(f"/health/live took {seen.worst_health_s:.1f} s")
    if seen.lost:
        faults.append(f"{len(seen.lost)} streams lost: {sorted(set(seen.lost))[:3]}")
    if seen.changed:
        faults.append(f"{seen.changed} streams changed")
    return faults


def recover(site, machinery, before) -> None:
    """Make the fleet whole for the next case. Only an end frees a core that is jammed."""
    began_at = time.monotonic()
    has_killed = False
    counts = {part: len(pids) for part, pids in before.items()}
    while still_served(site) or {p: len(pids) for p, pids in machinery.pids.items()} != counts:
        took_s = time.monotonic() - began_at
        assert took_s < RECOVERY_S, "the fleet is not whole again"
        if took_s > JAMMED_S and not has_killed:
            machinery.kill_cores()
            has_killed = True
        time.sleep(1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_client_hurts_no_other(case, site, crowd, machinery, gateway_log, memory, rows):
    before = machinery.pids
    crowd.mark()
    growth = memory(machinery)
    answers = asyncio.run(case.send(site))
    seen, calm_s = settle(crowd, Window())
    gateway_mb, host_mb = growth.end()
    moved = gateway_log.count("request resumed", "quiet")
    faults = wrong_answers(case, answers) + harm(seen, case.probes, case.probe_s)
    if moved:
        faults.append(f"{moved} streams of bystanders moved")
    if case.host_mb is not None and host_mb > case.host_mb:
        faults.append(f"an engine host grew by {host_mb:.0f} MB")
    if calm_s < 0:
        faults.append(f"bystanders were not served as before within {CALM_S:.0f} s")
    left = still_served(site)
    after = machinery.pids
    ended = [part for part, pids in before.items() if not set(pids) <= set(after[part])]
    faults += left + [f"ended: {part}" for part in ended]
    verdicts = Counter(answer.verdict for answer in answers)
    slowest_s = max((answer.took_s for answer in answers), default=0.0)
    rows.append(
        report.Row(case.name, verdicts, slowest_s, seen, moved, gateway_mb, host_mb, calm_s, faults)
    )
    report.keep(rows)
    if left or ended or calm_s < 0:
        recover(site, machinery, before)
    assert not faults, "\n".join(faults)
