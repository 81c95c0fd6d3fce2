"""Stages of a start: complete, timed, and shown for all processes in one table."""

from __future__ import annotations

from typing import Any

from qwenfleet.cluster.labels import StartPhase
from qwenfleet.deployments.registry.stages import Stage, StageClock, table


def test_each_stage_lasts_until_the_next_begins(clock: Any) -> None:
    stages = StageClock(clock)
    began_at = clock()
    stages.begin("importing")
    clock.advance(9)
    stages.begin("loading")
    assert stages.stages == (
        Stage("importing", began_at, 9.0),
        Stage("loading", began_at + 9, None),
    )
    clock.advance(2)
    stages.end()
    clock.advance(5)
    stages.end()
    assert stages.stages[-1] == Stage("loading", began_at + 9, 2.0)


def test_a_clock_without_a_stage_has_no_stages(clock: Any) -> None:
    stages = StageClock(clock)
    stages.end()
    assert stages.stages == ()


def test_the_table_is_in_order_of_time_and_counts_from_the_first() -> None:
    text = table(
        [
            ("serve", (Stage("starting Ray", 100.0, 4.4),)),
            ("engine e1", (Stage("importing vLLM", 112.0, 8.0), Stage("warming up", 120.0))),
            ("gateway g1", (Stage("importing vLLM", 111.5, 9.25),)),
        ]
    )
    assert text.splitlines() == [
        "WHO         FROM s  TOOK s  STAGE",
        "serve          0.0     4.4  starting Ray",
        "gateway g1    11.5     9.2  importing vLLM",
        "engine e1     12.0     8.0  importing vLLM",
        "engine e1     20.0     ...  warming up",
    ]


def test_a_table_without_stages_is_empty() -> None:
    assert table([("serve", ())]) == ""


def test_the_detail_of_a_stage_is_shown_and_not_part_of_its_name(clock: Any) -> None:
    stages = StageClock(clock)
    stages.begin(StartPhase.HELD, "node a is cordoned")
    (held,) = stages.stages
    assert (held.name, type(held.name)) == ("waiting", str)
    assert str(held) == "waiting: node a is cordoned"
    assert table([("engine", (held,))]).endswith("...  waiting: node a is cordoned")
