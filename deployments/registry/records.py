"""What a fleet's registry knows and is asked: records, messages, and both as bytes. No Ray.

The registry is a detached actor, which may be older or newer than the engines, gateways and
commands that call it, and Ray's own pickle names modules: an old registry cannot read a class that
moved. So only bytes cross to it and back, msgpack as on the wire, each message with the version of
the program that wrote it. Compatibility: fields are only ever added, at the end and with a default;
a reader ignores fields that it does not know; programs one version apart understand each other.
Anything else is a ProtocolError here, a `Refused` from the registry and a line in the caller's log.
"""

from __future__ import annotations

from typing import Final

import msgspec

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.registry.stages import Stage
from qwenfleet.deployments.wire.frames import EngineDescription

VERSION: Final = 1


class EngineRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One engine, as it announces itself."""

    id: str
    model: str
    node: str
    pid: int
    """The process of its EngineHost."""
    state: str
    """A value of `EngineState`; a newer engine may be in one that we do not know."""
    is_loading: bool = False
    """Whether it holds one of its node's places for starting engines."""
    host: str = ""
    port: int = 0
    """Where its wire listens, once it is ready."""
    secret: str = ""
    description: EngineDescription | None = None
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    reason: str = ""
    """Why it is quarantined or draining."""
    stages: tuple[Stage, ...] = ()
    """Of its start."""
    pool: str = ""
    """The model's pool that it belongs to; empty when the model has none."""
    nodes: tuple[str, ...] = ()
    """Every node that it spans, `node` among them; empty from an engine that does not say."""


class GatewayRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One gateway, as it announces itself."""

    id: str
    node: str
    pid: int
    is_ready: bool
    models: tuple[str, ...] = ()
    """The models that it can answer for now."""
    requests: int = 0
    """Requests in flight."""
    stages: tuple[Stage, ...] = ()
    """Of its start."""


class DrainOrder(msgspec.Struct, frozen=True):
    """Why an engine has to leave, and how long its streams have to move: an operator asks for it,
    or its node or pod is about to go."""

    reason: str
    deadline_s: float


class StartFailure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An engine that did not come up."""

    engine: str
    model: str
    reason: str
    log_file: str | None
    is_final: bool = False
    """Whether another try would fail in the same way."""


class Message(msgspec.Struct, tag_field="kind", omit_defaults=True):
    """Anything that is asked of a registry, or that it answers."""


# What is asked.


class AnnounceEngine(Message, tag="announce_engine"):
    """List an engine. The answer is Orders."""

    record: EngineRecord
    node_cores: int


class AnnounceGateway(Message, tag="announce_gateway"):
    """List a gateway. The answer is Engines."""

    record: GatewayRecord


class Withdraw(Message, tag="withdraw"):
    """An engine or gateway leaves."""

    id: str


class ReportFailure(Message, tag="report_failure"):
    failure: StartFailure


class DrainEngine(Message, tag="drain_engine"):
    """The engine gets the order with its next announcement."""

    engine: str
    order: DrainOrder


class CloseNode(Message, tag="close_node"):
    """Let no engine start on a node for so many seconds."""

    node: str
    for_s: float


class FirstPackage(Message, tag="first_package"):
    """In which package did this code come first: this one, if in none yet, or in the one that is
    `missing` now? The answer is Package."""

    code: str
    uri: str
    missing: str = ""


class Read(Message, tag="read"):
    """The answer is Snapshot."""


# What is answered.


class Done(Message, tag="done"):
    pass


class Orders(Message, tag="orders"):
    """For an engine."""

    may_load: bool = False
    """Whether it is its turn: few engines may start on one node at a time."""
    drain: DrainOrder | None = None


class Engines(Message, tag="engines"):
    """For a gateway: who is listed."""

    engines: tuple[EngineRecord, ...] = ()


class Package(Message, tag="package"):
    uri: str


class Snapshot(Message, tag="snapshot"):
    """All that is listed, and the last failures."""

    engines: tuple[EngineRecord, ...]
    gateways: tuple[GatewayRecord, ...]
    failures: tuple[StartFailure, ...]


class Refused(Message, tag="refused"):
    """The registry does not understand the caller."""

    reason: str


Request = (
    AnnounceEngine
    | AnnounceGateway
    | Withdraw
    | ReportFailure
    | DrainEngine
    | CloseNode
    | FirstPackage
    | Read
)
Answer = Done | Orders | Engines | Package | Snapshot | Refused


class _Envelope(msgspec.Struct, array_like=True):
    version: int
    message: msgspec.Raw


_encoder: Final = msgspec.msgpack.Encoder()
_envelopes: Final = msgspec.msgpack.Decoder(_Envelope)
_requests: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_answers: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(message: Message) -> bytes:
    """A message with our version."""
    return _encoder.encode(_Envelope(VERSION, msgspec.Raw(_encoder.encode(message))))


def decode_request(data: bytes) -> Request:
    """Raises ProtocolError."""
    try:
        return _requests.decode(_opened(data))
    except _BROKEN as error:
        raise ProtocolError(f"cannot decode the call: {error}") from error


def decode_answer(data: bytes) -> Answer:
    """Raises ProtocolError, for a registry that refuses too."""
    try:
        answer = _answers.decode(_opened(data))
    except _BROKEN as error:
        raise ProtocolError(f"cannot decode the answer of the fleet's registry: {error}") from error
    if isinstance(answer, Refused):
        raise ProtocolError(f"the fleet's registry refused the call: {answer.reason}")
    return answer


def _opened(data: bytes) -> msgspec.Raw:
    envelope = _envelopes.decode(data)
    if abs(envelope.version - VERSION) > 1:
        raise ProtocolError(
            f"registry messages of version {envelope.version} cannot be read by version {VERSION}"
        )
    return envelope.message
