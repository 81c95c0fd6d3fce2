"""A gateway's links, and which of them can take work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.roster import RECONNECT_S, REFUSED_S, Roster
from qwenfleet.deployments.wire.frames import Outputs, Rejected, Trying
from qwenfleet.deployments.wire.liveness import Condition

STEADY, SLOW, FROZEN = Condition


class Events:
    """Records link events and removes lost links from the roster, as a dispatcher does."""

    def __init__(self) -> None:
        self.roster: Roster | None = None
        self.losses: list[tuple[str, Loss]] = []

    def on_news(self, link: EngineLink) -> None: ...

    def on_outputs(self, link: EngineLink, frame: Outputs) -> None: ...

    def on_trying(self, link: EngineLink, frame: Trying) -> None: ...

    def on_rejected(self, link: EngineLink, frame: Rejected) -> None: ...

    def on_lost(self, link: EngineLink, loss: Loss, reason: str) -> None:
        assert self.roster is not None
        self.roster.remove(link, reason)
        self.losses.append((link.engine, loss))


@pytest.fixture
def events() -> Events:
    return Events()


@pytest_asyncio.fixture
async def new_roster(wire: WireConfig, events: Events) -> AsyncIterator[Callable[..., Roster]]:
    rosters: list[Roster] = []

    def new(clock: Callable[[], float] = time.monotonic) -> Roster:
        events.roster = Roster("coder", gateway="gw-a", wire=wire, events=events, clock=clock)
        rosters.append(events.roster)
        return events.roster

    yield new
    for roster in rosters:
        tasks = list(roster._tasks.values())
        roster.close()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest_asyncio.fixture
async def roster(new_roster: Any, serve_engine: Any, eventually: Any) -> Roster:
    """A roster connected to three engines."""
    roster: Roster = new_roster()
    roster.update([(await serve_engine(engine=name)).record for name in ("e1", "e2", "e3")])
    await eventually(lambda: len(roster.usable()) == 3)
    return roster


def usable(roster: Roster) -> list[str]:
    return sorted(link.engine for link in roster.usable())


async def test_only_reachable_engines_of_the_model_are_connected_and_each_once(
    new_roster: Any, serve_engine: Any, eventually: Any
) -> None:
    roster = new_roster()
    record = (await serve_engine()).record
    records = [
        replace(record, id="other-model", model="helper"),
        replace(record, id="starting", state="starting"),
        replace(record, id="draining", state="draining"),
        record,
    ]
    roster.update(records)
    link = roster.link("engine-1")
    roster.update(records)
    assert roster.link("engine-1") is link
    assert roster.usable() == []  # not before its Welcome
    assert roster.description is None
    await eventually(lambda: usable(roster) == ["engine-1"])
    description: Any = roster.description
    assert description.max_model_len == 4096
    assert list(roster._links) == ["engine-1"]


async def test_a_quarantined_engine_is_connected_because_it_may_be_the_last(
    new_roster: Any, serve_engine: Any, eventually: Any
) -> None:
    roster = new_roster()
    roster.update([replace((await serve_engine()).record, state="quarantined")])
    await eventually(lambda: usable(roster) == ["engine-1"])


async def test_a_lost_engine_is_retried_after_a_pause(
    new_roster: Any, serve_engine: Any, clock: Any, events: Events, eventually: Any
) -> None:
    roster = new_roster(clock)
    engine = await serve_engine()
    roster.update([replace(engine.record, port=1)])  # nothing listens there
    await eventually(lambda: events.losses)
    roster.update([engine.record])
    assert not roster._links
    clock.advance(RECONNECT_S)
    roster.update([engine.record])
    await eventually(lambda: usable(roster) == ["engine-1"])


async def test_an_engine_that_refuses_is_logged_once_and_retried_seldom(
    new_roster: Any, serve_engine: Any, clock: Any, events: Events, eventually: Any, caplog: Any
) -> None:
    roster = new_roster(clock)
    engine = await serve_engine()
    stranger = replace(engine.record, secret="wrong")
    for tries in (1, 2):
        roster.update([stranger])
        await eventually(lambda tries=tries: len(events.losses) == tries)
        clock.advance(RECONNECT_S)
        roster.update([stranger])
        assert not roster._links
        clock.advance(REFUSED_S)
    assert caplog.text.count("engine cannot work with this gateway") == 1
    roster.update([engine.record])
    await eventually(lambda: usable(roster) == ["engine-1"])


async def test_an_engine_is_retried_while_the_registry_is_unavailable(
    new_roster: Any, serve_engine: Any, clock: Any, eventually: Any
) -> None:
    roster = new_roster(clock)
    engine = await serve_engine()
    roster.update([engine.record])
    await eventually(lambda: roster.usable())
    for session in engine.host._sessions.values():
        session.connection.close()
    await eventually(lambda: not roster.usable())
    clock.advance(RECONNECT_S)
    roster.update(())
    await eventually(lambda: roster.usable())


async def test_losing_an_old_link_keeps_its_successor(
    new_roster: Any, serve_engine: Any, clock: Any, events: Events, eventually: Any
) -> None:
    roster = new_roster(clock)
    engine = await serve_engine()
    roster.update([engine.record])
    old = roster.link("engine-1")
    await eventually(roster.usable)
    roster.remove(old)
    clock.advance(RECONNECT_S)
    roster.update([engine.record])
    new = roster.link("engine-1")
    assert new is not old
    roster.remove(old)
    assert roster.link("engine-1") is new


async def test_steady_engines_are_preferred_to_slow_and_slow_to_frozen(roster: Roster) -> None:
    roster.link("e1").condition = SLOW
    roster.link("e2").condition = FROZEN
    assert usable(roster) == ["e3"]
    roster.link("e3").condition = FROZEN
    assert usable(roster) == ["e1"]
    roster.link("e1").condition = FROZEN
    assert usable(roster) == ["e1", "e2", "e3"]
    roster.link("e2").condition = STEADY
    assert usable(roster) == ["e2"]


@pytest.mark.parametrize("condition", Condition)
async def test_the_last_engine_is_never_quarantined(
    new_roster: Any, serve_engine: Any, eventually: Any, condition: Condition
) -> None:
    roster = new_roster()
    roster.update([(await serve_engine()).record])
    await eventually(roster.usable)
    roster.link("engine-1").condition = condition
    assert usable(roster) == ["engine-1"]


async def test_a_draining_engine_takes_no_work_even_if_it_is_the_last(roster: Roster) -> None:
    roster.link("e1").is_draining = True
    roster.link("e2").condition = FROZEN
    roster.link("e3").is_draining = True
    assert usable(roster) == ["e2"]
    roster.link("e2").is_draining = True
    assert usable(roster) == []
    assert roster.description is not None


async def test_a_closed_roster_leaves_no_link(
    roster: Roster, events: Events, eventually: Any
) -> None:
    roster.close()
    await eventually(lambda: not roster._tasks)
    assert usable(roster) == []
    assert sorted(engine for engine, _ in events.losses) == ["e1", "e2", "e3"]
