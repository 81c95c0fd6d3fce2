"""Records and messages of a fleet's registry, and their encoding. Independent of Ray.

The registry is a detached actor that may be older or newer than the engines, gateways and commands
that call it. Ray's own pickle names modules, so an old registry could not read a class that moved.
Therefore calls and answers are bytes: msgpack as on the wire, each message with the version of the
program that wrote it. Compatibility: fields are only ever added, at the end and with a default; a
reader ignores fields that it does not know; programs one version apart understand each other.
Anything else is a ProtocolError here, a `CallRefused` from the registry and a line in the caller's
log.
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
    """A value of `EngineState`; a newer engine may use one that is unknown here."""
    is_loading: bool = False
    """Whether it holds one of its node's slots for starting engines."""
    host: str = ""
    port: int = 0
    """The address that gateways connect to, once it is ready."""
    secret: str = ""
    description: EngineDescription | None = None
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    reason: str = ""
    """Why it is quarantined or draining."""
    stages: tuple[Stage, ...] = ()
    """Stages of its start."""
    pool: str = ""
    """The model's pool that it belongs to; empty if the model has none."""
    nodes: tuple[str, ...] = ()
    """Every node that it spans, including `node`; empty if the engine does not report them."""
    replaces: str = ""
    """While it starts: the drained engine in whose place it starts; empty if there is none."""


class GatewayRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One gateway, as it announces itself."""

    id: str
    node: str
    pid: int
    is_ready: bool
    models: tuple[str, ...] = ()
    """The models that it can serve now."""
    requests: int = 0
    """Requests in flight."""
    stages: tuple[Stage, ...] = ()
    """Stages of its start."""
    state: str = ""
    """A value of `GatewayState`; empty if the gateway does not report it."""
    reason: str = ""
    """Why it is draining."""


class DrainOrder(msgspec.Struct, frozen=True):
    """Why an engine or gateway has to drain, and how long its streams have to move or to end.
    Ordered by an operator, or because its node or pod is about to be removed."""

    reason: str
    deadline_s: float


class StartFailure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An engine or gateway that failed to start."""

    engine: str
    """The engine, or the gateway."""
    model: str
    """The model; of a gateway that failed for none in particular, empty."""
    reason: str
    log_file: str | None
    is_final: bool = False
    """Whether a retry would fail in the same way."""


class Departure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An engine or gateway that left the fleet."""

    id: str
    model: str
    """Empty for a gateway."""
    reason: str
    pool: str = ""
    """The model's pool that an engine belonged to; empty if the model has none."""


class Message(msgspec.Struct, tag_field="kind", omit_defaults=True):
    """A call to a registry, or its answer."""


# Calls.


class AnnounceEngine(Message, tag="announce_engine"):
    """List an engine. The answer is Orders."""

    record: EngineRecord
    node_cores: int


class AnnounceGateway(Message, tag="announce_gateway"):
    """List a gateway. The answer is EngineList."""

    record: GatewayRecord


class Withdraw(Message, tag="withdraw"):
    """Remove an engine or gateway."""

    id: str
    reason: str = ""
    """Why it leaves."""
    is_replaced: bool = False
    """Whether it leaves after a drain that was ordered, so that Serve starts another."""


class ReportFailure(Message, tag="report_failure"):
    failure: StartFailure


class DrainEngine(Message, tag="drain_engine"):
    """Order an engine or gateway to drain; it receives the order with its next announcement."""

    engine: str
    order: DrainOrder


class CloseNode(Message, tag="close_node"):
    """Keep engines from starting on a node for `for_s` seconds."""

    node: str
    for_s: float


class FirstPackage(Message, tag="first_package"):
    """Ask for the package in which this code was first deployed. `uri` becomes that package if
    there is none yet, or if it is `missing` now. The answer is CodePackage."""

    code: str
    uri: str
    missing: str = ""


class Read(Message, tag="read"):
    """Ask for everything that is listed. The answer is Snapshot."""


# Answers.


class Done(Message, tag="done"):
    pass


class Orders(Message, tag="orders"):
    """Orders for an engine."""

    may_load: bool = False
    """Whether it may start loading now: few engines may start on one node at a time."""
    drain: DrainOrder | None = None
    replaces: str = ""
    """The drained engine in whose place it starts; empty if there is none."""


class EngineList(Message, tag="engines"):
    """The listed engines and an order, for a gateway."""

    engines: tuple[EngineRecord, ...] = ()
    drain: DrainOrder | None = None


class CodePackage(Message, tag="package"):
    uri: str


class Snapshot(Message, tag="snapshot"):
    """Everything that is listed, and the latest start failures."""

    engines: tuple[EngineRecord, ...]
    gateways: tuple[GatewayRecord, ...]
    failures: tuple[StartFailure, ...]
    departures: tuple[Departure, ...] = ()
    """The latest ones."""
    up_s: float | None = None
    """Age of the registry's list. A young one is incomplete."""
    awaited: tuple[Departure, ...] = ()
    """Drained engines whose replacements have not announced themselves yet."""


class CallRefused(Message, tag="refused"):
    """The registry could not decode the call."""

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
Answer = Done | Orders | EngineList | CodePackage | Snapshot | CallRefused


class _Envelope(msgspec.Struct, array_like=True):
    version: int
    message: msgspec.Raw


_encoder: Final = msgspec.msgpack.Encoder()
_envelopes: Final = msgspec.msgpack.Decoder(_Envelope)
_requests: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_answers: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(message: Message) -> bytes:
    """Encode a message, with this program's version."""
    return _encoder.encode(_Envelope(VERSION, msgspec.Raw(_encoder.encode(message))))


def decode_request(data: bytes) -> Request:
    """Decode a call. Raises ProtocolError."""
    try:
        return _requests.decode(_opened(data))
    except _BROKEN as error:
        raise ProtocolError(f"cannot decode the call: {error}") from error


def decode_answer(data: bytes) -> Answer:
    """Decode an answer. Raises ProtocolError, also for a `CallRefused`."""
    try:
        answer = _answers.decode(_opened(data))
    except _BROKEN as error:
        raise ProtocolError(f"cannot decode the answer of the fleet's registry: {error}") from error
    if isinstance(answer, CallRefused):
        raise ProtocolError(f"the fleet's registry refused the call: {answer.reason}")
    return answer


def _opened(data: bytes) -> msgspec.Raw:
    envelope = _envelopes.decode(data)
    if abs(envelope.version - VERSION) > 1:
        raise ProtocolError(
            f"registry messages of version {envelope.version} cannot be read by version {VERSION}"
        )
    return envelope.message
