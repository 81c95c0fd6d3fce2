"""Tests the launcher's progress lines while a fleet starts, and when it gives up."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from msgspec.structs import replace

from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig
from qwenfleet.cluster.config.model import ModelConfig, Replicas
from qwenfleet.cluster.errors import EngineStartError, GatewayStartError
from qwenfleet.deployments.operations.failures import Deployed
from qwenfleet.deployments.operations.progress import Progress, Stages
from qwenfleet.deployments.operations.readiness import Readiness
from qwenfleet.deployments.registry.records import (
    Departure,
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


def test_url_is_printed_once_when_every_gateway_serves_the_model(
    progress: Progress, out: StringIO
) -> None:
    progress.report(snapshot([READY], [GATEWAY]))
    assert "ready: http" not in out.getvalue()
    both = [GATEWAY, replace(GATEWAY, id="g2")]
    progress.report(snapshot([READY], both))
    progress.report(snapshot([READY], both))
    text = out.getvalue()
    assert text.count("ready: http://127.0.0.1:8000") == 1
    assert '"model": "coder"' in text
    assert "curl -s http://127.0.0.1:8000/v1/chat/completions" in text


def test_each_state_of_an_engine_is_printed_once(progress: Progress, out: StringIO) -> None:
    for engines in ([ENGINE], [ENGINE], [READY], []):
        progress.report(snapshot(engines))
    assert [line.split("] ")[1] for line in out.getvalue().splitlines()] == [
        "engine e1 of coder: loading",
        "engine e1 of coder: ready",
        "engine e1: stopped; Serve starts another",
    ]


def test_engine_that_leaves_is_printed_with_its_reason(progress: Progress, out: StringIO) -> None:
    """A registry that Ray has just restarted lists nobody for a moment."""
    progress.report(snapshot([READY]))
    progress.report(replace(snapshot(), up_s=0.4))
    assert "stopped" not in out.getvalue()
    departure = Departure("e1", "coder", "its core process died")
    for _ in range(2):
        progress.report(replace(snapshot(), up_s=60.0, departures=(departure,)))
    last = out.getvalue().splitlines()[-1]
    assert last.endswith("engine e1 of coder: stopped: its core process died; Serve starts another")
    assert out.getvalue().count("stopped") == 1


def test_a_drained_engines_replacement_is_named_as_such(progress: Progress, out: StringIO) -> None:
    new = replace(READY, id="e2", state="starting", is_loading=True, replaces="e1")
    progress.report(snapshot([new]))
    progress.report(snapshot([replace(new, state="ready", replaces="")]))
    lines = [line.split("] ")[1] for line in out.getvalue().splitlines() if "engine e2" in line]
    assert lines == [
        "engine e2 of coder: loading, in place of e1, which was drained",
        "engine e2 of coder: ready",
    ]


def test_gateways_are_printed_once_the_fleet_is_ready(out: StringIO) -> None:
    progress = Progress(
        FleetConfig(models=(ModelConfig(id="coder"),)), "http://127.0.0.1:8000", Stages(out)
    )
    progress.report(snapshot([READY], [GATEWAY]))
    departure = Departure("g1", "", "no announcement for 5 s")
    progress.report(replace(snapshot([READY]), departures=(departure,)))
    progress.report(snapshot([READY], [replace(GATEWAY, id="g2")]))
    lines = [line.split("] ")[1] for line in out.getvalue().splitlines() if "gateway " in line]
    assert lines == [
        "gateway g1: stopped: no announcement for 5 s; Serve starts another",
        "gateway g2: ready",
    ]


def test_nothing_is_ready_while_requests_fail(out: StringIO) -> None:
    progress = Progress(
        FleetConfig(models=(ModelConfig(id="coder"),)), "http://127.0.0.1:8000", Stages(out)
    )
    whole = snapshot([READY], [GATEWAY])
    progress.report(whole, Readiness())
    assert "ready: http" not in out.getvalue()
    assert not progress.is_complete
    progress.report(whole, Readiness(200))
    assert "all 1 engines ready" in out.getvalue()
    for _ in range(3):
        progress.report(whole, Readiness(503, "no_engine"))
    assert not progress.is_complete
    for _ in range(3):
        progress.report(whole, Readiness(200))
    lines = [line.split("] ")[1] for line in out.getvalue().splitlines() if "requests" in line]
    assert lines == [
        "requests fail: http://127.0.0.1:8000 answers 503 no_engine",
        "requests are answered again",
    ]
    assert out.getvalue().count("all 1 engines ready") == 2


def test_serve_is_believed_while_the_registry_does_not_answer(progress: Progress) -> None:
    failed = Deployed("engine-0", "DEPLOY_FAILED", "Error:\nOSError: no disk")
    with pytest.raises(EngineStartError, match="OSError: no disk"):
        progress.report(None, None, [failed])


def test_starting_engine_is_printed_with_its_stage(progress: Progress, out: StringIO) -> None:
    turn, importing = Stage("waiting for its turn", 4.0, 1.0), Stage("importing vLLM", 5.0, 8.0)
    for stages in ((), (turn,), (turn, importing), (turn, importing, Stage("warming up", 13.0))):
        progress.report(snapshot([replace(ENGINE, stages=stages)]))
    stages_printed = [line.split(": ")[1] for line in out.getvalue().splitlines()]
    assert stages_printed == ["loading", "importing vLLM", "warming up"]


@pytest.mark.parametrize("wanted", [True, False])
def test_timings_are_printed_once_and_only_on_request(out: StringIO, wanted: bool) -> None:
    config = FleetConfig(models=(ModelConfig(id="coder"),))
    printer = Stages(out)
    printer.begin("starting Ray")
    progress = Progress(config, "http://127.0.0.1:8000", printer, wants_timings=wanted)
    engine = replace(READY, stages=(Stage("importing vLLM", 5.0, 8.0),))
    gateway = replace(GATEWAY, stages=(Stage("waiting for an engine", 6.0, 7.0),))
    for engines in ([engine], [], [engine]):
        progress.report(snapshot(engines, [gateway]))
    text = out.getvalue()
    assert text.count("WHO") == wanted
    if wanted:
        rows = [line.split(maxsplit=1)[0] for line in text[text.index("WHO") :].splitlines()[1:4]]
        assert rows == ["engine", "gateway", "serve"]
        assert "e1" in text
        assert "8.0  importing vLLM" in text


def test_completion_is_printed_again_after_a_loss(progress: Progress, out: StringIO) -> None:
    engines = [READY, replace(READY, id="e2"), replace(READY, id="e3", model="small")]
    gateways = [replace(GATEWAY, id=name, models=("coder", "small")) for name in ("g1", "g2")]
    for now in (engines, engines[1:], engines):
        progress.report(snapshot(now, gateways))
    assert out.getvalue().count("all 3 engines ready") == 2


def test_three_failures_without_a_ready_engine_end_the_start(progress: Progress) -> None:
    progress.report(snapshot(failures=[FAILURE, FAILURE]))
    with pytest.raises(EngineStartError, match="no weights"):
        progress.report(snapshot(failures=[FAILURE] * 3))


def test_failures_are_tolerated_while_the_model_is_served(progress: Progress) -> None:
    progress.report(snapshot([READY], failures=[FAILURE] * 3))


def test_fleet_that_was_ready_goes_on_without_an_engine(out: StringIO, progress: Progress) -> None:
    progress.report(snapshot([READY], [GATEWAY, replace(GATEWAY, id="g2")]))
    assert "ready: " in out.getvalue()
    progress.report(snapshot(failures=[FAILURE] * 3))
    assert "failed to start 3 times: no weights" in out.getvalue()


def test_final_failure_ends_the_start_at_once(progress: Progress) -> None:
    final = replace(FAILURE, engine="gw-1", is_final=True)
    with pytest.raises(GatewayStartError, match="coder"):
        progress.report(snapshot([READY], failures=[final]))


def test_closed_pipe_does_not_stop_the_launcher() -> None:
    class Closed(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Stages(Closed()).say("stopping")
