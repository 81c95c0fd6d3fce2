"""What the launcher tells of a fleet that comes up, and when it gives up on it."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig, Replicas
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.deployments.operations.progress import Progress, Stages
from qwenfleet.deployments.registry.client import (
    EngineRecord,
    GatewayRecord,
    Snapshot,
    StartFailure,
)
from qwenfleet.deployments.registry.stages import Stage

CONFIG = FleetConfig(
    models=(ModelConfig(id="coder", replicas=Replicas(min=2)), ModelConfig(id="small")),
    gateway=GatewayConfig(replicas=2),
)
ENGINE = EngineRecord(id="e1", model="coder", node="n", pid=1, state="starting", is_loading=True)
READY = replace(ENGINE, state="ready", is_loading=False)
GATEWAY = GatewayRecord(id="g1", node="n", pid=2, is_ready=True, models=("coder",))
FAILURE = StartFailure("e9", "coder", "no weights", "/log")


@pytest.fixture
def out() -> StringIO:
    return StringIO()


@pytest.fixture
def progress(out: StringIO) -> Progress:
    return Progress(CONFIG, "http://127.0.0.1:8000", Stages(out))


def snapshot(engines: Any = (), gateways: Any = (), failures: Any = ()) -> Snapshot:
    return Snapshot(tuple(engines), tuple(gateways), tuple(failures))


def test_the_url_is_told_once_every_gateway_answers_for_the_model_shown(
    progress: Progress, out: StringIO
) -> None:
    progress.tell(snapshot([READY], [GATEWAY]))
    assert "ready: http" not in out.getvalue()
    both = [GATEWAY, replace(GATEWAY, id="g2")]
    progress.tell(snapshot([READY], both))
    progress.tell(snapshot([READY], both))
    text = out.getvalue()
    assert text.count("ready: http://127.0.0.1:8000") == 1
    assert '"model": "coder"' in text
    assert "curl -s http://127.0.0.1:8000/v1/chat/completions" in text


def test_an_engine_is_told_as_it_loads_gets_ready_and_goes(
    progress: Progress, out: StringIO
) -> None:
    for engines in ([ENGINE], [ENGINE], [READY], []):
        progress.tell(snapshot(engines))
    told = [line.split("] ")[1] for line in out.getvalue().splitlines()]
    assert told == ["engine e1 of coder: loading", "engine e1 of coder: ready", "engine e1: gone"]


def test_an_engine_that_starts_is_told_by_its_stage(progress: Progress, out: StringIO) -> None:
    turn, importing = Stage("waiting for its turn", 4.0, 1.0), Stage("importing vLLM", 5.0, 8.0)
    for stages in ((), (turn,), (turn, importing), (turn, importing, Stage("warming up", 13.0))):
        progress.tell(snapshot([replace(ENGINE, stages=stages)]))
    told = [line.split(": ")[1] for line in out.getvalue().splitlines()]
    assert told == ["loading", "importing vLLM", "warming up"]


@pytest.mark.parametrize("wanted", [True, False])
def test_timings_are_told_once_and_only_to_those_who_want_them(out: StringIO, wanted: bool) -> None:
    config = FleetConfig(models=(ModelConfig(id="coder"),))
    printer = Stages(out)
    printer.begin("starting Ray")
    progress = Progress(config, "http://127.0.0.1:8000", printer, wants_timings=wanted)
    engine = replace(READY, stages=(Stage("importing vLLM", 5.0, 8.0),))
    gateway = replace(GATEWAY, stages=(Stage("waiting for an engine", 6.0, 7.0),))
    for engines in ([engine], [], [engine]):
        progress.tell(snapshot(engines, [gateway]))
    text = out.getvalue()
    assert text.count("WHO") == wanted
    if wanted:
        rows = [line.split(maxsplit=1)[0] for line in text[text.index("WHO") :].splitlines()[1:4]]
        assert rows == ["engine", "gateway", "serve"]
        assert "e1" in text
        assert "8.0  importing vLLM" in text


def test_completeness_is_told_again_after_a_loss(progress: Progress, out: StringIO) -> None:
    engines = [READY, replace(READY, id="e2"), replace(READY, id="e3", model="small")]
    gateways = [replace(GATEWAY, id=name, models=("coder", "small")) for name in ("g1", "g2")]
    for now in (engines, engines[1:], engines):
        progress.tell(snapshot(now, gateways))
    assert out.getvalue().count("all 3 engines ready") == 2


def test_three_failures_without_a_ready_engine_end_it(progress: Progress) -> None:
    progress.tell(snapshot(failures=[FAILURE, FAILURE]))
    with pytest.raises(EngineStartError, match="no weights"):
        progress.tell(snapshot(failures=[FAILURE] * 3))


def test_failures_do_not_end_a_model_that_is_served(progress: Progress) -> None:
    progress.tell(snapshot([READY], failures=[FAILURE] * 3))


def test_a_final_failure_ends_it_at_once(progress: Progress) -> None:
    with pytest.raises(EngineStartError, match="coder"):
        progress.tell(snapshot([READY], failures=[replace(FAILURE, is_final=True)]))


def test_a_reader_that_left_does_not_stop_the_launcher() -> None:
    class Closed(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Stages(Closed()).say("stopping")
