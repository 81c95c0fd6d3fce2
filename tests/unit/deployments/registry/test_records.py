"""Records and messages cross versions: new fields are ignored, incompatible versions refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.registry import records
from qwenfleet.deployments.registry.records import (
    AnnounceEngine,
    Answer,
    CallRefused,
    Done,
    DrainEngine,
    DrainOrder,
    EngineList,
    EngineRecord,
    GatewayRecord,
    Orders,
    ReportFailure,
    Request,
    Snapshot,
    StartFailure,
)
from qwenfleet.deployments.registry.stages import Stage
from qwenfleet.deployments.wire.frames import EngineDescription

ENGINE = EngineRecord(
    "e1",
    "coder",
    "node-1",
    7,
    "ready",
    host="10.0.0.1",
    port=99,
    secret="s",
    description=EngineDescription(max_model_len=4096),
    stages=(Stage("loading the model", 1.0, 2.0), Stage("warming up", 3.0)),
    nodes=("node-1", "node-2"),
)
GATEWAY = GatewayRecord("g1", "node-1", 8, is_ready=True, models=("coder",))
FAILURE = StartFailure("e0", "coder", "no memory", None)


def written_by(version: int, message: dict[str, Any]) -> bytes:
    """Encode a message as a program of that version would."""
    return msgspec.msgpack.encode([version, message])


def tree_of(message: records.Message) -> dict[str, Any]:
    """A message as maps and lists, so that a test can change it like another version."""
    _, tree = msgspec.msgpack.decode(records.encode(message))
    assert isinstance(tree, dict)
    return tree


@pytest.mark.parametrize(
    "request_",
    [
        AnnounceEngine(ENGINE, 8),
        records.AnnounceGateway(GATEWAY),
        records.Withdraw("e1"),
        ReportFailure(FAILURE),
        DrainEngine("e1", DrainOrder("an operator drains it", 60.0)),
        records.CloseNode("node-1", 9.0),
        records.FirstPackage("code", "gcs://one.zip"),
        records.Read(),
    ],
    ids=lambda request: type(request).__name__,
)
def test_a_request_survives_a_round_trip(request_: Request) -> None:
    assert records.decode_request(records.encode(request_)) == request_


@pytest.mark.parametrize(
    "answer",
    [
        Done(),
        Orders(may_load=True, drain=DrainOrder("its node is deleted", 1.0)),
        EngineList((ENGINE, ENGINE)),
        records.CodePackage("gcs://one.zip"),
        Snapshot((ENGINE,), (GATEWAY,), (FAILURE,)),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_an_answer_survives_a_round_trip(answer: Answer) -> None:
    assert records.decode_answer(records.encode(answer)) == answer


def test_a_record_of_the_next_version_is_read_without_its_new_fields() -> None:
    tree = tree_of(AnnounceEngine(ENGINE, 8))
    tree["record"] |= {"zone": "eu-1", "stages": [{"name": "x", "began_at": 1.0, "core": 3}]}
    tree["urgency"] = 2
    request = records.decode_request(written_by(records.VERSION + 1, tree))
    assert isinstance(request, AnnounceEngine)
    stages = (Stage("x", 1.0),)
    assert request.record == msgspec.structs.replace(ENGINE, stages=stages)


def test_a_record_of_the_previous_version_gets_defaults_for_missing_fields() -> None:
    tree = tree_of(AnnounceEngine(ENGINE, 8))
    for name in ("stages", "nodes", "description"):
        del tree["record"][name]
    request = records.decode_request(written_by(records.VERSION - 1, tree))
    assert isinstance(request, AnnounceEngine)
    assert (request.record.nodes, request.record.description) == ((), None)


def test_an_unknown_engine_state_does_not_break_the_list() -> None:
    tree = tree_of(EngineList((ENGINE, ENGINE)))
    tree["engines"][0]["state"] = "hibernating"
    answer = records.decode_answer(written_by(records.VERSION + 1, tree))
    assert isinstance(answer, EngineList)
    assert [engine.state for engine in answer.engines] == ["hibernating", "ready"]


@pytest.mark.parametrize("apart", [-2, 2, 40])
def test_incompatible_versions_are_refused_with_both_numbers(apart: int) -> None:
    version = records.VERSION + apart
    for decode in (records.decode_request, records.decode_answer):
        with pytest.raises(ProtocolError, match=f"version {version} .* version {records.VERSION}"):
            decode(written_by(version, {"kind": "read"}))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ProtocolError, match="cannot decode the call"):
        records.decode_request(written_by(records.VERSION + 1, {"kind": "hibernate"}))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x92\x01\xc1", b"\x92\x01\xa2\xff\xff"])
def test_invalid_bytes_are_refused(data: bytes) -> None:
    for decode in (records.decode_request, records.decode_answer):
        with pytest.raises(ProtocolError):
            decode(data)


def test_a_refusal_is_reported_with_its_reason() -> None:
    with pytest.raises(ProtocolError, match="refused the call: too old"):
        records.decode_answer(records.encode(CallRefused("too old")))


def test_records_do_not_import_ray() -> None:
    code = (
        "import sys; import qwenfleet.deployments.registry.records; "
        "assert not {'ray', 'vllm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
