"""Tests which start failures are reported, and which end the start."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import EngineStartError, GatewayStartError
from qwenfleet.deployments.operations.failures import Deployed, Failures, reason_of
from qwenfleet.deployments.registry.records import (
    EngineRecord,
    GatewayRecord,
    Snapshot,
    StartFailure,
)

NMS = "operator torchvision::nms does not exist"
READY = EngineRecord(id="e1", model="coder", node="n", pid=1, state="ready")
GATEWAY = GatewayRecord("gw-1", "n", 2, is_ready=True, models=("coder",))
RETRYING = "A replica failed to start with exception. Retrying {} more time(s). Error:\n{}"
TRACEBACK = f"ray::ServeReplica:a:gateway (pid={{}})\n  File x, line 1\nRuntimeError: {NMS}"


@pytest.fixture
def failures() -> Failures:
    return Failures(FleetConfig(models=(ModelConfig(id="coder"), ModelConfig(id="small"))))


def failed(*ids: str, reason: str = NMS, model: str = "coder") -> tuple[StartFailure, ...]:
    return tuple(StartFailure(id, model, reason, "/log") for id in ids)


def snapshot(failed: Any = (), engines: Any = (), gateways: Any = ()) -> Snapshot:
    return Snapshot(tuple(engines), tuple(gateways), tuple(failed))


def test_first_failure_may_be_chance_the_second_is_reported_and_the_third_ends(
    failures: Failures,
) -> None:
    assert failures.judge(snapshot(failed("gw-1", model=""))) == []
    twice = snapshot(failed("gw-1", "gw-2", model=""))
    assert failures.judge(twice) == [f"a gateway failed to start 2 times: {NMS} (see /log)"]
    assert failures.judge(twice) == []
    with pytest.raises(GatewayStartError, match=NMS):
        failures.judge(snapshot(failed("gw-1", "gw-2", "gw-3", model="")))


def test_failures_are_identical_but_for_ids_and_addresses(failures: Failures) -> None:
    reasons = "worker 12 died at 0x7f01", "worker 977 died at 0x7fff"
    first, second = (failed(f"e{n}", reason=reason)[0] for n, reason in enumerate(reasons))
    (sentence,) = failures.judge(snapshot([first, second]))
    assert sentence == f"an engine of coder failed to start 2 times: {reasons[1]} (see /log)"


def test_three_different_failures_end_the_start_too(failures: Failures) -> None:
    different = [failed(f"e{n}", reason=reason)[0] for n, reason in enumerate(("a", "b", "c"))]
    with pytest.raises(EngineStartError, match="'coder' did not start: a"):
        failures.judge(snapshot(different))


def test_what_serves_goes_on_and_the_failures_of_others_are_reported(failures: Failures) -> None:
    """The registry forgets failures while the model has a ready engine."""
    sentences = [failures.judge(snapshot(failed(f"e{n}"), [READY])) for n in range(2, 10)]
    counts = [sentence.split(" times")[0][-1] for (sentence,) in filter(None, sentences)]
    assert counts == ["2", "4", "8"]
    assert failures.judge(snapshot(failed("e2", "e3", "e4"), [READY])) == []


def test_final_failure_of_a_gateway_ends_the_start_unless_another_serves(
    failures: Failures,
) -> None:
    final = [replace(one, is_final=True) for one in failed("gw-9")]
    with pytest.raises(GatewayStartError, match=f"model 'coder': {NMS}"):
        failures.judge(snapshot(final, [READY], [replace(GATEWAY, models=("small",))]))
    (sentence,) = failures.judge(snapshot(final, [READY], [GATEWAY]))
    assert sentence.startswith("a gateway failed to start: model 'coder'")


def test_fleet_that_has_served_goes_on_whatever_fails(failures: Failures) -> None:
    """One model's engine must not end the streams of another, nor an old failure the fleet."""
    final = [replace(one, is_final=True) for one in failed("gw-9")]
    hopeless = snapshot([*failed("e1", "e2", "e3", model="small"), *final])
    sentences = failures.judge(hopeless, has_served=True)
    assert [sentence.split(":")[0] for sentence in sentences] == [
        "an engine of small failed to start 3 times",
        "a gateway failed to start",
    ]


def test_failures_before_our_code_runs_are_read_from_serve(failures: Failures) -> None:
    def judge(left: int) -> list[str]:
        message = RETRYING.format(left, TRACEBACK.format(left))
        return failures.judge(None, [Deployed("gateway", "UPDATING", message)])

    assert judge(2) == []
    (sentence,) = judge(1)
    assert sentence == f"a gateway failed to start 2 times: RuntimeError: {NMS}"
    with pytest.raises(GatewayStartError, match=NMS):
        judge(0)


def test_serve_that_has_given_up_ends_the_start(failures: Failures) -> None:
    message = f"The deployment failed to start 3 times in a row. Error:\n{TRACEBACK}"
    one = Deployed("engine-1", "DEPLOY_FAILED", message)
    with pytest.raises(EngineStartError, match=f"'small' did not start: RuntimeError: {NMS}"):
        failures.judge(snapshot(), [one])


def test_failure_in_both_sources_is_counted_once(failures: Failures) -> None:
    again = Deployed("engine-0", "UPDATING", RETRYING.format(1, TRACEBACK))
    assert failures.judge(snapshot(failed("e1")), [again]) == []


def test_healthy_deployments_report_nothing(failures: Failures) -> None:
    assert failures.judge(snapshot(), [Deployed("gateway", "HEALTHY", running=1)]) == []
    assert failures.judge(None) == []


def test_reason_is_one_line() -> None:
    assert reason_of("\x1b[36mThe actor\ndied.\x1b[39m") == "The actor died"
    assert len(reason_of("x" * 1000)) == 300
