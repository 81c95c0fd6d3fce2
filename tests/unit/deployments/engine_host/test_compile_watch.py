"""When a core counts as one that compiles no grammars."""

from __future__ import annotations

from qwenfleet.deployments.engine_host.compile_watch import (
    FACTOR,
    FLOOR_S,
    UNLEARNED_S,
    Compiles,
    CompileWatch,
)
from qwenfleet.deployments.wire.liveness import ENOUGH


def test_a_core_that_compiles_is_well() -> None:
    watch = CompileWatch()
    assert watch.look(Compiles(), 1.0) == ""
    assert watch.look(Compiles(oldest_s=UNLEARNED_S, done=3, longest_s=2.0), 2.0) == ""
    assert watch.ill_since is None


def test_a_request_that_waits_beyond_the_bound_shows_an_ill_core_until_it_has_its_grammar() -> None:
    watch = CompileWatch()
    reason = watch.look(Compiles(oldest_s=UNLEARNED_S + 1), 50.0)
    assert reason == ("a request has waited 31 s for its grammar (longest recent compilation: 0 s)")
    watch.look(Compiles(oldest_s=UNLEARNED_S + 2), 51.0)
    assert watch.ill_since == 50.0
    assert watch.look(Compiles(done=1, longest_s=33.0), 52.0) == ""
    assert watch.ill_since is None


def test_a_core_that_works_off_many_slow_grammars_is_well() -> None:
    watch = CompileWatch()
    for done in range(1, 200):
        waits = Compiles(oldest_s=min(float(done), 200.0), done=done, longest_s=2.0)
        assert watch.look(waits, float(done)) == ""
    assert watch.look(Compiles(oldest_s=200.0, done=199), 200.0) != ""


def test_the_bound_follows_the_compilations_that_were_seen() -> None:
    quick, slow = CompileWatch(), CompileWatch()
    for i in range(1, ENOUGH + 1):
        quick.look(Compiles(done=i, longest_s=0.1), float(i))
        slow.look(Compiles(done=i, longest_s=4.0), float(i))
    waits = Compiles(oldest_s=FLOOR_S + 1, done=ENOUGH)
    assert quick.look(waits, 30.0) != ""
    assert slow.look(waits, 30.0) == ""
    assert slow.look(Compiles(oldest_s=FACTOR * 4.0 + 1, done=ENOUGH), 31.0) != ""


def test_a_thread_that_is_stuck_shows_an_ill_core_whatever_waits() -> None:
    watch = CompileWatch()
    assert watch.look(Compiles(stuck=2), 1.0) == "2 grammars of ended requests still compile"
