"""The accounts of a soak: which kill lost which stream, and the tables."""

from __future__ import annotations

from qwenfleet.loadtest import soak
from qwenfleet.loadtest.open_loop import Ask, Stream
from qwenfleet.loadtest.parts import Part
from qwenfleet.loadtest.soak import KILLS, Kill, Soak, Struck

ASK = Ask("tiny", "x", 4, 1.0)
GATEWAY = Kill("gateway, SIGKILL", Part.GATEWAY, may_lose=True)
ENGINE = Kill("engine host, SIGKILL", Part.ENGINE)


def stream(ended_at: float, text: str = "abcd", fault: str = "", gap_s: float = 0.1) -> Stream:
    return Stream(ASK, ended_at - 1.0, ended_at, text, fault, gap_s)


def run(*streams: Stream) -> Soak:
    result = Soak(
        {ASK: "abcd"},
        [Struck(GATEWAY, 10.0), Struck(ENGINE, 20.0), Struck(ENGINE, 30.0, unready_s=2.5)],
    )
    for one in streams:
        result.note(one)
    return result


def test_a_stream_counts_to_the_last_kill_before_its_end() -> None:
    result = run(stream(19.9), stream(20.5), stream(40.0))
    assert [[s.ended_at for s in one.streams] for one in result.struck] == [[19.9], [20.5], [40.0]]


def test_only_some_kills_may_end_streams_and_none_may_change_them() -> None:
    result = run(
        stream(11.0, "ab", "the stream ended without [DONE]"),
        stream(16.0, "abcc"),
        stream(25.0, "ab", "HTTP 503: no"),
        stream(26.0),
    )
    assert soak.unexpected(result) == [
        "after 'gateway, SIGKILL', a stream of tiny: another text than without a kill",
        "after 'engine host, SIGKILL', a stream of tiny: HTTP 503: no",
    ]


def test_a_stream_that_begins_after_the_loss_of_a_gateway_must_not_be_lost() -> None:
    late = Stream(ASK, began_at=10.0 + soak.CUT_S, ended_at=14.0, text="", fault="no", gap_s=0.0)
    assert soak.unexpected(run(late)) == ["after 'gateway, SIGKILL', a stream of tiny: no"]


def test_the_fleet_is_whole_when_every_gateway_and_engine_is_ready() -> None:
    gateway, engine = {"ready": True}, {"state": "ready"}
    assert soak.is_full({"gateways": [gateway] * 2, "engines": [engine] * 4})
    assert not soak.is_full({"gateways": [gateway] * 2, "engines": [engine] * 3})
    assert not soak.is_full({"gateways": [gateway], "engines": [engine] * 4})
    draining = {"state": "draining"}
    assert not soak.is_full({"gateways": [gateway] * 2, "engines": [engine] * 3 + [draining]})


def test_the_table_adds_up_the_kills_of_one_kind() -> None:
    result = run(
        stream(15.0, "ab", "cut", gap_s=9.0), stream(25.0, gap_s=1.26), stream(35.0, "abcx")
    )
    assert soak.render(result).splitlines()[2:4] == [
        "| gateway, SIGKILL | 1 | 1 | 1 | 0 | 0.0 | 0.0 |",
        "| engine host, SIGKILL | 2 | 2 | 0 | 1 | 1.3 | 2.5 |",
    ]


def test_memory_is_shown_at_the_start_the_middle_and_the_end() -> None:
    result = run()
    result.memory = [
        (60.0 * minute, {Part.GATEWAY: (500 + minute) * 2**20}) for minute in range(31)
    ]
    rows = soak.render(result).splitlines()
    assert "| resident memory, MiB | 0 min | 15 min | 30 min |" in rows
    assert "| gateway | 500 | 515 | 530 |" in rows


def test_only_what_holds_connections_may_lose_streams() -> None:
    assert {kill.name for kill in KILLS if kill.may_lose} == {
        "gateway, SIGKILL",
        "HAProxy, SIGKILL",
    }
